"""The programs of a run: started, watched, started anew when they died, and stopped in order."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from config import PROJECT_DIR, Settings

RESTART_PAUSE_S = 0.2
STOP_S = 20.0


def python(*arguments: str) -> list[str]:
    """Return a command of this interpreter."""
    return [sys.executable, *arguments]


def environment(**settings: str) -> dict[str, str]:
    """Return an environment with no settings of the product but these."""
    aliases = {field.alias for field in Settings.model_fields.values()}
    kept = {name: value for name, value in os.environ.items() if name not in aliases}
    return kept | {"PYTHONUNBUFFERED": "1"} | settings


@dataclass
class Program:
    """A program that is to run until the end, whatever happens to its processes."""

    name: str
    command: list[str]
    env: dict[str, str]
    log: Path
    stop_signal: int = signal.SIGTERM
    down: bool = False
    """Kept down on purpose: it is not started anew."""
    starts: int = 0
    process: "subprocess.Popen[bytes] | None" = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        """Start it where it does not run and may."""
        with self._lock:
            if self.down or self.pid is not None:
                return
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    self.command,
                    cwd=PROJECT_DIR,
                    env=self.env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    # Ctrl-C in the terminal is for the run, which ends its programs in order.
                    start_new_session=True,
                )
            self.starts += 1

    @property
    def pid(self) -> int | None:
        """The main process, while it lives."""
        return None if self.process is None or self.process.poll() is not None else self.process.pid

    def children(self) -> list[int]:
        """Return the living processes that the main one has started."""
        if self.pid is None:
            return []
        try:
            return [child.pid for child in psutil.Process(self.pid).children(recursive=True)]
        except psutil.Error:
            return []

    def kill(self) -> bool:
        """Kill the main process with -9; return whether there was one."""
        pid = self.pid
        if pid is None or self.process is None:
            return False
        self.process.kill()
        self.process.wait()
        return True

    def end(self) -> int | None:
        """Tell it to stop, wait, and kill what is left; return its exit status, None where it did not end."""
        self.down = True
        with self._lock:
            if self.process is None:
                return None
            # Nobody else can have taken the pid: it is not waited for yet where poll() is None.
            if self.process.poll() is None:
                for pid in (*self.children(), self.process.pid):
                    send(pid, signal.SIGCONT)
                send(self.process.pid, self.stop_signal)
            try:
                status: int | None = self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                status = None
            for pid in _group(self.process.pid):
                send(pid, signal.SIGKILL)
            if status is None:
                self.process.wait()
            return status


def _group(leader: int) -> list[int]:
    """Return the living processes of a session that a program of ours began."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (OSError, psutil.Error):
            continue
    return found


def send(pid: int, number: int) -> bool:
    """Send a signal; return whether the process was there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


class Supervisor:
    """Starts programs anew when they died, until told to leave off."""

    def __init__(self) -> None:
        self.programs: list[Program] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._thread.start()

    def add(self, program: Program) -> Program:
        """Start a program, and keep it up."""
        self.programs.append(program)
        program.start()
        return program

    def _watch(self) -> None:
        while not self._over.wait(RESTART_PAUSE_S):
            for program in list(self.programs):
                program.start()

    def end(self) -> None:
        """Stop everything, last up first down."""
        self._over.set()
        self._thread.join()
        for program in reversed(self.programs):
            program.end()


def until(
    condition: Callable[[], object], *, within_s: float, stop: Callable[[], bool] = lambda: False
) -> bool:
    """Return whether a condition came true within some seconds, and before ``stop`` did."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() >= deadline or stop():
            return False
        time.sleep(0.02)
    return True
