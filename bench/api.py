"""The API as the product serves it, with one route more that asks the database for nothing."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from flask import Flask
from sqlalchemy import text

from bench.world import make_app
from billing import sessions
from billing.clock import Clock
from models import db
from web.access import Access, open_to, session_tokens
from web.context import transaction


def create_bench_app() -> Flask:
    """Return the application with one route more: ``/select-1`` asks the database for nothing."""
    app = make_app(os.environ["DATABASE_URL"])

    @app.get("/select-1")
    @open_to(Access.PUBLIC)
    def select_1() -> dict[str, int]:
        return {"one": db.session.execute(text("SELECT 1")).scalar_one()}

    return app


def token(url: str, company_id: int) -> str:
    """Return an access token of a company, of a session begun for it."""
    app = make_app(url)
    with app.test_request_context(), transaction() as session:
        session_id = sessions.begin(session, company_id, now=Clock().read(session).real)
        return session_tokens(company_id, session_id, 0)["token"]


@contextmanager
def serving(url: str) -> Iterator[int]:
    """Run gunicorn as the product does, and give its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "gunicorn",
            "--config",
            "gunicorn.conf.py",
            "bench.api:create_bench_app()",
        ],
        env=os.environ | {"DATABASE_URL": url, "PORT": str(port), "LOG_LEVEL": "ERROR"},
        start_new_session=True,
    )
    try:
        _wait_for(port, process)
        yield port
    finally:
        process.terminate()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("the API did not start")
