"""Callbacks: what was sent, what came back, and sending it again."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from flask_openapi3 import APIBlueprint
from pydantic import AfterValidator, Field

from billing import callback_history
from billing.callback_history import Place, Wanted
from billing.documents import callback_document
from config import Instant
from web.access import Access, caller, open_to
from web.context import transaction, vade
from web.idempotency import idempotent
from web.openapi import problems, tag
from web.paging import CompanyPageQuery, Page, check_company, page, read_cursor
from web.schemas import CallbackAnswer, CallbackList, CallbackPath, CallbackWithBody
from web.webhooks import WHEN

LIST = "callbacks"

blueprint = APIBlueprint(
    "callbacks",
    __name__,
    url_prefix="/api/v1/callbacks",
    abp_tags=[tag("Callbacks", "The messages to a callback endpoint, with every attempt to deliver them.")],
)


def _known(type_: str) -> str:
    if type_ not in WHEN:
        raise ValueError("There is no such type of message")
    return type_


Type = Annotated[str, AfterValidator(_known), Field(json_schema_extra={"enum": list(WHEN)})]


class CallbackQuery(CompanyPageQuery):
    """Which callbacks are wanted."""

    type: Type | None = Field(None, description="Only messages of this type.")
    status: Literal["pending", "waiting", "held", "delivered", "exhausted"] | None = Field(
        None, description="Only messages that stand so."
    )
    since: Instant | None = Field(None, description="Only messages written at this instant or later.")
    until: Instant | None = Field(None, description="Only messages written before this instant.")


@blueprint.get(
    "", summary="List callbacks", responses={200: CallbackList, **problems(s404="There is no such company")}
)
@open_to(Access.COMPANY_OR_OPERATOR)
def list_callbacks(query: CallbackQuery) -> Page:
    """Return messages with every attempt, newest first: those to a company's endpoint; all for an operator.

    A message is `pending` until its next attempt, `waiting` while its endpoint is left alone after failures,
    `held` when its endpoint is disabled, `delivered`, or `exhausted` after the last attempt failed.
    """
    before = _place(read_cursor(query.cursor, of=LIST)) if query.cursor is not None else None
    wanted = Wanted(caller().company_id, query.company_id, query.type, query.status, query.since, query.until)
    with transaction() as session:
        check_company(session, query)
        rows = callback_history.list_newest(session, wanted, before=before, limit=query.limit + 1)
        attempts = callback_history.list_attempts(session, rows[: query.limit])
    return page(
        rows,
        limit=query.limit,
        of=LIST,
        document=lambda row: callback_document(row, attempts[row.id]),
        place=lambda row: [row.created_at.isoformat(), row.company_id, str(row.id)],
    )


@blueprint.get(
    "/<id>", summary="Get a callback", responses={200: CallbackWithBody, **problems(s404="Not found")}
)
@open_to(Access.COMPANY_OR_OPERATOR)
def get_callback(path: CallbackPath) -> dict[str, Any]:
    """Return a message with every attempt, and with the body that is signed and sent."""
    with transaction() as session:
        row = callback_history.find(session, path.id, company_id=caller().company_id)
        attempts = callback_history.list_attempts(session, [row])[row.id]
    return callback_document(row, attempts) | {"body": row.body}


@blueprint.post(
    "/<id>/replay",
    summary="Send a callback again",
    responses={202: CallbackAnswer, **problems(s404="Not found", s409="The endpoint is disabled")},
)
@open_to(Access.COMPANY_OR_OPERATOR)
@idempotent()
def replay_callback(path: CallbackPath) -> tuple[dict[str, Any], int]:
    """Send a message once more, whatever became of it: with the same id and body, at once.

    Where that fails, it is tried again on the whole schedule.
    """
    with transaction() as session:
        now = vade().clock.read(session).real
        row = callback_history.replay(session, path.id, company_id=caller().company_id, now=now)
        attempts = callback_history.list_attempts(session, [row])[row.id]
    return callback_document(row, attempts), 202


def _place(cursor: list[Any]) -> Place:
    created_at, company_id, id_ = cursor
    return Place(datetime.fromisoformat(created_at), company_id, UUID(id_))
