"""Calling the gateway for a batch: from a pool of threads, with a timeout for each call.

No transaction is open here. Whatever a gateway does wrong is an outage of that attempt and of no other:
it raises, answers nonsense, or hangs; a thread that hangs is given up and replaced.
"""

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace
from typing import Literal

from billing.gateways import ChargeRequest, ChargeResult, Gateway, GatewayUnavailable

logger = logging.getLogger(__name__)

CHARGE_MANY_SIZE = 100
"""The most requests that one call of ``charge_many`` carries: the timeout is for the call."""

REFERENCE_LENGTH = 255
"""The longest reference or decline code that is believed, in characters."""

TICK_S = 0.05
"""How often calls are looked after while a batch runs, and so how exact a timeout is."""

NONSENSE = "the answer was nonsense"

Answer = ChargeResult | GatewayUnavailable

CallEnd = Literal["answered", "unavailable", "timeout"]
"""How a call ended: with an answer to any of its requests, with none, or given up."""


class GatewayHangsError(Exception):
    """More threads than the pool has hang in the gateway: the process should be started anew."""


@dataclass(slots=True)
class Call:
    """One use of the gateway: the requests it carries, and how it went."""

    requests: Sequence[ChargeRequest]
    done: "queue.SimpleQueue[Call]"
    stop: threading.Event | None = None
    answers: list[Answer] = field(default_factory=list)
    thread: threading.Thread | None = None
    started_s: float | None = None
    finished: bool = False
    given_up: bool = False
    context: Context = field(default_factory=copy_context)
    """Whose work it is: what its thread logs carries the id of the pass."""

    @property
    def is_stopped(self) -> bool:
        """Whether this call is not to be begun any more."""
        return self.stop is not None and self.stop.is_set()


