"""Rate limits: counted together by all API processes, per e-mail and per address."""

import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from tests.processes import until
from tests.world import PASSWORD, World
from web.limits import LIMITER, REGISTRATIONS, PostgresStorage
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


# What callers are told -------------------------------------------------------------------------------------


def told(answer: Any) -> tuple[int, int]:
    """What is left, and for how many seconds; of a limit whose policy is told too."""
    name, quota, window_s = re.fullmatch(
        r'"([a-z]+)";q=([0-9]+);w=([0-9]+)', answer.headers["RateLimit-Policy"]
    ).groups()  # type: ignore[union-attr]
    match = re.fullmatch(rf'"{name}";r=([0-9]+);t=([0-9]+)', answer.headers["RateLimit"])
    assert match is not None
    assert (name, int(quota), int(window_s)) in {("login", 10, 60), ("register", 60, 60), ("ping", 10, 60)}
    return int(match[1]), int(match[2])


def test_an_answer_says_what_is_left(make_app: MakeApp) -> None:
    app = make_app()

    answers = [log_in(app, "gul@cicek.example") for _ in range(12)]

    assert [told(answer)[0] for answer in answers] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0]
    assert all(1 <= told(answer)[1] <= 60 for answer in answers)
    assert answers[-1].headers["Retry-After"] == str(told(answers[-1])[1])
    assert told(register(app, "192.0.2.1", 1))[0] == 59
    assert told(log_in(app, "another@cicek.example"))[0] == 9


def test_what_is_not_counted_says_nothing_of_limits(make_app: MakeApp) -> None:
    app = make_app()

    answers = [
        app.test_client().get("/api/v1/packages"),
        app.test_client().post("/api/v1/login", json={}),
        log_in(make_app(RATE_LIMITS="off"), "gul@cicek.example"),
    ]

    for answer in answers:
        assert not {"RateLimit", "RateLimit-Policy"} & set(answer.headers.keys())


# Redis ------------------------------------------------------------------------------------------------------


@contextmanager
def redis_server(directory: Path, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    directory.mkdir()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory)]
    options = ["--save", "", "--appendonly", "no", "--requirepass", "sesame"]
    with (directory / "redis.log").open("ab") as log:
        server = subprocess.Popen([*command, *options], stdout=log, stderr=log)
    try:
        until(lambda: b"Ready to accept" in (directory / "redis.log").read_bytes(), what="redis-server")
        yield server
    finally:
        server.kill()
        server.wait(30)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def forget_that_it_was_away(app: Flask) -> None:
    app.extensions[LIMITER]._away_until_s = 0.0


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="there is no redis-server")
def test_redis_counts_for_all_processes_and_the_database_while_it_is_away(
    make_app: MakeApp, tmp_path: Path
) -> None:
    port = free_port()
    apps = [make_app(RATE_LIMIT_STORAGE=f"redis://:sesame@127.0.0.1:{port}/0") for _ in range(2)]

    with redis_server(tmp_path / "first", port):
        answers = [log_in(apps[number % 2], "gul@cicek.example") for number in range(11)]
        assert [told(answer)[0] for answer in answers] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0]
        assert 1 <= told(answers[-1])[1] <= 60
        assert_problem(answers[-1], 429)
        assert windows(apps[0]) == 0, "nothing is counted twice"

    # It is gone: counted anew, together, by the database.
    answers = [log_in(apps[number % 2], "gul@cicek.example") for number in range(11)]
    assert [told(answer)[0] for answer in answers] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0]
    assert_problem(answers[-1], 429)

    with redis_server(tmp_path / "second", port):
        for app in apps:
            forget_that_it_was_away(app)
        assert {told(log_in(app, "gul@cicek.example"))[0] for app in apps} == {9, 8}


def test_a_redis_that_does_not_answer_stops_no_login_and_is_told_without_its_password(
    make_app: MakeApp, capsys: pytest.CaptureFixture[str]
) -> None:
    # One that takes connections and says nothing, and one that is not there.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port in (silent.getsockname()[1], free_port()):
            app = make_app(RATE_LIMIT_STORAGE=f"redis://:sesame@127.0.0.1:{port}/0")
            email = f"gul-{port}@cicek.example"

            answers = [log_in(app, email) for _ in range(11)]

            assert [answer.status_code for answer in answers] == [401] * 10 + [429]
            said = capsys.readouterr().err
            assert said.count("Redis does not answer") == 1, "it is left alone for a while"
            assert "sesame" not in said
