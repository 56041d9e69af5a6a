"""What it costs to forbid that a day is charged twice: the ways that were weighed in ADR 5, side by side.

`python -m bench.overlap` inserts batches in turn into one table per way, each with the same rows.
"""

import random
import statistics
import time
from typing import Any

import psycopg
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.world import database, server

PACKAGES = 40_000
MONTHS_BEFORE = 10
ROUNDS = 9
BATCH = 1000

_X = "company_package_id"
_START, _END = "(period_start - date '1970-01-01')", "(period_end - date '1970-01-01')"
_WHERE = "WHERE (status = 1)"
WAYS = {
    "no constraint": "",
    "gist, two ranges": f"EXCLUDE USING gist (int8range({_X}, {_X}, '[]') WITH &&,"
    f" daterange(period_start, period_end) WITH &&) {_WHERE}",
    "gist, one range": f"EXCLUDE USING gist (int8range({_X} * 65536 + {_START}, {_X} * 65536 + {_END})"
    f" WITH &&) {_WHERE}",
    "spgist, one range": f"EXCLUDE USING spgist (int8range({_X} * 65536 + {_START}, {_X} * 65536 + {_END})"
    f" WITH &&) {_WHERE}",
    "gist, a box": f"EXCLUDE USING gist (box(point({_X}::float8, {_START}::float8),"
    f" point({_X}::float8, ({_END} - 1)::float8)) WITH &&) {_WHERE}",
}

_TABLE = """CREATE TABLE {name} (company_id bigint, id uuid, company_package_id bigint, attempt smallint,
status smallint, period_start date, period_end date, reference text, PRIMARY KEY (company_id, id),
UNIQUE (company_id, company_package_id, period_start, attempt), CHECK (period_start < period_end))"""

# Every other row is a decline, as in collection.
_INSERT = """INSERT INTO {name} SELECT n, md5(n || '/' || {month})::uuid, n, 1, (n + {month}) % 2,
date '2000-01-10' + interval '1 month' * {month}, date '2000-01-10' + interval '1 month' * ({month} + 1),
repeat('f', 64) FROM unnest({ids}::bigint[]) AS n ORDER BY n"""


def main() -> None:
    """Print rows a second and the ratio to no constraint, as medians over all rounds."""
    names = {way: f"way_{number}" for number, way in enumerate(WAYS)}
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    with (
        server() as url,
        database(url, "vade_overlap") as fresh,
        psycopg.connect(fresh, autocommit=True) as connection,
    ):
        everyone = list(range(1, PACKAGES + 1))
        for way, name in names.items():
            _run(connection, _TABLE.format(name=name))
            if WAYS[way]:
                _run(connection, f"ALTER TABLE {name} ADD {WAYS[way]}")
            for month in range(MONTHS_BEFORE):
                _run(connection, _INSERT.format(name=name, month=month, ids=_array(everyone)))
            _run(connection, f"VACUUM ANALYZE {name}")
        batches = [everyone[start : start + BATCH] for start in range(0, PACKAGES, BATCH)]
        order = list(WAYS)
        for round_ in track(range(ROUNDS), "Rounds", console=Console(stderr=True), transient=True):
            random.shuffle(order)
            for way in order:
                began_s = time.perf_counter()
                for batch in batches[:10]:
                    ids = _array(batch)
                    _run(connection, _INSERT.format(name=names[way], month=MONTHS_BEFORE + round_, ids=ids))
                rates[way].append(10 * BATCH / (time.perf_counter() - began_s))
    table = Table("way", "rows/s", "ratio")
    for way, measured in rates.items():
        ratios = [a / b for a, b in zip(measured, rates["no constraint"], strict=True)]
        table.add_row(way, f"{statistics.median(measured):,.0f}", f"{statistics.median(ratios):.2f}")
    Console().print(table)


def _array(ids: list[int]) -> str:
    return "'{" + ",".join(map(str, ids)) + "}'"


def _run(connection: psycopg.Connection[Any], statement: str) -> None:
    connection.execute(statement.encode())


if __name__ == "__main__":
    main()
