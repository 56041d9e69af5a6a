"""Is it alive, is it ready: for load balancers and for people."""

from typing import Any

from flask_openapi3 import APIBlueprint
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from billing import heartbeats
from billing.documents import instant_text
from config import ConfigError
from web.access import Access, open_to
from web.context import transaction
from web.openapi import tag
from web.schema_version import is_outdated
from web.schemas import AliveAnswer, ReadyAnswer

blueprint = APIBlueprint("health", __name__, abp_tags=[tag("Health", "For load balancers and for people.")])


@blueprint.get("/healthz", summary="Is it alive", responses={200: AliveAnswer})
@open_to(Access.PUBLIC)
def healthz() -> dict[str, Any]:
    """Answer, whatever else is broken."""
    return {"status": "alive"}


@blueprint.get("/readyz", summary="Is it ready", responses={200: ReadyAnswer, 503: ReadyAnswer})
@open_to(Access.PUBLIC)
def readyz() -> tuple[dict[str, Any], int]:
    """Tell whether the database answers with a schema that is not older than the code; else 503.

    A worker that is stale or was never seen is told, and does not make the API unready.
    """
    try:
        with transaction() as session:
            if is_outdated(session):
                return _unready("ok", "outdated"), 503
            worker = _worker(session)
    except (SQLAlchemyError, ConfigError):
        # ConfigError: the server is older than Vade can use.
        return _unready("unreachable", "unknown"), 503
    return {"status": "ready", "database": "ok", "schema": "ok", "worker": worker}, 200


def _unready(database: str, schema: str) -> dict[str, Any]:
    return {"status": "unready", "database": database, "schema": schema, "worker": None}


def _worker(session: Session) -> dict[str, Any]:
    heartbeat = heartbeats.newest(session)
    if heartbeat is None:
        return {"status": "unseen", "heartbeat_at": None, "age_s": None}
    return {
        "status": "stale" if heartbeat.is_stale else "beating",
        "heartbeat_at": instant_text(heartbeat.beat_at),
        "age_s": round(heartbeat.age_s, 1),
    }
