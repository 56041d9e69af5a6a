"""The shapes of requests and answers: what pydantic checks, and what OpenAPI says."""

import contextlib
import re
import unicodedata
from datetime import date, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import email_validator
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    HttpUrl,
    StringConstraints,
    TypeAdapter,
)

from billing.addresses import as_sent
from models import BIGINT_MAX, MAXIMUM_PRICE_MINOR
from sentences import Sentence
from web import patterns

# Names such as shop.example or shop.test are refused by default; here they are as good as any other:
# nothing is sent to them, and test systems use them.
email_validator.SPECIAL_USE_DOMAIN_NAMES.clear()

MAXIMUM_URL_LENGTH = 2048
MAXIMUM_EMAIL_LENGTH = 254
"""RFC 5321 §4.5.3.1.3, without the angle brackets."""

_HTTP_URL: TypeAdapter[HttpUrl] = TypeAdapter(HttpUrl)

# HttpUrl takes what browsers take, which is more than a URL: `http:shop.example`, `http:\\shop.example`.
# A quotation mark belongs into no URL either (RFC 3986 §2), and would be two bytes in a message.
_WRITTEN_OUT = re.compile(r"https?://[^/?#\\\" ]+[^\\\" ]*", re.IGNORECASE)
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"\[[0-9a-f:.]+\]|{_LABEL}(?:\.{_LABEL})*\.?")

_CONTROLS = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories of what steers a text instead of standing in it."""

_STEERS_AND_STANDS = frozenset("\n\u200c\u200d")
"""A new line, and the joiners without which some scripts and emoji cannot be written."""


def _storable(value: str) -> str:
    for character in value:
        if unicodedata.category(character) in _CONTROLS and character not in _STEERS_AND_STANDS:
            raise ValueError("Control characters are not allowed")
    return value


def _email(value: str) -> str:
    try:
        email_validator.validate_email(value, check_deliverability=False, strict=True)
    except email_validator.EmailNotValidError:
        raise ValueError("This is not an e-mail address") from None
    return value


def _http_url(value: str) -> str:
    try:
        parts = _HTTP_URL.validate_python(value)
        host, sent = parts.host or "", str(parts)
        with contextlib.suppress(ValueError):
            sent = as_sent(value)
    except ValueError:
        host = sent = ""
    if not (_WRITTEN_OUT.fullmatch(value) and value.isprintable() and _HOST.fullmatch(host)):
        raise ValueError("This is not an http or https URL")
    if len(sent) > MAXIMUM_URL_LENGTH:
        raise ValueError(
            Sentence(
                "As it is sent, with %%-codes for letters, it is over %(most)s characters",
                most=MAXIMUM_URL_LENGTH,
            )
        )
    return value


def _currency(value: str) -> str:
    if not re.fullmatch("[A-Z]{3}", value):
        raise ValueError("A currency is three capital letters, such as TRY")
    return value


def _digits(value: object) -> object:
    """Take the text of a path or query for a number only where it is plain decimal digits."""
    if isinstance(value, str):
        sign, digits = (-1, value[1:]) if value.startswith("-") else (1, value)
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 19):
            raise ValueError("A whole number of at most 64 bits is wanted")
        return sign * int(digits)
    return value


def _whole(value: object) -> object:
    """Refuse what only equals a whole number, as True equals 1: `Literal` would take it."""
    if type(value) is not int:
        raise ValueError("A whole number is wanted")
    return value


FROM_TEXT = BeforeValidator(_digits)
"""Reads a number of a path or query; written last, it leaves the limits in the description."""

Text = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200),
    AfterValidator(_storable),
    Field(json_schema_extra={"pattern": patterns.PLAIN_AND_VISIBLE}),
]
Url = Annotated[
    str,
    StringConstraints(max_length=MAXIMUM_URL_LENGTH),
    AfterValidator(_http_url),
    Field(json_schema_extra={"format": "uri"}),
]
Email = Annotated[
    str,
    StringConstraints(max_length=MAXIMUM_EMAIL_LENGTH),
    AfterValidator(_email),
    Field(json_schema_extra={"format": "email"}),
]
_SECRET = Field(json_schema_extra={"format": "password", "writeOnly": True, "pattern": patterns.PLAIN})
NewPassword = Annotated[
    str, StringConstraints(min_length=8, max_length=128), AfterValidator(_storable), _SECRET
]
# At a login a short password is a wrong one, like any other.
GivenPassword = Annotated[
    str, StringConstraints(min_length=1, max_length=128), AfterValidator(_storable), _SECRET
]
Id = Annotated[int, Field(ge=1, le=BIGINT_MAX)]
PriceMinor = Annotated[int, Field(ge=0, le=MAXIMUM_PRICE_MINOR)]
Currency = Annotated[
    str, AfterValidator(_currency), Field(json_schema_extra={"pattern": "^[A-Z]{3}$"}, examples=["TRY"])
]
Status = Literal[0, 1]
NewStatus = Annotated[Status, BeforeValidator(_whole)]
PeriodName = Literal["monthly", "yearly"]

LEFT_OUT: Any = Field(default_factory=lambda: None)
"""The default of a change that was not asked for: `exclude_unset` drops it, the description has none."""


class BodyModel(BaseModel):
    """A JSON body: its types are taken literally (a boolean is no integer), unknown fields are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class QueryModel(BaseModel):
    """A query string: unknown parameters are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PackagePath(BaseModel):
    """A package in a path."""

    id: Annotated[Id, FROM_TEXT]


class CallbackPath(BaseModel):
    """A callback in a path."""

    id: UUID


class SessionAnswer(BaseModel):
    """Tokens of a company: the access token lives 1 hour, the refresh token 30 days."""

    status: Status = Field(description="The company's: 1 = active, 0 = passive.")
    token: str
    refresh_token: str
    company_id: int


class CompanyAnswer(BaseModel):
    """A company, without secrets."""

    id: int
    site_url: str
    name: str
    lastname: str
    company_name: str
    email: str
    status: Status
    callback_url: str | None
    registered_at: datetime


class ChangedCompanyAnswer(CompanyAnswer):
    """A company after a change."""

    callback_secret: str | None = Field(
        None, description="Only after `callback_url` was set: signs this company's callbacks. Shown once."
    )


class PackageAnswer(BaseModel):
    """What is sold."""

    id: int
    name: str
    period: PeriodName
    price_minor: int = Field(description="In minor units, such as kuruş.")
    currency: str = Field(description="ISO 4217.")
    status: Status


class CompanyPackageAnswer(BaseModel):
    """A company's package with its current period, from `start_date` up to but not including `end_date`."""

    id: int
    company_id: int
    status: Status
    start_date: date
    end_date: date
    package: PackageAnswer


