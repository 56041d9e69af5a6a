"""Conditional requests: versions of the company and of packages, and changes to one version only."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text

from models import db
from tests.api import DescribedClient, assert_problem
from tests.processes import until
from tests.world import World


class Thing(NamedTuple):
    """What has versions: its address, who changes it, and a change that sets a name."""

    url: str
    headers: dict[str, str]

    def change(self, client: FlaskClient, name: str, **conditions: str) -> Any:
        headers = {field.replace("_", "-"): value for field, value in conditions.items()}
        return client.patch(self.url, json={"name": name}, headers=self.headers | headers)

    def get(self, client: FlaskClient, **conditions: str) -> Any:
        headers = {field.replace("_", "-"): value for field, value in conditions.items()}
        return client.get(self.url, headers=self.headers | headers)


def company(world: World) -> Thing:
    return Thing("/api/v1/companies/me", world.token(world.company()))


def package(world: World) -> Thing:
    return Thing(f"/api/v1/packages/{world.package().id}", world.operator())


THINGS = pytest.mark.parametrize("make", [company, package])
Make = Callable[[World], Thing]


@THINGS
def test_a_version_is_another_after_a_change_and_the_same_without(
    client: DescribedClient, world: World, make: Make
) -> None:
    thing = make(world)
    first = thing.get(client).headers["ETag"]

    again = thing.get(client).headers["ETag"]
    changed = thing.change(client, "Yeni").headers["ETag"]
    idle = thing.change(client, "Yeni").headers["ETag"]

    assert first == again != changed == idle == thing.get(client).headers["ETag"]
    assert first.startswith('"'), "it is a strong one"
    back = thing.change(client, "Yeniden")
    assert back.headers["ETag"] not in {first, changed}


@THINGS
def test_what_the_caller_has_is_not_sent_again(client: DescribedClient, world: World, make: Make) -> None:
    thing = make(world)
    etag = thing.get(client).headers["ETag"]

    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        response = thing.get(client, If_None_Match=known)
        assert (response.status_code, response.data) == (304, b""), known
        assert response.headers["ETag"] == etag
    for wanted in (etag, "*"):
        assert thing.get(client, If_Match=wanted, If_None_Match=etag).status_code == 304
        assert thing.get(client, If_Match=wanted, If_None_Match='"other"').status_code == 200
    thing.change(client, "Yeni")
    response = thing.get(client, If_None_Match=etag)
    assert (response.status_code, response.json["name"]) == (200, "Yeni")


@THINGS
def test_a_change_of_another_version_is_refused_and_changes_nothing(
    client: DescribedClient, world: World, make: Make
) -> None:
    thing = make(world)
    stale = thing.get(client).headers["ETag"]
    thing.change(client, "Yeni")
    etag = thing.get(client).headers["ETag"]
    told = world.callbacks()

    # None that is not read as this very version is met: not a weak one, nor what is no tag.
    for wanted in (stale, '"other"', f"W/{etag}", etag.strip('"') + "x", '"', "", f"{stale}, W/{etag}"):
        assert_problem(thing.change(client, "Eski", If_Match=wanted), 412, "precondition-failed")
        assert_problem(thing.get(client, If_Match=wanted), 412, "precondition-failed")
    assert_problem(thing.change(client, "Eski", If_None_Match="*"), 412, "precondition-failed")
    assert_problem(thing.change(client, "Eski", If_None_Match=etag), 412, "precondition-failed")

    assert thing.get(client).headers["ETag"] == etag
    assert world.callbacks() == told


@THINGS
def test_a_change_of_the_version_that_stands_is_made(
    client: DescribedClient, world: World, make: Make
) -> None:
    thing = make(world)

    for number, match in enumerate(["{}", "*", '"other", {}', 'W/"other",{}']):
        etag = thing.get(client).headers["ETag"]
        response = thing.change(client, f"Ad {number}", If_Match=match.format(etag))
        assert (response.status_code, response.json["name"]) == (200, f"Ad {number}")


def test_a_secret_that_an_answer_shows_is_not_part_of_the_version(
    client: DescribedClient, world: World
) -> None:
    thing = company(world)

    changed = client.patch(thing.url, json={"callback_url": "http://127.0.0.1:1024/"}, headers=thing.headers)

    assert changed.json["callback_secret"].startswith("whsec_")
    assert changed.headers["ETag"] == thing.get(client).headers["ETag"]
    assert changed.headers["Cache-Control"] == "no-store"


def test_what_is_not_there_is_not_found_whatever_its_version(client: DescribedClient, world: World) -> None:
    nothing = Thing("/api/v1/packages/999999", world.operator())

    assert_problem(nothing.change(client, "Yeni", If_Match='"x"'), 404)
    assert_problem(nothing.get(client, If_None_Match="*"), 404)


def test_a_new_package_says_where_it_is_and_its_version(client: DescribedClient, world: World) -> None:
    new = {"name": "Gümüş", "period": "monthly", "price_minor": 100, "currency": "TRY"}
    headers = world.operator() | {"Idempotency-Key": "one"}

    first, again = (client.post("/api/v1/packages", json=new, headers=headers) for _ in range(2))

    for response in (first, again):
        assert response.headers["Location"] == f"/api/v1/packages/{response.json['id']}"
        shown = client.get(response.headers["Location"])
        assert shown.headers["ETag"] == response.headers["ETag"]
    assert again.headers["Idempotent-Replayed"] == "true"


@THINGS
def test_of_changes_of_one_version_at_once_one_is_made(committed: World, make: Make) -> None:
    thing = make(committed)
    app = committed.app
    etag = thing.get(app.test_client()).headers["ETag"]
    table = "companies" if "companies" in thing.url else "packages"

    def change(number: int) -> int:
        status: int = thing.change(app.test_client(), f"Ad {number}", If_Match=etag).status_code
        return status

    with ThreadPoolExecutor(4) as threads, db.engine.connect() as holder:
        # All wait for the row, and judge the version once they have it.
        holder.execute(text(f"SELECT FROM {table} FOR UPDATE"))
        futures = [threads.submit(change, number) for number in range(4)]
        until(lambda: waiting() == 4, what="four changes that wait")
        holder.rollback()
        statuses = sorted(future.result(30) for future in futures)

    assert statuses == [200, 412, 412, 412]


def waiting() -> int:
    """How many statements wait for a lock in this database."""
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with db.engine.connect() as connection:
        return int(connection.execute(text(query)).scalar_one())
