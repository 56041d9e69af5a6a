"""The worker: an APScheduler process that queues, collects and delivers, until it is told to stop.

When to do what; the rules are in `billing`.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

from apscheduler.schedulers.background import BackgroundScheduler
from flask import Flask
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

import embedded
from billing import (
    callback_history,
    daily_reports,
    heartbeats,
    idempotency,
    report_entries,
    sessions,
    tracing,
)
from billing.addresses import refusal
from billing.charging import GatewayHangsError
from billing.clock import Clock
from billing.collection import Collector, PassResult
from billing.deliveries import Deliverer, DeliveryResult
from billing.transactions import first_line
from cli import STOP_S, make_collector, make_deliverer
from config import ConfigError, Settings
from metrics_server import serve_metrics
from models import db
from web.context import vade
from web.exposition import Watch
from worker_metrics import WorkerMetrics
from wsgi import create_app

logger = logging.getLogger("worker")

HEARTBEAT_S = 5
SWEEP_S = 60
PRUNE_PAUSE_S = 0.1
DELIVERY_LINE_S = 1.0
"""A pass over the callbacks that goes on tells of itself this often."""

IDLE_LINE_S = 60
"""In development, a pass that found nothing to do is told at level INFO this often, and else at DEBUG."""

CUT_OFF = 1
"""Exit status when it took longer: what is leased is taken up again when the leases run out."""

GATEWAY_HANGS = 3
"""Exit status when too many threads hang in the gateway: supervisord starts the worker anew."""


class Worker:
    """One worker process: its jobs, and how they end."""

    def __init__(self, app: Flask) -> None:
        self.stop = threading.Event()
        self.exit_status = 0
        # A byte arrives when the worker is told to stop. Waiting for an event or a queue would not do: Linux
        # may give a signal to any thread, and that does not wake a main thread which waits for a lock.
        self._told, self._tell = socket.socketpair()
        self._tell.setblocking(False)
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._started_at: datetime | None = None
        self._idle_line_s: float | None = None
        with app.app_context():
            self._engine = db.engine
            self._collector: Collector = make_collector(vade(), stop=self.stop)
            self._deliverer: Deliverer = make_deliverer(vade(), stop=self.stop)
            self._poll_s = vade().settings.worker_poll_s
            platform = vade().platform
            self._unreachable = platform and refusal(platform.url, vade().address_policy)
            self._every_pass = vade().settings.production
            self._retention = timedelta(days=vade().settings.callback_retention_days)
            self._settings: Settings = vade().settings
            self._clock: Clock = vade().clock
            self._by_platform = vade().outbox.by_platform
            self._watch = Watch(db.engine, vade().clock)
        self._metrics = WorkerMetrics()
        self._collector.pool.on_call = self._metrics.gateway_called

    def run(self) -> int:
        """Work until SIGTERM or SIGINT, then finish the batch; return the exit status.

        1. Every poll: one pass of collection, and one over the due callbacks, each in a thread of its own.
        2. Every few seconds: a heartbeat, which goes on during a long pass.
        3. When told to stop: no new charge is begun, what was answered is settled, the rest is released.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            # Told twice is told once: Ctrl-C reaches the whole group, and supervisord tells it again.
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._tell.fileno(), warn_on_full_buffer=False)
        scheduler = BackgroundScheduler(
            timezone="UTC", job_defaults={"max_instances": 1, "coalesce": True, "misfire_grace_time": None}
        )
        for job, seconds in (
            (self.collect, self._poll_s),
            (self.deliver, self._poll_s),
            (self.beat, HEARTBEAT_S),
            (self.sweep, SWEEP_S),
            (self.prune, SWEEP_S),
            (self.add_up, SWEEP_S),
            (self.report, SWEEP_S),
        ):
            scheduler.add_job(job, "interval", seconds=seconds, next_run_time=datetime.now().astimezone())
        scheduler.start()
        self._serve_metrics()
        logger.info("worker started", extra={"worker": self._name})
        if self._unreachable:
            logger.error("nothing can be sent to CALLBACK_URL: %s", self._unreachable)
        self._told.recv(1)
        self.stop.set()
        logger.info("worker stops", extra={"worker": self._name})
        end = threading.Thread(target=self._end, args=[scheduler], name="end", daemon=True)
        end.start()
        end.join(STOP_S)
        if end.is_alive():
            logger.error("worker cut off: something does not answer", extra={"worker": self._name})
            return CUT_OFF
        logger.info("worker stopped", extra={"worker": self._name})
        return self.exit_status

    def _end(self, scheduler: BackgroundScheduler) -> None:
        scheduler.shutdown(wait=True)
        self._leave()

    def collect(self) -> None:
        """Run one pass of collection and log it in one line."""
        if self.stop.is_set():
            return
        with tracing.traced(tracing.new_id("pass-")):
            self._collect(PassResult())

    def _collect(self, result: PassResult) -> None:
        count = self._metrics.collection()
        broken_off = True
        try:
            self._collector.run_pass(result, on_batch=count.add)
            broken_off = False
        except GatewayHangsError as error:
            logger.critical("%s: the worker ends, to be started anew", error)
            self.exit_status = GATEWAY_HANGS
            self._tell.send(b"\0")
        except (SQLAlchemyError, ConfigError) as error:
            _log_in_one_line("the pass was broken off", error)
        finally:
            count.add(result)
            self._metrics.collected(result, broken_off=broken_off)
            self._log(result)

    def deliver(self) -> None:
        """Send the callbacks that are due."""
        if self.stop.is_set():
            return
        told, count = _Told(), self._metrics.deliveries()

        def recorded(result: DeliveryResult) -> None:
            count.add(result)
            told.now_and_then(result)

        with tracing.traced(tracing.new_id("pass-")):
            try:
                result = self._deliverer.run_pass(rolling=True, on_record=recorded)
                count.add(result)
                told.rest(result)
            except (SQLAlchemyError, ConfigError) as error:
                _log_in_one_line("delivery was broken off", error)

    def beat(self) -> None:
        """Say that this worker is alive; `/readyz` tells when it was last heard."""

        def beat(session: Session) -> None:
            now = Clock().read(session).real
            self._started_at = self._started_at or now
            heartbeats.beat(session, self._name, started_at=self._started_at, now=now)

        self._write(beat, failing="no heartbeat")

    def sweep(self) -> None:
        """Forget what is over: the rate limits' windows, sessions, and answers that were kept for a day."""
        expired = text("DELETE FROM rate_limits WHERE expires_at < now()")
        self._write(lambda session: session.execute(expired), failing="no sweep")
        for sweep in (sessions.sweep, idempotency.sweep):
            self._write(partial(_sweep_at_present, sweep), failing="no sweep")

    def prune(self) -> None:
        """Remove callbacks that are old, a few at a time."""

        def prune(session: Session) -> None:
            before = Clock().read(session).real - self._retention
            removed.append(callback_history.remove_old(session, before=before))

        removed: list[int] = []
        while not self.stop.is_set():
            so_far = len(removed)
            self._write(prune, failing="old callbacks are not removed")
            if len(removed) == so_far or removed[-1] < callback_history.BATCH:
                break
            # Deliveries come first.
            self.stop.wait(PRUNE_PAUSE_S)
        if sum(removed):
            logger.info("old callbacks removed", extra={"removed": sum(removed)})

    def add_up(self) -> None:
        """Add up the entries of reports, a few at a time."""

        def add_up(session: Session) -> None:
            now = self._clock.read(session).business
            added.append(report_entries.add_up(session, now=now, zone=self._settings.billing_timezone))

        added: list[int] = []
        while not self.stop.is_set():
            so_far = len(added)
            self._write(add_up, failing="entries of reports are not added up")
            if len(added) == so_far or added[-1] < report_entries.BATCH:
                break

    def report(self) -> None:
        """Make the daily reports that are due, and tell the platform."""
        with tracing.traced(tracing.new_id("report-")):
            try:
                made = daily_reports.make_due(
                    self._engine,
                    self._clock,
                    zone=self._settings.billing_timezone,
                    by_platform=self._by_platform,
                    stopped=self.stop.is_set,
                )
            except (SQLAlchemyError, ConfigError) as error:
                _log_in_one_line("no daily report", error)
            else:
                for day in made:
                    logger.info("daily report", extra={"day": day.isoformat()})

    def _serve_metrics(self) -> None:
        """Serve the metrics where they are wanted; where that cannot be, money is collected all the same."""
        settings = self._settings
        if settings.metrics_port is None:
            return
        try:
            serve_metrics(
                lambda: self._metrics.text() + self._watch.metrics(),
                host=settings.host,
                port=settings.metrics_port,
                token=settings.metrics_token,
            )
        except OSError as error:
            _log_in_one_line(f"no metrics: METRICS_PORT {settings.metrics_port} cannot be had", error)

    def _leave(self) -> None:
        self._write(lambda session: heartbeats.leave(session, self._name), failing="no farewell")

    def _write(self, work: Callable[[Session], object], *, failing: str) -> None:
        """Do some small work in one transaction; where the database fails, say so and go on."""
        try:
            with Session(self._engine) as session:
                work(session)
                session.commit()
        except (SQLAlchemyError, ConfigError) as error:
            _log_in_one_line(failing, error)

    def _log(self, result: PassResult) -> None:
        names = ("queued", "charged", "declined", "passive", "failed", "seconds", "oldest_job_age_s")
        busy = result.queued or result.attempts or result.failed or result.free
        told = self._every_pass or busy or self._idle_line_due()
        logger.log(
            logging.INFO if told else logging.DEBUG,
            "pass",
            extra={name: getattr(result, name) for name in names},
        )

    def _idle_line_due(self) -> bool:
        now_s = time.monotonic()
        if self._idle_line_s is not None and now_s < self._idle_line_s + IDLE_LINE_S:
            return False
        self._idle_line_s = now_s
        return True