class CurrentAnswer(BaseModel):
    """A company and what it has: its open company package, else the latest, else null."""

    company: CompanyAnswer
    company_package: CompanyPackageAnswer | None


class PaymentAnswer(BaseModel):
    """One attempt to collect that the gateway answered."""

    id: UUID = Field(description="The idempotency key that the attempt was sent with.")
    company_id: int
    company_package_id: int
    attempt: int
    status: Status = Field(description="1 = charged, 0 = declined.")
    amount_minor: int
    currency: str
    period_start: date
    period_end: date
    reference: str = Field(description="The gateway's own id of the attempt.")
    decline_code: str | None
    attempted_at: datetime


class PackageList(BaseModel):
    """A page of packages, by id."""

    data: list[PackageAnswer]
    next_cursor: str | None


class PaymentList(BaseModel):
    """A page of attempts, newest first."""

    data: list[PaymentAnswer]
    next_cursor: str | None


class AttemptAnswer(BaseModel):
    """One attempt to deliver a callback: the status code that came back, or why none did."""

    number: int
    attempted_at: datetime
    status_code: int | None
    duration_ms: int
    error: str | None
    answer: str | None = Field(description="The first 1,024 bytes of what was answered.")


class CallbackAnswer(BaseModel):
    """A message to an endpoint, with every attempt to deliver it."""

    id: UUID = Field(description="Its `webhook-id`, the same on every attempt.")
    company_id: int | None = Field(description="Whose change it tells; null where it is of the platform.")
    recipient: Literal["platform", "company"]
    type: str
    status: Literal["pending", "waiting", "held", "delivered", "exhausted"]
    created_at: datetime
    next_attempt_at: datetime | None
    attempts: list[AttemptAnswer]


class CallbackWithBody(CallbackAnswer):
    """A message with the text that is signed and sent."""

    body: str


class CallbackList(BaseModel):
    """A page of callbacks, newest first."""

    data: list[CallbackAnswer]
    next_cursor: str | None


class EndpointAnswer(BaseModel):
    """A callback endpoint and how it fares."""

    company_id: int | None = Field(description="Null for the platform's own.")
    url: str
    status: Literal["enabled", "disabled"]
    failures: int = Field(description="Failed attempts in a row.")
    failing_since: datetime | None
    paused_until: datetime | None = Field(description="After failures, nothing is sent until then.")
    disabled_at: datetime | None
    disabled_reason: Literal["gone", "failing"] | None = Field(
        description="It answered 410, or failed for five days."
    )
    former_secret_expires_at: datetime | None = Field(
        description="Until then, messages are signed by a former secret too."
    )


class RotatedAnswer(BaseModel):
    """A new secret, shown once."""

    callback_secret: str
    former_secret_expires_at: datetime


class PingAnswer(BaseModel):
    """What came back of a ping."""

    succeeded: bool = Field(description="Whether it was answered with a 2xx.")
    status_code: int | None
    duration_ms: int
    error: str | None
    answer: str | None = Field(description="The first 1,024 bytes of what was answered.")
    enabled: bool = Field(description="Whether the endpoint is enabled now.")


class RecoveredAnswer(BaseModel):
    """How many messages are sent again."""

    recovered: int
    more: bool = Field(description="Whether there were more than one request takes.")


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str


class FieldError(BaseModel):
    """What is wrong with one field; `pointer` is a JSON pointer (RFC 6901)."""

    pointer: str
    detail: str


class ValidationProblem(Problem):
    """A problem document that says which fields were refused and why."""

    errors: list[FieldError]


class AliveAnswer(BaseModel):
    """The process answers."""

    status: Literal["alive"]


class WorkerAnswer(BaseModel):
    """When a worker was last seen; `status` is `stale` after 30 seconds, `unseen` where none ever was."""

    status: Literal["beating", "stale", "unseen"]
    heartbeat_at: datetime | None
    age_s: float | None


class ReadyAnswer(BaseModel):
    """Whether requests can be served: the database answers and its schema is not older than the code."""

    status: Literal["ready", "unready"]
    database: Literal["ok", "unreachable"]
    schema_: Literal["ok", "outdated", "unknown"] = Field(alias="schema")
    worker: WorkerAnswer | None
