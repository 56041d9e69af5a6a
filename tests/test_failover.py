"""The primary is lost and its standby promoted: what was acknowledged is there, and all goes on by itself."""

from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from billing.transactions import run_in_transaction
from chaos.failover import fail_over
from tests.conftest import settings_for
from tests.deliveries import own_engine


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_with_the_primary(tmp_path: Path) -> None:
    outcome = fail_over(tmp_path, companies=200, seconds=1.0, step=lambda _: None)

    assert outcome.faults == 0, outcome
    assert min(outcome.acknowledged, outcome.seen, outcome.charged) > 0, outcome


def test_a_server_that_takes_no_writes_any_more_is_left(database_url: str, tmp_path: Path) -> None:
    """It was the primary when the connections in the pool were opened."""
    with own_engine(settings_for(database_url, tmp_path)) as engine:
        with engine.connect() as connection:
            connection.execute(text("SET default_transaction_read_only = on"))
            connection.commit()
            demoted = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()

        write = text("INSERT INTO counters (name, value) VALUES ('writes', 1) RETURNING pg_backend_pid()")
        wrote = run_in_transaction(engine, lambda session: session.execute(write).scalar_one())

    assert wrote != demoted


def test_a_server_that_takes_no_writes_is_not_connected_to(database_url: str, tmp_path: Path) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on'.encode())

    with (
        own_engine(settings_for(database_url, tmp_path)) as engine,
        pytest.raises(OperationalError, match="read-only"),
    ):
        engine.connect()
