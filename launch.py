"""``make run``: check, migrate, seed the demo, and become supervisord with all of Vade under it.

The programs of ``supervisord.conf`` come back here: to be the database, or to wait until it answers.
"""

import signal

if __name__ == "__main__":
    # Ctrl-C while the rest is imported ends this at once, without a traceback. launch() takes over.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any, NoReturn

import click
import psycopg

import database
import embedded
from config import PROJECT_DIR, ConfigError, Settings

START_TIMEOUT_S = 60


def launch() -> NoReturn:
    """Start everything.

    1. Refuse what cannot work: wrong settings, data in use by another ``make run``, a port that is taken.
    2. Migrate the database, and outside production seed the demo, which a second time adds nothing.
    3. Become supervisord: its pid is this one, so whoever stops ``make`` or this process stops it.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    settings = Settings.from_env()
    os.chdir(PROJECT_DIR)
    if settings.database_url is None:
        _be_alone(settings.instance_dir.resolve())
    _check_port(settings.host, settings.port)

    env = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        "EMBEDDED_POSTGRES": "false" if settings.database_url else "true",
        "DATABASE_URL": settings.database_url or "",
    }
    if settings.database_url is None:
        click.echo("Starting the embedded PostgreSQL …")
        env["DATABASE_URL"] = embedded.join(settings)
    else:
        _check_database(settings)
    click.echo("Migrating the database …")
    _flask("db", "upgrade", env=env)
    if not settings.production:
        click.echo(_flask("seed", env=env))
    embedded.leave()

    if sys.stdout.isatty():
        env["VADE_TERMINAL_COLUMNS"] = str(shutil.get_terminal_size().columns)
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, __file__, "supervise"], env)  # noqa: S606


def supervise() -> None:
    """Run supervisord in the foreground, with some habits changed.

    A hang-up (the terminal is closed) stops it, where it would start everything anew; a program that it gives
    up is named on the terminal; the programs start at once; it writes no pid file; and its output may be
    another user's terminal or a socket.
    """
    from supervisor import events, loggers, supervisord  # type: ignore[import-untyped] # noqa: PLC0415

    def say(event: Any) -> None:
        name, reason = event.process.config.name, event.process.spawnerr
        with contextlib.suppress(OSError):
            click.echo(f"Vade: {name} does not stay up and is not started again: {reason}.", err=True)

    def open_anew(path: str, mode: str) -> IO[bytes]:
        # Under su and sudo, /dev/fd/1 is another's and cannot be opened; what is open already can be used.
        if path.startswith("/dev/fd/"):
            return os.fdopen(os.dup(int(path.removeprefix("/dev/fd/"))), "wb")
        return Path(path).open(mode)

    class Options(supervisord.ServerOptions):  # type: ignore[misc]
        def setsignals(self) -> None:
            super().setsignals()
            signal.signal(signal.SIGHUP, self.hang_up)

        def hang_up(self, *_: object) -> None:
            self.signal_receiver.receive(signal.SIGTERM, None)

        def write_pidfile(self) -> None:
            pass

    class Supervisor(supervisord.Supervisor):  # type: ignore[misc]
        def runforever(self) -> None:
            events.subscribe(events.ProcessStateFatalEvent, say)
            # Its loop would wait a second first, and a Ctrl-C in that second would start and kill at once,
            # which loses the signal in a child not yet past its exec.
            for group in sorted(self.process_groups.values()):
                group.transition()
            super().runforever()

    os.environ.setdefault("EMBEDDED_POSTGRES", "false")
    loggers.open = open_anew
    # A terminal that was closed, a pipe whose reader has gone: what cannot be said is lost. It would die of
    # that, and leave its programs alone in the world.
    loggers.Handler.handleError = lambda _handler: None
    supervisord.ServerOptions, supervisord.Supervisor = Options, Supervisor
    as_root = ["--user", "root"] if os.getuid() == 0 else []
    supervisord.main(["--configuration", str(PROJECT_DIR / "supervisord.conf"), "--nodaemon", *as_root])


def wait(command: list[str]) -> NoReturn:
    """Become a command as soon as the database answers, or after a while whether it does or not."""
    settings = Settings.from_env()
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            database.connect(settings).close()
            break
        except psycopg.OperationalError:
            time.sleep(0.1)
    # To gunicorn, which reads WEB_CONCURRENCY too, an empty variable is not one that is not set.
    env = {name: value for name, value in os.environ.items() if value}
    os.execvpe(command[0], command, env)  # noqa: S606


def _end(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)


def _be_alone(home: Path) -> None:
    """Hold the instance directory for as long as this process, and the supervisord it becomes, lives."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = os.open(home / "run.pid", os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = (home / "run.pid").read_text().strip()
        raise ConfigError(
            f"Vade already runs on the data in {home} (process {pid}): stop it first, or set INSTANCE_DIR."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"INSTANCE_DIR: {error.filename or home} cannot be used: {error.strerror}."
        ) from None
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    os.set_inheritable(lock, True)


def _check_port(host: str, port: int) -> None:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"Port {port} on {host} is taken: stop what listens there, or set PORT to another."
            ) from None
        raise ConfigError(f"HOST {host}, PORT {port}: {error.strerror}.") from None


def _check_database(settings: Settings) -> None:
    try:
        database.connect(settings).close()
    except psycopg.OperationalError as error:
        raise ConfigError(
            f"DATABASE_URL: the database does not answer: {str(error).splitlines()[0]}"
        ) from None


def _flask(*arguments: str, env: dict[str, str]) -> str:
    """Return what a command of Vade's says, without its log."""
    done = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "wsgi", *arguments],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stdout + done.stderr).strip()
        sentence = said.rpartition("\n")[2]
        if sentence.startswith("Error: "):
            raise ConfigError(sentence.removeprefix("Error: "))
        raise ConfigError(f"flask {' '.join(arguments)} failed.\n{said}")
    return done.stdout.strip()


def main() -> None:
    """Launch, or do one of its later steps."""
    try:
        match sys.argv[1:]:
            case []:
                launch()
            case ["supervise"]:
                supervise()
            case ["serve"]:
                embedded.serve(Settings.from_env())
            case ["wait", *command] if command:
                wait(command)
            case _:
                raise click.UsageError("python launch.py [supervise | serve | wait COMMAND …]")
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
