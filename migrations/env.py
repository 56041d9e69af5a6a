"""How Alembic runs: on the application's engine, one transaction a migration, one process at a time."""

import logging

from alembic import context
from flask import current_app
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from billing.transactions import first_line
from config import ConfigError
from models import db

MIGRATION_LOCK = 0x7661646502
"""Key of the advisory lock that makes a second `flask db upgrade` wait for the first."""

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
    with opened as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATION_LOCK})
        connection.commit()
        context.configure(
            connection=connection,
            target_metadata=db.metadata,
            transaction_per_migration=True,
            **current_app.extensions["migrate"].configure_args,
        )
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": MIGRATION_LOCK})
        connection.commit()
