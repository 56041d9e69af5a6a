"""How Alembic runs: on the application's engine, one transaction a migration, one process at a time."""

import logging
import time

from alembic import context
from flask import current_app
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import OperationalError

from billing.transactions import TRANSIENT, first_line, sqlstate
from config import ConfigError
from models import db

MIGRATION_LOCK = 0x7661646502
"""Key of the advisory lock that makes a second `flask db upgrade` wait for the first."""

LOCK_TIMEOUT = "SET LOCAL lock_timeout = '2s'"
"""While a migration waits for a table's lock, all who come after it wait too: the queue stands still."""

TRIES = 30


def migrate(connection: Connection) -> None:
    """Apply what is missing; what cannot get a lock at once steps back, and tries again a moment later."""
    for left in reversed(range(TRIES)):
        context.configure(
            connection=connection,
            target_metadata=db.metadata,
            transaction_per_migration=True,
            **current_app.extensions["migrate"].configure_args,
        )
        try:
            with context.begin_transaction():
                context.run_migrations()
            connection.commit()
        except OperationalError as error:
            connection.rollback()
            if sqlstate(error) not in TRANSIENT:
                raise
            if not left:
                raise ConfigError("A migration waits for a lock that someone keeps: run it again.") from error
            time.sleep(1)
        else:
            return


if context.is_offline_mode():
    context.configure(dialect_name="postgresql", target_metadata=db.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    logging.getLogger("alembic.runtime.migration").setLevel(logging.INFO)
    try:
        opened = db.engine.connect()
    except OperationalError as error:
        raise ConfigError(f"The database does not answer: {first_line(error)}.") from error
    with opened as connection, db.engine.connect() as alone:
        # Of a transaction, not of a session: behind a pooler in transaction mode, no one has a session.
        alone.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        # Said last: it takes no snapshot, and for that of a SELECT a CREATE INDEX CONCURRENTLY would wait.
        alone.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        event.listen(connection, "begin", lambda begun: begun.exec_driver_sql(LOCK_TIMEOUT))
        migrate(connection)
