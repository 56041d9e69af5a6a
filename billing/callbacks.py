"""The outbox: every change writes its messages in its own transaction (DESIGN.md §6).

The payment queue writes those of a settlement itself, many at a time and of the same shape.
"""

import hashlib
import json
import uuid
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from billing.documents import Document, company_document, instant_text
from models import Callback, Company

PLATFORM = "platform"
COMPANY = "company"


@dataclass(frozen=True, slots=True)
class Outbox:
    """Who hears of changes: the platform where ``by_platform``, and each company that set an endpoint.

    A message that nobody is to receive is not written.
    """

    by_platform: bool

    def write(
        self, session: Session, type_: str, company: Company, *, now: datetime, about: Document | None = None
    ) -> None:
        """Add one message per recipient about a change of ``company`` at business time ``now``.

        ``about`` is what the event is about beside the company, such as ``{"company_package": …}``. The
        company is shown as it stands in the session, so write the message after the change.
        """
        change = uuid.uuid4()
        data = {"company": company_document(company)} | (about or {})
        body = json.dumps(
            {"type": type_, "timestamp": instant_text(now), "data": data},
            ensure_ascii=False,
            separators=(",", ":"),
        )
        for recipient in self._recipients(company):
            session.add(
                Callback(
                    company_id=company.id,
                    id=message_id(change, type_, recipient),
                    recipient=recipient,
                    type=type_,
                    body=body,
                )
            )

    def _recipients(self, company: Company) -> list[str]:
        return [PLATFORM] * self.by_platform + [COMPANY] * (company.callback_url is not None)


def message_id(change: uuid.UUID, type_: str, recipient: str) -> uuid.UUID:
    """Return the id of a message, which is its ``webhook-id``: the same for the same change, always."""
    digest = hashlib.md5(f"{change}{type_}{recipient}".encode(), usedforsecurity=False)
    return uuid.UUID(bytes=digest.digest())
