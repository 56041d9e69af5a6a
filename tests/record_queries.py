"""``make record``: write down what this version says to the database, for the test of later migrations.

A small crowd goes through all that the programs do: it registers, logs in, takes packages, pays, declines
and becomes passive; messages arrive, fail, are held and sent again; workers renew, rest, release, beat and
clean up.
"""

import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import flask_migrate
from alembic.script import ScriptDirectory
from flask import Flask

import embedded
from billing.charging import ChargePool
from billing.gateways import ChargeRequest, ChargeResult, GatewayUnavailable
from config import PROJECT_DIR, Settings
from models import db
from scheduler import Worker
from tests.api import DescribedClient, registration
from tests.conftest import new_database, settings_for
from tests.deliveries import deliver
from tests.processes import until
from tests.receivers import Receiver, receiver
from tests.recordings import RELEASED, Recorder, Recording, stop_time, write
from tests.world import PASSWORD, LedgerGateway, Verdict, World
from wsgi import create_app

MIGRATIONS = PROJECT_DIR / "migrations"

RECORDINGS = 5
"""How many are made to choose from."""

DISABLED_ID = 2
"""The company whose endpoint fails until it is disabled."""


def newest_revision() -> str:
    """Return the revision of the schema that this code is written for."""
    return str(ScriptDirectory(str(MIGRATIONS)).get_current_head())


@contextmanager
def application(url: str, directory: Path, **settings: str) -> Iterator[Flask]:
    """An application on a database, in its context, that leaves no connection behind."""
    app = create_app(settings_for(url, directory, **settings))
    app.test_client_class = DescribedClient
    with app.app_context():
        try:
            yield app
        finally:
            db.session.remove()
            db.engine.dispose()


def migrate(url: str, directory: Path, revision: str = "head") -> None:
    """Bring a database's schema to a revision."""
    with application(url, directory):
        flask_migrate.upgrade(str(MIGRATIONS), revision=revision)


def record(url: str, directory: Path) -> Recording:
    """Return what the present code says to an empty database, which is migrated for it."""
    stop_time(url)
    migrate(url, directory)
    with (
        receiver() as arrives,
        receiver(500) as fails,
        application(url, directory, RATE_LIMITS="on", CALLBACK_URL=arrives.url) as app,
        Recorder(db.engine, url, newest_revision()) as recorder,
    ):
        crowd = Crowd(app, recorder, arrives, fails)
        crowd.register()
        crowd.take_packages()
        crowd.listen()
        crowd.pay()
        crowd.lease()
        crowd.recover()
        crowd.fail_the_platform()
        crowd.look()
        crowd.work()
    return recorder.recording


