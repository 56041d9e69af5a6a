"""The outbox: every change writes its messages in its own transaction (DESIGN.md §6).

The payment queue writes those of a settlement itself, many at a time and of the same shape.
"""

import hashlib
import json
import uuid
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from billing import tracing
from billing.documents import Document, company_document, instant_text
from models import Callback, Company

PLATFORM = "platform"
COMPANY = "company"

MAXIMUM_BODY_BYTES = 20_000
"""No message is larger: Standard Webhooks asks for less than 20 KB, and what fields may hold sees to it."""


@dataclass(frozen=True, slots=True)
class Outbox:
    """Who hears of changes: the platform where ``by_platform``, and each company that set an endpoint.

    A message that nobody is to receive is not written.
    """

    by_platform: bool

    def write(
        self,
        session: Session,
        type_: str,
        company: Company,
        *,
        now: datetime,
        previous: Document,
        about: Document | None = None,
    ) -> None:
        """Count a change of ``company`` at business time ``now``, and add one message per recipient about it.

        ``about`` is what the event is about beside the company, such as ``{"company_package": …}``;
        ``previous`` has the earlier values of the shown members that the change altered. The company is
        shown as it stands in the session, whose transaction must have locked it: its ``sequence`` grows by
        one with each change, whoever listens, and a later one never shows an earlier company.
        """
        company.sequence += 1
        change = uuid.uuid4()
        data: Document = {"company": company_document(company)} | (about or {})
        data |= {"sequence": company.sequence, "previous": previous}
        body = message_body(type_, data, now=now)
        for recipient in self._recipients(company):
            session.add(
                Callback(
                    company_id=company.id,
                    id=message_id(company.id, f"{change}{type_}{recipient}"),
                    recipient=recipient,
                    type=type_,
                    body=body,
                    request_id=tracing.current_id(),
                )
            )

    def _recipients(self, company: Company) -> list[str]:
        return [PLATFORM] * self.by_platform + [COMPANY] * (company.callback_url is not None)


def message_body(type_: str, data: Document, *, now: datetime) -> str:
    """Return what is signed and sent for a message, at business time ``now``: the same bytes every time."""
    message = {"type": type_, "timestamp": instant_text(now), "data": data}
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"))


def message_id(company_id: int, key: str) -> uuid.UUID:
    """Return the id of a message, which is its ``webhook-id``: the same for the same ``key``, always.

    The first half is the company's id, so that a message is found by its id alone; the other a digest.
    """
    digest = hashlib.md5(key.encode(), usedforsecurity=False).digest()
    return uuid.UUID(bytes=company_id.to_bytes(8, "big") + digest[:8])


def message_id_sql(company_id: str, key: str) -> str:
    """Return the SQL of `message_id` for two expressions."""
    return f"(lpad(to_hex({company_id}), 16, '0') || left(md5({key}), 16))::uuid"


def company_of(id_: uuid.UUID) -> int:
    """Return whose message an id is."""
    return int.from_bytes(id_.bytes[:8], "big")
