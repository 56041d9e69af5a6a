"""The examples of the OpenAPI document, in one place: the story of one company, that of the README's tour.

An example belongs to a schema or a parameter, by its name; where the same name means something else, to the
operation. A new schema, parameter or conflict needs an entry here: tests/test_examples.py.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from billing.errors import (
    CompanyPassiveError,
    CredentialsError,
    EmailTakenError,
    EndpointDisabledError,
    EndpointMissingError,
    ForbiddenError,
    InvalidFieldError,
    KeyBusyError,
    KeyInvalidError,
    KeyReusedError,
    NotFoundError,
    PackageOpenError,
    PreconditionFailedError,
    RateLimitError,
    SecretGoneError,
    TokenError,
    TooManySecretsError,
    VadeError,
)
from web.idempotency import HEADER
from web.metric_schemas import METRICS_EXAMPLE
from web.problem_types import DATABASE_UNAVAILABLE, ProblemType, of_status, problem_types
from web.problems import MEDIA_TYPE
from web.report_schemas import DAY_EXAMPLE
from web.webhooks import ACTIVE, ASSIGNED, CHARGED, DECLINED, ENDPOINT, EVENTS, PASSIVE

Document = dict[str, Any]

PASSWORD = "correct horse battery"  # noqa: S105 - the README's
JWT = (
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIyNyIsInNpZCI6IjQxIiwidHlwZSI6ImFjY2VzcyJ9"
    ".Nl8xR0pWQ1hYMkZ2SnpXb2ZPQktLend5SXBI"
)
SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"  # noqa: S105 - of nobody
PACKAGE: Document = ASSIGNED["package"]
CREDENTIALS = {"email": ACTIVE["email"], "password": PASSWORD}
REGISTRATION = {name: ACTIVE[name] for name in ("site_url", "name", "lastname", "company_name", "email")}
SESSION = {"status": 1, "token": JWT, "refresh_token": JWT, "company_id": ACTIVE["id"]}
MESSAGE: Document = EVENTS["payment.succeeded"].message()
DELIVERY: Document = {
    "id": "00000000-0000-001b-8d3f-5b0c2e9a7f14",
    "company_id": ACTIVE["id"],
    "recipient": "company",
    "type": MESSAGE["type"],
    "status": "delivered",
    "created_at": CHARGED["attempted_at"],
    "next_attempt_at": None,
    "attempts": [
        {
            "number": 1,
            "attempted_at": "2026-12-24T09:00:00.412077Z",
            "status_code": 204,
            "duration_ms": 38,
            "error": None,
            "answer": None,
        }
    ],
}
ENABLED_ENDPOINT = {
    **ENDPOINT,
    "status": "enabled",
    "failures": 0,
    "failing_since": None,
    "paused_until": None,
    "disabled_at": None,
    "disabled_reason": None,
    "former_secret_expires_at": None,
}
READY = {
    "status": "ready",
    "database": "ok",
    "schema": "ok",
    "worker": {"status": "beating", "heartbeat_at": "2026-12-24T08:59:58.120394Z", "age_s": 1.9},
}
UNREADY = {"status": "unready", "database": "unreachable", "schema": "unknown", "worker": None}
CURSOR = "MQ.EIepH8bESxBqWHXX2FvJOBKKzwY"

SCHEMAS: dict[str, Any] = {
    "RegisterBody": REGISTRATION | {"password": PASSWORD},
    "LoginBody": CREDENTIALS,
    "LogoutBody": {"all": True},
    "PasswordBody": {"current_password": PASSWORD, "new_password": "wrong horse no battery"},
    "SessionAnswer": SESSION,
    "CompanyAnswer": ACTIVE,
    "CompanyChanges": {"company_name": ACTIVE["company_name"], "callback_url": ACTIVE["callback_url"]},
    "ChangedCompanyAnswer": ACTIVE | {"callback_secret": SECRET},
    "NewPackage": {name: PACKAGE[name] for name in ("name", "period", "price_minor", "currency")},
    "PackageChanges": {"price_minor": PACKAGE["price_minor"]},
    "PackageAnswer": PACKAGE,
    "PackageList": {"data": [PACKAGE], "next_cursor": CURSOR},
    "Assignment": {"company_id": ACTIVE["id"], "package_id": PACKAGE["id"]},
    "CompanyPackageAnswer": ASSIGNED,
    "CurrentAnswer": {"company": ACTIVE, "company_package": ASSIGNED},
    "PaymentList": {"data": [DECLINED, CHARGED], "next_cursor": None},
    "CallbackAnswer": DELIVERY | {"status": "pending", "next_attempt_at": "2026-12-24T10:30:00.000000Z"},
    "CallbackWithBody": DELIVERY | {"body": json.dumps(MESSAGE, ensure_ascii=False)},
    "CallbackList": {"data": [DELIVERY], "next_cursor": None},
    "EndpointAnswer": ENABLED_ENDPOINT,
    "RotatedAnswer": {"callback_secret": SECRET, "former_secret_expires_at": "2026-12-25T09:00:00.000000Z"},
    "PingAnswer": {
        "succeeded": True,
        "status_code": 204,
        "duration_ms": 38,
        "error": None,
        "answer": None,
        "enabled": True,
    },
    "RecoverBody": {"since": "2026-12-24T00:00:00Z"},
    "RecoveredAnswer": {"recovered": 3, "more": False},
    "DailyReportAnswer": {"data": [DAY_EXAMPLE]},
    "MetricsAnswer": METRICS_EXAMPLE,
    "AliveAnswer": {"status": "alive"},
    "ReadyAnswer": READY,
}
"""What a body looks like, by the name of its schema."""

ANSWERS: dict[tuple[str, str], Any] = {
    ("register", "201"): SESSION | {"status": PASSIVE["status"]},
    ("readyz", "503"): UNREADY,
}
"""Where an answer is not as its schema's example: by operation and status."""

