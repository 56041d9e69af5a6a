"""The world of a run: a server of its own, the programs around it, and companies whose periods have ended."""

import fcntl
import os
import random
import signal
import socket
import subprocess
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import requests

import postgres_server
from chaos.crowds import Crowd, age_retries, make_tables
from chaos.processes import Program, Supervisor, environment, python, until
from config import PROJECT_DIR

PLATFORM_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
JWT_SECRET_KEY = "a key of the chaos run alone, of more than 32 bytes"
PASSWORD = "correct horse battery"
ROLE = "vade"
START_S = 120.0
LISTENING_PORTS = range(20_000, 32_000)
"""Below those that Linux gives to connections."""

CLOCKS_OFF_H = {2: 26, 3: -5}
"""By how many hours the wall clocks of some workers are wrong, by the worker's number."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the workers are given: short leases and small batches, so that faults meet work under way."""

    workers: int
    lease_s: float = 2.0
    gateway_timeout_s: float = 1.0
    poll_s: float = 0.2
    batch_size: int = 20
    gateway_threads: int = 12


@dataclass
class World:
    """A home directory, and all that runs for it."""

    home: Path
    seed: str
    sizes: Sizes
    supervisor: Supervisor = field(default_factory=Supervisor)
    url: str = ""
    admin_url: str = ""
    api_url: str = ""
    receiver_urls: list[str] = field(default_factory=list)
    workers: list[Program] = field(default_factory=list)
    receivers: list[Program] = field(default_factory=list)
    waves: int = 0

    def set_up(self) -> None:
        """Start everything, on a database with packages and a first crowd.

        Raises:
            RuntimeError: when something does not start.
        """
        self._start_postgres()
        gateway_port, api_port, *receiver_ports = _free_ports(4)
        self.api_url = f"http://127.0.0.1:{api_port}"
        self.receiver_urls = [f"http://127.0.0.1:{port}" for port in receiver_ports]
        self._settings = {
            "DATABASE_URL": self.url,
            "INSTANCE_DIR": str(self.home),
            "VADE_ENV": "production",
            "JWT_SECRET_KEY": JWT_SECRET_KEY,
            "PORT": str(api_port),
            "WEB_CONCURRENCY": "2",
            "RATE_LIMITS": "off",
            "CALLBACK_URL": f"{self.receiver_urls[0]}/platform",
            "CALLBACK_SECRET": PLATFORM_SECRET,
            "CALLBACK_ALLOW_PRIVATE": "on",
            "PAYMENT_GATEWAY": "chaos.gateway_client:HttpGateway",
            "GATEWAY_TIMEOUT_S": str(self.sizes.gateway_timeout_s),
            "GATEWAY_THREADS": str(self.sizes.gateway_threads),
            "WORKER_POLL_S": str(self.sizes.poll_s),
            "BATCH_SIZE": str(self.sizes.batch_size),
            "LEASE_S": str(self.sizes.lease_s),
            "CHAOS_GATEWAY_URL": f"http://127.0.0.1:{gateway_port}/charges",
        }
        self._migrate()
        timeout_s = str(self.sizes.gateway_timeout_s)
        self.gateway = self._run(
            "gateway", "-m", "chaos.gateway", str(gateway_port), str(self.ledger), self.seed, timeout_s
        )
        self.receivers = [
            self._run(f"receiver-{n}", "-m", "chaos.receivers", str(port), str(self.received[n]), self.seed)
            for n, port in enumerate(receiver_ports)
        ]
        gunicorn = ("-m", "gunicorn", "--config", "gunicorn.conf.py", "wsgi:create_app()")
        self.api = self._run_waiting("api", *gunicorn)
        self.workers = [
            self._run_waiting(f"worker-{n}", "scheduler.py", **_clock(n))
            for n in range(1, self.sizes.workers + 1)
        ]
        self._wait_for(self._is_ready, "the API")
        self._wait_for(self._beats, "every worker")
        self._crowd = Crowd(self.seed, password_hash=self._register_for_hash())

    @property
    def ledger(self) -> Path:
        """The gateway's books."""
        return self.home / "ledger.jsonl"

    @property
    def received(self) -> list[Path]:
        """What the receivers kept: the platform's, and the companies'."""
        return [self.home / f"received-{n}.jsonl" for n in range(2)]

    def connect(self, **options: Any) -> "psycopg.Connection[Any]":
        """Return a connection of the run's own, as the superuser that no fault is for."""
        return psycopg.connect(
            self.admin_url, autocommit=True, application_name="chaos", connect_timeout=5, **options
        )

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Return what a query finds; raises `psycopg.Error` while the database is away."""
        with self.connect() as connection:
            return connection.execute(query.encode(), values).fetchall()

    def do(self, statement: str) -> None:
        """Do something that is to hold, waiting for the database where it is away."""

        def done() -> bool:
            with suppress(psycopg.OperationalError), self.connect() as connection:
                connection.execute(statement.encode())
                return True
            return False

        if not until(done, within_s=START_S):
            raise RuntimeError(f"the database does not come back: {statement}")

    def add_wave(self, size: int) -> list[int]:
        """Add companies with periods that have ended; return those that want an endpoint.

        Where the database is away that moment, the wave is left out, whole.
        """
        self.waves += 1
        with suppress(psycopg.Error), self.connect() as connection, connection.transaction():
            today: date = connection.execute(
                "SELECT (now() AT TIME ZONE 'Europe/Istanbul')::date"
            ).fetchone()[0]  # type: ignore[index]
            return self._crowd.add(connection, self.waves, size, today)
        return []

    def let_a_day_pass(self, *, share: float = 1.0, within_s: float = 0.0) -> None:
        """Let a share of the retries become due within some seconds instead of in a day.

        Where the database is away that moment, none does.
        """
        with suppress(psycopg.Error), self.connect() as connection, connection.transaction():
            age_retries(connection, share=share, within_s=within_s)

    def server_lives(self) -> bool:
        """Return whether any process of the database server is left."""
        descriptor = os.open(self.home / "postgres.server", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def server_log(self) -> str:
        """Return what the server has said since it was last started, and before that."""
        logs = (self.home / "postgres.log.1", self.home / "postgres.log")
        return "".join(log.read_text(errors="replace") for log in logs if log.exists())

    def end(self) -> None:
        """Stop everything."""
        self.supervisor.end()
        until(lambda: not self.server_lives(), within_s=START_S)

    def _start_postgres(self) -> None:
        postgres_server.prepare(self.home)
        # Small log segments, so that a limit on the size of files can refuse tables and spare the log.
        data = str(self.home / "postgres")
        subprocess.run(
            postgres_server.as_owner(self.home, "pg_resetwal", "--wal-segsize=1", "-D", data),
            cwd="/",
            check=True,
            capture_output=True,
        )
        self.postgres = self._run("postgres", "launch.py", "serve")
        # Fast: it does not wait for clients.
        self.postgres.stop_signal = signal.SIGINT
        self._wait_for(lambda: postgres_server.address(self.home), "the database")
        self.admin_url = postgres_server.address(self.home) or ""
        self.url = self.admin_url.replace("user=postgres", f"user={ROLE}")

    def _migrate(self) -> None:
        self.do(f"CREATE ROLE {ROLE} LOGIN")
        self.do(f"ALTER DATABASE {postgres_server.DATABASE} OWNER TO {ROLE}")
        done = subprocess.run(
            python("-m", "flask", "--app", "wsgi", "db", "upgrade"),
            cwd=PROJECT_DIR,
            env=environment(**self._settings),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"the migration failed:\n{done.stdout}{done.stderr}")
        with self.connect() as connection:
            make_tables(connection)

    def _run(self, name: str, *arguments: str, **settings: str) -> Program:
        # The server's program is told nothing of a server, so that it becomes one.
        env = environment(**({"INSTANCE_DIR": str(self.home)} | settings))
        return self.supervisor.add(Program(name, python(*arguments), env, self.home / f"{name}.log"))

    def _run_waiting(self, name: str, *arguments: str, **settings: str) -> Program:
        """Run a program as supervisord.conf does: once the database answers."""
        command = ("launch.py", "wait", *python(*arguments))
        return self._run(name, *command, **(self._settings | {"CHAOS_NAME": name} | settings))

    def _wait_for(self, condition: Any, what: str) -> None:
        if not until(condition, within_s=START_S):
            logs = "".join(program.log.read_text()[-1000:] for program in self.supervisor.programs)
            raise RuntimeError(f"{what} did not start:\n{logs}")

    def _is_ready(self) -> bool:
        with suppress(requests.RequestException):
            return requests.get(f"{self.api_url}/readyz", timeout=5).status_code == 200
        return False

    def _beats(self) -> bool:
        return bool(self.rows("SELECT count(*) FROM worker_heartbeats")[0][0] >= self.sizes.workers)

    def _register_for_hash(self) -> str:
        """Register a company, and return the hash of the password, which the whole crowd then has."""
        body = {
            "site_url": "https://first.example",
            "name": "Ayşe",
            "lastname": "Yılmaz",
            "company_name": "First",
            "email": "first@first.example",
            "password": PASSWORD,
        }
        requests.post(f"{self.api_url}/api/v1/register", json=body, timeout=30).raise_for_status()
        return str(self.rows("SELECT password_hash FROM logins")[0][0])


def _clock(number: int) -> dict[str, str]:
    """Return what makes a worker's wall clock wrong, where it is to be."""
    if number not in CLOCKS_OFF_H:
        return {}
    paths = (str(PROJECT_DIR / "chaos" / "skewed"), os.environ.get("PYTHONPATH", ""))
    offset_s = CLOCKS_OFF_H[number] * 3600
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "CHAOS_CLOCK_OFFSET_S": str(offset_s)}


def _free_ports(number: int) -> list[int]:
    """Return ports of this machine that are free now, and that no connection is given while one is down."""
    with ExitStack() as probes:
        found: set[int] = set()
        while len(found) < number:
            port = random.choice(LISTENING_PORTS)
            probe = probes.enter_context(socket.socket())
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.add(port)
        return [*found]
