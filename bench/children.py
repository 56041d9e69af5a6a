"""Processes that a benchmark starts: each gets ready, waits for the word, and says in the end how it went."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Result = dict[str, Any]


class Child:
    """One process; it talks by lines."""

    def __init__(self, command: Sequence[str], *, told: object = None) -> None:
        # A session of its own: Ctrl-C is for the benchmark, which then ends its children.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        if told is not None:
            self._say(json.dumps(told))

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def wait_until_ready(self) -> None:
        """Return once it says that it is ready."""
        self._hear()

    def go(self) -> None:
        """Let it begin."""
        self._say("go")

    def result(self) -> Result:
        """Wait for what it says in the end."""
        found: Result = json.loads(self._hear())
        self._process.communicate()
        return found

    def end(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.communicate()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def _hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended early with status {self._process.wait()}")
        return line


@contextmanager
def children(
    number: int, *command: str, python: str = sys.executable, told: object = None
) -> Iterator[list[Child]]:
    """Start some alike, ``python -m`` and the words given, and leave none behind."""
    started: list[Child] = []
    try:
        for _ in range(number):
            started.append(Child([python, "-m", *command], told=told))  # noqa: PERF401 - one by one, to end them
        for child in started:
            child.wait_until_ready()
        yield started
    finally:
        for child in started:
            child.end()


def run_all(started: Sequence[Child]) -> list[Result]:
    """Let all begin at once, and return what they say."""
    for child in started:
        child.go()
    return [child.result() for child in started]
