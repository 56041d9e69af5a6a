"""The callback endpoint: a company's own, or for operators the platform's or any company's."""

from typing import Annotated, Any

from flask_openapi3 import APIBlueprint
from pydantic import Field
from sqlalchemy.orm import Session

from billing import callback_endpoints, callback_history, pings
from billing.documents import endpoint_document, instant_text
from billing.errors import EndpointMissingError, ForbiddenError
from config import Instant
from models import PLATFORM_ID
from web.access import Access, caller, open_to
from web.context import transaction, vade
from web.idempotency import idempotent, keep_instead
from web.limits import count_ping
from web.openapi import problems, tag
from web.schemas import (
    FROM_TEXT,
    BodyModel,
    EndpointAnswer,
    Id,
    PingAnswer,
    QueryModel,
    RecoveredAnswer,
    RotatedAnswer,
)

MOST_BATCHES = 20
"""How many batches one request recovers: what is left is said, and asked for again."""

MISSING = problems(s404="There is no callback endpoint")
DISABLED = problems(s409="The endpoint is disabled")

blueprint = APIBlueprint(
    "callback_endpoint",
    __name__,
    url_prefix="/api/v1/callback-endpoint",
    abp_tags=[tag("Callback endpoint", "How it fares, its secrets, and what to do after it failed.")],
)


class EndpointQuery(QueryModel):
    """Whose endpoint is meant."""

    company_id: Annotated[Id, FROM_TEXT] | None = Field(
        None, description="For operators: this company's endpoint. Without it, the platform's own."
    )


class NoQuery(QueryModel):
    """Nothing: whose secret it is follows from the token."""


class RecoverBody(BodyModel):
    """Since when messages are to be sent again."""

    since: Instant = Field(
        description="What was written at this instant or later, and failed, is sent again."
    )


@blueprint.get("", summary="Get the callback endpoint", responses={200: EndpointAnswer, **MISSING})
@open_to(Access.COMPANY_OR_OPERATOR)
def get_endpoint(query: EndpointQuery) -> dict[str, Any]:
    """Return how an endpoint fares: a company's own, or for an operator the platform's or a company's."""
    with transaction() as session:
        return _document(session, _endpoint_id(session, query.company_id))


def _rotated_again(kept: dict[str, Any]) -> dict[str, Any]:
    with transaction() as session:
        secret = callback_endpoints.read_secret(
            session, kept["company_id"], kept["secret_id"], vade().keyring
        )
    return {"callback_secret": secret, "former_secret_expires_at": kept["former_secret_expires_at"]}


@blueprint.post(
    "/rotate-secret",
    summary="Rotate the secret",
    responses={200: RotatedAnswer, **MISSING, **problems(s409="Too many former secrets still sign")},
)
@open_to(Access.COMPANY_OR_OPERATOR)
@idempotent(_rotated_again)
def rotate_secret(query: NoQuery) -> dict[str, Any]:  # noqa: ARG001 - none is looked at, and none taken
    """Give the caller's endpoint a new secret, which only this answer shows; an operator's is the platform's.

    Until `former_secret_expires_at` each message is signed by both, so that a receiver can change over.
    """
    with transaction() as session:
        id_ = _endpoint_id(session)
        secret, expires_at = callback_endpoints.rotate_secret(
            session,
            id_,
            vade().keyring,
            now=vade().clock.read(session).real,
            overlap=vade().secret_overlap,
        )
        secret_id = callback_endpoints.present_secret_id(session, id_)
    former = {"former_secret_expires_at": instant_text(expires_at)}
    keep_instead({"company_id": id_, "secret_id": secret_id, **former})
    return {"callback_secret": secret, **former}


@blueprint.post(
    "/ping",
    summary="Ping the endpoint",
    responses={200: PingAnswer, **MISSING, **problems(s429="Too many pings: at most 10 a minute")},
)
@open_to(Access.COMPANY_OR_OPERATOR)
@idempotent()
def ping_endpoint(query: EndpointQuery) -> dict[str, Any]:
    """Send the endpoint a signed `ping`, and answer with what came back.

    A 2xx enables an endpoint that was disabled, and ends the pause after failures.
    """
    with transaction() as session:
        id_ = _endpoint_id(session, query.company_id)
        moment = vade().clock.read(session)
        endpoint = pings.addressed(session, id_, vade().keyring, now=moment.real)
        # Nothing is held while the endpoint is waited for.
        session.commit()
    count_ping(id_)
    reply = pings.send(endpoint, id_, vade().address_policy, moment=moment)
    with transaction() as session:
        enabled = pings.note(session, id_, endpoint, reply)
    return {
        "succeeded": reply.succeeded,
        "status_code": reply.status_code,
        "duration_ms": reply.duration_ms,
        "error": reply.error,
        "answer": reply.answer,
        "enabled": enabled,
    }


@blueprint.post(
    "/recover", summary="Send again what failed", responses={200: RecoveredAnswer, **MISSING, **DISABLED}
)
@open_to(Access.COMPANY_OR_OPERATOR)
@idempotent()
def recover(query: EndpointQuery, body: RecoverBody) -> dict[str, Any]:
    """Send again every message that was given up, or held while the endpoint was disabled, since an instant.

    Where `more` is true there were more than one request takes: ask again.
    """
    recovered, more = 0, False
    for _ in range(MOST_BATCHES):
        with transaction() as session:
            id_ = _endpoint_id(session, query.company_id)
            callback_endpoints.find(session, id_)
            now = vade().clock.read(session).real
            batch = callback_history.recover(session, id_, since=body.since, now=now)
            more = callback_history.is_any_failed(session, id_, since=body.since)
        recovered += batch
        if batch < callback_history.BATCH:
            break
    return {"recovered": recovered, "more": more}


@blueprint.post("/enable", summary="Enable the endpoint", responses={200: EndpointAnswer, **MISSING})
@open_to(Access.OPERATOR)
@idempotent()
def enable_endpoint(query: EndpointQuery) -> dict[str, Any]:
    """Let an endpoint be sent messages again. What was held meanwhile is sent when it is recovered."""
    with transaction() as session:
        id_ = _endpoint_id(session, query.company_id)
        callback_endpoints.enable(session, id_)
        return _document(session, id_)


def _document(session: Session, id_: int) -> dict[str, Any]:
    now = vade().clock.read(session).real
    former = callback_endpoints.former_secret_expires_at(session, id_, now=now)
    endpoint = callback_endpoints.find(session, id_)
    return endpoint_document(endpoint, former_secret_expires_at=former, now=now)


def _endpoint_id(session: Session, company_id: int | None = None) -> int:
    """Return whose endpoint is meant, once the platform's is as the settings have it."""
    own = caller().company_id
    if own is not None:
        if company_id not in {None, own}:
            raise ForbiddenError
        return own
    if company_id is not None:
        return company_id
    platform = vade().platform
    if platform is None:
        raise EndpointMissingError("The platform has no callback endpoint: CALLBACK_URL is not set.")
    now = vade().clock.read(session).real
    callback_endpoints.put_platform(session, platform, vade().keyring, now=now, overlap=vade().secret_overlap)
    return PLATFORM_ID
