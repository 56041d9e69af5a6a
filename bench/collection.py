"""Collection: attempts a second by worker processes, memory, and plain SQL that writes the same rows."""

from rich.table import Table

from bench import plain
from bench.children import children, run_all
from bench.world import TEMPLATE, Step, count, database, fill, spread

DUE = 50_000
WORKERS = (1, 2, 4)
WORKER_ROUNDS = 3
MEMORY_DUE = (10_000, 100_000)
LIMIT_ROUNDS = 7
LIMIT_DUE = 10_000
BATCH = 1000

STEPS = len(WORKERS) * WORKER_ROUNDS + len(MEMORY_DUE)
LIMIT_STEPS = 2 * LIMIT_ROUNDS


def collect(url: str, *, due: int, workers: int) -> dict[str, float]:
    """Collect everything due on a fresh database by some worker processes; return rate and peak memory."""
    with (
        database(url, "vade_bench", template=TEMPLATE) as fresh,
        children(workers, "bench.worker", fresh, f"BATCH_SIZE={BATCH}") as started,
    ):
        fill(fresh, companies=due, due=due)
        results = run_all(started)
        attempts = sum(result["attempts"] for result in results)
        if attempts != due or count(fresh, "SELECT count(*) FROM company_payments") != due:
            raise RuntimeError(f"{attempts} attempts for {due} due periods: {results}")
        return {
            "rate": attempts / max(result["seconds"] for result in results),
            "peak_mib": max(result["peak_kib"] for result in results) / 1024,
        }


def tables(url: str, step: Step) -> list[Table]:
    """Measure one, two and four workers in turn, and a worker's memory."""
    rates: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    for round_ in range(WORKER_ROUNDS):
        for workers in WORKERS:
            step(f"collection, round {round_ + 1}: {workers} worker(s), {DUE:,} due")
            rates[workers].append(collect(url, due=DUE, workers=workers)["rate"])
    table = Table(
        "workers", "attempts/s", "÷ one worker", title=f"Collection, {DUE:,} due, median of {WORKER_ROUNDS}"
    )
    for workers, measured in rates.items():
        ratios = [a / b for a, b in zip(measured, rates[1], strict=True)]
        table.add_row(str(workers), spread(measured, ",.0f"), spread(ratios))
    memory = Table("due", "worker's peak memory", title="Memory")
    for due in MEMORY_DUE:
        step(f"memory, {due:,} due")
        memory.add_row(f"{due:,}", f"{collect(url, due=due, workers=1)['peak_mib']:,.0f} MiB")
    return [table, memory]


def limit_tables(url: str, step: Step) -> list[Table]:
    """Measure Vade and plain SQL in turn: the median rates, and the median of their ratios."""
    ours, plains = [], []
    for round_ in range(LIMIT_ROUNDS):
        step(f"limit, round {round_ + 1}: Vade")
        ours.append(collect(url, due=LIMIT_DUE, workers=1)["rate"])
        step(f"limit, round {round_ + 1}: plain SQL")
        with database(url, "vade_bench", template=TEMPLATE) as fresh:
            fill(fresh, companies=LIMIT_DUE, due=LIMIT_DUE)
            attempts, seconds = plain.run(fresh, batch_size=BATCH)
            if attempts != LIMIT_DUE:
                raise RuntimeError(f"{attempts} attempts for {LIMIT_DUE} due periods")
            plains.append(attempts / seconds)
    ratios = [a / b for a, b in zip(ours, plains, strict=True)]
    table = Table(
        "", "attempts/s", title=f"The limit: one worker, {LIMIT_DUE:,} due, median of {LIMIT_ROUNDS}"
    )
    table.add_row("Vade", spread(ours, ",.0f"))
    table.add_row("the same rows by plain set-based SQL", spread(plains, ",.0f"))
    table.add_row("ratio", spread(ratios))
    return [table]
