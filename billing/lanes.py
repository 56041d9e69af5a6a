"""Which claimed message is sent next: no endpoint, however slow, takes the threads of the others.

An endpoint is *proven* once it answered well and soon. It may be sent a few messages at once. Any other gets
one at a time, and all others together leave some threads to the proven ones.
"""

import itertools
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence

from billing.senders import Outgoing, Reply

SOON_S = 1.0
"""An endpoint that took longer to answer is not proven, or no longer."""

RESERVED_SHARE = 4
"""One thread in so many is kept for proven endpoints."""

PROVEN_ROOM, ROOM = 256, 12
"""How many messages of an endpoint are claimed ahead: no more than it can be sent within the lease."""

UNPROVEN_KEPT = 128
"""How many messages of endpoints that are not proven are claimed ahead, about, of all together."""

LATEST_PROVEN = 256
"""How many proven endpoints are looked for by name while the others have to wait."""

PROVEN_KEPT = 10_000
"""How many proven endpoints are remembered, the latest first."""


class Lanes:
    """The claimed messages of one process, by endpoint; used from any number of threads."""

    def __init__(self, *, threads: int, per_endpoint: int, proven: "OrderedDict[int, None]") -> None:
        self._changed = threading.Condition()
        self._threads = threads
        self._per_endpoint = per_endpoint
        # In the order in which endpoints are served next.
        self._queues: OrderedDict[int, deque[Outgoing]] = OrderedDict()
        self._under_way: Counter[int] = Counter()
        self._unproven_under_way = 0
        self._unproven_limit = threads - threads // RESERVED_SHARE
        self._stopped: Counter[int] = Counter()
        self._proven = proven
        self._closed = False

    def add(self, messages: Sequence[Outgoing]) -> None:
        """Queue claimed messages behind their endpoints' others."""
        with self._changed:
            for message in messages:
                self._queues.setdefault(message.endpoint_id, deque()).append(message)
            self._changed.notify(len(messages))

    def take(self) -> tuple[Outgoing, bool] | None:
        """Wait for the next message, and return it and whether its endpoint was proven; None at the end."""
        with self._changed:
            while not self._closed:
                taken = self._next()
                if taken is not None:
                    return taken
                self._changed.wait()
            return None

    def stop(self, endpoint_id: int) -> None:
        """Give out nothing more for an endpoint that asked to be left alone, until that is recorded."""
        with self._changed:
            self._stopped[endpoint_id] += 1

    def resume(self, endpoint_id: int) -> None:
        """Go on with an endpoint that was stopped: what it asked for is recorded."""
        with self._changed:
            self._stopped[endpoint_id] -= 1
            if not self._stopped[endpoint_id]:
                del self._stopped[endpoint_id]
                self._changed.notify(self._per_endpoint)

    def done(self, outgoing: Outgoing, reply: Reply, *, was_proven: bool) -> None:
        """Say what came of a message that was taken."""
        with self._changed:
            id_ = outgoing.endpoint_id
            self._under_way[id_] -= 1
            if not self._under_way[id_]:
                del self._under_way[id_]
            self._unproven_under_way -= not was_proven
            # Whoever says this takes the next message; only where more became possible, others are wanted.
            was_known = self._proven.pop(id_, self) is None
            if reply.succeeded and reply.duration_s <= SOON_S:
                self._proven[id_] = None
                if len(self._proven) > PROVEN_KEPT:
                    self._proven.popitem(last=False)
                if not was_known:
                    self._changed.notify(self._per_endpoint)

    def drop(self, endpoint_id: int | None = None) -> list[Outgoing]:
        """Take back what is queued and not under way: of one endpoint, or all."""
        with self._changed:
            if endpoint_id is not None:
                return list(self._queues.pop(endpoint_id, ()))
            dropped = [message for queue in self._queues.values() for message in queue]
            self._queues.clear()
            return dropped

    def close(self) -> None:
        """Let every thread that waits, or will, take nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def idle(self) -> bool:
        """Return whether nothing is queued or under way."""
        with self._changed:
            return not self._queues and not self._under_way

    def hungry(self) -> bool:
        """Return whether threads will soon have nothing to do, unless more is claimed."""
        with self._changed:
            ready = {True: 0, False: 0}
            for id_, queue in self._queues.items():
                if id_ not in self._stopped:
                    free = max(0, self._limit(id_) - self._under_way[id_])
                    ready[id_ in self._proven] += min(len(queue), free)
            unproven = min(ready[False], self._unproven_limit - self._unproven_under_way)
            return ready[True] + unproven + self._under_way.total() < self._threads

    def wants(self, endpoint_id: int) -> bool:
        """Return whether an endpoint has room for half of what may be claimed ahead, or more.

        Messages are claimed many at a time: each look at the queue has a price.
        """
        with self._changed:
            return self._room(endpoint_id) * 2 >= self._most(endpoint_id)

    def room(self, endpoint_id: int) -> int:
        """Return how many more messages of an endpoint may be claimed."""
        with self._changed:
            return self._room(endpoint_id)

    def rooms(self) -> tuple[int, dict[int, int]]:
        """Return how many more messages may be claimed of an endpoint, and of those for which it is another.

        Where many wait that are not proven, none but proven ones get more: their messages are let through.
        """
        with self._changed:
            rooms = {id_: self._room(id_) for id_ in {*self._queues, *self._under_way}}
            unproven = sum(len(queue) for id_, queue in self._queues.items() if id_ not in self._proven)
            if unproven < UNPROVEN_KEPT:
                return ROOM, rooms
            latest = itertools.islice(reversed(self._proven), LATEST_PROVEN)
            proven = {id_: self._room(id_) for id_ in latest}
            return 0, dict.fromkeys(rooms, 0) | proven

    def _next(self) -> tuple[Outgoing, bool] | None:
        for id_, queue in self._queues.items():
            proven = id_ in self._proven
            if id_ in self._stopped or self._under_way[id_] >= self._limit(id_):
                continue
            if not proven and self._unproven_under_way >= self._unproven_limit:
                continue
            message = queue.popleft()
            self._queues.move_to_end(id_)
            if not queue:
                del self._queues[id_]
            self._under_way[id_] += 1
            self._unproven_under_way += not proven
            return message, proven
        return None

    def _limit(self, endpoint_id: int) -> int:
        return self._per_endpoint if endpoint_id in self._proven else 1

    def _room(self, endpoint_id: int) -> int:
        return max(0, self._most(endpoint_id) - len(self._queues.get(endpoint_id, ())))

    def _most(self, endpoint_id: int) -> int:
        return PROVEN_ROOM if endpoint_id in self._proven else ROOM
