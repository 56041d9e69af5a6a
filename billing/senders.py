"""One message on its way: to whom it goes, how it is signed, and what came back."""

import contextlib
import logging
import time
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from uuid import UUID

import requests
from standardwebhooks import Webhook
from urllib3.exceptions import HTTPError, InvalidHeader
from urllib3.util import Retry

from billing.addresses import AddressPolicy, CheckedAdapter, RefusedAddressError
from billing.connections import time_limit
from billing.delivery_queue import Claimed

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 3.05
READ_TIMEOUT_S = 5.0
SEND_TIMEOUT_S = 8.0
"""What one message may take in all, from connecting to the end of what is read of the answer."""

POOLS = 256
"""How many endpoints' connections are kept alive at once."""

ANSWER_BYTES = 1024
"""How much of an answer is read and kept. Its status says all that Vade wants to know."""

LONGEST_RETRY_AFTER_S = 86_400.0
"""The longest that an endpoint may ask to be left alone."""

GONE = 410
ASKING_FOR_TIME = frozenset({429, 503})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where messages go, and the secrets that sign them: newest first, none where none can be read."""

    url: str
    secrets: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A claimed message on its way to its endpoint; later than ``until_s`` (monotonic) it is not ours.

    Where it is a ``probe``, it is the one message that tries an endpoint whose breaker was open.
    """

    message: Claimed
    endpoint: Endpoint
    until_s: float
    probe: bool = False

    @property
    def endpoint_id(self) -> int:
        """Whose endpoint it is: a company's id, or the platform's."""
        return self.message.endpoint_id


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: a status code and the beginning of the answer, or an error where there was none."""

    status_code: int | None = None
    error: str | None = None
    answer: str | None = None
    duration_s: float = 0.0
    retry_after_s: float | None = None
    """How long the endpoint asked to be left alone."""

    @property
    def succeeded(self) -> bool:
        """Any 2xx is a success; a redirect is not followed, and is none."""
        return self.status_code is not None and 200 <= self.status_code < 300

    @property
    def wants_no_more(self) -> bool:
        """Whether the endpoint asked to be left alone, for a time or for good."""
        return self.status_code == GONE or self.retry_after_s is not None

    @property
    def duration_ms(self) -> int:
        """How long it took, in whole milliseconds."""
        return round(self.duration_s * 1000)


class Sender:
    """Sends messages, from any number of threads; only to addresses that the policy allows.

    Straight through the transport: nothing of a `requests.Session` is wanted here, no redirects, no cookies,
    and no proxies or credentials of the machine's environment.
    """

    def __init__(self, policy: AddressPolicy, *, per_endpoint: int = 1) -> None:
        self._adapter = CheckedAdapter(policy, pool_connections=POOLS, pool_maxsize=per_endpoint)

    def send(self, endpoint: Endpoint, id_: UUID, body: str, *, sent_at: datetime) -> Reply:
        """POST a message, signed, at real time ``sent_at``; whatever happens is what came of the attempt."""
        if not endpoint.secrets:
            return Reply(error="The endpoint's secret cannot be decrypted.")
        began_s = time.monotonic()
        try:
            with time_limit(SEND_TIMEOUT_S), self._post(endpoint, id_, body, sent_at) as response:
                return Reply(
                    status_code=response.status_code,
                    answer=_beginning(response),
                    duration_s=time.monotonic() - began_s,
                    retry_after_s=_retry_after_s(response),
                )
        except RefusedAddressError as refusal:
            # Told as it is, without what the name led to.
            error = str(refusal)
        except (requests.RequestException, HTTPError, ValueError, OSError) as failure:
            # ValueError: a URL that urllib3 cannot take, although it was one when it was saved.
            error = _told(failure)
        except Exception as failure:
            # One message never stops the others.
            logger.exception("a callback cannot be sent", extra={"webhook_id": str(id_)})
            error = _told(failure)
        duration_s = time.monotonic() - began_s
        if duration_s >= SEND_TIMEOUT_S:
            error = f"No answer within {SEND_TIMEOUT_S:g} s."
        return Reply(error=error, duration_s=duration_s)

    def _post(self, endpoint: Endpoint, id_: UUID, body: str, sent_at: datetime) -> requests.Response:
        signatures = (_signer(secret).sign(str(id_), sent_at, body) for secret in endpoint.secrets)
        request = _prepared(endpoint.url).copy()
        request.headers["webhook-id"] = str(id_)
        request.headers["webhook-timestamp"] = str(int(sent_at.timestamp()))
        request.headers["webhook-signature"] = " ".join(signatures)
        request.prepare_body(body.encode(), None)
        return self._adapter.send(
            request, stream=True, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S), verify=True
        )

    def close(self) -> None:
        """Close the connections that are kept."""
        self._adapter.close()


@lru_cache(maxsize=1024)
def _prepared(url: str) -> requests.PreparedRequest:
    """Return the part of a request that is the same for all messages to an endpoint."""
    headers = {"accept-encoding": "identity", "content-type": "application/json", "user-agent": "Vade"}
    return requests.Request("POST", url, headers=headers).prepare()


def _told(failure: Exception) -> str:
    """Return what the endpoint's owner is told, which is nothing of what an address led to."""
    if isinstance(failure, requests.exceptions.SSLError):
        return "TLS failed: the certificate or the handshake is not valid."
    if isinstance(failure, requests.ConnectTimeout):
        return f"No connection within {CONNECT_TIMEOUT_S:g} s."
    if isinstance(failure, requests.ReadTimeout):
        return f"No answer within {READ_TIMEOUT_S:g} s."
    if isinstance(failure, requests.ConnectionError):
        return "The connection failed or was closed before an answer."
    return f"It could not be sent: {type(failure).__name__}."


@lru_cache(maxsize=1024)
def _signer(secret: str) -> Webhook:
    return Webhook(secret)


def _beginning(response: requests.Response) -> str:
    """Return the first bytes of an answer as text that a database can keep; an answer may break off there."""
    beginning = b""
    with contextlib.suppress(HTTPError, OSError, ValueError):
        # Not decoded: a small answer can unpack to an enormous one.
        while (left := ANSWER_BYTES - len(beginning)) and (
            piece := response.raw.read1(left, decode_content=False)
        ):
            beginning += piece
    text: str = beginning.decode("utf-8", "replace")
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _retry_after_s(response: requests.Response) -> float | None:
    value = response.headers.get("retry-after")
    if response.status_code not in ASKING_FOR_TIME or value is None:
        return None
    try:
        return max(0.0, Retry(retry_after_max=int(LONGEST_RETRY_AFTER_S)).parse_retry_after(value))
    except (InvalidHeader, ValueError, OverflowError):
        return None