class _Told:
    """What was told of a pass over the callbacks, which may go on for as long as there are some."""

    def __init__(self) -> None:
        self._told = DeliveryResult()
        self._told_s = time.monotonic()

    def now_and_then(self, result: DeliveryResult) -> None:
        """Log what came since the last line, unless that was a moment ago."""
        if time.monotonic() >= self._told_s + DELIVERY_LINE_S:
            self.rest(result)

    def rest(self, result: DeliveryResult) -> None:
        """Log what was not told yet, in one line."""
        since = result.since(self._told)
        now_s = time.monotonic()
        figures = {"delivered": since.delivered, "failed": since.failed, "exhausted": since.exhausted}
        if any(figures.values()):
            logger.info("callbacks", extra=figures | {"seconds": now_s - self._told_s})
        self._told, self._told_s = replace(result), now_s


def _sweep_at_present(sweep: Callable[..., int], session: Session) -> None:
    sweep(session, now=Clock().read(session).real)


def _log_in_one_line(what: str, error: Exception) -> None:
    """Log a failure without its traceback: a database that is away fails every poll."""
    logger.error("%s: %s", what, first_line(error))


def _check_database(app: Flask) -> None:
    """Raise `ConfigError` for a database that Vade cannot run on; one that is away is waited for."""
    try:
        with app.app_context(), db.engine.connect():
            pass
    except SQLAlchemyError as error:
        logger.warning("the database does not answer yet: %s", first_line(error))


def main() -> None:
    """Run the worker as a process of its own."""
    # Told to stop before there is anything to finish.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        app = create_app()
        _check_database(app)
    except ConfigError as error:
        sys.exit(f"Error: {error.format_message()}")
    status = Worker(app).run()
    if status != CUT_OFF:
        embedded.leave()
    # A thread that hangs in a gateway or an endpoint must not keep the process.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