PARAMETERS: dict[str, Any] = {
    "limit": 20,
    "cursor": CURSOR,
    "company_id": ACTIVE["id"],
    "type": MESSAGE["type"],
    "status": "exhausted",
    "since": "2026-12-24T00:00:00Z",
    "until": "2026-12-25T00:00:00Z",
    "from": DAY_EXAMPLE["date"],
    "to": DAY_EXAMPLE["date"],
    HEADER: "8e03978e-40d5-43dd-bc93-6894a57f9324",
    "webhook-id": DELIVERY["id"],
    "webhook-timestamp": 1798102800,
    "webhook-signature": "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=",
}
"""What a parameter looks like, by its name."""

PARAMETERS_OF: dict[tuple[str, str], Any] = {
    ("listPackages", "status"): PACKAGE["status"],
    ("listPayments", "status"): CHARGED["status"],
    ("getPackage", "id"): PACKAGE["id"],
    ("changePackage", "id"): PACKAGE["id"],
    ("getCallback", "id"): DELIVERY["id"],
    ("replayCallback", "id"): DELIVERY["id"],
}
"""Parameters whose name means something else elsewhere: by operation and name."""

_USUAL: dict[str, type[VadeError]] = {
    "401": TokenError,
    "403": ForbiddenError,
    "404": NotFoundError,
    "412": PreconditionFailedError,
    "422": InvalidFieldError,
    "429": RateLimitError,
}
REFUSALS: dict[tuple[str, str], tuple[type[VadeError], ...]] = {
    ("register", "409"): (EmailTakenError,),
    ("logIn", "401"): (CredentialsError,),
    ("changePassword", "401"): (CredentialsError, TokenError),
    ("assign", "409"): (PackageOpenError, CompanyPassiveError),
    ("replayCallback", "409"): (EndpointDisabledError,),
    ("rotateSecret", "409"): (TooManySecretsError, SecretGoneError),
    ("recover", "409"): (EndpointDisabledError,),
} | {
    (operation, "404"): (EndpointMissingError,)
    for operation in ("getEndpoint", "rotateSecret", "pingEndpoint", "recover", "enableEndpoint")
}
"""With what an operation answers where that does not follow from the status."""

