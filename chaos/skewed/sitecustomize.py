"""On PYTHONPATH, this makes a process's wall clock wrong by CHAOS_CLOCK_OFFSET_S seconds from the beginning.

`time` and `datetime` are what Python code asks for the time of day; the monotonic clock is left alone.
"""

import datetime as _datetime
import os
import time
from typing import Any

_OFFSET_S = int(os.environ.get("CHAOS_CLOCK_OFFSET_S", "0"))
_true_time, _true_time_ns = time.time, time.time_ns
_true_localtime, _true_gmtime, _true_strftime = time.localtime, time.gmtime, time.strftime
_True = _datetime.datetime


class _Class(type(_True)):  # type: ignore[misc]
    """Lets what C code made, an instance of the true class, pass for one of this."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _True)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, _True)


class _Skewed(_True, metaclass=_Class):
    """``datetime`` with a present that is wrong."""

    @classmethod
    def now(cls, tz: _datetime.tzinfo | None = None) -> Any:
        return cls.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls) -> Any:
        return cls.fromtimestamp(time.time(), _datetime.UTC).replace(tzinfo=None)

    @classmethod
    def today(cls) -> Any:
        return cls.fromtimestamp(time.time())


class _SkewedDate(_datetime.date):
    """``date`` with a present that is wrong."""

    @classmethod
    def today(cls) -> Any:
        return _Skewed.today().date()


if _OFFSET_S:
    time.time = lambda: _true_time() + _OFFSET_S
    time.time_ns = lambda: _true_time_ns() + _OFFSET_S * 10**9
    time.localtime = lambda seconds=None: _true_localtime(time.time() if seconds is None else seconds)
    time.gmtime = lambda seconds=None: _true_gmtime(time.time() if seconds is None else seconds)
    time.strftime = lambda format_, moment=None: _true_strftime(
        format_, time.localtime() if moment is None else moment
    )
    _datetime.datetime = _Skewed  # type: ignore[misc]