class ChargePool:
    """Threads around one gateway, kept from batch to batch.

    ``timeout_s`` bounds each call in seconds, from the moment a thread takes it up. ``on_call`` is told how
    each call ended and how many seconds it took; it is called from any thread.
    """

    def __init__(self, gateway: Gateway, *, threads: int, timeout_s: float) -> None:
        self._gateway = gateway
        self._size = threads
        self._timeout_s = timeout_s
        self.on_call: Callable[[CallEnd, float], None] = lambda _end, _seconds: None
        self._waiting: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._alive = 0
        self._hanging: list[threading.Thread] = []
        # Whether a call came back in time or was given up is decided once, under this lock.
        self._verdict = threading.Lock()

    def charge(
        self,
        requests: Sequence[ChargeRequest],
        *,
        stop: threading.Event | None = None,
        stop_timeout_s: float | None = None,
        every: Callable[[], None] = lambda: None,
    ) -> dict[str, Answer]:
        """Return the answer to each request by its idempotency key.

        ``every`` is called some times a second meanwhile. Once ``stop`` is set, or too many threads hang, no
        new call is started; after ``stop`` those under way are given ``stop_timeout_s`` at most. A request
        that was not sent has no answer.
        """
        done: queue.SimpleQueue[Call] = queue.SimpleQueue()
        calls = [Call(part, done, stop) for part in self._parts(requests)]
        for call in calls:
            self._waiting.put(call)
        try:
            self._wait_for(calls, stop_timeout_s=stop_timeout_s, every=every)
        finally:
            # Where `every` raised, nobody is left to hear the answers.
            self._withdraw()
        return {
            request.idempotency_key: answer
            for call in calls
            for request, answer in zip(call.requests, call.answers, strict=False)
        }

    def check(self) -> None:
        """Raise `GatewayHangsError` once more threads hang than the pool has."""
        if self._too_many_hang():
            raise GatewayHangsError(f"{len(self._hanging)} threads hang in the payment gateway")

    def close(self) -> None:
        """Let the idle threads end. Those that hang are daemons and end with the process."""
        for _ in range(self._alive):
            self._waiting.put(None)

    def _wait_for(
        self, calls: Sequence[Call], *, stop_timeout_s: float | None, every: Callable[[], None]
    ) -> None:
        """Return once each call has come back, was given up, or was withdrawn before it began."""
        open_calls = {id(call): call for call in calls}
        withdrawn = False
        stop_by_s: float | None = None
        looked_s = 0.0
        while open_calls:
            if not withdrawn:
                self._grow(len(open_calls))
            closed = _finished(calls[0].done)
            if (now := time.monotonic()) >= looked_s + TICK_S:
                # Not for each call that comes back: a batch has thousands.
                looked_s = now
                every()
                if stop_by_s is None and calls[0].is_stopped:
                    stop_by_s = math.inf if stop_timeout_s is None else now + stop_timeout_s
                closed += self._give_up(list(open_calls.values()), by_s=stop_by_s)
                if not withdrawn and (stop_by_s is not None or self._too_many_hang()):
                    withdrawn = True
                    closed += self._withdraw()
            for call in closed:
                open_calls.pop(id(call), None)

    def _too_many_hang(self) -> bool:
        self._hanging = [thread for thread in self._hanging if thread.is_alive()]
        return len(self._hanging) > self._size

    def _parts(self, requests: Sequence[ChargeRequest]) -> list[Sequence[ChargeRequest]]:
        if callable(getattr(self._gateway, "charge_many", None)):
            return [requests[i : i + CHARGE_MANY_SIZE] for i in range(0, len(requests), CHARGE_MANY_SIZE)]
        return [[request] for request in requests]

    def _grow(self, wanted: int) -> None:
        while self._alive < min(self._size, wanted):
            thread = threading.Thread(target=self._serve, name="gateway", daemon=True)
            thread.start()
            self._alive += 1

    def _withdraw(self) -> list[Call]:
        withdrawn = []
        try:
            while True:
                call = self._waiting.get_nowait()
                if call is not None:
                    withdrawn.append(call)
        except queue.Empty:
            return withdrawn

    def _give_up(self, calls: Sequence[Call], *, by_s: float | None) -> list[Call]:
        """Give up the calls that have hung for the timeout, or until ``by_s``; return them."""
        now = time.monotonic()
        given_up = []
        for call in calls:
            if call.started_s is None:
                continue
            deadline = call.started_s + self._timeout_s
            if now < (deadline if by_s is None else min(deadline, by_s)):
                continue
            with self._verdict:
                if call.finished or call.thread is None:
                    continue
                call.given_up = True
            call.answers = [GatewayUnavailable("no answer in time")] * len(call.requests)
            self._hanging.append(call.thread)
            self._alive -= 1
            given_up.append(call)
            self.on_call("timeout", now - call.started_s)
        return given_up

    def _serve(self) -> None:
        while (call := self._waiting.get()) is not None:
            if call.is_stopped:
                call.done.put(call)
                continue
            call.thread = threading.current_thread()
            call.started_s = time.monotonic()
            answers = call.context.run(self._ask, call.requests)
            seconds = time.monotonic() - call.started_s
            with self._verdict:
                if call.given_up:
                    # Replaced while it hung. What it came back with is asked for again, under the same key.
                    return
                call.answers = answers
                call.finished = True
            try:
                # Counted before it is seen: who has the answers finds them in the count.
                self.on_call(_end_of(answers), seconds)
            finally:
                call.done.put(call)

    def _ask(self, requests: Sequence[ChargeRequest]) -> list[Answer]:
        charge_many = getattr(self._gateway, "charge_many", None)
        try:
            raw = (
                charge_many(list(requests)) if callable(charge_many) else [self._gateway.charge(requests[0])]
            )
        except GatewayUnavailable as outage:
            return [outage] * len(requests)
        except BaseException as error:
            # Another's code, in a thread of its own: even its SystemExit is an outage of this call only.
            logger.exception(
                "the gateway raised something unexpected",
                extra={"idempotency_keys": [request.idempotency_key for request in requests][:10]},
            )
            return [GatewayUnavailable(f"unexpected {type(error).__name__}")] * len(requests)
        if not isinstance(raw, list) or len(raw) != len(requests):
            logger.error("the gateway answered nonsense", extra={"requests": len(requests)})
            return [GatewayUnavailable(NONSENSE)] * len(requests)
        return [_believed(request, answer) for request, answer in zip(requests, raw, strict=True)]


def _end_of(answers: Sequence[Answer]) -> CallEnd:
    none = all(isinstance(answer, GatewayUnavailable) for answer in answers)
    return "unavailable" if none else "answered"


def _finished(done: "queue.SimpleQueue[Call]") -> list[Call]:
    """Return the calls that came back, after a moment's wait for the first."""
    finished = []
    try:
        finished.append(done.get(timeout=TICK_S))
        while True:
            finished.append(done.get_nowait())
    except queue.Empty:
        return finished


def _believed(request: ChargeRequest, answer: object) -> Answer:
    """Return the answer, or an outage where it is none that the contract knows (DESIGN.md §5)."""
    if isinstance(answer, GatewayUnavailable):
        return answer
    if (
        isinstance(answer, ChargeResult)
        and isinstance(answer.succeeded, bool)
        and _is_text(answer.reference)
        and isinstance(answer.decline_code, str | None)
    ):
        # The code only informs: an odd one must not keep what the gateway did from being recorded.
        code = _cleaned(answer.decline_code)
        return answer if code == answer.decline_code else replace(answer, decline_code=code)
    logger.error(
        "the gateway answered nonsense",
        extra={"idempotency_key": request.idempotency_key, "company_id": request.company_id},
    )
    return GatewayUnavailable(NONSENSE)


def _cleaned(code: str | None) -> str | None:
    """Return a decline code as it can be stored, or None where it says nothing."""
    if code is None:
        return None
    text = code if code.isprintable() else "".join(c if c.isprintable() else " " for c in code)
    return text.strip()[:REFERENCE_LENGTH] or None


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= REFERENCE_LENGTH and value.isprintable()