_OF_A_KEY: dict[str, type[VadeError]] = {"400": KeyInvalidError, "409": KeyBusyError, "422": KeyReusedError}
"""With what an operation answers that takes an ``Idempotency-Key``."""

_OTHER_REQUEST = {"pointer": "#", "detail": "This is not the request that the key was first used for."}
_TOO_MUCH = {"limit": "Input should be less than or equal to 100."}


def add_examples(document: Document) -> None:
    """Put the examples into an OpenAPI document; what none fits stays without."""
    schemas = document["components"]["schemas"]
    for operation in operations(document):
        name = operation["operationId"]
        for parameter in operation.get("parameters", []):
            known = PARAMETERS_OF.get((name, parameter["name"]), PARAMETERS.get(parameter["name"]))
            if known is not None:
                parameter["example"] = known
        body = operation.get("requestBody")
        for content in body["content"].values() if body else ():
            _add_usual(content)
        for status, answer in operation["responses"].items():
            for media_type, content in answer.get("content", {}).items():
                if media_type == MEDIA_TYPE:
                    content.update(_problems(operation, status, schemas))
                elif (name, status) in ANSWERS:
                    content["example"] = ANSWERS[name, status]
                else:
                    _add_usual(content)


def operations(document: Document) -> list[Document]:
    """Return all operations of an OpenAPI document, those of its webhooks too."""
    paths = [*document["paths"].values(), *document.get("webhooks", {}).values()]
    return [operation for path in paths for operation in path.values()]


def schema_name(schema: Document) -> str:
    """Return what a schema that is a reference refers to, else an empty text."""
    reference: str = schema.get("$ref", "")
    return reference.rpartition("/")[2]


def _add_usual(content: Document) -> None:
    name = schema_name(content["schema"])
    if name in SCHEMAS:
        content["example"] = SCHEMAS[name]


def _problems(operation: Document, status: str, schemas: Document) -> Document:
    """Return ``example``, or ``examples`` by the slugs of their types, of a problem answer."""
    found = {type_.slug: type_.example() for type_ in _types(operation, status)}
    if InvalidFieldError.slug in found:
        found[InvalidFieldError.slug]["errors"] = [_refused(operation, schemas)]
    if KeyReusedError.slug in found:
        found[KeyReusedError.slug]["errors"] = [_OTHER_REQUEST]
    if len(found) > 1:
        return {"examples": {slug: {"summary": each["title"], "value": each} for slug, each in found.items()}}
    return {"example": next(iter(found.values()))} if found else {}


def _types(operation: Document, status: str) -> Iterator[ProblemType]:
    """Yield the types of problem with which an operation answers a status."""
    usual = _USUAL.get(status)
    for error in REFUSALS.get((operation["operationId"], status), (usual,) if usual else ()):
        yield problem_types()[error.slug]
    if status == "503":
        yield DATABASE_UNAVAILABLE
    elif status == "400" and "requestBody" in operation:
        yield replace(of_status(400), detail="The body is not valid JSON.")
    elif status == "413":
        yield replace(of_status(413), detail="A body may have 64 KiB at most.")
    elif status in {"415", "500"}:
        yield of_status(int(status))
    if status in _OF_A_KEY and any(each["name"] == HEADER for each in operation.get("parameters", [])):
        yield problem_types()[_OF_A_KEY[status].slug]


def _refused(operation: Document, schemas: Document) -> Document:
    """Return what an operation may find wrong with a request: a field of its own, or one that it has not."""
    names = [parameter["name"] for parameter in operation.get("parameters", [])]
    for content in operation.get("requestBody", {}).get("content", {}).values():
        for name in schemas[schema_name(content["schema"])].get("required", []):
            return {"pointer": f"#/{name}", "detail": "This field is missing."}
    for name in names:
        if name in _TOO_MUCH:
            return {"pointer": f"#/{name}", "detail": _TOO_MUCH[name]}
    return {"pointer": "#/colour", "detail": "This field is unknown."}
