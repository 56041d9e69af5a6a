"""Pings: a message that tries an endpoint out, at once and in plain sight."""

import uuid
from contextlib import closing
from datetime import datetime

from sqlalchemy.orm import Session

from billing import callback_endpoints
from billing.addresses import AddressPolicy
from billing.callbacks import message_body
from billing.clock import Moment
from billing.errors import EndpointMissingError
from billing.keyring import Keyring
from billing.senders import Endpoint, Reply, Sender
from models import PLATFORM_ID, CallbackEndpoint


def addressed(session: Session, company_id: int, keyring: Keyring, *, now: datetime) -> Endpoint:
    """Return an endpoint with the secrets that sign for it at real time ``now``.

    Raises:
        EndpointMissingError: when there is none.
    """
    row: CallbackEndpoint = callback_endpoints.find(session, company_id)
    encrypted = callback_endpoints.read_secrets(session, [company_id], now=now).get(company_id, ())
    return Endpoint(str(row.url), tuple(keyring.readable(encrypted)))


def send(endpoint: Endpoint, company_id: int, policy: AddressPolicy, *, moment: Moment) -> Reply:
    """Send a ``ping``, once, and return what came back. No transaction should be open."""
    told = {"company_id": None if company_id == PLATFORM_ID else company_id, "url": endpoint.url}
    body = message_body("ping", {"callback_endpoint": told}, now=moment.business)
    with closing(Sender(policy)) as sender:
        return sender.send(endpoint, uuid.uuid4(), body, sent_at=moment.real)


def note(session: Session, company_id: int, pinged: Endpoint, reply: Reply) -> bool:
    """Enable an endpoint that answered its ping well; return whether it is enabled now.

    A ping that fails, or that another URL answered, changes nothing.
    """
    try:
        row = callback_endpoints.find(session, company_id)
    except EndpointMissingError:
        return False
    if reply.succeeded and row.url == pinged.url:
        callback_endpoints.enable(session, company_id)
        return True
    return row.disabled_at is None
