"""The API under load from autocannon, alone and while a worker runs at full speed beside it."""

import json
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any

import psycopg
from rich.table import Table
from werkzeug.security import generate_password_hash

from bench import api
from bench.children import children
from bench.world import TEMPLATE, Step, count, database, fill, spread
from billing.companies import HASH_METHOD
from config import PROJECT_DIR

CONNECTIONS = 8
SECONDS = 3
LOGIN_SECONDS = 8
"""A login takes so long that fewer are made."""
ROUNDS = 3
COMPANIES = 50_000

EMAIL, PASSWORD = "store-5000@store-5000.example", "a password for the benchmark"
_ATTEMPTS = "SELECT count(*) FROM company_payments"
SELECT_1, CURRENT, LOGIN = "bare SELECT 1", "GET current", "POST login"
STEPS = 2 * ROUNDS * 3

_NODE = PROJECT_DIR / ".venv" / "bin" / "node"
_AUTOCANNON = PROJECT_DIR / "node_modules" / "autocannon" / "autocannon.js"

_LOGIN = "INSERT INTO logins (email, company_id, password_hash) VALUES (%s, 5000, %s)"


@dataclass(slots=True)
class Measured:
    """Rates of one call, round by round, and the middle and the worst of its latencies in milliseconds."""

    rates: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    collected: list[float] = field(default_factory=list)
    """Attempts a second of the worker beside."""
    errors: int = 0
    """Requests that were not answered, or not with 2xx."""


Calls = dict[str, list[str]]
"""What is called: a name, and autocannon's arguments for it."""


def tables(url: str, step: Step) -> list[Table]:
    """Measure each call in turn, first alone and then beside a worker; return a table.

    Raises:
        SystemExit: when autocannon is not installed.
    """
    if not _AUTOCANNON.exists():
        raise SystemExit("autocannon is not installed: make bench installs it, from npm.")
    alone = _measure(url, step, busy=False)
    busy = _measure(url, step, busy=True)
    how = f"{CONNECTIONS} connections of autocannon for {SECONDS} s (logins {LOGIN_SECONDS})"
    title = f"The API, {how}, median of {ROUNDS}"
    table = Table(
        "call", "requests/s", "÷ SELECT 1", "p50 ms", "p99 ms", "errors", "worker's attempts/s", title=title
    )
    for name, measured in [*alone.items(), *((f"{name}, worker beside", m) for name, m in busy.items())]:
        bares = (busy if name.endswith("beside") else alone)[SELECT_1].rates
        ratios = [a / b for a, b in zip(measured.rates, bares, strict=True)]
        table.add_row(
            name,
            spread(measured.rates, ",.0f"),
            spread(ratios),
            f"{statistics.median(measured.p50_ms):,.1f}",
            f"{statistics.median(measured.p99_ms):,.1f}",
            str(measured.errors),
            f"{statistics.median(measured.collected):,.0f}",
        )
    table.caption = (
        "The generator, the server, the database and the worker share this machine's cores. Rate limits are "
        f"off. A login checks a password by {HASH_METHOD}, which is meant to cost processor time."
    )
    return [table]


def _measure(url: str, step: Step, *, busy: bool) -> dict[str, Measured]:
    with database(url, "vade_bench", template=TEMPLATE) as fresh:
        fill(fresh, companies=COMPANIES, due=COMPANIES)
        _give_login(fresh)
        called = calls(api.token(fresh, 5000))
        with api.serving(fresh) as port, children(int(busy), "bench.busy", fresh) as workers:
            for worker in workers:
                worker.go()
            measured: dict[str, Measured] = {name: Measured() for name in called}
            for arguments in called.values():
                fire(port, arguments, seconds=1)
            for round_ in range(ROUNDS):
                for name, arguments in called.items():
                    step(f"API, round {round_ + 1}: {name}" + (", a worker beside" if busy else ""))
                    before, began_s = count(fresh, _ATTEMPTS), time.perf_counter()
                    add(
                        measured[name],
                        fire(port, arguments, seconds=LOGIN_SECONDS if name == LOGIN else SECONDS),
                    )
                    collected = count(fresh, _ATTEMPTS) - before
                    measured[name].collected.append(collected / (time.perf_counter() - began_s))
                    if busy and not collected:
                        raise RuntimeError("the worker beside the API does nothing")
            return measured


def calls(token: str) -> Calls:
    """Return what is called, as the company whose token it is."""
    authorized = ["-H", f"Authorization=Bearer {token}"]
    body = json.dumps({"email": EMAIL, "password": PASSWORD})
    return {
        SELECT_1: ["/select-1", *authorized],
        CURRENT: ["/api/v1/company-packages/current", *authorized],
        LOGIN: ["/api/v1/login", "-m", "POST", "-H", "Content-Type=application/json", "-b", body],
    }


def fire(port: int, arguments: list[str], *, seconds: int) -> dict[str, Any]:
    """Return what autocannon found."""
    path, *others = arguments
    done = subprocess.run(
        [
            str(_NODE),
            str(_AUTOCANNON),
            *("--json", "--no-progress", "-c", str(CONNECTIONS), "-d", str(seconds)),
            *others,
            f"http://127.0.0.1:{port}{path}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def add(measured: Measured, found: dict[str, Any]) -> None:
    """Add what autocannon found in a round."""
    measured.rates.append(found["requests"]["total"] / found["duration"])
    measured.p50_ms.append(found["latency"]["p50"])
    measured.p99_ms.append(found["latency"]["p99"])
    measured.errors += found["errors"] + found["timeouts"] + found["non2xx"]


def _give_login(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(_LOGIN, (EMAIL, generate_password_hash(PASSWORD, HASH_METHOD)))
