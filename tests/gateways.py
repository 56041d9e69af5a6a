"""Gateways for workers that are processes of their own, named in PAYMENT_GATEWAY as ``tests.gateways:…``.

They keep their books outside of Vade, in a directory that several processes share.
"""

import hashlib
import json
import logging
import os
import signal
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from billing.gateways import ChargeRequest, ChargeResult, GatewayUnavailable

logger = logging.getLogger("gateway")


@dataclass(frozen=True, slots=True)
class Entry:
    """What the gateway did, once for each key, and what it was asked."""

    idempotency_key: str
    company_id: int
    amount_minor: int
    currency: str
    description: str
    succeeded: bool

    @property
    def answer(self) -> ChargeResult:
        reference = hashlib.sha256(self.idempotency_key.encode()).hexdigest()
        return ChargeResult(self.succeeded, reference, None if self.succeeded else "insufficient_funds")


class Ledger:
    """The gateway's own books: one file for each key, which appears whole or not at all."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(exist_ok=True)

    def enter(self, entry: Entry) -> bool:
        """Enter what was done; return False, and change nothing, where the key has its entry already."""
        draft = self._directory / f".{os.getpid()}-{threading.get_ident()}"
        draft.write_text(json.dumps(asdict(entry)))
        try:
            os.link(draft, self._directory / entry.idempotency_key)
        except FileExistsError:
            return False
        finally:
            draft.unlink()
        return True

    def find(self, key: str) -> Entry | None:
        try:
            return Entry(**json.loads((self._directory / key).read_text()))
        except FileNotFoundError:
            return None

    def keys(self) -> set[str]:
        return {path.name for path in self._directory.iterdir() if not path.name.startswith(".")}

    def entries(self) -> list[Entry]:
        return [Entry(**json.loads((self._directory / key).read_text())) for key in self.keys()]


class AlwaysCharges:
    """Charges, at once."""

    def charge(self, request: ChargeRequest) -> ChargeResult:
        reference = hashlib.sha256(request.idempotency_key.encode()).hexdigest()
        return ChargeResult(succeeded=True, reference=reference)


class SlowGateway:
    """Charges after GATEWAY_DELAY_S, and enters it in the ledger of LEDGER_DIR."""

    def __init__(self) -> None:
        self._ledger = Ledger(Path(os.environ["LEDGER_DIR"]))
        self._delay_s = float(os.environ["GATEWAY_DELAY_S"])

    def charge(self, request: ChargeRequest) -> ChargeResult:
        time.sleep(self._delay_s)
        return self._enter(request, succeeded=True).answer

    def _enter(self, request: ChargeRequest, *, succeeded: bool) -> Entry:
        entry = Entry(**asdict(request), succeeded=succeeded)
        self._ledger.enter(entry)
        return entry


class MoodyGateway(SlowGateway):
    """Slow; charges one half of the keys and declines the other."""

    def charge(self, request: ChargeRequest) -> ChargeResult:
        time.sleep(self._delay_s)
        return self._enter(request, succeeded=int(request.idempotency_key[-1], 16) % 2 == 0).answer


class ForgetfulGateway(SlowGateway):
    """Slow; declines every fourth key; of every third key it loses the first answer after it is in the books.

    One half of the lost answers raise, the others come after GATEWAY_TIMEOUT_S. What it does with a key
    depends on nothing but the key, so that it does the same in every process.
    """

    def charge(self, request: ChargeRequest) -> ChargeResult:
        fate = int(hashlib.md5(request.idempotency_key.encode()).hexdigest(), 16)
        time.sleep(self._delay_s)
        entry = self._ledger.find(request.idempotency_key)
        if entry is not None:
            assert entry == Entry(**asdict(request), succeeded=entry.succeeded), "same key, same request"
            return entry.answer
        entry = self._enter(request, succeeded=fate % 4 != 0)
        if fate // 4 % 3 == 0:
            if fate // 12 % 2:
                raise GatewayUnavailable("the line went dead")
            time.sleep(float(os.environ["GATEWAY_TIMEOUT_S"]) + 0.1)
        return entry.answer


class StoppingGateway(AlwaysCharges):
    """Charges, and lets SIGTERM arrive in the thread in which it was called."""

    def charge(self, request: ChargeRequest) -> ChargeResult:
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        return super().charge(request)


class HangingGateway:
    """Says that it was called, and never comes back."""

    def charge(self, request: ChargeRequest) -> ChargeResult:
        logger.warning("called")
        threading.Event().wait()
        raise AssertionError(request)
