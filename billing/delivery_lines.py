"""What the log tells of deliveries: each line names the message, and the request or pass that caused it."""

import logging
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row

from billing.senders import Outgoing, Reply
from models import CallbackStatus

logger = logging.getLogger(__name__)

FAILURES_LOGGED = 10
"""How many failed attempts are told each time that attempts are recorded."""


def log_attempts(attempts: Sequence[tuple[Outgoing, Reply, CallbackStatus]]) -> None:
    """Tell of the messages that are given up, and of the first that failed."""
    failed = 0
    for outgoing, reply, status in attempts:
        if status is CallbackStatus.EXHAUSTED:
            logger.error("a callback is given up", extra=_names(outgoing))
        elif status is not CallbackStatus.DELIVERED:
            failed += 1
            if failed <= FAILURES_LOGGED:
                came_back = {"status_code": reply.status_code, "error": reply.error}
                logger.info("a callback failed", extra=_names(outgoing) | came_back)
    if failed > FAILURES_LOGGED:
        logger.info("callbacks failed", extra={"failed": failed})


def log_disabled(
    endpoint: Row[Any], attempts: Sequence[tuple[Outgoing, Reply, CallbackStatus]], *, total: int
) -> None:
    """Tell of an endpoint that was disabled, by the last of its attempts; ``total`` were, ever."""
    (cause,) = [_names(o) for o, _, _ in attempts if o.endpoint_id == endpoint.company_id][-1:] or [{}]
    about = {
        "company_id": endpoint.company_id,
        "reason": endpoint.disabled_reason,
        "callback_endpoints_disabled_total": total,
    }
    logger.error("a callback endpoint is disabled", extra=cause | about)


def _names(outgoing: Outgoing) -> dict[str, object]:
    message = outgoing.message
    return {
        "webhook_id": str(message.id),
        "type": message.type,
        "company_id": message.company_id,
        "request_id": message.request_id,
    }
