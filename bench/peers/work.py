"""What a worker of a peer does, apart from its queue. Runs in the peers' environment: nothing of Vade's here.

A worker is a process. It reads its `Task` as one line of JSON, says ``ready``, waits for ``go``, works until
nothing comes any more or the time is up, and says how it went, as one line of JSON.
"""

import asyncio
import hashlib
import json
import logging
import sys
import time
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

IDLE_S = 1.5
"""Once no job was finished for so long, nothing is left to do; the time is not counted."""

RETRY_AFTER_S = 24 * 3600

Place = dict[str, Any]
"""Which period a job is about: company_id, company_package_id, period_start."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker is told.

    ``due`` selects the places of what is due; ``collect`` writes all that follows from one answer, in the
    driver's own style of parameters, whose order for asyncpg is ``names``.
    """

    role: str
    url: str
    settings: dict[str, Any]
    now: datetime
    limit_s: float
    due: str = ""
    collect: str = ""
    names: list[str] = field(default_factory=list)

    @property
    def noop(self) -> bool:
        """Whether jobs do nothing."""
        return not self.collect


@dataclass(slots=True)
class Progress:
    """How many jobs were done, and when the last was."""

    started_s: float = 0.0
    last_s: float = 0.0
    done: int = 0
    declined: int = 0

    def count(self, *, charged: bool = True) -> None:
        """Say that a job is done."""
        self.done += 1
        self.declined += not charged
        self.last_s = time.perf_counter()

    async def until_idle(self, limit_s: float) -> None:
        """Return once nothing comes any more, or after ``limit_s``."""
        stop_at = self.started_s + limit_s
        # An event for each job would cost the peer time.
        while (now := time.perf_counter()) < stop_at and now < max(self.last_s, self.started_s) + IDLE_S:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def charge(place: Place, now: datetime, *, key: uuid.UUID | None = None) -> dict[str, Any]:
    """Return the parameters of ``collect`` after a charge as Vade's gateway has it: a random key's hash."""
    key = key or uuid.uuid4()
    reference = hashlib.sha256(str(key).encode()).hexdigest()
    outcome = int(reference[-1], 16) % 2
    return place | {"key": key, "reference": reference, "outcome": outcome, "now": now}


Role = Callable[[Task, Callable[[], Progress]], Coroutine[Any, Any, dict[str, Any]]]


def run(roles: dict[str, Role], *, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Play the role that standard input asks for."""
    logging.disable(logging.WARNING)  # what a retry logs is not what is measured
    told = json.loads(sys.stdin.readline())
    task = Task(**told | {"now": datetime.fromisoformat(told["now"])})

    def ready() -> Progress:
        print("ready", flush=True)
        sys.stdin.readline()
        return Progress(started_s=time.perf_counter())

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        print(json.dumps(runner.run(roles[task.role](task, ready))), flush=True)


def result(progress: Progress, limit_s: float) -> dict[str, Any]:
    """Return what a worker says in the end."""
    seconds = min(max(progress.last_s - progress.started_s, 1e-9), limit_s)
    return {"done": progress.done, "seconds": seconds}
