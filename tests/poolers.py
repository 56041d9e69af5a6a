"""A PgBouncer in transaction mode, in front of a database."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from postgres_server import as_owner
from tests.processes import until

POOL_SIZE = 4
"""How many connections to the server all programs share."""

CONFIGURATION = """
[databases]
* = {server}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {size}
max_client_conn = 200
server_round_robin = 1
idle_transaction_timeout = 60
"""


def pgbouncer() -> str:
    """Return where the program is; where it is not installed, the test is skipped."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
    found = shutil.which("pgbouncer", path=path)
    if found is None:
        pytest.skip("pgbouncer is not installed (Debian: apt install pgbouncer)")
    return found


@contextmanager
def pooled(url: str, directory: Path) -> Iterator[tuple[str, Path]]:
    """Start a PgBouncer before a database; give the database's URL through it, and the pooler's log."""
    wanted = {"host", "port", "user", "password"}
    direct = conninfo_to_dict(url)
    server = " ".join(f"{name}='{value}'" for name, value in direct.items() if name in wanted)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    log, configuration = directory / "pgbouncer.log", directory / "pgbouncer.ini"
    text = CONFIGURATION.format(server=server, port=port, size=POOL_SIZE)
    configuration.write_text(text)
    # It refuses to run as root, as PostgreSQL does.
    command = as_owner(directory, pgbouncer(), str(configuration))
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    through = f"postgresql://127.0.0.1:{port}/{direct['dbname']}?user=postgres"
    try:
        until(lambda: _answers(through) or process.poll() is not None, what=log.read_text)
        yield through, log
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with psycopg.connect(url, connect_timeout=5) as connection:
            connection.prepare_threshold = None
            return connection.execute("SELECT true").fetchone() == (True,)
    except psycopg.OperationalError:
        return False
