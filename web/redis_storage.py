"""Rate limits in Redis: the `limits` library's own storage, with short waits."""

from limits.storage import RedisStorage
from redis import ConnectionPool, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

TIMEOUT_S = 0.5
"""How long a login may wait for Redis, to connect and for each answer."""

FAILURES = (RedisError, OSError)


def connect(url: str) -> RedisStorage:
    """Return the storage in the Redis of a URL; the first count connects."""
    # One more try, for a connection that a server closed while it was idle.
    pool = ConnectionPool.from_url(
        url,
        socket_connect_timeout=TIMEOUT_S,
        socket_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 1),
    )
    return RedisStorage(url, connection_pool=pool, key_prefix="vade")
