"""The last program to start: it waits until the API is ready, and says where it is and what to try."""

import json
import os
import shlex
import sys
import time
from ipaddress import ip_address

import requests
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

import database
from config import ConfigError, Settings
from seed import DEMO_EMAIL, DEMO_PASSWORD

READY_TIMEOUT_S = 60


def welcome() -> None:
    """Wait until the API is ready, then print where it is, how to get in, and what to try next."""
    settings = Settings.from_env()
    address = _address(settings.host, settings.port)
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not _ready(address):
        if time.monotonic() > deadline:
            raise ConfigError(
                f"The API at {address} is not ready after {READY_TIMEOUT_S} s. It says why above."
            )
        time.sleep(0.2)

    columns = os.environ.get("VADE_TERMINAL_COLUMNS")
    console = Console(
        force_terminal=bool(columns) or None, width=int(columns) if columns else None, highlight=False
    )
    table = Table.grid(padding=(0, 2))
    table.add_row("API", f"{address}/api/v1")
    table.add_row("Docs", f"{address}/docs")
    demo = _demo(settings)
    if demo is not None:
        table.add_row("Demo company", " / ".join(demo))
    console.print(
        Panel(table, title="Vade is running", subtitle="Ctrl-C stops it", expand=False, padding=(1, 3))
    )
    command = ["curl", "-s", f"{address}/api/v1/packages"]
    if demo is not None:
        body = json.dumps({"email": demo[0], "password": demo[1]})
        command = [
            "curl",
            "-s",
            f"{address}/api/v1/login",
            "-H",
            "Content-Type: application/json",
            "-d",
            body,
        ]
    console.print(f"Try:\n\n{shlex.join(command)}\n", markup=False, soft_wrap=True)


def _address(host: str, port: int) -> str:
    """Return the URL under which this machine finds what listens on a host and port."""
    try:
        ip = ip_address(host)
    except ValueError:
        return f"http://{host}:{port}"
    if ip.is_unspecified:
        return f"http://localhost:{port}"
    return f"http://[{ip}]:{port}" if ip.version == 6 else f"http://{ip}:{port}"


def _ready(address: str) -> bool:
    with requests.Session() as session:
        session.trust_env = False  # no proxy of the environment's stands before this machine itself
        try:
            return session.get(f"{address}/readyz", timeout=5).status_code == 200
        except requests.RequestException:
            return False


def _demo(settings: Settings) -> tuple[str, str] | None:
    """Return the demo company's e-mail and password, if it is in the database."""
    with database.connect(settings) as connection:
        found = connection.execute("SELECT 1 FROM logins WHERE email = %s", [DEMO_EMAIL]).fetchone()
    return (DEMO_EMAIL, DEMO_PASSWORD) if found else None


if __name__ == "__main__":
    try:
        welcome()
    except ConfigError as error:
        error.show()
        sys.exit(error.exit_code)
