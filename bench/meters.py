"""Where the time of a process goes that works on PostgreSQL: by statement, and by who spends it.

Everything is measured at the driver, so that it holds for whatever calls it. What the server spends is told
by the server itself: with ``log_duration`` it sends a notice with the duration of each step.
"""

import re
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg

from bench.world import with_options
from config import PROJECT_DIR

_DURATION = re.compile(r"duration: ([\d.]+) ms")
_PRODUCT = (str(PROJECT_DIR / "billing"), str(PROJECT_DIR / "bench" / "plain.py"))
SAMPLE_S = 0.001


@dataclass(slots=True)
class Spent:
    """Seconds of one kind of statement: all of the call, and of that what the server says it took."""

    calls: int = 0
    wall_s: float = 0.0
    server_s: float = 0.0


@dataclass(slots=True)
class Meter:
    """What a process spent, by name of what called the driver."""

    statements: defaultdict[str, Spent] = field(default_factory=lambda: defaultdict(Spent))
    now: str | None = None
    """What the driver does at this moment; None where Python is at work."""
    before: Callable[[psycopg.Cursor[Any], Any, Any], None] | None = None
    """Told of each statement before it is executed: its cursor, query and parameters."""

    def clear(self) -> None:
        """Forget what was measured."""
        self.statements.clear()

    @contextmanager
    def spending(self, name: str) -> Iterator[None]:
        """Count what is done within, unless it is part of something that is counted already."""
        if self.now is not None:
            yield
            return
        self.now = name
        began_s = time.perf_counter()
        try:
            yield
        finally:
            spent = self.statements[name]
            spent.wall_s += time.perf_counter() - began_s
            spent.calls += 1
            self.now = None

    def hear(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        """Take over what the server says of its own time."""
        if found := _DURATION.match(diagnostic.message_primary or ""):
            self.statements[self.now or "unknown"].server_s += float(found[1]) / 1000


def told(url: str) -> str:
    """Return a URL whose sessions tell the client how long the server took, and keep it out of the log."""
    settings = ("log_duration=on", "client_min_messages=log", "log_min_messages=fatal")
    return with_options(url, " ".join(f"-c {setting}" for setting in settings))


def metered() -> Meter:
    """Measure this process's main thread from now on; its connections must be made with `told`."""
    meter = Meter()
    main = threading.get_ident()
    heard: set[int] = set()

    def wrap(kind: type[Any], method: str, named: Callable[[], str]) -> None:
        inner = getattr(kind, method)

        def outer(self: Any, *args: Any, **kwargs: Any) -> Any:
            connection = self if isinstance(self, psycopg.Connection) else self.connection
            if threading.get_ident() != main:
                return inner(self, *args, **kwargs)
            if id(connection) not in heard:
                heard.add(id(connection))
                connection.add_notice_handler(meter.hear)
            if method == "execute" and meter.before is not None and meter.now is None:
                meter.before(self, *args)
            with meter.spending(named()):
                return inner(self, *args, **kwargs)

        setattr(kind, method, outer)

    wrap(psycopg.Cursor, "execute", caller)
    for method in ("fetchone", "fetchall", "fetchmany"):
        wrap(psycopg.Cursor, method, lambda: "fetch")
    wrap(psycopg.Connection, "commit", lambda: "commit")
    wrap(psycopg.Connection, "rollback", lambda: "rollback")
    return meter


def caller() -> str:
    """Return which function of the product, at the top of the stack, is at work."""
    return product_function(sys._getframe(1)) or "elsewhere"


def product_function(frame: FrameType | None) -> str | None:
    """Return the innermost function of the product of a stack, as ``module.function``."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(_PRODUCT):
            return f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"
        frame = frame.f_back
    return None


@contextmanager
def sampled(meter: Meter, found: Counter[str]) -> Iterator[None]:
    """Count in ``found`` what the main thread is at, a thousand times a second, while Python is at work."""
    main = threading.get_ident()
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(SAMPLE_S):
            if meter.now is None:
                found[product_function(sys._current_frames().get(main)) or "elsewhere"] += 1

    # A sampler that has to wait for the interpreter would only see where Python gives it up.
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(before_s)
