"""A gateway as far away as a real one."""

import time

from billing.gateways import ChargeRequest, ChargeResult, RandomHashGateway

LATENCY_S = 0.3


class SlowGateway:
    """Answers as the stand-in for the bank does, one request at a time, each after `LATENCY_S`."""

    def __init__(self) -> None:
        self._gateway = RandomHashGateway()

    def charge(self, request: ChargeRequest) -> ChargeResult:
        """Return the outcome that the key's hash holds, after a while."""
        time.sleep(LATENCY_S)
        return self._gateway.charge(request)
