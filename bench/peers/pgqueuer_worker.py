"""PgQueuer as its documentation has it for throughput ("Performance Tuning").

The asyncpg driver on uvloop; a connection of its own for the queue, and a pool for what the jobs do;
``batch_size`` raised from 10, because jobs are short; ``max_concurrent_tasks`` at the least that this allows;
the autovacuum settings that it recommends; enqueued by lists. Durability stays at its default: a queue of
payments must outlive a crash.
"""

import asyncio
import json
import time
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import Queries

from bench.peers.work import RETRY_AFTER_S, Progress, Task, charge, result, run

CHUNK = 1000


async def install(task: Task, ready: Callable[[], Progress]) -> dict[str, Any]:
    """Make its tables."""
    ready()
    connection = await asyncpg.connect(task.url)
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    await queries.optimize_autovacuum()
    await connection.close()
    return {}


async def enqueue(task: Task, ready: Callable[[], Progress]) -> dict[str, Any]:
    """Enqueue a job for each due period."""
    connection = await asyncpg.connect(task.url)
    queries = Queries(AsyncpgDriver(connection))
    began_s = ready().started_s
    places = [_payload(*row) for row in await connection.fetch(task.due)]
    for start in range(0, len(places), CHUNK):
        some = places[start : start + CHUNK]
        await queries.enqueue(["collect"] * len(some), some, [0] * len(some))
    seconds = time.perf_counter() - began_s
    await connection.close()
    return {"done": len(places), "seconds": seconds}


async def work(task: Task, ready: Callable[[], Progress]) -> dict[str, Any]:
    """Work off what is due."""
    progress = Progress()
    connection = await asyncpg.connect(task.url)
    pool = await asyncpg.create_pool(task.url, min_size=task.settings["pool"], max_size=task.settings["pool"])
    pgq = PgQueuer(AsyncpgDriver(connection))

    async def nothing(_: Any) -> None:
        progress.count()

    async def collect(job: Any) -> None:
        place = json.loads(job.payload)
        place["period_start"] = date.fromisoformat(place["period_start"])
        parameters = charge(place, task.now)
        charged = parameters["outcome"] == 1
        values = [parameters[name] for name in task.names]
        async with pool.acquire() as own:
            if charged:
                await own.execute(task.collect, *values)
            else:
                async with own.transaction():
                    await own.execute(task.collect, *values)
                    await Queries(AsyncpgDriver(own)).enqueue(
                        "collect", job.payload, execute_after=timedelta(seconds=RETRY_AFTER_S)
                    )
        progress.count(charged=charged)

    pgq.entrypoint("collect", accepts_context=False)(nothing if task.noop else collect)
    progress.started_s = ready().started_s
    batch_size = task.settings["batch_size"]
    worker = asyncio.create_task(
        pgq.run(batch_size=batch_size, max_concurrent_tasks=task.settings["tasks"] or None)
    )
    await progress.until_idle(task.limit_s)
    found = result(progress, task.limit_s)
    pgq.shutdown.set()
    await asyncio.wait([worker], timeout=20)
    worker.cancel()
    await asyncio.wait([worker])
    await pool.close()
    await connection.close()
    return found | {"done_at_end": progress.done, "declined_at_end": progress.declined}


def _payload(company_id: int, company_package_id: int, period_start: date) -> bytes:
    return json.dumps(
        {
            "company_id": company_id,
            "company_package_id": company_package_id,
            "period_start": period_start.isoformat(),
        }
    ).encode()


if __name__ == "__main__":
    run({"install": install, "enqueue": enqueue, "work": work}, loop_factory=uvloop.new_event_loop)
