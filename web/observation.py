"""Around every request: its id, its line in the access log, and its place in the metrics."""

import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from flask import Flask, request

from billing import tracing
from web.metrics import IN_PROGRESS, count_request

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger("access")

HEADER = "X-Request-Id"
_ROUTE = "vade.route"


def observe(app: Flask, *, access_log: bool) -> None:
    """Give every request an id and count it; with ``access_log`` also tell of it in one line.

    The id is the caller's ``X-Request-Id`` where that is one that is believed, else a fresh one. It is
    answered, put on every log line, and kept with the callbacks that the request causes.
    """
    app.wsgi_app = _Observed(app.wsgi_app, access_log=access_log)  # type: ignore[method-assign]

    # Before the guard, which may refuse: routes of refused requests are told too.
    app.before_request_funcs.setdefault(None, []).insert(0, _note_route)


def _note_route() -> None:
    request.environ[_ROUTE] = request.url_rule.rule if request.url_rule is not None else None


class _Observed:
    """The application, watched from outside, so that nothing that fails within goes unseen."""

    def __init__(self, application: "WSGIApplication", *, access_log: bool) -> None:
        self._application = application
        self._access_log = access_log

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        id_ = tracing.accepted(environ.get("HTTP_X_REQUEST_ID")) or tracing.new_id()
        statuses: list[int] = []

        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Callable[[bytes], object]:
            statuses.append(int(status[:3]))
            return start_response(status, [*headers, (HEADER, id_)], *error)

        began_s = time.monotonic()
        with tracing.traced(id_), IN_PROGRESS.track_inprogress():
            try:
                return self._application(environ, start)
            finally:
                # Without an answer, an error left the application: the server answers with a 500.
                status = statuses[-1] if statuses else 500
                self._told(environ, status, duration_s=time.monotonic() - began_s)

    def _told(self, environ: "WSGIEnvironment", status: int, *, duration_s: float) -> None:
        # The template and not the path: paths are the callers', who put anything into them.
        method, route = environ["REQUEST_METHOD"], environ.get(_ROUTE)
        count_request(method, route, status, duration_s=duration_s)
        if self._access_log:
            told = {"method": method, "route": route, "status": status}
            logger.info("request", extra=told | {"duration_ms": round(duration_s * 1000, 1)})
