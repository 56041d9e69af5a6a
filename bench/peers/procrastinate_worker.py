"""Procrastinate as its documentation has it for many short jobs.

Asynchronous tasks with ``concurrency``; a pool as large as that and one more ("Mind the size of your
PostgreSQL pool"); finished jobs deleted on completion, as Vade deletes its own ("Delete finished jobs");
jobs enqueued by `batch_defer_async` ("Batch defer multiple jobs"), a thousand at a time.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import date
from typing import Any

import procrastinate
import psycopg
import uvloop

from bench.peers.work import RETRY_AFTER_S, Place, Progress, Task, charge, result, run

CHUNK = 1000


def _app(task: Task) -> Any:
    size = task.settings.get("concurrency", 1) + 1
    connector = procrastinate.PsycopgConnector(conninfo=task.url, min_size=size, max_size=size)
    return procrastinate.App(connector=connector)


async def install(task: Task, ready: Callable[[], Progress]) -> dict[str, Any]:
    """Make its tables."""
    ready()
    async with _app(task).open_async() as app:
        await app.schema_manager.apply_schema_async()
    return {}


async def enqueue(task: Task, ready: Callable[[], Progress]) -> dict[str, Any]:
    """Enqueue a job for each due period."""
    async with _app(task).open_async() as app:
        job = app.task(name="collect")(_nothing)
        began_s = ready().started_s
        async with await psycopg.AsyncConnection.connect(task.url) as connection:
            cursor = await connection.execute(task.due.encode())
            places = [_arguments(row) async for row in cursor]
        for start in range(0, len(places), CHUNK):
            await job.batch_defer_async(*places[start : start + CHUNK])
        return {"done": len(places), "seconds": time.perf_counter() - began_s}


async def work(task: Task, ready: Callable[[], Progress]) -> dict[str, Any]:
    """Work off what is due."""
    progress = Progress()

    async def nothing(**_: Any) -> None:
        progress.count()

    async def collect(**place: Any) -> None:
        period_start = date.fromisoformat(place["period_start"])
        parameters = charge(place | {"period_start": period_start}, task.now)
        charged = parameters["outcome"] == 1
        async with pool.connection() as connection:
            await connection.execute(task.collect.encode(), parameters)
            if not charged:
                retry = job.configure(connection=connection, schedule_in={"seconds": RETRY_AFTER_S})
                await retry.defer_async(**place)
        progress.count(charged=charged)

    async with _app(task).open_async() as app:
        pool = app.connector.pool
        job = app.task(name="collect")(nothing if task.noop else collect)
        progress.started_s = ready().started_s
        worker = asyncio.create_task(
            app.run_worker_async(
                concurrency=task.settings["concurrency"],
                delete_jobs=task.settings["delete_jobs"],
                listen_notify=False,
                install_signal_handlers=False,
            )
        )
        await progress.until_idle(task.limit_s)
        found = result(progress, task.limit_s)
        worker.cancel()
        await asyncio.wait([worker])
        return found | {"done_at_end": progress.done, "declined_at_end": progress.declined}


async def _nothing(**_: Any) -> None:
    """Stand for the task where jobs are only enqueued."""


def _arguments(row: Any) -> Place:
    company_id, company_package_id, period_start = row
    return {
        "company_id": company_id,
        "company_package_id": company_package_id,
        "period_start": period_start.isoformat(),
    }


if __name__ == "__main__":
    run({"install": install, "enqueue": enqueue, "work": work}, loop_factory=uvloop.new_event_loop)
