"""Secrets of callbacks: rotated without a gap, shown once, and nowhere kept or told as they are."""

import base64
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Barrier
from typing import Any

import flask_migrate
import psycopg
import pytest
from flask import Flask
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql
from sqlalchemy import select, text
from standardwebhooks import WebhookVerificationError

from billing import callback_endpoints
from billing.callback_endpoints import MOST_SECRETS
from billing.keyring import Keyring, SecretUnreadableError
from billing.senders import Endpoint
from cli import make_deliverer
from config import PROJECT_DIR, Settings
from models import PLATFORM_ID, Base, CallbackSecret, Company, db
from tests.api import DescribedClient, assert_problem, contents, registration
from tests.conftest import new_database, settings_for
from tests.receivers import Received, Receiver, receiver
from tests.world import CALLBACK_SECRET, ENCRYPTION_KEY, PASSWORD, World
from wsgi import create_app

ENDPOINT = "/api/v1/callback-endpoint"
COMPANY_SECRET = "whsec_" + "Q29tcGFueSBzZWNyZXQgb2YgMzIgYnl0ZXMgb3Igc28="
OTHER_SECRET = "whsec_" + "QW5vdGhlciBzZWNyZXQgb2YgdGhlIHBsYXRmb3JtISE="
NEW_KEY, OLD_KEY, JWT_KEY = (
    f"{name} key that is long enough: 32 bytes" for name in ("new", "old", "signing")
)


@pytest.fixture
def endpoint() -> Iterator[Receiver]:
    with receiver() as answering:
        yield answering


def set_to(world: World, **settings: Any) -> None:
    """Change settings of the application, as if it had been started with them."""
    world.app.extensions["vade"] = replace(
        world.vade, settings=world.vade.settings.model_copy(update=settings)
    )


def tell(world: World, company: Company) -> None:
    """Let a company change."""
    previous = {"company": {"name": "Çiğdem"}}
    world.vade.outbox.write(world.session, "company.updated", company, now=world.now, previous=previous)
    world.session.commit()


def end_overlaps(world: World) -> None:
    """Let the time of former secrets be over."""
    world.session.execute(text("UPDATE callback_secrets SET expires_at = now() WHERE expires_at > now()"))
    world.session.commit()


def rotate(client: DescribedClient, headers: dict[str, str]) -> str:
    response = client.post(f"{ENDPOINT}/rotate-secret", headers=headers)
    assert response.status_code == 200, response.text
    secret: str = response.json["callback_secret"]
    assert secret.startswith("whsec_")
    assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32
    return secret


def verifies(request: Received, secret: str) -> bool:
    try:
        request.verified(secret)
    except WebhookVerificationError:
        return False
    return True


class Rotating:
    """The platform's endpoint or a company's: whoever may rotate its secret, and what is sent there."""

    def __init__(self, client: DescribedClient, world: World, receiver: Receiver, *, platform: bool) -> None:
        self.client, self.world = client, world
        self._receiver = receiver
        self.first = CALLBACK_SECRET if platform else COMPANY_SECRET
        self.company = (
            world.company()
            if platform
            else world.company(callback_url=receiver.url, callback_secret=COMPANY_SECRET)
        )
        self.headers = world.operator() if platform else world.token(self.company)
        elsewhere = "http://127.0.0.1:1/"
        set_to(world, callback_url=receiver.url if platform else elsewhere)
        self.id = PLATFORM_ID if platform else self.company.id

    def rotate(self) -> str:
        return rotate(self.client, self.headers)

    def sent(self) -> Received:
        """Let something happen, deliver it, and return what came."""
        tell(self.world, self.company)
        self._receiver.received.clear()
        make_deliverer(self.world.vade).run_pass()
        (request,) = self._receiver.received
        return request

    def kept(self) -> list[CallbackSecret]:
        query = select(CallbackSecret).where(CallbackSecret.company_id == self.id)
        return list(self.world.session.scalars(query.execution_options(populate_existing=True)))


