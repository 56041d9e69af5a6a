"""What a worker counts of its passes, in its own process: a worker that starts anew counts from 0."""

import threading
from collections import Counter as Tally
from dataclasses import replace

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from billing.charging import CallEnd
from billing.collection import PassResult
from billing.deliveries import DeliveryResult

# When each count began is told by nothing that reads these.
disable_created_metrics()  # type: ignore[no-untyped-call]

ATTEMPTS = ("charged", "declined", "failed")
DELIVERIES = ("delivered", "failed", "exhausted")

CALL_BUCKETS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class WorkerMetrics:
    """The counts of one worker. Told of running totals, it counts what came since."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._attempts = self._counter(
            "vade_payment_attempts_total",
            "Attempts to collect, by outcome: charged, declined, or failed (not answered or not written).",
            "outcome",
            ATTEMPTS,
        )
        self._periods = self._counter(
            "vade_periods_total",
            "What became of periods, by event: queued (it ended), free (it cost nothing), passivated (three"
            " declines) or parked (it failed for a reason of ours).",
            "event",
            ("queued", "free", "passivated", "parked"),
        )
        self._collected = Counter(
            "vade_collected_minor_units_total",
            "Money collected in minor units (such as kurus), by currency.",
            ["currency"],
            registry=self._registry,
        )
        self._passes = self._counter(
            "vade_passes_total",
            "Passes of collection that ended, by outcome: done or broken_off.",
            "outcome",
            ("done", "broken_off"),
        )
        self._pass_seconds = Histogram(
            "vade_pass_duration_seconds",
            "Seconds that a pass of collection took.",
            buckets=(0.01, 0.1, 1.0, 10.0, 60.0, 300.0, 1800.0),
            registry=self._registry,
        )
        self._calls = Histogram(
            "vade_gateway_call_duration_seconds",
            "Seconds that a call of the payment gateway took, by outcome: answered, unavailable, or timeout"
            " (given up).",
            ["outcome"],
            buckets=CALL_BUCKETS_S,
            registry=self._registry,
        )
        for end in ("answered", "unavailable", "timeout"):
            self._calls.labels(end)
        self._deliveries = self._counter(
            "vade_callback_deliveries_total",
            "Attempts to deliver a callback, by outcome: delivered, failed (it is tried again) or exhausted"
            " (given up).",
            "outcome",
            DELIVERIES,
        )

    def _counter(self, name: str, text: str, label: str, values: tuple[str, ...]) -> Counter:
        counter = Counter(name, text, [label], registry=self._registry)
        for value in values:
            # Seen as 0 from the start, so that the first of its kind is seen as a rise.
            counter.labels(value)
        return counter

    def gateway_called(self, end: CallEnd, seconds: float) -> None:
        """Count a call of the gateway; from any thread."""
        self._calls.labels(end).observe(seconds)

    def collection(self) -> "CollectionCount":
        """Return the count of one pass of collection."""
        return CollectionCount(self._attempts, self._periods, self._collected)

    def collected(self, result: PassResult, *, broken_off: bool) -> None:
        """Count a pass that ended."""
        self._passes.labels("broken_off" if broken_off else "done").inc()
        self._pass_seconds.observe(result.seconds)

    def deliveries(self) -> "DeliveryCount":
        """Return the count of one pass over the callbacks."""
        return DeliveryCount(self._deliveries)

    def text(self) -> bytes:
        """Return the counts in the text format."""
        return generate_latest(self._registry)


class CollectionCount:
    """Counts one pass from its running totals, which any of its threads may tell."""

    def __init__(self, attempts: Counter, periods: Counter, collected: Counter) -> None:
        self._counters = {"attempts": attempts, "periods": periods, "collected": collected}
        self._lock = threading.Lock()
        self._counted: Tally[tuple[str, str]] = Tally()

    def add(self, result: PassResult) -> None:
        """Count what came since the last time."""
        with self._lock:
            total = _totals(result)
            for (counter, label), number in (total - self._counted).items():
                self._counters[counter].labels(label).inc(number)
            self._counted |= total


class DeliveryCount:
    """Counts one pass over the callbacks from its running totals, which one thread tells."""

    def __init__(self, deliveries: Counter) -> None:
        self._deliveries = deliveries
        self._counted = DeliveryResult()

    def add(self, result: DeliveryResult) -> None:
        """Count what came since the last time."""
        since = result.since(self._counted)
        self._counted = replace(result)
        for outcome in DELIVERIES:
            self._deliveries.labels(outcome).inc(getattr(since, outcome))


def _totals(result: PassResult) -> Tally[tuple[str, str]]:
    # A copy first: the thread that settles may add to it.
    money = dict(result.charged_minor)
    total = Tally({("collected", currency): minor for currency, minor in money.items()})
    for outcome in ATTEMPTS:
        total["attempts", outcome] = getattr(result, outcome)
    total["periods", "queued"] = result.queued
    total["periods", "free"] = result.free
    total["periods", "passivated"] = result.passive
    total["periods", "parked"] = result.parked
    return total
