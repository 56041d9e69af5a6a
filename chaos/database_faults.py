"""Faults of the database: killed, cut off, too slow, at odds with itself, full; each says what it did."""

import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import psycopg

from chaos.faults import Fault, Missed, Scene
from chaos.processes import send, until
from chaos.world import ROLE, START_S, World

OURS = f"FROM pg_stat_activity WHERE usename = '{ROLE}' AND pid <> pg_backend_pid()"
TIMEOUTS_MS = (3, 40)
SEGMENT_BYTES = 1 << 20
"""A segment of the log (see `World`): files may be so large, and no larger, where the disk refuses."""


def kill_server(scene: Scene) -> str:
    """SIGKILL of the whole server."""
    postgres = scene.world.postgres
    scene.work_is_under_way()
    pids = scene.children_of(postgres)
    if not postgres.kill():
        raise Missed("the database was down already")
    for pid in pids:
        send(pid, signal.SIGKILL)
    return _came_back(scene, f"{len(pids) + 1} processes")


def kill_backend(scene: Scene) -> str:
    """SIGKILL of one session's process, upon which the server throws out everyone and recovers."""
    scene.work_is_under_way()
    with _looking(scene.world) as connection:
        pids = [pid for (pid,) in connection.execute(f"SELECT pid {OURS}".encode()).fetchall()]
    if not pids or not send(scene.chance.choice(pids), signal.SIGKILL):
        raise Missed("nobody was connected")
    return _came_back(scene, "one session's process")


def cut_connections(scene: Scene) -> str:
    """pg_terminate_backend of random connections."""
    scene.work_is_under_way()
    share = scene.chance.uniform(0.3, 1.0)
    with _looking(scene.world) as connection:
        cut = _cut(connection, share)
    if not cut:
        raise Missed("nobody was connected")
    return f"{cut} connections"


def time_out_statements(scene: Scene) -> str:
    """A statement timeout of some milliseconds for a while, with rows locked now and then."""
    timeout_ms = scene.chance.randint(*TIMEOUTS_MS)
    with _looking(scene.world) as connection:
        since = _log_time(connection)
        connection.execute(f"ALTER ROLE {ROLE} SET statement_timeout = {timeout_ms}".encode())
        try:
            _cut(connection, 1.0)
            deadline = time.monotonic() + scene.a_while()
            while time.monotonic() < deadline and not scene.over.is_set():
                with connection.transaction():
                    connection.execute("SELECT FROM companies ORDER BY id FOR UPDATE")
                    scene.stay(0.3)
                scene.stay(0.1)
        finally:
            scene.world.do(f"ALTER ROLE {ROLE} RESET statement_timeout")
            with _looking(scene.world) as other:
                _cut(other, 1.0)
    hit = _said(scene.world, "canceling statement due to statement timeout", since=since)
    if not hit:
        raise Missed("no statement took so long")
    return f"{timeout_ms} ms: {hit} statements"


def provoke_deadlock(scene: Scene) -> str:
    """A session that takes rows in the order opposite to a settlement's."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and not scene.over.is_set():
        scene.work_is_under_way()
        # Where others wait for others, the next time may do.
        with _looking(scene.world) as connection, suppress(psycopg.errors.LockNotAvailable):
            if _deadlocked(connection, scene):
                return "a settlement was the victim"
    raise Missed("nobody came to the same rows")


def fill_connections(scene: Scene) -> str:
    """Every connection that the server allows is taken for a while."""
    with ExitStack() as taken, _looking(scene.world) as connection:
        since = _log_time(connection)
        number = _take_all(scene.world, taken)
        _cut(connection, 0.7, f"{OURS} AND application_name <> 'chaos'")
        number += _take_all(scene.world, taken)
        scene.stay(scene.a_while())
    hit = _said(scene.world, "FATAL:  (sorry, too many clients|remaining connection slots)", since=since)
    # Two of them were the run's own, to know that none is left.
    if hit <= 2:
        raise Missed("nobody else wanted one")
    return f"{number} connections, {hit} refused"


def refuse_writes(scene: Scene) -> str:
    """No file of the server may grow, by a limit on its processes; now and then none may be written."""
    postgres = scene.world.postgres
    with _looking(scene.world) as connection:
        grown = connection.execute(
            "SELECT pg_relation_size('callbacks') > %s", [SEGMENT_BYTES]
        ).fetchone() == (True,)
    limit = scene.chance.choice((SEGMENT_BYTES, SEGMENT_BYTES, 0)) if grown else 0
    before, postmaster, starts = _met(scene.world), postgres.pid, postgres.starts
    try:
        _limit(scene.world, str(limit))
        # Those that were being born meanwhile.
        _limit(scene.world, str(limit))
        scene.stay(scene.a_while())
    finally:
        if postgres.pid == postmaster:
            _limit(scene.world, "unlimited")
            _limit(scene.world, "unlimited")
    _came_back(scene, "the disk")
    if not (hit := _met(scene.world) - before) and postgres.starts == starts:
        raise Missed("nobody wrote so much")
    gave_up = ", and the server gave up" if postgres.starts > starts else ""
    return f"beyond {limit:,} bytes: {hit} refusals told{gave_up}"


DATABASE_FAULTS: dict[str, Fault] = {
    "database killed": kill_server,
    "database session killed": kill_backend,
    "connections cut": cut_connections,
    "statements timed out": time_out_statements,
    "deadlock": provoke_deadlock,
    "connection limit": fill_connections,
}
if shutil.which("prlimit"):
    DATABASE_FAULTS["disk refuses writes"] = refuse_writes


@contextmanager
def _looking(world: World) -> "Iterator[psycopg.Connection[Any]]":
    """Give a connection of the run's own, once the database answers; where it goes away, the fault missed."""
    _wait_for_database(world)
    try:
        with world.connect() as connection:
            yield connection
    except psycopg.OperationalError as error:
        raise Missed(f"the database was away: {str(error).splitlines()[0]}") from error