@pytest.fixture(params=["company", "platform"])
def rotating(
    client: DescribedClient, world: World, endpoint: Receiver, request: pytest.FixtureRequest
) -> Rotating:
    return Rotating(client, world, endpoint, platform=request.param == "platform")


# Rotated ----------------------------------------------------------------------------------------------------


def test_both_secrets_sign_until_the_former_one_expires_then_the_new_one_alone(rotating: Rotating) -> None:
    before = rotating.sent()

    second = rotating.rotate()
    meanwhile = rotating.sent()
    end_overlaps(rotating.world)
    after = rotating.sent()

    assert [verifies(before, secret) for secret in (rotating.first, second)] == [True, False]
    assert [verifies(meanwhile, secret) for secret in (rotating.first, second)] == [True, True]
    assert [verifies(after, secret) for secret in (rotating.first, second)] == [False, True]
    assert [len(request.headers["webhook-signature"].split()) for request in (before, meanwhile, after)] == [
        1,
        2,
        1,
    ]


def test_the_former_secret_signs_for_as_long_as_the_setting_says(rotating: Rotating) -> None:
    set_to(rotating.world, callback_secret_overlap_s=7200.0)
    before = rotating.world.vade.clock.read(rotating.world.session).real

    answer = rotating.client.post(f"{ENDPOINT}/rotate-secret", headers=rotating.headers).json

    expires_at = datetime.fromisoformat(answer["former_secret_expires_at"])
    assert timedelta(0) <= expires_at - before - timedelta(hours=2) < timedelta(minutes=1)
    assert {secret.expires_at for secret in rotating.kept()} == {None, expires_at}


def test_without_an_overlap_the_former_secret_signs_no_more(rotating: Rotating) -> None:
    set_to(rotating.world, callback_secret_overlap_s=0.0)

    second = rotating.rotate()

    request = rotating.sent()
    assert [verifies(request, secret) for secret in (rotating.first, second)] == [False, True]
    state = rotating.client.get(ENDPOINT, headers=rotating.headers).json
    assert state["former_secret_expires_at"] is None


def test_no_more_than_five_secrets_sign_at_once(rotating: Rotating) -> None:
    secrets = [rotating.first] + [rotating.rotate() for _ in range(MOST_SECRETS - 1)]
    before = contents(rotating.world.session)

    refused = rotating.client.post(f"{ENDPOINT}/rotate-secret", headers=rotating.headers)

    problem = assert_problem(refused, 409, "too-many-secrets")
    assert problem["detail"] == "Too many former secrets still sign: wait until one of them expires."
    assert contents(rotating.world.session) == before
    assert all(verifies(rotating.sent(), secret) for secret in secrets)
    oldest = min(rotating.kept(), key=lambda secret: secret.id)
    oldest.expires_at = rotating.world.session.execute(text("SELECT now()")).scalar_one()
    rotating.world.session.commit()
    sixth = rotating.rotate()
    request = rotating.sent()
    assert [verifies(request, secret) for secret in [*secrets, sixth]] == [False] + [True] * 5


def test_a_rotation_is_the_callers_alone(client: DescribedClient, world: World, endpoint: Receiver) -> None:
    one, other = (world.company(callback_url=endpoint.url, callback_secret=COMPANY_SECRET) for _ in range(2))
    set_to(world, callback_url=endpoint.url)
    client.get(ENDPOINT, headers=world.operator())

    def live() -> dict[int, int]:
        rows = world.session.execute(text("SELECT company_id, count(*) FROM callback_secrets GROUP BY 1"))
        return {row[0]: row[1] for row in rows}

    rotate(client, world.token(one))
    assert live() == {PLATFORM_ID: 1, one.id: 2, other.id: 1}
    rotate(client, world.operator())
    assert live() == {PLATFORM_ID: 2, one.id: 2, other.id: 1}


