"""Rate limits, counted in the database so that all API processes count together."""

import math
import time
from typing import Any

from flask import request
from limits import RateLimitItemPerMinute
from limits.storage import Storage
from limits.strategies import FixedWindowRateLimiter
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from billing.companies import email_key
from billing.errors import RateLimitError
from models import db
from web.context import vade

LOGINS = RateLimitItemPerMinute(10, namespace="login")
PINGS = RateLimitItemPerMinute(10, namespace="ping")
REGISTRATIONS = RateLimitItemPerMinute(60, namespace="register")

_HIT = text("""
INSERT INTO rate_limits AS r (key, hits, expires_at)
VALUES (:key, :amount, now() + make_interval(secs => :expiry))
ON CONFLICT (key) DO UPDATE SET
    hits = CASE WHEN r.expires_at <= now() THEN excluded.hits ELSE r.hits + excluded.hits END,
    expires_at = CASE WHEN r.expires_at <= now() THEN excluded.expires_at ELSE r.expires_at END
RETURNING hits
""")


class PostgresStorage(Storage):
    """The `limits` library's storage on the table ``rate_limits``; each call is a transaction of its own."""

    STORAGE_SCHEME = ["vade"]  # noqa: RUF012 - the library's name and type

    @property
    def base_exceptions(self) -> type[Exception]:
        """What is raised when the database fails."""
        return SQLAlchemyError

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Count a hit and return how many the window has; ``expiry`` is its length in seconds."""
        with db.engine.begin() as connection:
            hits: int = connection.execute(
                _HIT, {"key": key, "amount": amount, "expiry": expiry}
            ).scalar_one()
            return hits

    def get(self, key: str) -> int:
        """Return how many hits the window has."""
        return int(self._value("hits", key) or 0)

    def get_expiry(self, key: str) -> float:
        """Return when the window ends, in seconds since 1970."""
        return float(self._value("extract(epoch FROM expires_at)", key) or time.time())

    def check(self) -> bool:
        """Return whether the database answers."""
        try:
            self.get("")
        except SQLAlchemyError:
            return False
        return True

    def reset(self) -> int | None:
        """Forget all windows."""
        with db.engine.begin() as connection:
            return connection.execute(text("DELETE FROM rate_limits")).rowcount

    def clear(self, key: str) -> None:
        """Forget one window."""
        with db.engine.begin() as connection:
            connection.execute(text("DELETE FROM rate_limits WHERE key = :key"), {"key": key})

    def _value(self, column: str, key: str) -> Any:
        query = text(f"SELECT {column} FROM rate_limits WHERE key = :key AND expires_at > now()")  # noqa: S608
        with db.engine.begin() as connection:
            return connection.execute(query, {"key": key}).scalar_one_or_none()


_limiter = FixedWindowRateLimiter(PostgresStorage())


def count_login(email: str) -> None:
    """Count a login for an e-mail, or raise `RateLimitError` where there were too many."""
    _count(LOGINS, email_key(email))


def count_registration() -> None:
    """Count a registration from an address, or raise `RateLimitError` where there were too many."""
    _count(REGISTRATIONS, request.remote_addr or "unknown")


def count_ping(endpoint_id: int) -> None:
    """Count a ping of an endpoint, or raise `RateLimitError` where there were too many."""
    _count(PINGS, str(endpoint_id))


def _count(item: RateLimitItemPerMinute, who: str) -> None:
    if not vade().settings.rate_limits:
        return
    if not _limiter.hit(item, who):
        reset_s, _ = _limiter.get_window_stats(item, who)
        # Kept within the window, should this machine's clock not agree with the database's.
        raise RateLimitError(min(item.get_expiry(), max(1, math.ceil(reset_s - time.time()))))
