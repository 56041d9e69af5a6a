"""Callbacks: messages a second to a quick receiver, beside one that hangs, beside a million that wait."""

import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import requests
from flask import Flask
from sqlalchemy.orm import Session

from bench.world import CALLBACK_SECRET, TEMPLATE, Figures, Step, count, database, make_app, spread
from billing import callback_endpoints, delivery_queue
from billing.clock import Clock
from billing.deliveries import CLAIM_SIZE, THREADS
from billing.lanes import ROOM
from cli import make_deliverer
from models import db
from web.context import vade

MESSAGES = 4000
ENDPOINTS = 5
ROUNDS = 5
CLAIMS = 60
WAITING = (10_000, 1_000_000)
DEAD_ENDPOINTS = 1000
STEPS = 4 * ROUNDS + len(WAITING)
"""How many steps `figures` takes."""

BODY = """{"type":"payment.succeeded","timestamp":"2026-06-15T09:00:00.000000Z","data":{"company":{"id":27,
"site_url":"https://store-27.example","name":"Ayşe","lastname":"Yılmaz","company_name":"Mağaza 27 Ltd. Şti.",
"email":"store-27@store-27.example","status":1,"callback_url":null,"registered_at":"2026-01-10T09:00:00.000000Z"},
"payment":{"id":"b543e43d-4419-2273-5a0f-3d9114948fc3","company_id":27,"company_package_id":27,"attempt":1,
"status":1,"amount_minor":19900,"currency":"TRY","period_start":"2026-05-10","period_end":"2026-06-10",
"reference":"d118b2d7e95b1a29c328fc03b65f55d1bd075caa54e68f131cec7ca981f354eb","decline_code":null,
"attempted_at":"2026-06-15T09:00:00.000000Z"},"sequence":5,"previous":{}}}"""

_WRITE = """
INSERT INTO callbacks (company_id, id, recipient, type, body)
SELECT %(first)s + n %% %(endpoints)s, gen_random_uuid(), %(recipient)s, 'payment.succeeded', %(body)s
FROM generate_series(1, %(messages)s) AS n
"""
_WRITE_DEAD = """
INSERT INTO callback_endpoints (company_id, url, failures, failing_since, open_until, has_waiting)
SELECT 1000 + n, 'http://127.0.0.1:1024/', 20, now(), now() + interval '1 hour', true
FROM generate_series(1, %(endpoints)s) AS n;
INSERT INTO callbacks (company_id, id, recipient, type, body, status, next_attempt_at)
SELECT 1000 + n %% %(endpoints)s, gen_random_uuid(), 'company', 'payment.succeeded', %(body)s, 'waiting', NULL
FROM generate_series(1, %(messages)s) AS n
"""


def figures(url: str, step: Step) -> Figures:
    """Measure all of it."""
    with _receiver() as target:
        return [*_quick(url, target, step), *_beside_hanging(url, target, step), *_claims(url, step)]


def _quick(url: str, target: str, step: Step) -> Figures:
    ours, bares = [], []
    for round_ in range(ROUNDS):
        step(f"callbacks, round {round_ + 1}: a bare loop")
        bares.append(_bare(target))
        step(f"callbacks, round {round_ + 1}: Vade")
        with _world(url, f"{target}/quick") as app:
            _write(app, recipient="platform", endpoints=1, messages=MESSAGES)
            with app.app_context():
                result = make_deliverer(vade()).run_pass()
            if result.delivered != MESSAGES:
                raise RuntimeError(f"{result} for {MESSAGES} messages")
            ours.append(result.delivered / result.seconds)
    ratios = [a / b for a, b in zip(ours, bares, strict=True)]
    return [
        (f"callbacks/s to a quick receiver, median of {ROUNDS}", f"{statistics.median(ours):,.0f}"),
        (f"a bare requests.Session loop, {THREADS} threads", f"{statistics.median(bares):,.0f}"),
        ("ratio (median; least to most)", spread(ratios)),
    ]


def _beside_hanging(url: str, target: str, step: Step) -> Figures:
    rates: dict[bool, list[float]] = {False: [], True: []}
    for round_ in range(ROUNDS):
        for hanging in (False, True):
            step(
                f"callbacks, round {round_ + 1}: "
                + ("a fifth endpoint hangs" if hanging else "four endpoints")
            )
            rates[hanging].append(_others(url, target, hanging=hanging))
    ratios = [a / b for a, b in zip(rates[True], rates[False], strict=True)]
    return [
        (f"callbacks/s to four endpoints, median of {ROUNDS}", f"{statistics.median(rates[False]):,.0f}"),
        ("the same while a fifth hangs", f"{statistics.median(rates[True]):,.0f}"),
        ("ratio (median; least to most)", spread(ratios)),
    ]


