"""What lies between Vade and plain SQL: where each spends its time, in tables that add up to the whole."""

from rich.table import Table

from bench.children import Result, children, run_all
from bench.world import TEMPLATE, Step, count, database, fill, spread

DUE = 20_000
BATCH = 1000
ROUNDS = 5

_WAL = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint"
STEPS = 2 * ROUNDS + 2
"""How many steps `tables` takes."""


def tables(url: str, step: Step) -> list[Table]:
    """Measure Vade and plain SQL in turn; return the tables of what each spends."""
    ours, plains = [], []
    for round_ in range(ROUNDS):
        step(f"profile, round {round_ + 1}: Vade")
        ours.append(_run(url, "vade", "timed"))
        step(f"profile, round {round_ + 1}: plain SQL")
        plains.append(_run(url, "plain", "timed"))
    step("profile: what Python does")
    sampled = _run(url, "vade", "sampled")
    step("profile: what the server does")
    explained = [_run(url, what, "explained") for what in ("vade", "plain")]
    our, its = _middle(ours), _middle(plains)
    return [
        _summary(ours, plains, our, its),
        _parts(our, sampled, its),
        _steps(explained),
    ]


def _run(url: str, what: str, how: str) -> Result:
    """Run one child on a fresh database, and return what it said, with the WAL it wrote."""
    with (
        database(url, "vade_bench", template=TEMPLATE) as fresh,
        children(1, "bench.profiled", what, how, fresh, str(BATCH)) as started,
    ):
        fill(fresh, companies=DUE, due=DUE)
        before = count(fresh, _WAL)
        [run] = run_all(started)
        if run["attempts"] != DUE:
            raise RuntimeError(f"{run['attempts']} attempts for {DUE} due periods")
        return run | {"wal_bytes": count(fresh, _WAL) - before}


def _summary(ours: list[Result], plains: list[Result], our: Result, its: Result) -> Table:
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(ours, plains, strict=True)]
    table = Table(
        "",
        "Vade",
        "plain SQL",
        title=f"One worker, {DUE:,} due, batches of {BATCH}, settled one after the other",
    )
    for name, key, unit in (
        ("µs per attempt, middle run", "seconds", 1e6),
        ("of that, processor of the worker", "cpu_s", 1e6),
        ("of that, processor of its session", "server_cpu_s", 1e6),
        ("WAL bytes per attempt", "wal_bytes", 1),
    ):
        table.add_row(name, *(f"{run[key] * unit / DUE:,.1f}" for run in (our, its)))
    table.add_row("Vade ÷ plain SQL, while measured", spread(ratios))
    return table


def _parts(our: Result, sampled: Result, its: Result) -> Table:
    """Return a table whose rows add up to the whole of the middle run."""
    table = Table(
        "part", "calls", "µs/attempt", "share", title="Where the time goes, settled one after the other"
    )
    whole = our["seconds"]

    def row(name: str, calls: int | str, seconds: float) -> None:
        table.add_row(name, str(calls), f"{seconds * 1e6 / DUE:.2f}", f"{100 * seconds / whole:.1f} %")

    for name, (calls, wall_s, server_s) in sorted(our["statements"].items(), key=lambda item: -item[1][1]):
        if server_s:
            row(f"{name}: server", calls, server_s)
            row(f"{name}: driver and wire", "", wall_s - server_s)
        else:
            row(name, calls, wall_s)
    python_s = whole - sum(wall_s for _, wall_s, _ in our["statements"].values())
    samples = sampled["samples"]
    total = sum(samples.values()) or 1
    shown = {name: number for name, number in samples.items() if number >= 0.03 * total}
    for name, number in sorted(shown.items(), key=lambda item: -item[1]):
        row(f"Python in {name}", "", python_s * number / total)
    row("Python elsewhere", "", python_s * (1 - sum(shown.values()) / total))
    table.add_section()
    row("the whole", "", whole)
    table.add_section()
    for name, (calls, wall_s, server_s) in its["statements"].items():
        row(f"plain SQL, {name}: server", calls, server_s)
        row(f"plain SQL, {name}: driver and wire", "", wall_s - server_s)
    row("plain SQL, the whole", "", its["seconds"])
    return table


def _steps(explained: list[Result]) -> Table:
    table = Table(
        "statement", "step", "µs/attempt", "WAL bytes", title="Within the server (EXPLAIN ANALYZE: dearer)"
    )
    for statement, steps in (item for run in explained for item in run["plans"].items()):
        for name, (calls, ms, wal_bytes) in steps.items():
            rows = calls * BATCH
            table.add_row(statement, name, f"{ms * 1000 / rows:.2f}", f"{wal_bytes / rows:.0f}")
        table.add_section()
    return table


def _middle(runs: list[Result]) -> Result:
    return sorted(runs, key=lambda run: run["seconds"])[len(runs) // 2]