def test_another_url_has_one_secret_of_its_own(
    client: DescribedClient, world: World, endpoint: Receiver
) -> None:
    company = world.company(callback_url="https://former.example/", callback_secret=COMPANY_SECRET)
    headers = world.token(company)
    former = rotate(client, headers)

    answer = client.patch("/api/v1/companies/me", json={"callback_url": endpoint.url}, headers=headers).json
    make_deliverer(world.vade).run_pass()

    (request,) = endpoint.received
    assert verifies(request, answer["callback_secret"])
    assert not verifies(request, former)
    assert not verifies(request, COMPANY_SECRET)


def test_a_secret_is_shown_once(client: DescribedClient, world: World, endpoint: Receiver) -> None:
    company = world.company()
    headers = world.token(company)
    change = {"json": {"callback_url": endpoint.url}, "headers": headers}
    first = client.patch("/api/v1/companies/me", **change).json["callback_secret"]
    second = rotate(client, headers)
    platforms = rotate(client, world.operator())
    make_deliverer(world.vade).run_pass()
    (id_, *_) = [entry["id"] for entry in client.get("/api/v1/callbacks", headers=headers).json["data"]]

    answers = [
        client.patch("/api/v1/companies/me", **change),
        client.patch("/api/v1/companies/me", json={"name": "Özge"}, headers=headers),
        client.post(f"{ENDPOINT}/enable", headers=world.operator()),
        client.post(f"/api/v1/callbacks/{id_}/replay", headers=headers),
    ]
    for caller in (headers, world.operator()):
        answers += [
            client.get(path, headers=caller)
            for path in (ENDPOINT, "/api/v1/callbacks", f"/api/v1/callbacks/{id_}", "/api/v1/companies/me")
        ]
        answers += [
            client.post(f"{ENDPOINT}/ping", headers=caller),
            client.post(f"{ENDPOINT}/recover", json={"since": "2020-01-01T00:00:00Z"}, headers=caller),
        ]

    for answer in answers:
        assert answer.status_code in {200, 202, 403}
        assert not [part for part in ("whsec_", *traces(first, second, platforms)) if part in answer.text]


def test_rotations_at_once_leave_one_present_secret(committed: World) -> None:
    company = committed.company(callback_url="https://store.example/", callback_secret=COMPANY_SECRET)
    callers = [(company.id, committed.token(company)), (PLATFORM_ID, committed.operator())]
    number = MOST_SECRETS - 1
    together = Barrier(number * len(callers), timeout=30)
    committed.app.test_client().get(ENDPOINT, headers=committed.operator())

    def ask(n: int) -> tuple[int, str]:
        id_, headers = callers[n % 2]
        client: Any = committed.app.test_client()
        together.wait()
        return id_, rotate(client, headers)

    with ThreadPoolExecutor(number * 2) as pool:
        shown = list(pool.map(ask, range(number * 2)))

    present = committed.session.execute(
        text(
            "SELECT company_id, count(*) FILTER (WHERE expires_at IS NULL), count(*)"
            " FROM callback_secrets GROUP BY 1"
        )
    ).all()
    assert sorted(tuple(row) for row in present) == [(PLATFORM_ID, 1, 5), (company.id, 1, 5)]
    now = committed.vade.clock.read(committed.session).real
    signing = callback_endpoints.read_secrets(committed.session, [PLATFORM_ID, company.id], now=now)
    for id_, first in ((PLATFORM_ID, CALLBACK_SECRET), (company.id, COMPANY_SECRET)):
        assert set(committed.vade.keyring.readable(signing[id_])) == {
            first,
            *(secret for its, secret in shown if its == id_),
        }


# The platform's: from the settings --------------------------------------------------------------------------


@pytest.fixture
def platform(client: DescribedClient, world: World, endpoint: Receiver) -> Rotating:
    return Rotating(client, world, endpoint, platform=True)