def _cut(connection: "psycopg.Connection[Any]", share: float, whom: str = OURS) -> int:
    query = f"SELECT count(pg_terminate_backend(pid)) {whom} AND random() < %s"
    row = connection.execute(query.encode(), [share]).fetchone()
    return int(row[0]) if row else 0


def _deadlocked(connection: "psycopg.Connection[Any]", scene: Scene) -> bool:
    """Lock companies that are being settled, wait for one who waits, and ask for what he has."""
    before = _deadlocks(connection)
    # The other one is to be the victim: it finds out sooner.
    connection.execute("SET deadlock_timeout = '20s'")
    connection.execute("SET lock_timeout = '3s'")
    with connection.transaction():
        connection.execute(
            "SELECT FROM companies WHERE id IN (SELECT company_id FROM payment_jobs"
            " WHERE leased_until > clock_timestamp()) ORDER BY id FOR UPDATE"
        )

        def someone_waits() -> bool:
            with scene.world.connect() as other:
                row = other.execute(
                    f"SELECT count(*) {OURS} AND %s = ANY (pg_blocking_pids(pid))".encode(),
                    [connection.info.backend_pid],
                ).fetchone()
                return bool(row and row[0])

        if not until(someone_waits, within_s=2, stop=scene.over.is_set):
            return False
        connection.execute("SELECT FROM payment_jobs WHERE idempotency_key IS NOT NULL FOR UPDATE")
    return until(lambda: _deadlocks(connection) > before, within_s=2)


def _deadlocks(connection: "psycopg.Connection[Any]") -> int:
    row = connection.execute(
        "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    ).fetchone()
    return int(row[0]) if row else 0


def _take_all(world: World, taken: ExitStack) -> int:
    number = 0
    while number < 1000:
        try:
            taken.enter_context(_kept(world.url))
        except psycopg.OperationalError:
            break
        number += 1
    return number


@contextmanager
def _kept(url: str) -> Iterator[None]:
    connection = psycopg.connect(url, application_name="chaos", connect_timeout=5)
    try:
        yield
    finally:
        connection.close()


def _limit(world: World, size: str) -> None:
    """Set how large a file the server's processes may write; as their owner, who needs no privilege."""
    owner = (world.home / "postgres").stat().st_uid
    as_owner = {} if owner == os.geteuid() else {"user": owner, "group": pwd.getpwuid(owner).pw_gid}
    for pid in (world.postgres.pid, *world.postgres.children()):
        subprocess.run(
            ["prlimit", f"--pid={pid}", f"--fsize={size}:"],
            cwd="/",
            check=False,
            capture_output=True,
            **as_owner,  # type: ignore[call-overload]
        )


def _came_back(scene: Scene, what: str) -> str:
    """Return what was done, once the database answers again."""
    _wait_for_database(scene.world)
    return what


def _wait_for_database(world: World) -> None:
    def answers() -> bool:
        with suppress(psycopg.Error):
            return bool(world.rows("SELECT 1"))
        return False

    if not until(answers, within_s=START_S):
        raise RuntimeError("the database does not come back")


def _log_time(connection: "psycopg.Connection[Any]") -> str:
    """Return the present as the server's log writes it."""
    row = connection.execute(
        "SELECT to_char(clock_timestamp() AT TIME ZONE current_setting('log_timezone'),"
        " 'YYYY-MM-DD HH24:MI:SS.MS')"
    ).fetchone()
    return str(row[0]) if row else ""


def _said(world: World, pattern: str, *, since: str) -> int:
    """Return how many lines of the server's log say something, from an instant on."""
    lines = world.server_log().splitlines()
    return sum(1 for line in lines if line[: len(since)] >= since and re.search(pattern, line))


def _met(world: World) -> int:
    """Return how often workers and API have been told that a file could not grow."""
    programs = (*world.workers, world.api)
    return sum(program.log.read_text(errors="replace").count("File too large") for program in programs)
