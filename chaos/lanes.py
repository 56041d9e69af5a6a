"""Two lanes of faults at once, of processes and of the database: shuffled decks, by the seed."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from chaos.faults import Fault, Missed, Scene
from chaos.world import World

GAP_S = (0.2, 0.9)
TRIES = 4
"""How often a fault that found nothing to happen to is tried again, at the end of a run."""


@dataclass
class Tally:
    """What happened so far, by the name of the fault; ``failure`` is why the run itself could not go on."""

    hit: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    failure: BaseException | None = None


class Lane:
    """One fault after another, in a thread; every kind once, and then on until the time is over."""

    def __init__(
        self,
        name: str,
        faults: Mapping[str, Fault],
        world: World,
        *,
        seconds: float,
        over: threading.Event,
        tell: Callable[[str], None],
    ) -> None:
        self.tally = Tally()
        self._faults, self._world, self._over, self._tell = faults, world, over, tell
        self._chance = random.Random(f"{world.seed}/{name}")
        self._ends_s = time.monotonic() + seconds
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def lives(self) -> bool:
        """Return whether there is more to come."""
        return self._thread.is_alive()

    def join(self) -> None:
        """Wait for the fault that is under way to be undone."""
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._over.is_set() and time.monotonic() < self._ends_s:
                self._deal([*self._faults])
            for _ in range(TRIES):
                self._deal([name for name in self._faults if not self.tally.hit[name]])
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            self.tally.failure = error

    def _deal(self, names: list[str]) -> None:
        """Do each of some faults, in an order of chance; those done before only while there is time."""
        self._chance.shuffle(names)
        for name in names:
            # Drawn before it is known what is done, so that the plan depends on the seed alone.
            gap_s, own = self._chance.uniform(*GAP_S), self._chance.random()
            self._over.wait(gap_s)
            if self._over.is_set() or (self.tally.hit[name] and time.monotonic() >= self._ends_s):
                continue
            try:
                what = self._faults[name](Scene(self._world, random.Random(own), self._over))
            except Missed as miss:
                self.tally.missed[name] += 1
                self._tell(f"({name}: {miss})")
            else:
                self.tally.hit[name] += 1
                self._tell(f"{name}: {what}")
