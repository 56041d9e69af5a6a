"""Rate limits, counted in the database or in Redis, so that all API processes count together.

An answer to what was counted says what is left, as draft-ietf-httpapi-ratelimit-headers-10 has it.
"""

import logging
import math
import time
from dataclasses import dataclass
from typing import Any, cast

from flask import Flask, Response, after_this_request, current_app, request
from limits import RateLimitItemPerMinute
from limits.storage import Storage
from limits.strategies import FixedWindowRateLimiter
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from billing.companies import email_key
from billing.errors import RateLimitError
from config import DATABASE, Settings
from models import db
from web.context import vade

logger = logging.getLogger(__name__)

LOGINS = RateLimitItemPerMinute(10, namespace="login")
PINGS = RateLimitItemPerMinute(10, namespace="ping")
REGISTRATIONS = RateLimitItemPerMinute(60, namespace="register")

LIMITER = "vade-limiter"
AWAY_S = 5.0
"""For how long Redis is not asked again after it failed."""

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


@dataclass(frozen=True, slots=True)
class Window:
    """What one caller has left of a limit: so many calls, until the window ends in so many seconds."""

    item: RateLimitItemPerMinute
    is_exceeded: bool
    remaining: int
    reset_s: int

    def headers(self) -> dict[str, str]:
        """Return ``RateLimit-Policy`` and ``RateLimit``, lists of one item with parameters (RFC 9651)."""
        name = f'"{self.item.namespace}"'
        return {
            "RateLimit-Policy": f"{name};q={self.item.amount};w={self.item.get_expiry()}",
            "RateLimit": f"{name};r={self.remaining};t={self.reset_s}",
        }


class Limiter:
    """Counts calls in Redis, if there is one, and in the database where Redis does not answer.

    A limit then begins anew, which lets some calls more through; nobody is locked out, and logins stay
    limited.
    """

    def __init__(self, redis_url: str | None = None) -> None:
        self._own = FixedWindowRateLimiter(PostgresStorage())
        self._redis: FixedWindowRateLimiter | None = None
        self._failures: tuple[type[Exception], ...] = ()
        self._away_until_s = 0.0
        if redis_url is not None:
            # Half of the time that a process takes to start: only for those that want it.
            from web import redis_storage  # noqa: PLC0415

            self._redis = FixedWindowRateLimiter(redis_storage.connect(redis_url))
            self._failures = redis_storage.FAILURES

    def hit(self, item: RateLimitItemPerMinute, who: str) -> Window:
        """Count a call, and return what is left."""
        if self._redis is not None and time.monotonic() >= self._away_until_s:
            try:
                return _hit(self._redis, item, who)
            except self._failures as error:
                self._away_until_s = time.monotonic() + AWAY_S
                logger.warning("Redis does not answer: rate limits are counted in the database (%s)", error)
        return _hit(self._own, item, who)


def _hit(limiter: FixedWindowRateLimiter, item: RateLimitItemPerMinute, who: str) -> Window:
    is_exceeded = not limiter.hit(item, who)
    reset_at_s, remaining = limiter.get_window_stats(item, who)
    # Kept within the window, should this machine's clock not agree with the counter's.
    reset_s = min(item.get_expiry(), max(1, math.ceil(reset_at_s - time.time())))
    return Window(item, is_exceeded, remaining, reset_s)


def serve(app: Flask, settings: Settings) -> None:
    """Count as the settings say."""
    storage = settings.rate_limit_storage
    app.extensions[LIMITER] = Limiter(None if storage == DATABASE else storage)


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
    limiter = cast(Limiter, current_app.extensions[LIMITER])
    window = limiter.hit(item, who)

    @after_this_request
    def tell(response: Response) -> Response:
        response.headers.update(window.headers())
        return response

    if window.is_exceeded:
        raise RateLimitError(window.reset_s)