def test_another_secret_in_the_settings_rotates_the_platforms(platform: Rotating) -> None:
    platform.sent()

    set_to(platform.world, callback_secret=OTHER_SECRET)

    request = platform.sent()
    assert verifies(request, OTHER_SECRET)
    assert verifies(request, CALLBACK_SECRET), "until the overlap is over"
    end_overlaps(platform.world)
    request = platform.sent()
    assert [verifies(request, secret) for secret in (OTHER_SECRET, CALLBACK_SECRET)] == [True, False]


def test_what_was_rotated_away_does_not_come_back_with_the_setting(platform: Rotating) -> None:
    secret = platform.rotate()
    end_overlaps(platform.world)

    for _ in range(2):
        request = platform.sent()
        assert [verifies(request, known) for known in (secret, CALLBACK_SECRET)] == [True, False]
    latest = platform.rotate()
    end_overlaps(platform.world)
    assert [verifies(platform.sent(), known) for known in (latest, secret, CALLBACK_SECRET)] == [
        True,
        False,
        False,
    ]


def test_a_setting_that_changes_again_and_again_leaves_five_secrets_that_sign(platform: Rotating) -> None:
    secrets = [callback_endpoints.new_secret() for _ in range(8)]

    for secret in secrets:
        set_to(platform.world, callback_secret=secret)
        request = platform.sent()
        assert verifies(request, secret)

    assert [verifies(request, secret) for secret in secrets] == [False] * 3 + [True] * 5


def test_processes_that_start_at_once_take_over_the_platforms_secret_once(committed: World) -> None:
    number = 8
    together = Barrier(number, timeout=30)
    clients: list[Any] = [committed.app.test_client() for _ in range(number)]
    headers = committed.operator()

    def ask(client: Any) -> int:
        together.wait()
        status: int = client.get(ENDPOINT, headers=headers).status_code
        return status

    with ThreadPoolExecutor(number) as pool:
        assert list(pool.map(ask, clients)) == [200] * number

    assert committed.session.execute(text("SELECT count(*) FROM callback_secrets")).scalar_one() == 1


# At rest ----------------------------------------------------------------------------------------------------


def traces(*secrets: str) -> list[str]:
    """What a secret would be known by: its key in base64, of any kind, and in hexadecimal."""
    found = []
    for secret in secrets:
        key = base64.b64decode(secret.removeprefix("whsec_"))
        found += [secret.removeprefix("whsec_").rstrip("="), key.hex()]
        found.append(base64.urlsafe_b64encode(key).decode().rstrip("="))
    return found


def dump(world: World) -> str:
    """All rows of all tables."""
    return "\n".join(
        str(row)
        for table in Base.metadata.tables
        for row in world.session.execute(text(f'SELECT t::text FROM "{table}" t')).scalars()
    )


def test_the_database_and_the_log_know_no_secret(
    client: DescribedClient, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "urllib3")
    statuses = iter([204, 500, 410, 204])

    def answer(_: Received, handler: BaseHTTPRequestHandler) -> int:
        handler.close_connection = True
        return next(statuses, 500)

    with receiver(answer) as endpoint:
        set_to(world, callback_url=endpoint.url)
        session = client.post("/api/v1/register", json=registration()).json
        headers = {"Authorization": f"Bearer {session['token']}"}
        secrets = [CALLBACK_SECRET, OTHER_SECRET]
        for url in (endpoint.url, "http://127.0.0.1:1024/", "http://no-such-host.invalid/"):
            changed = client.patch("/api/v1/companies/me", json={"callback_url": url}, headers=headers).json
            secrets.append(changed["callback_secret"])
            secrets.append(rotate(client, headers))
            make_deliverer(world.vade).run_pass()
        for caller in (headers, world.operator()):
            client.post(f"{ENDPOINT}/ping", headers=caller)
            secrets.append(rotate(client, caller))
        set_to(world, callback_secret=OTHER_SECRET)
        make_deliverer(world.vade).run_pass()
        while (response := client.post(f"{ENDPOINT}/rotate-secret", headers=headers)).status_code == 200:
            secrets.append(response.json["callback_secret"])
    assert_problem(response, 409, "too-many-secrets")

    rows = dump(world)
    logged = caplog.text + "".join(str(vars(record)) for record in caplog.records)
    assert "POST /callbacks" in logged, "it was listened to"
    assert {attempt.status_code for attempt in world.attempts()} == {204, 500, 410, None}
    for where in (rows, logged):
        assert not [part for part in traces(*secrets) if part in where]
        assert "whsec_" not in where
        assert ENCRYPTION_KEY not in where
        assert PASSWORD not in where


