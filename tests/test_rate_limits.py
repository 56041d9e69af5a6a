"""Rate limits: counted together by all API processes, per e-mail and per address."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import text
from werkzeug.security import generate_password_hash

from billing import companies
from models import db
from tests.api import DescribedClient, assert_problem, registration
from tests.conftest import settings_for
from tests.world import PASSWORD, World
from web.limits import REGISTRATIONS, PostgresStorage
from wsgi import create_app

MakeApp = Callable[..., Flask]


@pytest.fixture
def make_app(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeApp]:
    """Makes applications with limits on one database, as so many processes; passwords cost nothing."""
    hash_ = generate_password_hash(PASSWORD, "pbkdf2:sha256:1")
    monkeypatch.setattr(companies, "generate_password_hash", lambda *_: hash_)
    monkeypatch.setattr(companies, "check_password_hash", lambda _, password: password == PASSWORD)
    made: list[Flask] = []

    def make(**settings: str) -> Flask:
        app = create_app(settings_for(database_url, tmp_path, **({"RATE_LIMITS": "on"} | settings)))
        app.test_client_class = DescribedClient
        made.append(app)
        return app

    yield make
    for app in made:
        with app.app_context():
            db.engine.dispose()


def log_in(app: Flask, email: str, password: str = "wrong") -> Any:
    return app.test_client().post("/api/v1/login", json={"email": email, "password": password})


def register(app: Flask, address: str, number: int, **headers: str) -> Any:
    return app.test_client().post(
        "/api/v1/register",
        json=registration(email=f"gul-{number}-{address}@cicek.example".replace(":", "-")),
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        environ_base={"REMOTE_ADDR": address},
    )


def end_windows(app: Flask) -> None:
    """Let a minute pass."""
    with app.app_context(), db.engine.begin() as connection:
        connection.execute(text("UPDATE rate_limits SET expires_at = now() - interval '1 second'"))


def windows(app: Flask) -> int:
    with app.app_context(), db.engine.begin() as connection:
        return int(connection.execute(text("SELECT count(*) FROM rate_limits")).scalar_one())


def test_an_email_in_any_case_has_ten_logins_a_minute_in_all_processes(make_app: MakeApp) -> None:
    one, other = make_app(), make_app()
    emails = ["gul@cicek.example", "GUL@CICEK.EXAMPLE", "Gul@Cicek.example"]

    answers = [log_in((one, other)[n % 2], emails[n % 3]) for n in range(10)]
    eleventh = [log_in(app, emails[0], PASSWORD) for app in (one, other)]

    for answer in answers:
        assert_problem(answer, 401, "invalid-credentials")
    for answer in eleventh:
        assert_problem(answer, 429)
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert_problem(log_in(one, "another@cicek.example"), 401, "invalid-credentials")


def test_logins_that_succeed_count_too_and_a_minute_later_all_is_well(make_app: MakeApp) -> None:
    app = make_app()
    register(app, "192.0.2.1", 0)
    email = "gul-0-192.0.2.1@cicek.example"

    statuses = [log_in(app, email, PASSWORD).status_code for _ in range(11)]
    end_windows(app)
    statuses += [log_in(app, email, PASSWORD).status_code for _ in range(11)]

    assert statuses == ([200] * 10 + [429]) * 2


def test_what_is_no_login_is_not_counted(make_app: MakeApp) -> None:
    app = make_app()

    for _ in range(12):
        answer = app.test_client().post("/api/v1/login", json={"email": "gul@cicek.example", "password": 1})
        assert answer.status_code == 422

    assert log_in(app, "gul@cicek.example").status_code == 401
    assert windows(app) == 1


def test_an_address_has_sixty_registrations_a_minute_in_all_processes(make_app: MakeApp) -> None:
    apps = make_app(), make_app()

    statuses = [register(apps[n % 2], "192.0.2.1", n).status_code for n in range(60)]
    refused = [register(app, "192.0.2.1", 61) for app in apps]
    elsewhere = register(apps[0], "192.0.2.2", 0)

    assert statuses == [201] * 60
    for answer in refused:
        assert_problem(answer, 429)
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert elsewhere.status_code == 201
    with apps[0].app_context():
        assert len(World(apps[0]).callbacks()) == 61, "nothing of the refused is stored"


def test_limits_can_be_turned_off(make_app: MakeApp) -> None:
    app = make_app(RATE_LIMITS="off")

    assert {log_in(app, "gul@cicek.example").status_code for _ in range(12)} == {401}
    assert windows(app) == 0


FORWARDED = "203.0.113.7, 203.0.113.8, 203.0.113.9"


def test_as_many_proxies_are_believed_as_the_setting_says(make_app: MakeApp) -> None:
    believed = {
        "0": "192.0.2.1",
        "1": "203.0.113.9",
        "2": "203.0.113.8",
        "3": "203.0.113.7",
        "4": "192.0.2.1",
    }

    for number, (proxies, address) in enumerate(believed.items()):
        app = make_app(TRUSTED_PROXIES=proxies)
        headers = {"X_Forwarded_For": FORWARDED, "X_Real_IP": "198.51.100.1", "Forwarded": "for=1.1.1.1"}
        register(app, "192.0.2.1", number, **headers)
        with app.app_context(), db.engine.begin() as connection:
            (key,) = connection.execute(text("DELETE FROM rate_limits RETURNING key")).scalars()
        assert f"/{address}/" in key


def test_a_client_cannot_escape_its_limit_by_a_header(make_app: MakeApp) -> None:
    app = make_app()
    with app.app_context():
        storage = PostgresStorage()
        storage.incr(REGISTRATIONS.key_for("192.0.2.1"), 60, amount=60)
        assert storage.check()

    refused = register(app, "192.0.2.1", 0, X_Forwarded_For="203.0.113.7")

    assert_problem(refused, 429)
