"""The commands that care for callback endpoints: what they print, and what they refuse in a sentence."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from sqlalchemy import text

from billing.documents import instant_text
from cli import make_deliverer
from models import PLATFORM_ID, CallbackEndpoint, Company, db
from tests.api import contents
from tests.conftest import new_database, settings_for
from tests.processes import Database, run
from tests.receivers import receiver
from tests.world import CALLBACK_SECRET, ENCRYPTION_KEY, World
from wsgi import create_app

Flask = Callable[..., Result]


@pytest.fixture
def flask(world: World) -> Flask:
    """Run a command in this process, on what is rolled back."""

    def invoke(*arguments: str) -> Result:
        try:
            return world.app.test_cli_runner().invoke(args=arguments)
        finally:
            world.session.expire_all()

    return invoke


def set_to(world: World, **settings: Any) -> None:
    world.app.extensions["vade"] = replace(
        world.vade, settings=world.vade.settings.model_copy(update=settings)
    )


def secret_of(result: Result) -> str:
    """The secret, of which the standard output consists."""
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    assert line.startswith("whsec_")
    return line


def refused(result: Result) -> str:
    """The sentence with which a command ended."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert line.endswith(".")
    return line.removeprefix("Error: ")


def disable(world: World, id_: int) -> None:
    world.session.execute(
        text(
            "UPDATE callback_endpoints SET disabled_at = now(), disabled_reason = 'failing', failures = 9,"
            " failing_since = now(), open_until = now() + interval '1 hour' WHERE company_id = :id"
        ),
        {"id": id_},
    )
    world.session.commit()


def endpoint(world: World, id_: int) -> CallbackEndpoint:
    return world.session.get_one(CallbackEndpoint, id_, populate_existing=True)


def tell(world: World) -> None:
    previous = {"company": {"name": "Çiğdem"}}
    company = world.company()
    world.vade.outbox.write(world.session, "company.updated", company, now=world.now, previous=previous)
    world.session.commit()


def test_a_rotation_prints_the_secret_alone_and_both_sign_meanwhile(flask: Flask, world: World) -> None:
    with receiver() as platform:
        set_to(world, callback_url=platform.url)

        result = flask("callbacks", "rotate")
        secret = secret_of(result)
        tell(world)
        make_deliverer(world.vade).run_pass()

        (request,) = platform.received
        assert request.verified(secret) == request.verified(CALLBACK_SECRET)
    expires_at = world.session.execute(
        text("SELECT expires_at FROM callback_secrets WHERE expires_at IS NOT NULL")
    ).scalar_one()
    assert result.stderr == f"The former secret signs until {instant_text(expires_at)}.\n"


def test_each_rotation_prints_another_secret_until_there_are_too_many(flask: Flask, world: World) -> None:
    secrets = {secret_of(flask("callbacks", "rotate")) for _ in range(4)}
    before = contents(world.session)

    sentence = refused(flask("callbacks", "rotate"))

    assert len(secrets) == 4
    assert sentence == "Too many former secrets still sign: wait until one of them expires."
    assert contents(world.session) == before


def test_a_rotation_touches_no_companys_endpoint(flask: Flask, world: World) -> None:
    company = world.company(callback_url="https://store.example/", callback_secret=CALLBACK_SECRET)

    flask("callbacks", "rotate")

    assert world.secrets(company) == [CALLBACK_SECRET]


@pytest.mark.parametrize("command", ["rotate", "enable"])
def test_without_a_platforms_endpoint_the_setting_is_named(flask: Flask, world: World, command: str) -> None:
    set_to(world, callback_url=None, callback_secret=None)

    sentence = refused(flask("callbacks", command))

    assert sentence == "CALLBACK_URL is not set: the platform has no callback endpoint."


def listener(world: World) -> Company:
    return world.company(callback_url="https://store.example/", callback_secret=CALLBACK_SECRET)


@pytest.mark.parametrize("of_company", [True, False])
def test_a_disabled_endpoint_is_enabled_from_a_clean_start(
    flask: Flask, world: World, of_company: bool
) -> None:
    one, other = listener(world), listener(world)
    flask("callbacks", "enable")
    for id_ in (PLATFORM_ID, one.id, other.id):
        disable(world, id_)
    arguments = ["--company", str(one.id)] if of_company else []

    first = flask("callbacks", "enable", *arguments)
    second = flask("callbacks", "enable", *arguments)

    assert (first.exit_code, first.output) == (0, "The endpoint is enabled.\n")
    assert (second.exit_code, second.output) == (0, "The endpoint was enabled already.\n")
    enabled, untouched = (one.id, PLATFORM_ID) if of_company else (PLATFORM_ID, one.id)
    state = endpoint(world, enabled)
    assert (state.disabled_at, state.disabled_reason, state.open_until, state.failures) == (
        None,
        None,
        None,
        0,
    )
    for id_ in (untouched, other.id):
        assert endpoint(world, id_).disabled_reason == "failing"


def test_an_endpoint_that_is_none_cannot_be_enabled(flask: Flask, world: World) -> None:
    without, former = world.company(), listener(world)
    world.listen(former, None)

    for id_ in (without.id, former.id, 2**63 - 1):
        assert refused(flask("callbacks", "enable", "--company", str(id_))) == (
            "There is no callback endpoint."
        )


@pytest.mark.parametrize("id_", ["0", "-1", "x", "1.5", "", str(2**63)])
def test_a_companys_id_that_is_none_is_refused_by_name(flask: Flask, id_: str) -> None:
    result = flask("callbacks", "enable", "--company", id_)

    assert result.exit_code == 2
    assert "Invalid value for '--company'" in result.stderr


@pytest.mark.parametrize("command", ["rotate", "enable"])
def test_a_database_that_does_not_answer_gets_a_sentence(tmp_path: Path, command: str) -> None:
    app = create_app(settings_for("postgresql://127.0.0.1:9/x", tmp_path))

    result = app.test_cli_runner().invoke(args=["callbacks", command])

    assert refused(result).startswith("The database fails: ")


def test_a_database_without_tables_gets_a_sentence(server_url: str, tmp_path: Path) -> None:
    with new_database(server_url, prefix="vade_empty") as url:
        app = create_app(settings_for(url, tmp_path))
        for command in ("rotate", "enable"):
            result = app.test_cli_runner().invoke(args=["callbacks", command])
            assert refused(result).startswith(
                'The database fails: relation "callback_endpoints" does not exist'
            )
        with app.app_context():
            db.engine.dispose()


def test_the_commands_process_writes_the_secret_and_nothing_else_to_standard_output(
    database_url: str, tmp_path: Path
) -> None:
    settings = {
        "DATABASE_URL": database_url,
        "INSTANCE_DIR": str(tmp_path),
        "CALLBACK_URL": "https://platform.example/callbacks",
        "CALLBACK_SECRET": CALLBACK_SECRET,
        "ENCRYPTION_KEY": ENCRYPTION_KEY,
        "CALLBACK_SECRET_OVERLAP_S": "0",
        "LOG_LEVEL": "DEBUG",
    }

    done = run("flask", "callbacks", "rotate", **settings)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("whsec_")
    assert len(done.stdout) == len("whsec_") + 44 + 1
    assert done.stdout.strip() not in done.stderr
    signing = Database(database_url).one("SELECT count(*) FROM callback_secrets WHERE expires_at IS NULL")
    assert signing == 1
