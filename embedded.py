"""The embedded PostgreSQL: whoever needs it joins it, and the last one to leave stops it.

Four files in the instance directory are locks (flock: the kernel frees one when the last holder dies):

- ``postgres.start``, exclusive: held by the process that decides to start or to stop the server;
- ``postgres.users``, shared: held by each process that uses the server, for its life;
- ``postgres.server``, exclusive: inherited by the server's own processes, so it tells whether one runs;
- ``postgres.supervised``, exclusive: held for a server that ``make run`` keeps, which no one else stops.

A process killed with -9 leaves its server behind; the next one joins it and, as the last, stops it.
"""

import atexit
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import click

import postgres_server
from config import ConfigError, Settings

START, USERS, SERVER, SUPERVISED = (f"postgres.{name}" for name in ("start", "users", "server", "supervised"))

_mutex = threading.RLock()
_locks: set[int] = set()
_joined: dict[Path, int] = {}


def join(settings: Settings) -> str:
    """Return the URL of the instance directory's server, which then runs until this process leaves or ends.

    Starts the server where none runs. Safe to call again, from any thread, and after a fork.

    Raises:
        ConfigError: when there is no server to be had, and why.
    """
    home = settings.instance_dir.resolve()
    with _mutex, _sentences(home):
        if home in _joined and _held(home / SERVER) and (url := postgres_server.address(home)):
            return url
        home.mkdir(parents=True, exist_ok=True)
        with _lock(home / START):
            if home not in _joined:
                _joined[home] = _take(home / USERS, fcntl.LOCK_SH)
            deadline = time.monotonic() + postgres_server.START_TIMEOUT_S
            while time.monotonic() < deadline:
                if not _held(home / SERVER):
                    with _lock(home / SERVER) as lock:
                        postgres_server.start(home, lock=lock)
                if url := postgres_server.address(home):
                    return url
                time.sleep(0.05)
    raise ConfigError(f"The embedded PostgreSQL does not answer: see {postgres_server.log_path(home)}.")


def leave() -> None:
    """Give up what this process joined, and stop a server that no one else uses. Runs at exit by itself."""
    with _mutex:
        while _joined:
            home, users = _joined.popitem()
            with contextlib.suppress(OSError), _lock(home / START):
                _drop(users)
                if not _held(home / USERS, by=fcntl.LOCK_EX) and not _held(home / SUPERVISED):
                    postgres_server.stop(home, runs=lambda: _held(home / SERVER))  # noqa: B023 - called here


def serve(settings: Settings) -> NoReturn:
    """Become the server, in the foreground, for a supervisor: same process, so that signals reach it.

    Where a server runs already, started by a command or left by a supervisor that was killed, stand for it
    instead: keep it when its users leave, and stop it when told to stop.
    """
    home = settings.instance_dir.resolve()
    with _sentences(home):
        home.mkdir(parents=True, exist_ok=True)
        with _lock(home / START):
            locks = [] if _held(home / SUPERVISED) else [_take(home / SUPERVISED, fcntl.LOCK_EX)]
            if not _held(home / SERVER):
                data = ("-D", str(home / "postgres"))
                command = postgres_server.as_owner(home, "postgres", *data, *postgres_server.prepare(home))
                for lock in (*locks, _take(home / SERVER, fcntl.LOCK_EX)):
                    os.set_inheritable(lock, True)
                with postgres_server.open_log(home) as log:
                    os.dup2(log.fileno(), 1)
                    os.dup2(log.fileno(), 2)
                os.chdir("/")
                os.execvp(command[0], command)  # noqa: S606 - the list above is the whole command
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            while _held(home / SERVER):
                time.sleep(0.2)
        with _lock(home / START):
            postgres_server.stop(home, runs=lambda: _held(home / SERVER))
        sys.exit(0)


def _take(path: Path, kind: int) -> int:
    """Return a descriptor that holds a lock until it is closed here and in all who inherited it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    _locks.add(descriptor)
    try:
        fcntl.flock(descriptor, kind)
    except BaseException:
        _drop(descriptor)
        raise
    return descriptor


def _drop(descriptor: int) -> None:
    _locks.discard(descriptor)
    os.close(descriptor)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[int]:
    descriptor = _take(path, fcntl.LOCK_EX)
    try:
        yield descriptor
    finally:
        _drop(descriptor)


def _held(path: Path, by: int = fcntl.LOCK_SH) -> bool:
    """Return whether another holds a lock that excludes this kind. Shared probes do not see each other."""
    try:
        _drop(_take(path, by | fcntl.LOCK_NB))
    except BlockingIOError:
        return True
    return False


@contextlib.contextmanager
def _sentences(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or home
        raise ConfigError(f"The embedded PostgreSQL cannot use {where}: {error.strerror}.") from error


def _forget() -> None:
    """In a forked child: hold nothing of the parent's, so that each joins and leaves for itself."""
    global _mutex  # noqa: PLW0603 - another thread of the parent may have held it
    _mutex = threading.RLock()
    _joined.clear()
    while _locks:
        os.close(_locks.pop())


os.register_at_fork(after_in_child=_forget)
atexit.register(leave)


def main() -> None:
    """Run a client program of PostgreSQL's on Vade's database: ``psql``, ``pg_dump`` or ``pg_restore``."""
    try:
        settings = Settings.from_env()
        match sys.argv[1:]:
            case ["psql" | "pg_dump" | "pg_restore" as client, *arguments]:
                url = settings.database_url or join(settings)
                # A handler, not SIG_IGN: psql would inherit that, and Ctrl-C is how it cancels a query.
                signal.signal(signal.SIGINT, lambda *_: None)
                sys.exit(subprocess.call([postgres_server.program(client), *arguments, "--dbname", url]))
            case _:
                raise click.UsageError("python embedded.py psql … | pg_dump … | pg_restore …")
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