def test_what_is_kept_is_readable_with_the_key_alone(world: World) -> None:
    company = world.company(callback_url="https://store.example/", callback_secret=COMPANY_SECRET)

    kept = world.session.scalars(
        select(CallbackSecret.encrypted).where(CallbackSecret.company_id == company.id)
    ).one()

    assert Keyring([ENCRYPTION_KEY]).decrypt(kept) == COMPANY_SECRET
    assert Keyring([NEW_KEY]).readable([kept]) == []
    with pytest.raises(SecretUnreadableError):
        Keyring([NEW_KEY]).decrypt(kept)


def test_what_is_carried_around_does_not_show_its_secrets(world: World, tmp_path: Path) -> None:
    given_settings = settings_for(
        "postgresql://127.0.0.1:1/x", tmp_path, ENCRYPTION_KEY=f"{NEW_KEY},{OLD_KEY}", JWT_SECRET_KEY=JWT_KEY
    )
    state = replace(world.vade, settings=given_settings)
    platform = state.platform
    assert platform is not None

    for carried in (
        given_settings,
        state,
        platform,
        Endpoint(platform.url, (platform.secret,)),
        state.keyring,
        make_deliverer(state),
    ):
        for shown in (repr(carried), str(carried), f"{carried}"):
            assert not [
                part
                for part in ("whsec_", *traces(CALLBACK_SECRET), NEW_KEY, OLD_KEY, JWT_KEY)
                if part in shown
            ]


@pytest.mark.parametrize("bad", ["whsec_not base64 at all", "whsec_", "s3cr3t!"])
def test_a_secret_that_is_none_is_refused_without_being_repeated(bad: str) -> None:
    with pytest.raises(Exception, match="CALLBACK_SECRET: a Standard Webhooks secret is wanted") as refused:
        Settings.from_env({"CALLBACK_URL": "https://platform.example/", "CALLBACK_SECRET": bad})

    assert bad not in str(refused.value).replace("whsec_ and base64", "")


# Keys -------------------------------------------------------------------------------------------------------


def keyring(**env: str) -> Keyring:
    return Keyring(Settings.from_env({"JWT_SECRET_KEY": JWT_KEY} | env).encryption_keys())


@given(st.text(max_size=60), st.text(min_size=32, max_size=60))
@settings(max_examples=25, deadline=None)
def test_what_is_encrypted_is_read_again_and_looks_different_each_time(secret: str, key: str) -> None:
    first, second = Keyring([key]).encrypt(secret), Keyring([key]).encrypt(secret)

    assert first != second
    assert Keyring([OLD_KEY, key]).readable([first, second]) == [secret, secret]


def test_a_changed_token_is_unreadable() -> None:
    kept = Keyring([NEW_KEY]).encrypt(COMPANY_SECRET)

    for damaged in ("", "x", COMPANY_SECRET, kept[:-4] + "AAA=", kept.swapcase(), kept[:40]):
        with pytest.raises(SecretUnreadableError):
            Keyring([NEW_KEY]).decrypt(damaged)


def test_the_key_that_signs_tokens_encrypts_where_no_other_is_set() -> None:
    kept = keyring().encrypt(COMPANY_SECRET)

    assert Keyring([JWT_KEY]).decrypt(kept) == COMPANY_SECRET
    assert keyring(ENCRYPTION_KEY=NEW_KEY).decrypt(kept) == COMPANY_SECRET, "and goes on being read"


