"""Metrics as Prometheus reads them: what a process counted, and what stands in the database."""

import hmac
import logging
import threading
import time
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from billing import vitals
from billing.clock import Clock
from billing.heartbeats import STALE_AFTER_S
from billing.transactions import first_line
from billing.vitals import MOST_COUNTED, Vitals
from config import ConfigError

logger = logging.getLogger(__name__)

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

KEPT_S = 5.0
"""How long one look at the database is shown again: who asks more often costs it nothing."""

WAIT_S = 4.0
"""How long a database is waited for: less than Prometheus waits, so that the rest is told all the same."""


def may_read(authorization: str | None, *, token: str | None) -> bool:
    """Return whether an ``Authorization`` header opens the metrics; without a token everyone may read."""
    if token is None:
        return True
    scheme, _, sent = (authorization or "").partition(" ")
    # What WSGI and http.server give as text are bytes in Latin-1.
    same = hmac.compare_digest(sent.strip().encode("latin-1", "replace"), token.encode())
    return scheme.lower() == "bearer" and same


class Watch:
    """Looks at the database for whoever asks, one look at a time and not more often than is useful."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._lock = threading.Lock()
        self._latest: tuple[Vitals | None, float] = (None, 0.0)
        self._latest_s = float("-inf")
        self._looking: threading.Thread | None = None

    def read(self) -> tuple[Vitals | None, float]:
        """Return what stands in the database, None where it does not answer in time; and the look's seconds.

        A look that takes too long goes on alone: another is not begun before it has ended.
        """
        began_s = time.monotonic()
        with self._lock:
            if began_s < self._latest_s + KEPT_S:
                return self._latest
            if self._looking is None:
                self._looking = threading.Thread(target=self._look, name="vitals", daemon=True)
                self._looking.start()
            looking = self._looking
        looking.join(WAIT_S)
        with self._lock:
            in_time = self._latest_s >= began_s
            return self._latest if in_time else (None, time.monotonic() - began_s)

    def _look(self) -> None:
        began_s = time.monotonic()
        found = None
        try:
            with Session(self._engine) as session:
                found = vitals.look(session, self._clock)
        except (SQLAlchemyError, ConfigError) as error:
            logger.warning("no look at the database for the metrics: %s", first_line(error))
        finally:
            with self._lock:
                self._latest_s = time.monotonic()
                self._latest = (found, self._latest_s - began_s)
                self._looking = None

    def metrics(self) -> bytes:
        """Return what stands in the database in the text format."""
        registry = CollectorRegistry()
        registry.register(Found(*self.read()))
        return generate_latest(registry)


class Found(Collector):
    """One look as metrics."""

    def __init__(self, found: Vitals | None, seconds: float) -> None:
        self._found = found
        self._seconds = seconds

    def collect(self) -> Iterator[Metric]:
        """Give what was found; where nothing was, only that."""
        yield GaugeMetricFamily(
            "vade_database_up",
            f"1 where the database answered the metrics' look at it within {WAIT_S:g} seconds, else 0.",
            value=float(self._found is not None),
        )
        yield GaugeMetricFamily(
            "vade_database_look_seconds",
            f"Seconds that this look at the database took. It is shown for {KEPT_S:g} seconds.",
            value=self._seconds,
        )
        if self._found is not None:
            yield from _jobs(self._found)
            yield from _callbacks(self._found)
            yield from _endpoints(self._found)
            yield from _workers(self._found)


def _jobs(found: Vitals) -> Iterator[Metric]:
    bound = f"Counted up to {MOST_COUNTED}."
    yield GaugeMetricFamily(
        "vade_queue_due_jobs", f"Payment jobs that are due, parked ones too. {bound}", value=found.jobs_due
    )
    yield GaugeMetricFamily(
        "vade_queue_leased_jobs",
        f"Due payment jobs that a worker has, or that rest after an outage. {bound}",
        value=found.jobs_leased,
    )
    yield GaugeMetricFamily(
        "vade_queue_lease_expired_jobs",
        f"Due payment jobs that were begun and are nobody's now: the next claim takes them up. {bound}",
        value=found.jobs_lease_expired,
    )
    yield GaugeMetricFamily(
        "vade_queue_jobs_estimate",
        "Payment jobs in the queue, due or not, as the database last estimated: minutes old, perhaps.",
        value=found.jobs_estimate,
    )
    yield GaugeMetricFamily(
        "vade_queue_oldest_due_job_age_seconds",
        "Seconds of business time for which the oldest due payment job that is not parked has been due;"
        " 0 where none is.",
        value=found.oldest_job_age_s,
    )
    yield GaugeMetricFamily(
        "vade_parked_jobs",
        f"Payment jobs that failed again and again for a reason of ours and wait for a decision. {bound}",
        value=found.jobs_parked,
    )


def _callbacks(found: Vitals) -> Iterator[Metric]:
    yield _labelled(
        "vade_callbacks",
        "Callbacks that are not delivered, by status: pending, waiting, held or exhausted. Counted up to"
        f" {MOST_COUNTED}; the newest as many that are held or exhausted together.",
        "status",
        found.callbacks,
    )
    yield GaugeMetricFamily(
        "vade_callbacks_due",
        f"Callbacks that are to be sent now. Counted up to {MOST_COUNTED} for each recipient.",
        value=found.callbacks_due,
    )
    yield GaugeMetricFamily(
        "vade_callbacks_oldest_due_age_seconds",
        "Seconds for which the oldest callback that is to be sent now has been due; 0 where none is.",
        value=found.oldest_callback_age_s,
    )


def _endpoints(found: Vitals) -> Iterator[Metric]:
    yield _labelled(
        "vade_callback_breakers_open",
        "Callback endpoints that are paused because they failed, by recipient: platform or company."
        f" Counted up to {MOST_COUNTED}.",
        "recipient",
        found.breakers_open,
    )
    yield _labelled(
        "vade_callback_endpoints_disabled",
        "Callback endpoints that are disabled now, by recipient: platform or company. Counted up to"
        f" {MOST_COUNTED}.",
        "recipient",
        found.endpoints_disabled,
    )
    yield CounterMetricFamily(
        "vade_callback_endpoint_disablings_total",
        "How often a callback endpoint was disabled, ever, as the database has it.",
        value=found.endpoints_disabled_ever,
    )


def _workers(found: Vitals) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "vade_workers_alive",
        f"Workers whose heartbeat is no older than {STALE_AFTER_S:g} seconds.",
        value=found.workers_alive,
    )
    if found.heartbeat_age_s is not None:
        yield GaugeMetricFamily(
            "vade_worker_heartbeat_age_seconds",
            "Seconds since the newest heartbeat of any worker; absent where none was seen for a day.",
            value=found.heartbeat_age_s,
        )


def _labelled(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, number in sorted(values.items()):
        family.add_metric([value], number)
    return family
