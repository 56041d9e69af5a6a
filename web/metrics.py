"""What one process counts of its requests. Under gunicorn the counts of all its workers add up in files.

Imported after PROMETHEUS_MULTIPROC_DIR is set, if it is to be: gunicorn.conf.py sees to that.
"""

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})
"""The methods that are told apart. A client may invent any number of others, which count as one."""

NO_ROUTE = "none"
"""The route of what no rule fits. A client may invent any number of such paths too."""

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

REGISTRY = CollectorRegistry()

REQUESTS = Counter(
    "vade_http_requests_total",
    "Requests that the API answered, by method, route (its template; none where no rule fits) and status.",
    ["method", "route", "status"],
    registry=REGISTRY,
)
SECONDS = Histogram(
    "vade_http_request_duration_seconds",
    "Seconds from the first line of a request's handling to its answer, by method and route.",
    ["method", "route"],
    buckets=BUCKETS_S,
    registry=REGISTRY,
)
IN_PROGRESS = Gauge(
    "vade_http_requests_in_progress",
    "Requests that are being answered now, by living processes of this API.",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)


def count_request(method: str, route: str | None, status: int, *, duration_s: float) -> None:
    """Count a request that was answered; ``route`` is the template of its rule, or None where none fits."""
    known_method = method if method in METHODS else "other"
    known_route = route or NO_ROUTE
    REQUESTS.labels(known_method, known_route, str(status)).inc()
    SECONDS.labels(known_method, known_route).observe(duration_s)


def request_metrics() -> bytes:
    """Return the counts of this process, or of all that gunicorn started, in the text format."""
    if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        return generate_latest(REGISTRY)
    added_up = CollectorRegistry()
    MultiProcessCollector(added_up)  # type: ignore[no-untyped-call]
    return generate_latest(added_up)
