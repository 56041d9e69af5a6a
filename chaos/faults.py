"""Faults of processes: each is done to a running world, and says what it did; the seed decides to whom."""

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import psycopg

from chaos.processes import Program, send, until
from chaos.world import World

UP_S = 30.0
"""How long a fault waits for its victim to be up, after another fault."""

BETWEEN_S = (1.5, 3.5)
"""How long what goes away stays away."""


class Missed(Exception):  # noqa: N818 - it says what happened
    """The fault found nothing to happen to; it is tried once more later."""


@dataclass(frozen=True)
class Scene:
    """What a fault is given: the world, its own chance, and whether the run is to end."""

    world: World
    chance: random.Random
    over: threading.Event

    def stay(self, seconds: float) -> None:
        """Wait some seconds, or until the run is to end."""
        self.over.wait(seconds)

    def a_while(self) -> float:
        """Return how long something stays away, in seconds."""
        return self.chance.uniform(*BETWEEN_S)

    def main_of(self, program: Program) -> list[int]:
        """Return the main process of a program, once it is up."""
        until(lambda: program.pid, within_s=UP_S, stop=self.over.is_set)
        return [pid for pid in (program.pid,) if pid is not None]

    def children_of(self, program: Program) -> list[int]:
        """Return what a program has started, once it has."""
        until(program.children, within_s=UP_S, stop=self.over.is_set)
        return program.children()

    def work_is_under_way(self) -> None:
        """Wait a moment for jobs that are leased, so that the fault meets some."""
        until(lambda: _leased(self.world), within_s=3, stop=self.over.is_set)


Fault = Callable[[Scene], str]


def kill_worker(scene: Scene) -> str:
    """SIGKILL of a worker that has work under way."""
    worker = scene.chance.choice(scene.world.workers)
    scene.work_is_under_way()
    return _killed(scene, worker)


def kill_api(scene: Scene) -> str:
    """SIGKILL of gunicorn's master."""
    return _killed(scene, scene.world.api)


def kill_api_worker(scene: Scene) -> str:
    """SIGKILL of a process that answers for the API."""
    return _hit(scene, scene.children_of(scene.world.api), signal.SIGKILL, "API process")


def kill_gateway(scene: Scene) -> str:
    """SIGKILL of the gateway, which is up again at once."""
    scene.work_is_under_way()
    return _killed(scene, scene.world.gateway)


def kill_receiver(scene: Scene) -> str:
    """SIGKILL of a receiver."""
    return _killed(scene, scene.chance.choice(scene.world.receivers))


def freeze_worker(scene: Scene) -> str:
    """SIGSTOP of a worker for longer than its lease, then SIGCONT."""
    worker = scene.chance.choice(scene.world.workers)
    scene.work_is_under_way()
    with _frozen(scene, scene.main_of(worker), worker.name):
        scene.stay(scene.world.sizes.lease_s + scene.chance.uniform(1, 2))
    return worker.name


def freeze_gateway(scene: Scene) -> str:
    """SIGSTOP of the gateway for longer than the workers wait for it."""
    scene.work_is_under_way()
    with _frozen(scene, scene.main_of(scene.world.gateway), "gateway"):
        scene.stay(scene.world.sizes.gateway_timeout_s + scene.chance.uniform(0.5, 1.5))
    return "gateway"


def freeze_api_worker(scene: Scene) -> str:
    """SIGSTOP of a process that answers for the API."""
    with _frozen(scene, scene.children_of(scene.world.api), "API process"):
        scene.stay(scene.a_while())
    return "API process"


def gateway_down(scene: Scene) -> str:
    """The gateway is wholly down for a while."""
    return _down(scene, scene.world.gateway)


def receiver_down(scene: Scene) -> str:
    """A receiver is down for a while."""
    return _down(scene, scene.chance.choice(scene.world.receivers))


PROCESS_FAULTS: dict[str, Fault] = {
    "worker killed": kill_worker,
    "worker stopped past its lease": freeze_worker,
    "API killed": kill_api,
    "API process killed": kill_api_worker,
    "API process stopped": freeze_api_worker,
    "gateway killed": kill_gateway,
    "gateway stopped": freeze_gateway,
    "gateway down": gateway_down,
    "receiver killed": kill_receiver,
    "receiver down": receiver_down,
}


def _killed(scene: Scene, program: Program) -> str:
    if not scene.main_of(program) or not program.kill():
        raise Missed(f"{program.name} was down already")
    return program.name


def _hit(scene: Scene, pids: list[int], number: int, what: str) -> str:
    if not pids or not send(scene.chance.choice(pids), number):
        raise Missed(f"there was no {what}")
    return what


@contextmanager
def _frozen(scene: Scene, pids: list[int], what: str) -> Iterator[None]:
    """Hold one process of some still in the block; one that dies meanwhile by another fault is no matter."""
    pid = scene.chance.choice(pids) if pids else 0
    if not pid or not send(pid, signal.SIGSTOP):
        raise Missed(f"{what} was down already")
    born = _born(pid)
    try:
        yield
    finally:
        if _born(pid) == born:
            send(pid, signal.SIGCONT)


def _born(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def _down(scene: Scene, program: Program) -> str:
    scene.work_is_under_way()
    program.down = True
    try:
        program.kill()
        started = time.monotonic()
        scene.stay(scene.a_while())
    finally:
        program.down = False
        program.start()
    return f"{program.name} for {time.monotonic() - started:.1f} s"


def _leased(world: World) -> bool:
    try:
        return bool(world.rows("SELECT 1 FROM payment_jobs WHERE leased_until > clock_timestamp() LIMIT 1"))
    except psycopg.Error:
        return False
