"""Connections to PostgreSQL: any libpq URL as it is, or the embedded server where none is set."""

from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

import embedded
from config import ConfigError, Settings

MINIMUM_SERVER_VERSION = 150000
"""PostgreSQL 15, as libpq numbers it."""

DEFAULTS: dict[str, Any] = {
    "application_name": "vade",
    "connect_timeout": 5,
    # A server that vanished without a word is noticed within half a minute.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}


SESSION = """
SELECT set_config('idle_in_transaction_session_timeout', '60s', false),
    set_config('tcp_keepalives_idle', '10', false), set_config('tcp_keepalives_interval', '5', false),
    set_config('tcp_keepalives_count', '3', false)
"""
"""A process that froze or vanished in the middle of a transaction gives its locks back within a minute."""


def connect(settings: Settings) -> psycopg.Connection[Any]:
    """Return a new connection.

    Raises:
        ConfigError: when the server is older than PostgreSQL 15.
        psycopg.OperationalError: when the server does not answer.
    """
    url = settings.database_url or embedded.join(settings)
    connection = psycopg.connect(**(DEFAULTS | conninfo_to_dict(url)))
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