def test_the_key_that_is_kept_in_the_instance_directory_encrypts_too(tmp_path: Path) -> None:
    first, second = (Settings.from_env({"INSTANCE_DIR": str(tmp_path)}) for _ in range(2))

    kept = Keyring(first.encryption_keys()).encrypt(COMPANY_SECRET)

    assert Keyring(second.encryption_keys()).decrypt(kept) == COMPANY_SECRET


@pytest.mark.parametrize("separator", [",", ", ", " , "])
def test_the_first_key_encrypts_and_every_key_decrypts(separator: str) -> None:
    old = keyring(ENCRYPTION_KEY=OLD_KEY).encrypt(COMPANY_SECRET)
    both = keyring(ENCRYPTION_KEY=f"{NEW_KEY}{separator}{OLD_KEY}")

    assert both.decrypt(old) == COMPANY_SECRET
    new = both.encrypt(COMPANY_SECRET)
    assert keyring(ENCRYPTION_KEY=NEW_KEY).decrypt(new) == COMPANY_SECRET
    assert keyring(ENCRYPTION_KEY=OLD_KEY).readable([new]) == []


@pytest.mark.parametrize("key", ["short", f"{NEW_KEY},short", f"{NEW_KEY},", f",{NEW_KEY}", ",", "x" * 31])
def test_a_key_that_is_too_short_is_refused_by_name(key: str) -> None:
    with pytest.raises(Exception, match="ENCRYPTION_KEY: at least 32 bytes are wanted") as refused:
        Settings.from_env({"ENCRYPTION_KEY": key})

    assert NEW_KEY not in str(refused.value)


def test_while_the_key_is_changed_what_the_old_one_encrypted_signs_and_the_new_one_is_written(
    rotating: Rotating,
) -> None:
    rotating.sent()
    world = rotating.world
    world.app.extensions["vade"] = replace(world.vade, keyring=Keyring([NEW_KEY, ENCRYPTION_KEY]))

    assert verifies(rotating.sent(), rotating.first)
    secret = rotating.rotate()
    world.app.extensions["vade"] = replace(world.vade, keyring=Keyring([NEW_KEY]))

    assert verifies(rotating.sent(), secret), "the old key is not needed any more"


def test_a_secret_of_another_key_fails_its_messages_alone_and_is_mended_by_a_rotation(
    client: DescribedClient, world: World, endpoint: Receiver
) -> None:
    unreadable, readable = world.company(), world.company()
    set_to(world, callback_url=endpoint.url)
    world.listen(unreadable, endpoint.url, secret=COMPANY_SECRET)
    world.app.extensions["vade"] = replace(world.vade, keyring=Keyring([NEW_KEY]))
    world.listen(readable, endpoint.url, secret=OTHER_SECRET)
    for company in (unreadable, readable):
        tell(world, company)

    result = make_deliverer(world.vade).run_pass()

    assert (result.delivered, result.failed) == (3, 1), "the platform's copies too"
    (failed,) = (attempt for attempt in world.attempts() if attempt.error is not None)
    assert (failed.company_id, failed.status_code) == (unreadable.id, None)
    assert failed.error == "The endpoint's secret cannot be decrypted."
    reply = client.post(f"{ENDPOINT}/ping", headers=world.token(unreadable)).json
    assert (reply["succeeded"], reply["error"]) == (False, "The endpoint's secret cannot be decrypted.")
    assert len(endpoint.received) == 3, "nothing goes out unsigned"
    secret = rotate(client, world.token(unreadable))
    world.session.execute(text("UPDATE callbacks SET next_attempt_at = now() WHERE status = 'pending'"))
    world.session.commit()
    assert make_deliverer(world.vade).run_pass().delivered == 1
    assert verifies(endpoint.received[-1], secret)


# Migrated ---------------------------------------------------------------------------------------------------

