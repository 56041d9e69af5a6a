"""Requests a second of the call that clients make most, beside a bare ``SELECT 1`` on the same server."""

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from flask import Flask
from sqlalchemy import text

from bench.world import make_app
from models import db
from web.access import Access, company_tokens, open_to

CLIENTS = 8


def create_bench_app() -> Flask:
    """Return the application with one route more: ``/select-1`` asks the database for nothing."""
    app = make_app(os.environ["DATABASE_URL"])

    @app.get("/select-1")
    @open_to(Access.PUBLIC)
    def select_1() -> dict[str, int]:
        return {"one": db.session.execute(text("SELECT 1")).scalar_one()}

    return app


def token(url: str, company_id: int) -> str:
    """Return an access token of a company."""
    app = make_app(url)
    with app.test_request_context():
        return company_tokens(company_id)["token"]


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
    )
    try:
        _wait_for(port, process)
        yield port
    finally:
        process.terminate()
        process.wait()


def rate(port: int, path: str, *, seconds: float, headers: dict[str, str]) -> tuple[float, list[float], int]:
    """Return requests a second, the latencies in milliseconds, and how many did not answer 200."""
    latencies: list[float] = []
    errors = [0]
    stop_at = time.perf_counter() + seconds

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while (began := time.perf_counter()) < stop_at:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            response.read()
            errors[0] += response.status != 200
            latencies.append((time.perf_counter() - began) * 1000)
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(latencies) / seconds, sorted(latencies), errors[0]


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("the API did not start")
