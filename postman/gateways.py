"""The gateway of the Postman story: the price says how an attempt ends."""

from billing.gateways import ChargeRequest, ChargeResult


class PriceGateway:
    """Declines amounts that end in 13 and charges all others."""

    def charge(self, request: ChargeRequest) -> ChargeResult:
        """Return the outcome that the amount holds."""
        if request.amount_minor % 100 == 13:
            return ChargeResult(False, request.idempotency_key, decline_code="insufficient_funds")
        return ChargeResult(True, request.idempotency_key)
