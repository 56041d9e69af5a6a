"""What Vade asks of a payment gateway, and the one that stands in for the bank (DESIGN.md §5)."""

import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ChargeRequest:
    """One attempt to collect.

    ``amount_minor`` is in minor units of ``currency`` (ISO 4217).
    """

    idempotency_key: str
    """Same key = same attempt = at most one charge."""
    company_id: int
    amount_minor: int
    currency: str
    description: str


@dataclass(frozen=True, slots=True)
class ChargeResult:
    """What the gateway answered."""

    succeeded: bool
    reference: str
    """The gateway's own id of the attempt."""
    decline_code: str | None = None


class GatewayUnavailable(Exception):  # noqa: N818 - the name is the contract's
    """The gateway cannot be reached, or its answer is lost: an outage, not a decline."""


class Gateway(Protocol):
    """Any class of this shape on the import path can be named in ``PAYMENT_GATEWAY``.

    It is made without arguments, once per process, and called from many threads. It may also offer
    ``charge_many(requests) -> list[ChargeResult | GatewayUnavailable]``, in the requests' order, for up to
    a hundred at a time. ``GATEWAY_TIMEOUT_S`` bounds each call of either.
    """

    def charge(self, request: ChargeRequest) -> ChargeResult:
        """Charge once per idempotency key; raise `GatewayUnavailable` where no answer can be had."""
        ...


class RandomHashGateway:
    """The stand-in for the bank: SHA-256 of the random key decides; last hex digit odd = charged.

    The same key gives the same answer again, as an idempotent gateway does.
    """

    def charge(self, request: ChargeRequest) -> ChargeResult:
        """Return the outcome that the key's hash holds."""
        reference = hashlib.sha256(request.idempotency_key.encode()).hexdigest()
        if int(reference[-1], 16) % 2:
            return ChargeResult(succeeded=True, reference=reference)
        return ChargeResult(succeeded=False, reference=reference, decline_code="declined_by_bank")

    def charge_many(self, requests: Sequence[ChargeRequest]) -> list[ChargeResult]:
        """Return the outcomes of a whole batch, in its order."""
        return [self.charge(request) for request in requests]


def load_gateway(name: str) -> Gateway:
    """Return a gateway from its name ``module:Class``.

    Raises:
        ValueError: when there is no such class, it cannot be made, or it has no ``charge``.
    """
    module_name, _, class_name = name.partition(":")
    try:
        gateway = getattr(importlib.import_module(module_name), class_name)()
    except Exception as error:
        # Another's code: whatever it raises on import or creation is the reason to give.
        raise ValueError(f"{name!r} cannot be loaded: {error}") from error
    if not callable(getattr(gateway, "charge", None)):
        raise ValueError(f"{name!r} is no gateway: it has no method charge")
    return gateway  # type: ignore[no-any-return]
