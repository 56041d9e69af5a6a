"""What the benchmarks measure on: a server of their own, and databases full of due periods."""

import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import flask_migrate
import psycopg
from flask import Flask

import embedded
from config import PROJECT_DIR, Settings
from models import db
from wsgi import create_app

AS_OF = "2026-06-15T09:00:00+00:00"
"""The business instant at which everything that `fill` makes is due, for one period each."""

CALLBACK_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
TEMPLATE = "vade_bench_template"

Step = Callable[[str], None]
"""Told what is measured next."""

Figures = list[tuple[str, str]]
"""What was measured, and what came out."""

_FILL = """
INSERT INTO packages (name, period, price_minor, currency) VALUES ('Profesyonel', 'monthly', 19900, 'TRY');
INSERT INTO companies (site_url, name, lastname, company_name, email, status, billing_day, registered_at)
SELECT 'https://store-' || n || '.example', 'Ayşe', 'Yılmaz', 'Mağaza ' || n || ' Ltd. Şti.',
    'store-' || n || '@store-' || n || '.example', 1, day, make_timestamptz(2026, 1, day, 9, 0, 0, 'UTC')
FROM generate_series(1, %(companies)s) AS n, LATERAL (SELECT 1 + n %% 14 AS day) AS d;
INSERT INTO company_packages (company_id, package_id, status, start_date, end_date,
    price_minor, currency, full_days)
SELECT id, 1, 1, make_date(2026, 5, billing_day), make_date(2026, 6, billing_day), 19900, 'TRY', 31
FROM companies WHERE id <= %(due)s;
"""


@contextmanager
def server() -> Iterator[str]:
    """Start a PostgreSQL with its default durability, give its URL, and leave nothing behind."""
    home = Path(tempfile.mkdtemp(prefix="vade-bench-"))
    try:
        url = os.environ.get("DATABASE_URL") or embedded.join(Settings.from_env({"INSTANCE_DIR": str(home)}))
        with database(url, TEMPLATE) as template:
            app = make_app(template)
            with app.app_context():
                flask_migrate.upgrade(str(PROJECT_DIR / "migrations"))
                db.engine.dispose()
            yield url
    finally:
        embedded.leave()
        shutil.rmtree(home, ignore_errors=True)


def make_app(url: str, **settings: str) -> Flask:
    """Return the application on a database, with a platform that listens."""
    defaults = {
        "DATABASE_URL": url,
        "CALLBACK_URL": "http://127.0.0.1:1024/",
        "CALLBACK_SECRET": CALLBACK_SECRET,
        "JWT_SECRET_KEY": "bench" * 8,
        "VADE_NOW": AS_OF,
        "RATE_LIMITS": "off",
        "LOG_LEVEL": "ERROR",
    }
    return create_app(Settings.from_env(defaults | settings))


@contextmanager
def database(server_url: str, name: str, *, template: str = "template1") -> Iterator[str]:
    """Make a database, give its URL, and drop it."""
    _run(server_url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    _run(server_url, f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy')
    try:
        yield _with_database(server_url, name)
    finally:
        _run(server_url, f'DROP DATABASE "{name}" WITH (FORCE)')


def fill(url: str, *, companies: int, due: int) -> None:
    """Make some companies, of which the first ``due`` have one ended monthly period each."""
    with psycopg.connect(url, cursor_factory=psycopg.ClientCursor) as connection:
        connection.execute(_FILL, {"companies": companies, "due": due})
        connection.commit()
        connection.autocommit = True
        connection.execute("VACUUM (ANALYZE)")
        connection.execute("CHECKPOINT")


def count(url: str, query: str) -> Any:
    """Return the single value of a query."""
    with psycopg.connect(url) as connection:
        row = connection.execute(query.encode()).fetchone()
        return row[0] if row else None


def spread(values: list[float], form: str = ".2f") -> str:
    """Return the median, and the least and the most."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def with_options(url: str, options: str) -> str:
    """Return the URL with options for the server's session, such as ``-c work_mem=64MB``."""
    return f"{url}{'&' if '?' in url else '?'}options={quote(options)}"


def _with_database(url: str, name: str) -> str:
    head, _, query = url.partition("?")
    scheme, _, rest = head.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}/{name}" + (f"?{query}" if query else "")


def _run(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())
