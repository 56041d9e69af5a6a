"""Health: alive whatever is broken; ready where the database answers with a schema as new as the code."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from billing.documents import instant_text
from models import WorkerHeartbeat
from tests.api import DescribedClient
from tests.conftest import settings_for
from tests.world import World
from web import schema_version
from wsgi import create_app

NOBODY_LISTENS = "postgresql://127.0.0.1:1/vade"


def test_it_is_ready_where_the_schema_is_as_new_as_the_code(client: DescribedClient) -> None:
    response = client.get("/readyz")

    assert response.status_code == 200
    assert response.json == {
        "status": "ready",
        "database": "ok",
        "schema": "ok",
        "worker": {"status": "unseen", "heartbeat_at": None, "age_s": None},
    }


@pytest.mark.parametrize(
    ("age_s", "status"), [(1, "beating"), (29, "beating"), (31, "stale"), (90_000, "stale")]
)
def test_it_tells_when_a_worker_was_last_seen(
    client: DescribedClient, world: World, age_s: int, status: str
) -> None:
    real = world.vade.clock.read(world.session).real
    beat_at = real - timedelta(seconds=age_s)
    world.session.add_all(
        WorkerHeartbeat(worker=name, started_at=at, beat_at=at)
        for name, at in (("a", beat_at - timedelta(hours=1)), ("b", beat_at))
    )
    world.session.commit()

    response = client.get("/readyz")

    assert response.status_code == 200, "a worker that is away does not make the API unready"
    worker = response.json["worker"]
    assert (worker["status"], worker["heartbeat_at"]) == (status, instant_text(beat_at))
    assert age_s <= worker["age_s"] < age_s + 60


@pytest.mark.parametrize("broken", ["DELETE FROM alembic_version", "DROP TABLE alembic_version"])
def test_it_is_not_ready_where_the_schema_was_never_made(
    client: DescribedClient, world: World, broken: str
) -> None:
    world.session.execute(text(broken))
    world.session.commit()

    response = client.get("/readyz")

    assert response.status_code == 503
    assert response.json == {"status": "unready", "database": "ok", "schema": "outdated", "worker": None}


@pytest.mark.parametrize(("revision", "status"), [("0001", 503), ("0002", 503), ("0003", 200), ("0004", 200)])
def test_an_older_schema_is_outdated_and_a_newer_one_is_not(
    client: DescribedClient, world: World, monkeypatch: pytest.MonkeyPatch, revision: str, status: int
) -> None:
    monkeypatch.setattr(schema_version, "known_revisions", lambda: ("0003", "0002", "0001"))
    world.session.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
    world.session.commit()

    assert client.get("/readyz").status_code == status


def test_without_its_database_it_is_alive_and_not_ready(tmp_path: Path) -> None:
    app = create_app(settings_for(NOBODY_LISTENS, tmp_path))
    app.test_client_class = DescribedClient
    client: Any = app.test_client()

    alive, ready, packages = (client.get(path) for path in ("/healthz", "/readyz", "/api/v1/packages"))

    assert (alive.status_code, alive.json) == (200, {"status": "alive"})
    assert ready.status_code == 503
    assert ready.json == {
        "status": "unready",
        "database": "unreachable",
        "schema": "unknown",
        "worker": None,
    }
    assert packages.status_code == 503
    assert packages.content_type == "application/problem+json"
    assert int(packages.headers["Retry-After"]) > 0
    assert "127.0.0.1" not in packages.text
