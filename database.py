"""Connections to PostgreSQL: any libpq URL as it is, or the embedded server where none is set."""

from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import ReadOnlySqlTransaction
from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext

import embedded
from config import ConfigError, Settings

MINIMUM_SERVER_VERSION = 150000
"""PostgreSQL 15, as libpq numbers it."""

DEFAULTS: dict[str, Any] = {
    "application_name": "vade",
    # For each of several hosts; where the first is a standby or dead, the next is asked.
    "connect_timeout": 5,
    "target_session_attrs": "read-write",
    # A server that vanished without a word is noticed within half a minute: while its answer is waited for,
    # and while what was sent to it is not acknowledged, when keepalives are silent.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}

SESSION = """
SELECT set_config('idle_in_transaction_session_timeout', '60s', false),
    set_config('tcp_keepalives_idle', '10', false), set_config('tcp_keepalives_interval', '5', false),
    set_config('tcp_keepalives_count', '3', false)
"""
"""A process that froze or vanished in the middle of a transaction gives its locks back within a minute.

Behind a pooler in transaction mode only some of its server connections hear this, so that its own
``idle_transaction_timeout`` has to say it.
"""


def connect(settings: Settings) -> psycopg.Connection[Any]:
    """Return a new connection.

    Raises:
        ConfigError: when the server is older than PostgreSQL 15.
        psycopg.OperationalError: when the server does not answer.
    """
    url = settings.database_url or embedded.join(settings)
    connection = psycopg.connect(**(DEFAULTS | conninfo_to_dict(url)))
    # A pooler gives each transaction another server connection, which knows no other one's statements.
    connection.prepare_threshold = None
    connection.autocommit = True
    connection.execute(SESSION)
    connection.autocommit = False
    version = connection.info.server_version
    if version < MINIMUM_SERVER_VERSION:
        connection.close()
        found = version // 10000
        raise ConfigError(f"DATABASE_URL: PostgreSQL 15 or newer is wanted, this server is {found}.")
    return connection


def engine_options(settings: Settings) -> dict[str, Any]:
    """Return what SQLAlchemy's engine needs to connect as `connect` does; nothing is opened yet."""
    return {
        "creator": lambda: connect(settings),
        # A connection that died in the pool is replaced before a request meets it.
        "pool_pre_ping": True,
        # The queue looks again after each lock; a stricter default of the role's would show it the past.
        "isolation_level": "READ COMMITTED",
        "pool_size": 10,
        "max_overflow": 10,
        # An error's text goes to the log, where e-mails, hashes and secrets have no business.
        "hide_parameters": True,
    }


@event.listens_for(Engine, "handle_error")
def _leave_read_only_server(context: ExceptionContext) -> None:
    """Drop the pooled connections to a server that takes no writes any more: another is the primary."""
    if isinstance(context.original_exception, ReadOnlySqlTransaction):
        context.is_disconnect = True
