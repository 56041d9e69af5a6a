"""`make failover`: the primary is killed with -9, its standby promoted, and no one tells Vade of it.

1. Two servers: a primary that waits with each commit for its streaming standby, and that standby.
2. Clients register and take packages, two workers collect; all have one URL with both servers' addresses.
3. The primary's processes are killed, all at once, and the standby is promoted.
4. When all has gone on for a while, the audit: nothing that was acknowledged or seen is lost, and what the
   gateway did is written once.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil
import psycopg
import requests
from psycopg.conninfo import conninfo_to_dict
from rich.console import Console
from rich.table import Table

import postgres_server
from postgres_server import as_owner
from terminal import told_to_end
from tests.api import registration
from tests.crowds import crowd
from tests.gateways import Ledger
from tests.processes import Database, Program, api, run, until, worker

CLIENTS = 4
PATIENCE_S = 90.0
"""How long anything may take before the run has failed."""

CLAIMED_SINCE = "SELECT count(*) FROM company_payments WHERE attempted_at > %s"
PAYMENTS = "SELECT id::text, company_id, status, amount_minor FROM company_payments"
CHARGED_TWICE = """
SELECT count(*) - count(DISTINCT (company_id, company_package_id, period_start)) FROM company_payments
WHERE status = 1
"""

Step = Callable[[str], None]
"""Told what happens next."""


@dataclass
class Server:
    """One PostgreSQL with its data and socket in a directory."""

    home: Path
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def data(self) -> Path:
        """Where its data is, and its socket."""
        return self.home / "postgres"

    @property
    def url(self) -> str:
        """Its own URL, of the database of Vade."""
        found = postgres_server.address(self.home, ready=False)
        return found or ""

    def start(self) -> None:
        """Start it, on the data that is there, or on new."""
        self.home.mkdir(exist_ok=True)
        options = postgres_server.prepare(self.home)
        with postgres_server.open_log(self.home) as log:
            command = as_owner(self.home, "postgres", "-D", str(self.data), *options)
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", start_new_session=True)
        until(lambda: self.url and answers(self.url), within_s=PATIENCE_S, what=self.log)

    def copy_of(self, primary: "Server") -> None:
        """Become the standby of another one."""
        self.data.mkdir(parents=True, mode=0o700)
        owner = primary.data.stat()
        os.chown(self.data, owner.st_uid, owner.st_gid)
        arguments = ("-D", str(self.data), "-d", primary.url, "--checkpoint=fast", "--write-recovery-conf")
        subprocess.run(
            as_owner(self.home, "pg_basebackup", *arguments), check=True, cwd="/", capture_output=True
        )
        self.start()

    def promote(self) -> None:
        """Become the primary; return once it takes writes."""
        subprocess.run(
            as_owner(self.home, "pg_ctl", "promote", "-D", str(self.data), "-t", str(int(PATIENCE_S))),
            check=True,
            cwd="/",
            capture_output=True,
        )

    def kill(self) -> None:
        """Kill all its processes with -9, so that none has time for a word."""
        if self.process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            postmaster = psutil.Process(self.process.pid)
            postmaster.suspend()
            for process in (postmaster, *postmaster.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()

    def log(self) -> str:
        """Return what it said."""
        return postgres_server.log_path(self.home).read_text(errors="replace")


def answers(url: str) -> bool:
    """Return whether a server takes connections."""
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


@contextmanager
def pair(directory: Path) -> Iterator[tuple[Server, Server]]:
    """Start a primary and a standby for which each of its commits waits; neither is left at the end."""
    primary, standby = Server(directory / "one"), Server(directory / "two")
    with ExitStack() as ends:
        ends.callback(primary.kill)
        primary.start()
        ends.callback(standby.kill)
        standby.copy_of(primary)
        database = Database(primary.url)
        # After the copy was made: the standby, once it is the primary, has no one to wait for.
        database.do("ALTER SYSTEM SET synchronous_standby_names = '*'")
        database.do("SELECT pg_reload_conf()")
        until(
            lambda: database.all("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"),
            within_s=PATIENCE_S,
            what=standby.log,
        )
        yield primary, standby


@dataclass
class Witness:
    """What was acknowledged to clients, and what was seen in the database."""

    companies: set[int] = field(default_factory=set)
    packages: set[int] = field(default_factory=set)
    payments: set[str] = field(default_factory=set)
    writes: list[tuple[float, float]] = field(default_factory=list)
    """When each registration was asked for and acknowledged, by the monotonic clock."""
    over: threading.Event = field(default_factory=threading.Event)

    def be_a_client(self, address: str, name: str) -> None:
        """Register and take a package, again and again, whatever the answers are."""
        number = 0
        while not self.over.is_set():
            number += 1
            with contextlib.suppress(requests.RequestException), requests.Session() as http:
                company = registration(email=f"{name}-{number}@failover.example")
                asked_s = time.monotonic()
                made = http.post(f"{address}/api/v1/register", json=company, timeout=30)
                if made.status_code != 201:
                    continue
                id_ = made.json()["company_id"]
                self.companies.add(id_)
                self.writes.append((asked_s, time.monotonic()))
                token = {"Authorization": f"Bearer {made.json()['token']}"}
                wanted = {"company_id": id_, "package_id": 1}
                taken = http.post(
                    f"{address}/api/v1/company-packages", json=wanted, headers=token, timeout=30
                )
                if taken.status_code == 201:
                    self.packages.add(id_)
            self.over.wait(0.02)

    def watch_payments(self, url: str) -> None:
        """Look at the payments, on whichever server takes writes."""
        while not self.over.is_set():
            with contextlib.suppress(psycopg.OperationalError):
                self.payments |= recorded(Database(url))
            self.over.wait(0.05)

    def first_write_s(self, since_s: float) -> float | None:
        """Return when the first registration was acknowledged that was asked for since an instant."""
        return min((done_s for asked_s, done_s in list(self.writes) if asked_s > since_s), default=None)


@dataclass(frozen=True)
class Outcome:
    """What the audit counted, and how long it took, in seconds from the kill."""

    acknowledged: int
    seen: int
    charged: int
    lost_companies: int
    lost_packages: int
    lost_payments: int
    not_recorded: int
    recorded_twice: int
    promoted_s: float
    first_write_s: float
    first_payment_s: float

    @property
    def faults(self) -> int:
        """How much is not as it should be."""
        lost = self.lost_companies + self.lost_packages + self.lost_payments
        return lost + self.not_recorded + self.recorded_twice


def fail_over(directory: Path, *, companies: int, seconds: float, step: Step) -> Outcome:
    """Make one run: so many companies owe, and it goes on for so long before and after the kill.

    Raises:
        AssertionError: when something does not go on by itself.
    """
    step("start a primary and its standby")
    with ExitStack() as running:
        primary, standby = running.enter_context(pair(directory))
        # The API asks the primary first, the workers the standby.
        url, other = both(primary, standby), both(standby, primary)
        migrated = run("flask", "db", "upgrade", DATABASE_URL=url, INSTANCE_DIR=str(directory))
        if migrated.returncode:
            raise AssertionError(migrated.stderr)
        Database(primary.url).do(crowd(companies))
        ledger = Ledger(directory / "ledger")
        step("start the API, the workers and the clients")
        witness = Witness()
        programs, threads = begin(running, [other, other, url], directory, witness)
        until(lambda: witness.packages and witness.payments, within_s=PATIENCE_S, what=programs[0].text)
        witness.over.wait(seconds)
        step("kill the primary, and promote the standby")
        killed_at, killed_s = datetime.now(UTC), time.monotonic()
        primary.kill()
        standby.promote()
        promoted_s = time.monotonic() - killed_s
        step("wait until all goes on")
        database = Database(standby.url)
        until(lambda: database.one(CLAIMED_SINCE, killed_at) > 0, within_s=PATIENCE_S, what=programs[0].text)
        first_payment_s = time.monotonic() - killed_s
        first_write_s = until(lambda: witness.first_write_s(killed_s), within_s=PATIENCE_S) or 0.0
        witness.over.wait(seconds)
        step("wait until all that was charged is recorded, and look at the books")
        asked = ledger.keys()
        until(lambda: asked <= recorded(database), within_s=PATIENCE_S, what=programs[0].text)
        if any(program.process.poll() is not None for program in programs):
            raise AssertionError("a program ended")
        end(programs, threads, witness)
        return audit(
            database,
            ledger,
            witness,
            promoted_s=promoted_s,
            first_write_s=first_write_s - killed_s,
            first_payment_s=first_payment_s,
        )


def both(primary: Server, standby: Server) -> str:
    """Return the URL that names both servers; Vade itself asks for the one that takes writes."""
    hosts = [str(conninfo_to_dict(server.url)["host"]) for server in (primary, standby)]
    return f"postgresql:///{postgres_server.DATABASE}?host={','.join(hosts)}&port=5432,5432&user=postgres"


def begin(
    running: ExitStack, urls: list[str], directory: Path, witness: Witness
) -> tuple[list[Program], list[threading.Thread]]:
    """Start workers and the API, a URL for each, the clients, and who watches the payments."""
    settings = {
        "PAYMENT_GATEWAY": "tests.gateways:SlowGateway",
        "LEDGER_DIR": str(directory / "ledger"),
        "GATEWAY_DELAY_S": "0.1",
        "GATEWAY_THREADS": "8",
        "BATCH_SIZE": "20",
        "LEASE_S": "5",
    }
    *of_workers, url = urls
    programs = [running.enter_context(worker(each, directory, **settings)) for each in of_workers]
    program, address = running.enter_context(api(url, directory))
    threads = [
        threading.Thread(target=witness.be_a_client, args=[address, f"client-{number}"], daemon=True)
        for number in range(CLIENTS)
    ]
    threads.append(
        threading.Thread(
            target=witness.watch_payments, args=[f"{url}&target_session_attrs=read-write"], daemon=True
        )
    )
    running.callback(witness.over.set)
    for thread in threads:
        thread.start()
    return [*programs, program], threads


def end(programs: list[Program], threads: list[threading.Thread], witness: Witness) -> None:
    """Let all finish what they do."""
    witness.over.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    for program in programs:
        program.tell()
        program.ended(within_s=30)


def recorded(database: Database) -> set[str]:
    """Return the keys of the attempts that are written."""
    return {id_ for id_, *_ in database.all(PAYMENTS)}


def audit(database: Database, ledger: Ledger, witness: Witness, **took: float) -> Outcome:
    """Compare what was acknowledged, seen and charged with what the new primary holds."""
    companies = {id_ for (id_,) in database.all("SELECT id FROM companies")}
    packages = {id_ for (id_,) in database.all("SELECT company_id FROM company_packages")}
    written = set(database.all(PAYMENTS))
    done = {(e.idempotency_key, e.company_id, int(e.succeeded), e.amount_minor) for e in ledger.entries()}
    return Outcome(
        acknowledged=len(witness.companies) + len(witness.packages),
        seen=len(witness.payments),
        charged=len(done),
        lost_companies=len(witness.companies - companies),
        lost_packages=len(witness.packages - packages),
        lost_payments=len(witness.payments - {id_ for id_, *_ in written}),
        not_recorded=len(done ^ written),
        recorded_twice=database.one(CHARGED_TWICE),
        **took,
    )


def show(outcome: Outcome) -> None:
    """Print the audit and the times."""
    table = Table(title="Failover", show_header=False)
    for name, value in (
        ("acknowledged to clients", outcome.acknowledged),
        ("lost of it", outcome.lost_companies + outcome.lost_packages),
        ("payments seen", outcome.seen),
        ("lost of them", outcome.lost_payments),
        ("attempts in the gateway's ledger", outcome.charged),
        ("not written as they are there", outcome.not_recorded),
        ("periods charged twice", outcome.recorded_twice),
        ("from the kill to the new primary", f"{outcome.promoted_s:.1f} s"),
        ("… to the first write through the API", f"{outcome.first_write_s:.1f} s"),
        ("… to the first payment claimed and settled", f"{outcome.first_payment_s:.1f} s"),
    ):
        table.add_row(name, str(value))
    Console().print(table)


def main() -> None:
    """Run it once, say what happens, and end with status 1 where something was lost."""
    told = Console(stderr=True)

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with (
        told_to_end(interrupt),
        tempfile.TemporaryDirectory(prefix="vade-failover-") as directory,
        told.status("") as status,
    ):
        # PostgreSQL's own user passes through it.
        Path(directory).chmod(0o711)
        try:
            outcome = fail_over(Path(directory), companies=600, seconds=5.0, step=status.update)
        except KeyboardInterrupt:
            sys.exit(130)
    show(outcome)
    sys.exit(outcome.faults > 0)


if __name__ == "__main__":
    main()
