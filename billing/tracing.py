"""What caused what: one id that goes from a request or a pass to its log lines and its callbacks.

The id is the present context's: a thread that is to have it runs in a copy of its starter's context.
"""

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

LONGEST_ID = 64
"""The longest id that is believed, in characters: room for a UUID or a traceparent, none for a token."""

_ACCEPTABLE = re.compile(rf"[A-Za-z0-9._-]{{1,{LONGEST_ID}}}")

_current: ContextVar[str | None] = ContextVar("request_id", default=None)


def current_id() -> str | None:
    """Return the id of the request or pass that is being worked on, or None outside of any."""
    return _current.get()


def new_id(prefix: str = "") -> str:
    """Return a fresh id: ``prefix`` and 32 hexadecimal digits."""
    return f"{prefix}{uuid.uuid4().hex}"


def accepted(id_: str | None) -> str | None:
    """Return an id that came from outside, or None where it is none that is believed."""
    return id_ if id_ is not None and _ACCEPTABLE.fullmatch(id_) else None


@contextmanager
def traced(id_: str | None) -> Iterator[None]:
    """Let an id be the current one within the block."""
    token = _current.set(id_)
    try:
        yield
    finally:
        _current.reset(token)
