"""One message on its way: to whom it goes, how it is signed, and what came back."""

import logging
import threading
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

import requests
from standardwebhooks import Webhook

from billing.connections import TimeLimitedAdapter, time_limit
from billing.endpoints import PublicOnlyAdapter

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 3.05
READ_TIMEOUT_S = 5.0
SEND_TIMEOUT_S = 8.0
"""What one message may take in all, from connecting to the answer's headers."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where messages go, and the secret that signs them."""

    url: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Message:
    """A claimed callback; ``endpoint`` is None where its recipient has none any more."""

    company_id: int
    id: UUID
    recipient: str
    type: str
    body: str
    attempts: int
    endpoint: Endpoint | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came back: a status code, or an error where there was no answer."""

    message: Message
    status_code: int | None = None
    error: str | None = None

    @property
    def succeeded(self) -> bool:
        """Any 2xx is a success; a redirect is not followed, and is none."""
        return self.status_code is not None and 200 <= self.status_code < 300


class Sender:
    """Sends messages, from any number of threads; to public addresses only, unless ``allow_private``."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._local = threading.local()

    def send(self, message: Message, *, sent_at: datetime) -> Attempt:
        """POST a message, signed, at real time ``sent_at``; whatever happens is what came of the attempt."""
        if message.endpoint is None:
            return Attempt(message, error="the endpoint is gone")
        try:
            with time_limit(SEND_TIMEOUT_S), self._post(message, message.endpoint, sent_at) as response:
                return Attempt(message, status_code=response.status_code)
        except (requests.RequestException, ValueError, OSError) as error:
            # ValueError: a URL that urllib3 cannot take, although it was one when it was saved.
            return Attempt(message, error=type(error).__name__)
        except Exception as error:
            # One message never stops the others.
            logger.exception("a callback cannot be sent", extra={"webhook_id": str(message.id)})
            return Attempt(message, error=type(error).__name__)

    def _post(self, message: Message, endpoint: Endpoint, sent_at: datetime) -> requests.Response:
        id_ = str(message.id)
        return self._session().post(
            endpoint.url,
            data=message.body.encode(),
            headers={
                "content-type": "application/json",
                "user-agent": "Vade",
                "webhook-id": id_,
                "webhook-timestamp": str(int(sent_at.timestamp())),
                "webhook-signature": Webhook(endpoint.secret).sign(id_, sent_at, message.body),
            },
            timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
            allow_redirects=False,
            # The answer's body is not read: its status says all.
            stream=True,
        )

    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):
            session = requests.Session()
            # Proxies and credentials of the machine's environment are not for callbacks.
            session.trust_env = False
            adapter = TimeLimitedAdapter() if self._allow_private else PublicOnlyAdapter()
            session.mount("http://", adapter)
            session.mount("https://", adapter)
            self._local.session = session
        found: requests.Session = self._local.session
        return found
