"""How the workers call the gateway of the run: named in PAYMENT_GATEWAY, so it is loaded by the product."""

import os
import threading

import requests

from billing.gateways import ChargeRequest, ChargeResult, GatewayUnavailable


class HttpGateway:
    """Asks CHAOS_GATEWAY_URL; whatever comes back that is no answer to this key is an outage."""

    def __init__(self) -> None:
        self._url = os.environ.get("CHAOS_GATEWAY_URL", "")
        self._worker = os.environ.get("CHAOS_NAME", "")
        self._timeout_s = 3 * float(os.environ.get("GATEWAY_TIMEOUT_S", "1"))
        self._threads = threading.local()

    def charge(self, request: ChargeRequest) -> ChargeResult:
        """Charge once per idempotency key; raise `GatewayUnavailable` where no answer can be had."""
        try:
            response = self._session().post(
                self._url,
                json={
                    "company_id": request.company_id,
                    "amount_minor": request.amount_minor,
                    "currency": request.currency,
                    "description": request.description,
                },
                headers={"Idempotency-Key": request.idempotency_key, "X-Worker": self._worker},
                timeout=self._timeout_s,
            )
            response.raise_for_status()
            answer = response.json()
        except (requests.RequestException, ValueError) as error:
            raise GatewayUnavailable(type(error).__name__) from error
        if answer.get("key") != request.idempotency_key:
            # The second of two answers to the call before.
            raise GatewayUnavailable("an answer to another attempt")
        succeeded = bool(answer["succeeded"])
        return ChargeResult(succeeded, answer["reference"], None if succeeded else "insufficient_funds")

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._threads, "session", None)
        if session is None:
            session = self._threads.session = requests.Session()
        return session
