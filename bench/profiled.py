"""One run under measurement, as a process of its own: waits for the word, works, says where its time went.

``python -m bench.profiled vade|plain timed|sampled|explained URL BATCH_SIZE``
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import psutil
import psycopg

from bench import meters, plain, plans
from bench.world import make_app
from cli import make_collector
from web.context import vade


def main() -> None:
    """Work on the database given, and print what was spent as JSON."""
    what, how, url, batch_size = sys.argv[1:]
    meter = meters.metered()
    told = meters.told(url)
    run = (
        _plain(told, batch_size=int(batch_size))
        if what == "plain"
        else _vade(told, batch_size=int(batch_size))
    )
    explained = plans.Plans()
    if how == "explained":
        meter.before = explained.explain
    meter.clear()
    print("ready", flush=True)
    sys.stdin.readline()
    cpu_s = time.process_time()
    backends = _backends()
    samples: Counter[str] = Counter()
    with meters.sampled(meter, samples) if how == "sampled" else nullcontext():
        began_s = time.perf_counter()
        attempts = run(meter)
        seconds = time.perf_counter() - began_s
    statements = {name: vars_of(spent) for name, spent in meter.statements.items()}
    print(
        json.dumps(
            {
                "attempts": attempts,
                "seconds": seconds,
                "cpu_s": time.process_time() - cpu_s,
                "server_cpu_s": _backends() - backends,
                "statements": statements,
                "samples": samples,
                "plans": explained.totals(),
            }
        )
    )


def vars_of(spent: meters.Spent) -> tuple[int, float, float]:
    """Return calls, seconds and the server's seconds."""
    return spent.calls, spent.wall_s, spent.server_s


Run = Callable[[meters.Meter], int]


def _vade(url: str, *, batch_size: int) -> Run:
    app = make_app(url, BATCH_SIZE=str(batch_size))
    app.app_context().push()
    # One thing after the other, so that the parts add up to the whole.
    collector = replace(make_collector(vade()), overlap=False)
    collector.run_pass()  # nothing is due yet: opens the connection and warms the code

    def run(meter: meters.Meter) -> int:
        charge = collector.pool.charge

        def charging(*args: Any, **kwargs: Any) -> Any:
            with meter.spending("charging"):
                return charge(*args, **kwargs)

        collector.pool.charge = charging  # type: ignore[method-assign]
        return collector.run_pass().attempts

    return run


def _plain(url: str, *, batch_size: int) -> Run:
    connection = psycopg.connect(url)
    return lambda _: plain.write(connection, batch_size=batch_size)


def _backends() -> float:
    """Return the seconds of processor that the sessions of this machine's PostgreSQL have used."""
    total = 0.0
    for process in psutil.process_iter(["cmdline", "cpu_times"]):
        if (process.info["cmdline"] or [""])[0].startswith("postgres: postgres vade_bench"):
            total += process.info["cpu_times"].user + process.info["cpu_times"].system
    return total


if __name__ == "__main__":
    main()