def _others(url: str, target: str, *, hanging: bool) -> float:
    """Return messages a second to four quick endpoints, which a fifth may disturb."""
    with _world(url, f"{target}/quick") as app, app.app_context():
        with Session(db.engine) as session:
            now = Clock().read(session).real
            for number in range(1, ENDPOINTS + 1):
                path = "hang" if number == ENDPOINTS else f"endpoint-{number}"
                callback_endpoints.put(session, number, f"{target}/{path}", vade().keyring, now=now)
            session.commit()
        endpoints = ENDPOINTS if hanging else ENDPOINTS - 1
        _write(app, recipient="company", endpoints=endpoints, messages=MESSAGES // ENDPOINTS * endpoints)
        others = MESSAGES // ENDPOINTS * (ENDPOINTS - 1)
        began = count(app.config["BENCH_URL"], "SELECT clock_timestamp()")
        # The one that hangs is not waited for longer than the others.
        stop = threading.Event()
        result = make_deliverer(vade(), stop=stop).run_pass(
            on_record=lambda result: stop.set() if result.delivered == others else None
        )
        if result.delivered != others:
            raise RuntimeError(f"{result} for {others} messages to those that answer")
        last = count(
            app.config["BENCH_URL"], "SELECT max(attempted_at) FROM callback_attempts WHERE error IS NULL"
        )
        return float(others / (last - began).total_seconds())


def _claims(url: str, step: Step) -> Figures:
    """Measure the look for due messages, while few and many wait for dead endpoints."""
    medians = []
    for waiting in WAITING:
        step(f"callbacks: {waiting:,} wait for dead endpoints")
        with _world(url, "http://127.0.0.1:1024/") as app, app.app_context():
            with psycopg.connect(app.config["BENCH_URL"], cursor_factory=psycopg.ClientCursor) as connection:
                values = {"endpoints": DEAD_ENDPOINTS, "messages": waiting, "body": BODY}
                connection.execute(_WRITE_DEAD.encode(), values)
                connection.commit()
                connection.autocommit = True
                connection.execute("VACUUM (ANALYZE)")
            _write(app, recipient="company", endpoints=ENDPOINTS, messages=100)
            medians.append(statistics.median(_claim_ms() for _ in range(CLAIMS)))
    few, many = medians
    return [
        *(
            (f"look for due callbacks, {waiting:,} waiting", f"{median:.2f} ms")
            for waiting, median in zip(WAITING, medians, strict=True)
        ),
        ("the second ÷ the first", f"{many / few:.2f}"),
    ]


def _claim_ms() -> float:
    """Return what one look at the queue takes, which is then rolled back."""
    with Session(db.engine) as session:
        now = Clock().read(session).real
        began_s = time.perf_counter()
        claims = [
            delivery_queue.claim_companies(
                session, now=now, free_since=now, size=CLAIM_SIZE, room=ROOM, rooms={}
            ),
            delivery_queue.claim_waiting(session, now=now, size=CLAIM_SIZE, room=ROOM, rooms={}, probes=4),
        ]
        took_s = time.perf_counter() - began_s
        if sum(len(claim.messages) + claim.moved for claim in claims) != 100:
            raise RuntimeError(f"{claims} of 100 due messages")
        session.rollback()
        return took_s * 1000


def _bare(target: str) -> float:
    """Return messages a second that a loop sends which does nothing but that."""
    left = iter(range(MESSAGES))
    body = BODY.encode()

    def send() -> None:
        session = requests.Session()
        session.trust_env = False
        for _ in left:
            session.post(f"{target}/bare", data=body, timeout=5).raise_for_status()

    threads = [threading.Thread(target=send) for _ in range(THREADS)]
    began_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return MESSAGES / (time.perf_counter() - began_s)


@contextmanager
def _world(url: str, platform: str) -> Iterator[Flask]:
    with database(url, "vade_bench", template=TEMPLATE) as fresh:
        app = make_app(
            fresh, CALLBACK_URL=platform, CALLBACK_SECRET=CALLBACK_SECRET, CALLBACK_ALLOW_PRIVATE="on"
        )
        app.config["BENCH_URL"] = fresh
        try:
            yield app
        finally:
            with app.app_context():
                db.engine.dispose()


def _write(app: Flask, *, recipient: str, endpoints: int, messages: int) -> None:
    with psycopg.connect(app.config["BENCH_URL"]) as connection:
        values = {
            "first": 1,
            "endpoints": endpoints,
            "recipient": recipient,
            "body": BODY,
            "messages": messages,
        }
        connection.execute(_WRITE.encode(), values)


@contextmanager
def _receiver() -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.receiver"], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"  # type: ignore[union-attr]
    finally:
        process.kill()
        process.wait()