MANY = 1003
"""More than are moved at once."""

FORMER_COMPANIES = f"""
INSERT INTO companies (site_url, name, lastname, company_name, email, billing_day, registered_at,
    callback_url, callback_secret)
SELECT 'https://store.example', 'Ayşe', 'Yılmaz', 'Mağaza', 'store-' || n || '@store.example', 10, now(),
    CASE WHEN n <= {MANY} THEN 'https://store-' || n || '.example/callbacks' END,
    CASE WHEN n <= {MANY} THEN 'whsec_' || encode(sha256(n::text::bytea), 'base64') END
FROM generate_series(1, {MANY + 2}) AS n
"""
FORMER_CALLBACKS = """
INSERT INTO callbacks (company_id, id, recipient, type, body, status, attempts, next_attempt_at,
    last_attempt_at, last_status_code)
SELECT 1, md5(status || recipient)::uuid, recipient, 'company.updated', '{}', status, attempts,
    CASE WHEN status = 'pending' THEN now() END, now(), 500
FROM (VALUES ('pending', 2), ('delivered', 1), ('exhausted', 10)) AS s(status, attempts),
    (VALUES ('platform'), ('company')) AS r(recipient)
"""
SECRETS = "SELECT id, callback_secret FROM companies WHERE callback_url IS NOT NULL ORDER BY id"


class Migrating:
    """A database of the test's own, on its way up and down."""

    def __init__(self, app: Flask, url: str) -> None:
        self.app = app
        self._url = url
        self._folder = str(PROJECT_DIR / "migrations")

    def upgrade(self, revision: str = "head") -> None:
        with self.app.app_context():
            flask_migrate.upgrade(self._folder, revision=revision)

    def downgrade(self, revision: str) -> None:
        with self.app.app_context():
            flask_migrate.downgrade(self._folder, revision=revision)

    def all(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self._url, autocommit=True) as connection:
            cursor = connection.execute(query.encode())
            return cursor.fetchall() if cursor.description else []

    def dump(self) -> str:
        tables = self.all("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
        with psycopg.connect(self._url, autocommit=True) as connection:
            return "\n".join(
                row
                for (table,) in tables
                for (row,) in connection.execute(
                    sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(table))
                )
            )


@pytest.fixture
def migrating(server_url: str, tmp_path: Path) -> Iterator[Migrating]:
    """At the first revision, with companies that listen and messages of theirs."""
    with new_database(server_url, prefix="vade_secrets") as url:
        app = create_app(settings_for(url, tmp_path))
        database = Migrating(app, url)
        database.upgrade("0001")
        database.all(FORMER_COMPANIES)
        database.all(FORMER_CALLBACKS)
        yield database
        with app.app_context():
            db.engine.dispose()


@contextmanager
def key_of(app: Flask, key: str) -> Iterator[None]:
    former = app.extensions["vade"]
    app.extensions["vade"] = replace(former, keyring=Keyring([key]))
    yield
    app.extensions["vade"] = former


def test_an_upgrade_encrypts_secrets_and_a_downgrade_brings_them_back(migrating: Migrating) -> None:
    former = migrating.all(SECRETS)
    assert len(former) == MANY

    migrating.upgrade()

    assert "whsec_" not in migrating.dump()
    kept = migrating.all(
        "SELECT company_id, encrypted FROM callback_secrets WHERE expires_at IS NULL ORDER BY company_id"
    )
    ring = Keyring([ENCRYPTION_KEY])
    assert [(id_, ring.decrypt(encrypted)) for id_, encrypted in kept] == former
    assert migrating.all("SELECT company_id, url FROM callback_endpoints ORDER BY company_id") == (
        migrating.all("SELECT id, callback_url FROM companies WHERE callback_url IS NOT NULL ORDER BY id")
    )

    migrating.downgrade("0001")
    assert migrating.all(SECRETS) == former
    assert migrating.all("SELECT count(*) FROM companies WHERE callback_secret IS NULL") == [(2,)]

    migrating.upgrade()
    assert "whsec_" not in migrating.dump()
    (again,) = migrating.all("SELECT encrypted FROM callback_secrets WHERE company_id = 1")
    assert ring.decrypt(*again) == former[0][1]


