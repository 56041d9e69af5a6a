"""All that the audit compares, read once: the ledger, the tables, what was received and acknowledged.

Nothing of the product is imported here nor in the audit: own SQL, own reading of every file.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import namedtuple_row

PeriodKey = tuple[int, int, date]
"""Company, company package, and the day on which the period began."""


class Entry(NamedTuple):
    """What the gateway did with a key."""

    key: str
    company_id: int
    amount_minor: int
    currency: str
    description: str
    succeeded: bool
    reference: str


class Ask(NamedTuple):
    """One call of the gateway."""

    key: str
    company_id: int
    amount_minor: int
    currency: str
    description: str
    at: datetime
    worker: str
    mood: str


class Message(NamedTuple):
    """One message as it was received; ``data`` is its body's."""

    path: str
    id: str
    timestamp: str
    signature: str
    body: str
    at: datetime
    type: str
    data: dict[str, Any]


@dataclass
class Books:
    """Rows have the columns of their tables as attributes; instants have a zone."""

    now: datetime
    entries: list[Entry]
    asks: list[Ask]
    received: list[Message]
    acknowledged: list[dict[str, Any]]
    misread: list[str]
    doubted: set[tuple[int, str, str]]
    """Changes whose answer was lost: company, field and value."""
    platform_secret: str
    companies: dict[int, Any]
    company_packages: list[Any]
    packages: dict[int, Any]
    payments: list[Any]
    jobs: list[Any]
    callbacks: list[Any]
    begun: dict[int, date]
    """The day on which a company package's first period began, as the run made it or the API said."""
    aged: dict[tuple[int, int, date, int], timedelta] = field(default_factory=dict)
    """How much of its day of waiting the run has taken from an attempt of a period."""

    def of_periods(self) -> dict[PeriodKey, list[Any]]:
        """Return the payments of each period, in the order of their attempts."""
        found: defaultdict[PeriodKey, list[Any]] = defaultdict(list)
        for row in sorted(self.payments, key=lambda row: row.attempt):
            found[row.company_id, row.company_package_id, row.period_start].append(row)
        return found


def read(
    connection: "psycopg.Connection[Any]",
    *,
    now: datetime | None = None,
    ledger: Path,
    received: Iterable[Path],
    acknowledged: list[dict[str, Any]],
    misread: list[str],
    doubted: set[tuple[int, str, str]],
    platform_secret: str,
) -> Books:
    """Read all of it; the tables as they stand for the connection, and nobody is to write meanwhile.

    ``now`` is when all had come to rest; else it is the present. A day may have begun since.
    """
    lines = _lines(ledger)
    cursor = connection.cursor(row_factory=namedtuple_row)

    def rows(query: str) -> list[Any]:
        return cursor.execute(query.encode()).fetchall()

    begun = {row.company_package_id: row.start_date for row in rows("SELECT * FROM chaos.begun")}
    for fact in acknowledged:
        if fact["kind"] == "took":
            begun[fact["company_package_id"]] = date.fromisoformat(fact["start_date"])
    return Books(
        now=now or rows("SELECT clock_timestamp() AS now")[0].now,
        entries=[_entry(line) for line in lines if line["kind"] == "entered"],
        asks=[_ask(line) for line in lines if line["kind"] == "asked"],
        received=[_message(line) for path in received for line in _lines(path)],
        acknowledged=acknowledged,
        misread=misread,
        doubted=doubted,
        platform_secret=platform_secret,
        companies={row.id: row for row in rows("SELECT * FROM companies")},
        company_packages=rows("SELECT * FROM company_packages"),
        packages={row.id: row for row in rows("SELECT * FROM packages")},
        payments=rows("SELECT *, id::text AS key FROM company_payments"),
        jobs=rows("SELECT * FROM payment_jobs"),
        callbacks=rows("SELECT * FROM callbacks"),
        begun=begun,
        aged={
            (row.company_id, row.company_package_id, row.period_start, row.attempt): row.by
            for row in rows(
                "SELECT company_id, company_package_id, period_start, attempt, sum(by) AS by"
                " FROM chaos.aged GROUP BY 1, 2, 3, 4"
            )
        },
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a file; half a line, which a killed process left, is none."""
    found = []
    for text in path.read_text().split("\n") if path.exists() else ():
        try:
            found.append(json.loads(text))
        except ValueError:
            continue
    return found


def _entry(line: dict[str, Any]) -> Entry:
    return Entry(**{name: line[name] for name in Entry._fields})


def _ask(line: dict[str, Any]) -> Ask:
    return Ask(**{name: line[name] for name in Ask._fields} | {"at": _instant(line["at"])})


def _message(line: dict[str, Any]) -> Message:
    body = json.loads(line["body"])
    named = {name: line[name] for name in ("path", "id", "timestamp", "signature", "body")}
    return Message(**named, at=_instant(line["at"]), type=body["type"], data=body["data"])


def _instant(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
