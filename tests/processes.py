"""Vade's programs as processes of their own, and waiting for what they do without sleeps that hope."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import requests

from config import PROJECT_DIR, Settings
from tests import secrecy

T = TypeVar("T")

JWT_SECRET_KEY = "a key for tests that is long enough: 32 bytes"


def until(condition: Callable[[], T], *, within_s: float = 30.0, what: object = "") -> T:
    """Return the first true answer; fail after some seconds without one."""
    deadline = time.monotonic() + within_s
    while not (answer := condition()):
        assert time.monotonic() < deadline, what() if callable(what) else what or "nothing came of it"
        time.sleep(0.01)
    return answer


def environment(**settings: str) -> dict[str, str]:
    """Return an environment with no settings but these."""
    aliases = {field.alias for field in Settings.model_fields.values()}
    kept = {name: value for name, value in os.environ.items() if name not in aliases}
    return kept | {"PYTHONUNBUFFERED": "1"} | settings


def run(*command: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    """Run a Python program of the project to its end; ``flask …`` is ``-m flask --app wsgi …``."""
    arguments = ["-m", "flask", "--app", "wsgi", *command[1:]] if command[0] == "flask" else [*command]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=PROJECT_DIR,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # What a command prints is no log: some print a token that was asked for.
    secrecy.look_through(done.stderr)
    return done


@dataclass
class Program:
    """A running program, and its log."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def text(self) -> str:
        return self.log.read_text()

    def records(self) -> list[dict[str, Any]]:
        """The log of a program in production: one JSON object a line."""
        return [json.loads(line) for line in self.text().splitlines()]

    def passes(self) -> list[dict[str, Any]]:
        return [record for record in self.records() if record["message"] == "pass"]

    def tell(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def ended(self, *, within_s: float) -> int:
        """Return the exit status, once it has ended."""
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end:\n{self.text()}") from None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


@contextmanager
def started(log: Path, *arguments: str, **settings: str) -> Iterator[Program]:
    """Start a Python program of the project; it is killed at the end of the block if it still runs."""
    with _started(log, arguments, settings, logs=False) as program:
        yield program


@contextmanager
def _started(
    log: Path,
    arguments: Sequence[str],
    settings: dict[str, str],
    *,
    logs: bool = True,
    pass_fds: Sequence[int] = (),
) -> Iterator[Program]:
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=PROJECT_DIR,
            env=environment(**settings),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            # A group of its own, so that a test's Ctrl-C reaches only whom it is meant for.
            start_new_session=True,
            pass_fds=pass_fds,
        )
    program = Program(process, log)
    try:
        yield program
    finally:
        program.kill()
        # What a command prints is no log: the listener shows all that it receives.
        if logs:
            secrecy.look_through(program.text())


@contextmanager
def worker(url: str, directory: Path, **settings: str) -> Iterator[Program]:
    """Start ``python scheduler.py`` in production on a database, polling quickly."""
    defaults = {
        "DATABASE_URL": url,
        "INSTANCE_DIR": str(directory),
        "VADE_ENV": "production",
        "JWT_SECRET_KEY": JWT_SECRET_KEY,
        "WORKER_POLL_S": "0.1",
    }
    log = directory / f"worker-{time.monotonic_ns()}.log"
    with _started(log, ["scheduler.py"], defaults | settings) as program:
        yield program


@contextmanager
def api(url: str, directory: Path, **settings: str) -> Iterator[tuple[Program, str]]:
    """Start gunicorn in production on a database, and give it and its address, once it answers."""
    defaults = {
        "DATABASE_URL": url,
        "INSTANCE_DIR": str(directory),
        "VADE_ENV": "production",
        "JWT_SECRET_KEY": JWT_SECRET_KEY,
        "RATE_LIMITS": "off",
    }
    log = directory / f"api-{time.monotonic_ns()}.log"
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        # It is handed over open, so no other process gets the port meanwhile.
        bound = ("--bind", f"fd://{listener.fileno()}", "wsgi:create_app()")
        gunicorn = ("-m", "gunicorn", "--config", "gunicorn.conf.py", *bound)
        with _started(log, gunicorn, defaults | settings, pass_fds=[listener.fileno()]) as program:
            address = f"http://127.0.0.1:{listener.getsockname()[1]}"
            # Whoever comes early waits in the listener's queue until a worker takes them.
            assert requests.get(f"{address}/healthz", timeout=30).status_code == 200, program.text()
            try:
                yield program, address
            finally:
                # As it should, so that it takes its files with it.
                program.tell()
                program.ended(within_s=30)


class Database:
    """A look into a database from outside, each time with a fresh eye."""

    def __init__(self, url: str) -> None:
        self._url = url

    def all(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self._url, autocommit=True) as connection:
            return connection.execute(query.encode(), values).fetchall()

    def one(self, query: str, *values: object) -> Any:
        """Return the first column of the only row."""
        ((value,),) = self.all(query, *values)
        return value

    def do(self, statement: str, *values: object) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute(statement.encode(), values)