class Crowd:
    """Some companies and what becomes of them, in steps; each at an instant of business and of real time."""

    def __init__(self, app: Flask, recorder: Recorder, arrives: Receiver, fails: Receiver) -> None:
        self._world = World(app)
        self._client = app.test_client()
        self._recorder = recorder
        self._arrives = arrives
        self._fails = fails
        self._tokens: list[dict[str, str]] = []

    def register(self) -> None:
        """Four companies, one e-mail twice, a wrong password, and an operator's packages."""
        self._step("register", datetime(2026, 1, 10, 9, tzinfo=UTC))
        for number in range(4):
            company = registration(email=f"store-{number}@store.example")
            answer = self._post("register", company, expected=201)
            self._tokens.append({"Authorization": f"Bearer {answer['token']}"})
        self._post("register", registration(email="store-0@store.example"), expected=409)
        self._post("login", {"email": "store-0@store.example", "password": "wrong password"}, expected=401)
        for number in range(3):
            email = f"store-{number}@store.example"
            answer = self._post("login", {"email": email, "password": PASSWORD})
        refresh = {"Authorization": f"Bearer {answer['refresh_token']}"}
        self._post("token/refresh", None, refresh)
        for name, price_minor in (("Profesyonel", 31_000), ("Ücretsiz", 0)):
            package = {"name": name, "period": "monthly", "price_minor": price_minor, "currency": "TRY"}
            made = self._post("packages", package, self._world.operator(), expected=201)
        self._patch(f"packages/{made['id']}", {"name": "Deneme"}, self._world.operator())

    def take_packages(self) -> None:
        """Three pay, one has the free package; none takes a second one."""
        self._step("take packages", datetime(2026, 1, 10, 10, tzinfo=UTC))
        for number, token in enumerate(self._tokens):
            body = {"company_id": number + 1, "package_id": 2 if number == 3 else 1}
            self._post("company-packages", body, token, expected=201)
        self._post("company-packages", {"company_id": 1, "package_id": 1}, self._tokens[0], expected=409)
        for path in ("companies/me", "company-packages/current", "packages", "packages/1"):
            self._get(path, self._tokens[0])

    def listen(self) -> None:
        """Two companies listen: the first one's endpoint takes what arrives, the other's fails."""
        self._step("listen", datetime(2026, 1, 10, 11, tzinfo=UTC))
        for token, endpoint in ((self._tokens[0], self._arrives), (self._tokens[1], self._fails)):
            self._patch("companies/me", {"callback_url": endpoint.url, "name": "Gülşen"}, token)
        self._patch("companies/me", {"name": "Gülşen"}, self._tokens[0])
        for number in range(6):
            self._patch("companies/me", {"name": f"Gül {number}"}, self._tokens[1])
        for hour in (12, 13, 14):
            self._step("deliver", datetime(2026, 1, 10, hour, tzinfo=UTC))
            deliver(self._arrives)
        self._patch("companies/me", {"name": "Gül"}, self._tokens[1])
        self._step("deliver what is due after days", datetime(2026, 1, 16, 12, tzinfo=UTC))
        deliver(self._arrives)
        self._patch("companies/me", {"name": "Gülay"}, self._tokens[1])
        deliver(self._arrives)

    def pay(self) -> None:
        """A charge, declines up to the third, an outage, and a period that costs nothing."""
        verdicts: dict[int, Verdict] = {1: True, 2: False, 3: GatewayUnavailable}
        for day in (10, 11, 12):
            self._step("pay", datetime(2026, 2, day, 9, tzinfo=UTC))
            self._collect(lambda request: LedgerGateway(default=verdicts[request.company_id]).charge(request))
            verdicts[3] = True

    def lease(self) -> None:
        """Leases are renewed while the gateway thinks; a worker that is told to stop gives a job back."""
        self._step("lease", datetime(2026, 3, 10, 9, tzinfo=UTC))
        stop = threading.Event()

        def think(request: ChargeRequest) -> ChargeResult:
            heard = self._recorder.heard
            until(lambda: self._recorder.heard > heard)
            stop.set()
            return LedgerGateway().charge(request)

        self._collect(think, stop=stop, lease=timedelta(milliseconds=3))
        self._step("pay what was given back", datetime(2026, 3, 10, 9, 1, tzinfo=UTC))
        self._collect(LedgerGateway().charge)

    def recover(self) -> None:
        """The endpoint that was disabled is looked at, enabled, given a new secret and what it missed."""
        self._step("recover", datetime(2026, 3, 10, 10, tzinfo=UTC))
        of_company = f"callback-endpoint{{}}?company_id={DISABLED_ID}"
        self._get(of_company.format(""), self._world.operator())
        self._post(of_company.format("/enable"), None, self._world.operator())
        self._fails.answer = lambda *_: 204
        self._post("callback-endpoint/rotate-secret", None, self._tokens[1])
        self._post("callback-endpoint/ping", None, self._tokens[1])
        self._post("callback-endpoint/recover", {"since": "2026-02-12T00:00:00Z"}, self._tokens[1])
        page = self._get("callbacks?type=company.updated&status=delivered&limit=2", self._world.operator())
        self._post(f"callbacks/{page['data'][0]['id']}/replay", None, self._world.operator(), expected=202)
        self._get(f"callbacks/{page['data'][0]['id']}", self._world.operator())
        self._step("deliver what was missed", datetime(2026, 3, 10, 11, tzinfo=UTC))
        for _ in range(2):
            deliver(self._arrives)

    def fail_the_platform(self) -> None:
        """A worker is told to stop amid its messages; the platform's endpoint fails, is tried, is gone."""
        self._step("stop", datetime(2026, 3, 10, 12, tzinfo=UTC))
        stop = threading.Event()

        def answer(*_: object) -> int:
            stop.set()
            return 204

        self._arrives.answer = answer
        self._change_names("stopped")
        deliver(self._arrives, stop=stop)
        self._arrives.answer = lambda *_: 500
        # However many were left by the one that was stopped, these open the breaker.
        self._change_names("failing")
        for hour in (13, 14, 15, 16):
            self._step("fail the platform", datetime(2026, 3, 10, hour, tzinfo=UTC))
            deliver(self._arrives)
        self._step("the platform is gone", datetime(2026, 3, 11, 1, tzinfo=UTC))
        self._arrives.answer = lambda *_: 410
        deliver(self._arrives)
        self._change_names("held")
        deliver(self._arrives)
        self._arrives.answer = lambda *_: 204
        self._post("callback-endpoint/ping", None, self._world.operator())
        self._change_names("sent")
        deliver(self._arrives)

    def look(self) -> None:
        """All that can be listed."""
        self._step("look", datetime(2026, 3, 11, 9, tzinfo=UTC))
        for path in ("company-payments?limit=1", "callbacks?limit=1"):
            for caller in (self._tokens[0], self._world.operator()):
                cursor = self._get(path, caller)["next_cursor"]
                self._get(f"{path}&cursor={cursor}", caller)
        for path in ("companies/me", "company-packages/current", "packages", "callback-endpoint"):
            self._get(path, self._tokens[1])

    def work(self) -> None:
        """What a worker does beside: its heartbeat, and what it removes."""
        worker = Worker(self._world.app)
        worker._name = "worker"
        for day in (date(2026, 3, 12), date(2026, 3, 14), date(2026, 6, 1)):
            self._step("work", datetime.combine(day, time(9), UTC))
            worker.beat()
            worker.sweep()
            worker.prune()
        worker._leave()
        for end in (worker._told, worker._tell):
            end.close()

    def _change_names(self, name: str) -> None:
        for number in range(3):
            self._patch("companies/me", {"name": f"{name} {number}"}, self._tokens[0])

    def _step(self, name: str, at: datetime) -> None:
        db.session.rollback()
        self._name, self._at = name, at
        self._world.travel(at)
        self._recorder.step(name, at.isoformat())

    def _tick(self) -> None:
        """Let a second pass: of messages with one time it would be chance which is taken first."""
        self._step(self._name, self._at + timedelta(seconds=1))

    def _collect(self, charge: Callable[[ChargeRequest], ChargeResult], **changes: Any) -> None:
        pool = ChargePool(LedgerGateway(default=charge), threads=1, timeout_s=30)
        self._world.collect(None, at=self._at, pool=pool, **changes)

    def _get(self, path: str, headers: dict[str, str]) -> Any:
        return self._answered(self._client.get(f"/api/v1/{path}", headers=headers), 200)

    def _post(
        self, path: str, body: Any, headers: dict[str, str] | None = None, *, expected: int = 200
    ) -> Any:
        self._tick()
        return self._answered(self._client.post(f"/api/v1/{path}", json=body, headers=headers), expected)

    def _patch(self, path: str, body: Any, headers: dict[str, str]) -> Any:
        self._tick()
        return self._answered(self._client.patch(f"/api/v1/{path}", json=body, headers=headers), 200)

    def _answered(self, answer: Any, expected: int) -> Any:
        assert answer.status_code == expected, f"{answer.request.path}: {answer.text}"
        return answer.json


def record_anew(server_url: str, home: Path) -> Recording:
    """Return a recording made on a database of its own."""
    with new_database(server_url, prefix="vade_record") as url:
        return record(url, home)


def main() -> None:
    """Write the recording of the present code beside those of the versions before."""
    with tempfile.TemporaryDirectory(prefix="vade-record-") as directory:
        home = Path(directory)
        try:
            server = embedded.join(Settings.from_env({"INSTANCE_DIR": directory}))
            recordings = [record_anew(server, home) for _ in range(RECORDINGS)]
        finally:
            embedded.leave()
    # Some is said only where threads happen to meet: the one that heard the most is kept.
    recording = max(recordings, key=lambda recording: len(recording.inventory()))
    RELEASED.mkdir(exist_ok=True)
    write(recording, RELEASED / f"{recording.revision}.json")


if __name__ == "__main__":
    main()
