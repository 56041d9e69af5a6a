"""What an application carries beside its configuration, and how a request gets at it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast
from zoneinfo import ZoneInfo

from flask import current_app
from sqlalchemy.orm import Session

from billing.callbacks import Outbox
from billing.clock import Clock
from billing.gateways import Gateway
from config import Settings
from models import db


@dataclass(frozen=True, slots=True)
class Vade:
    """The settings, and what was made of them: the clock, the gateway, and who hears of changes."""

    settings: Settings
    clock: Clock
    gateway: Gateway
    outbox: Outbox

    @property
    def zone(self) -> ZoneInfo:
        """The time zone of business days."""
        return self.settings.billing_timezone


def vade() -> Vade:
    """Return what the present application carries."""
    return cast(Vade, current_app.extensions["vade"])


@contextmanager
def transaction() -> Iterator[Session]:
    """Give the request's session; commit at the end, or roll back where an error leaves the block."""
    session = cast(Session, db.session())
    try:
        yield session
        session.commit()
    except BaseException:
        session.rollback()
        raise
