"""Vade's programs as processes of their own, and waiting for what they do without sleeps that hope."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psycopg

from config import PROJECT_DIR, Settings

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
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=PROJECT_DIR,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


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
        )
    program = Program(process, log)
    try:
        yield program
    finally:
        program.kill()


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
    with started(log, "scheduler.py", **(defaults | settings)) as program:
        yield program


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
