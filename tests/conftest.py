"""A real PostgreSQL for every test: rolled back per test, or a database of the test's own."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import flask_migrate
import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import select
from sqlalchemy.orm import Session

import embedded
from billing.clock import Clock
from config import PROJECT_DIR, Settings
from models import Callback, db
from tests import catalogues, secrecy
from tests.api import DescribedClient
from tests.webhooks import assert_described_message
from tests.world import CALLBACK_SECRET, ENCRYPTION_KEY, World
from web import context
from wsgi import create_app

NOW = datetime(2026, 1, 10, 9, 0, tzinfo=UTC)
"""Where the business clock of `app` stands until a test travels."""


secrecy.watch()
catalogues.watch()


@pytest.fixture(autouse=True)
def _nothing_secret_is_logged() -> Iterator[None]:
    """Fail the test in which a secret was logged, by whichever program and thread."""
    yield
    secrecy.check()


@pytest.fixture(autouse=True)
def _every_problem_can_be_told_in_turkish() -> Iterator[None]:
    """Fail the test in which a text was told, in whatever language, that the Turkish catalogue lacks."""
    yield
    catalogues.check()


@pytest.fixture(scope="session", autouse=True)
def _nothing_secret_is_logged_in_the_end() -> Iterator[None]:
    """Fail the last test where what all share logged a secret."""
    yield
    secrecy.check()


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a server on which tests may make databases: DATABASE_URL's, else an embedded one."""
    if os.environ.get("DATABASE_URL"):
        return os.environ["DATABASE_URL"]
    base = tmp_path_factory.getbasetemp()
    # The processes of one run share one server.
    home = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "instance"
    url = embedded.join(Settings.from_env({"INSTANCE_DIR": str(home)}))
    with psycopg.connect(url, autocommit=True) as connection:
        # Nothing here outlives the run, so nothing needs to reach the disk.
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("ALTER SYSTEM SET synchronous_commit = off")
        connection.execute("SELECT pg_reload_conf()")
    return url


@pytest.fixture(scope="session")
def template(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a migrated, empty database from which the others are copied, so nobody stays in it."""
    with new_database(server_url, prefix="vade_template") as url:
        app = create_app(settings_for(url, tmp_path_factory.mktemp("template")))
        with app.app_context():
            flask_migrate.upgrade(str(PROJECT_DIR / "migrations"))
            db.engine.dispose()
        yield url


@pytest.fixture
def database_url(server_url: str, template: str) -> Iterator[str]:
    """The URL of a migrated, empty database of the test's own: for tests that commit."""
    name = conninfo_to_dict(template)["dbname"]
    with new_database(server_url, prefix="vade_test", template=str(name)) as url:
        yield url


@pytest.fixture(scope="session")
def shared_url(server_url: str, template: str) -> Iterator[str]:
    """The URL of a migrated, empty database for tests that roll back."""
    name = conninfo_to_dict(template)["dbname"]
    with new_database(server_url, prefix="vade_shared", template=str(name)) as url:
        yield url


@pytest.fixture(scope="session")
def shared_app(shared_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    app = create_app(settings_for(shared_url, tmp_path_factory.mktemp("shared")))
    app.test_client_class = DescribedClient
    yield app
    with app.app_context():
        db.engine.dispose()


@pytest.fixture
def app(shared_app: Flask) -> Iterator[Flask]:
    """The application, its business clock at NOW, on one connection that is rolled back at the end."""
    former = shared_app.extensions["vade"]
    shared_app.extensions["vade"] = replace(former, clock=Clock(NOW))
    with shared_app.app_context():
        engine = db.engine
        engines = cast(dict[str | None, Any], db.engines)
        with (
            engine.connect() as connection,
            connection.begin() as transaction,
            pytest.MonkeyPatch.context() as patch,
        ):
            # All is one transaction here, which no statement can leave.
            patch.setattr(context, "ALONE", {})
            engines[None] = connection
            db.session.configure(join_transaction_mode="create_savepoint")
            try:
                yield shared_app
                assert_messages_described()
            finally:
                db.session.remove()
                transaction.rollback()
                engines[None] = engine
    shared_app.extensions["vade"] = former


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def session(app: Flask) -> Session:
    return db.session()


@pytest.fixture
def world(app: Flask) -> World:
    """Companies, packages and passes on the rolled-back connection of `app`."""
    return World(app)


@pytest.fixture
def committed(database_url: str, tmp_path: Path) -> Iterator[World]:
    """The same on a database of the test's own, where sessions can race."""
    app = create_app(settings_for(database_url, tmp_path))
    app.test_client_class = DescribedClient
    app.extensions["vade"] = replace(app.extensions["vade"], clock=Clock(NOW))
    with app.app_context():
        yield World(app)
        assert_messages_described()
        db.session.remove()
        db.engine.dispose()


def assert_messages_described() -> None:
    """Every message that a test had written is as its type is described."""
    db.session.rollback()
    for body in db.session.scalars(select(Callback.body)):
        assert_described_message(body)


def settings_for(url: str, instance: Path, **settings: str) -> Settings:
    """Settings for tests: callbacks are written, limits are off."""
    defaults = {
        "DATABASE_URL": url,
        "INSTANCE_DIR": str(instance),
        "RATE_LIMITS": "off",
        "CALLBACK_URL": "http://127.0.0.1:1024/callbacks",
        "CALLBACK_SECRET": CALLBACK_SECRET,
        "ENCRYPTION_KEY": ENCRYPTION_KEY,
        "CALLBACK_ALLOW_PRIVATE": "on",
    }
    return Settings.from_env(defaults | settings)


@contextmanager
def new_database(server_url: str, *, prefix: str, template: str = "template1") -> Iterator[str]:
    """Make a database on a server, give its URL, and drop it at the end with all who use it."""
    name = f"{prefix}_{uuid.uuid4().hex[:12]}"
    _on(server_url, f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy')
    try:
        yield _with_database(server_url, name)
    finally:
        _on(server_url, f'DROP DATABASE "{name}" WITH (FORCE)')


def _on(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


def _with_database(url: str, name: str) -> str:
    """Return the URL with another database."""
    head, _, query = url.partition("?")
    scheme, _, rest = head.partition("://")
    authority = rest.partition("/")[0]
    return f"{scheme}://{authority}/{name}" + (f"?{query}" if query else "")