def test_messages_survive_an_upgrade_and_a_downgrade(migrating: Migrating) -> None:
    columns = "recipient, status, attempts, body, created_at, next_attempt_at"
    messages = f"SELECT {columns} FROM callbacks WHERE company_id = 1 ORDER BY recipient, status"
    former = migrating.all(messages)

    migrating.upgrade()

    assert migrating.all(messages) == former
    assert migrating.all("SELECT DISTINCT schedule_step - attempts FROM callbacks") == [(0,)]
    assert migrating.all("SELECT DISTINCT sequence FROM companies") == [(0,)]
    migrating.all(
        "INSERT INTO callbacks (company_id, id, recipient, type, body, status, next_attempt_at)"
        " SELECT 2, gen_random_uuid(), 'company', 'company.updated', status, status, NULL"
        " FROM unnest(ARRAY['waiting', 'held']) AS status"
    )
    migrating.all(
        "INSERT INTO callback_attempts SELECT company_id, id, 1, now(), 204, 7, NULL, 'ok' FROM callbacks"
    )
    migrating.downgrade("0001")

    assert migrating.all(messages) == former
    put_aside = "SELECT body, status, next_attempt_at FROM callbacks WHERE company_id = 2 ORDER BY 1"
    assert migrating.all(put_aside) == [("held", "exhausted", None), ("waiting", "exhausted", None)]
    migrating.upgrade()
    assert migrating.all("SELECT count(*) FROM callbacks WHERE status = 'exhausted'") == [(4,)]


def test_what_was_written_before_an_upgrade_is_found_by_its_id(migrating: Migrating) -> None:
    """But for what was sent and will be sent again: that keeps the id under which it was received."""
    former = set(migrating.all("SELECT id FROM callbacks"))
    under_way = set(migrating.all("SELECT id FROM callbacks WHERE status = 'pending' AND attempts > 0"))

    migrating.upgrade()

    assert former & set(migrating.all("SELECT id FROM callbacks")) == under_way
    with migrating.app.app_context():
        headers = World(migrating.app).operator()
        client: Any = migrating.app.test_client()
        listed = client.get("/api/v1/callbacks", headers=headers).json["data"]
        found = {
            (entry["status"], client.get(f"/api/v1/callbacks/{entry['id']}", headers=headers).status_code)
            for entry in listed
        }
        again = [entry for entry in listed if entry["status"] == "exhausted"]
        replayed = [
            client.post(f"/api/v1/callbacks/{entry['id']}/replay", headers=headers) for entry in again
        ]

    assert len(listed) == 6
    assert found == {("delivered", 200), ("exhausted", 200), ("pending", 404)}
    assert [answer.status_code for answer in replayed] == [202, 202]


def test_a_downgrade_keeps_the_present_secret_of_those_that_were_rotated(migrating: Migrating) -> None:
    migrating.upgrade()
    with migrating.app.app_context():
        world = World(migrating.app)
        client: Any = migrating.app.test_client()
        secret = rotate(client, world.token(world.session.get_one(Company, 7)))
        platforms = rotate(client, world.operator())
        db.session.remove()

    migrating.downgrade("0001")

    assert migrating.all("SELECT callback_secret FROM companies WHERE id = 7") == [(secret,)]
    assert platforms not in migrating.dump()


def test_a_downgrade_without_the_key_changes_nothing(migrating: Migrating) -> None:
    migrating.upgrade()
    migrating.downgrade("0002")
    before = migrating.dump()

    with key_of(migrating.app, NEW_KEY), pytest.raises(SecretUnreadableError):
        migrating.downgrade("0001")

    assert migrating.dump() == before
    migrating.downgrade("0001")
