"""What receivers are sent: every type of message as a schema, and OpenAPI's ``webhooks`` (DESIGN.md §6)."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.json_schema import models_json_schema

from web.report_schemas import DAY_EXAMPLE, DayReport
from web.schemas import (
    LEFT_OUT,
    CompanyAnswer,
    CompanyPackageAnswer,
    Id,
    PackageAnswer,
    PaymentAnswer,
    Status,
)

Members = dict[str, Any]
"""Members of an object: what they may be (in a tuple with a default where they may be absent), or are."""

SOME = ConfigDict(json_schema_extra={"minProperties": 1})


class EarlierCompany(BaseModel):
    """The earlier values of the company's members that changed, and no others."""

    model_config = SOME
    site_url: str = LEFT_OUT
    name: str = LEFT_OUT
    lastname: str = LEFT_OUT
    company_name: str = LEFT_OUT
    callback_url: str | None = LEFT_OUT


class EarlierPeriod(BaseModel):
    """The period that ended."""

    start_date: date
    end_date: date


class EarlierCompanyPackage(BaseModel):
    """The earlier values of the company package's members that changed, and no others."""

    model_config = SOME
    status: Status = LEFT_OUT
    start_date: date = LEFT_OUT
    end_date: date = LEFT_OUT
    package: PackageAnswer = LEFT_OUT


class NamedEndpoint(BaseModel):
    """An endpoint: the platform's own where `company_id` is null."""

    company_id: Id | None
    url: str


class DisabledEndpoint(NamedEndpoint):
    """An endpoint that nothing is sent to any more: it answered 410 (`gone`), or failed for five days."""

    reason: Literal["gone", "failing"]
    failing_since: datetime | None
    disabled_at: datetime


WasPassive = create_model("WasPassive", __doc__="The company was passive.", status=(Literal[0], ...))
WasActive = create_model("WasActive", __doc__="The company was active.", status=(Literal[1], ...))
WasOpen = create_model("WasOpen", __doc__="The company package was open.", status=(Literal[1], ...))
DOCUMENTS = {"company": CompanyAnswer, "company_package": CompanyPackageAnswer, "payment": PaymentAnswer}
OMITTED = Field(
    ge=0,
    description="How many currencies are left out to keep the message short, those with the fewest attempts: "
    "`GET /api/v1/reports/daily` has them all.",
)
SEQUENCE = Field(ge=1, description="Grows by one with each change of the company, whoever hears of it.")

# What the examples tell is the story of one company.
PASSIVE = json.loads("""{"id": 27, "site_url": "https://kitapci.example", "name": "Ada", "lastname": "Yılmaz",
    "company_name": "Kitapçı", "email": "ada@kitapci.example", "status": 0,
    "callback_url": "https://kitapci.example/callbacks", "registered_at": "2026-11-23T16:08:00.137632Z"}""")
ASSIGNED = json.loads("""{"id": 23, "company_id": 27, "status": 1, "start_date": "2026-11-23",
    "end_date": "2026-12-23", "package": {"id": 1, "name": "Başlangıç", "period": "monthly",
    "price_minor": 34900, "currency": "TRY", "status": 1}}""")
CHARGED = json.loads("""{"id": "b543e43d-4419-2273-5a0f-3d9114948fc3", "company_id": 27,
    "company_package_id": 23, "attempt": 1, "status": 1, "amount_minor": 34900, "currency": "TRY",
    "period_start": "2026-11-23", "period_end": "2026-12-23", "decline_code": null,
    "reference": "d118b2d7e95b1a29c328fc03b65f55d1bd075caa54e68f131cec7ca981f354eb",
    "attempted_at": "2026-12-24T09:00:00.000000Z"}""")
ACTIVE = PASSIVE | {"status": 1}
RENEWED = ASSIGNED | {"start_date": "2026-12-23", "end_date": "2027-01-23"}
DEARER = RENEWED | {"package": RENEWED["package"] | {"id": 2, "name": "Büyük", "price_minor": 69900}}
CLOSED = DEARER | {"status": 0}
DECLINED = CHARGED | {"attempt": 3, "status": 0, "decline_code": "insufficient_funds"}
DECLINED |= {"id": "0a7c7a1e-0d5e-4d59-8f0f-5f0f3c2b7d11", "attempted_at": "2027-01-25T21:00:01.000000Z"}
DECLINED |= {"period_start": "2026-12-23", "period_end": "2027-01-23", "reference": "9c56cc51b374c3ba"}
ENDPOINT = {"company_id": 27, "url": PASSIVE["callback_url"]}
NO_ANSWER = {"reason": "failing", "failing_since": "2026-12-19T08:58:02.714551Z"}
NO_ANSWER |= {"disabled_at": "2026-12-24T09:00:00.000000Z"}


WHEN = {
    "company.registered": "A company registered. There was none before: `previous` says null.",
    "company.activated": "A company logged in for the first time and is active. `previous` has the status 0.",
    "company.updated": "A company changed what it says of itself. `previous` has the earlier values.",
    "company.passivated": "A company is passive: a payment was declined three times. `previous` has the "
    "status 1, or is empty where the company was passive already.",
    "company.reactivated": "A passive company is active again. `previous` has the status 0.",
    "company_package.assigned": "A company took a package. There was none before: `previous` says null.",
    "company_package.renewed": "A period ended, paid or free, and the next began. `previous` has its dates.",
    "company_package.changed": "A company package changed. `previous` has the earlier values.",
    "company_package.cancelled": "A company package was cancelled. `previous` has the status 1.",
    "payment.succeeded": "A payment was charged. `previous` is empty.",
    "payment.declined": "A payment was declined. `previous` is empty: where it was the third time, "
    "`company.passivated` tells what that changed.",
    "callback_endpoint.disabled": "An endpoint is sent nothing any more. Only the platform is told.",
    "report.daily": "A business day is over: what came in, some minutes after its end. Only the platform is "
    "told, once a day.",
    "ping": "An endpoint is tried out. Nothing changed.",
}
"""Each type of message: when it is sent, and what it says of before."""


@dataclass(frozen=True, slots=True)
class Event:
    """A type of message: what its ``data`` may hold, and an example of it."""

    kind: str
    data: Members
    example: Members

    @property
    def name(self) -> str:
        """What its schemas are called after: ``CompanyPackageAssigned``."""
        return "".join(word.title() for word in re.split("[._]", self.kind))

    def model(self) -> type[BaseModel]:
        """Return the model of the whole message, which tells receivers to ignore what may be added."""
        data = dict(self.data)
        if "previous" in data:
            data["previous"] = _model(f"{self.name}Previous", "What changed, as it was.", data["previous"])
        members = {
            "type": Literal[self.kind],
            "timestamp": datetime,
            "data": _model(f"{self.name}Data", WHEN[self.kind], data),
        }
        text = f"{WHEN[self.kind]} Ignore members that you do not know: some may be added."
        return _model(f"{self.name}Message", text, members)

    def message(self) -> Members:
        """Return an example of the whole message."""
        payment = self.example.get("payment", CHARGED)
        return {"type": self.kind, "timestamp": payment["attempted_at"], "data": self.example}


def _model(name: str, text: str, members: Members) -> type[BaseModel]:
    fields: Members = {key: kind if isinstance(kind, tuple) else (kind, ...) for key, kind in members.items()}
    return create_model(name, __doc__=text, **fields)


def _change(type_: str, sequence: int, before: Members, was: Members, **shown: Members) -> Event:
    """Return a change of a company; what ``previous`` may hold is ``before``, and what it holds ``was``."""
    shown = {"company": ACTIVE} | shown
    data: Members = {name: DOCUMENTS[name] for name in shown}
    data |= {"sequence": Annotated[int, SEQUENCE], "previous": before}
    return Event(type_, data, shown | {"sequence": sequence, "previous": was})


def _events() -> Iterator[Event]:
    active, passive = {"company": {"status": 1}}, {"company": {"status": 0}}
    if_active = {"company": (WasActive, LEFT_OUT)}
    dates = {name: ASSIGNED[name] for name in ("start_date", "end_date")}
    yield _change("company.registered", 1, {"company": None}, {"company": None}, company=PASSIVE)
    yield _change("company.activated", 2, {"company": WasPassive}, passive)
    yield _change("company.updated", 3, {"company": EarlierCompany}, {"company": {"company_name": "Kitap"}})
    nothing = {"company_package": None}
    yield _change("company_package.assigned", 4, nothing, nothing, company_package=ASSIGNED)
    yield _change("payment.succeeded", 5, {}, {}, payment=CHARGED)
    period = {"company_package": EarlierPeriod}
    yield _change("company_package.renewed", 6, period, {"company_package": dates}, company_package=RENEWED)
    yield _change("payment.declined", 9, {}, {}, company=PASSIVE, payment=DECLINED)
    yield _change("company.passivated", 10, if_active, active, company=PASSIVE)
    yield _change("company.reactivated", 11, {"company": WasPassive}, passive)
    other = {"company_package": EarlierCompanyPackage}
    package = {"company_package": {"package": ASSIGNED["package"]}}
    yield _change("company_package.changed", 12, other, package, company_package=DEARER)
    status = {"company_package": WasOpen}
    yield _change(
        "company_package.cancelled", 13, status, {"company_package": {"status": 1}}, company_package=CLOSED
    )
    yield Event(
        "callback_endpoint.disabled",
        {"callback_endpoint": DisabledEndpoint},
        {"callback_endpoint": ENDPOINT | NO_ANSWER},
    )
    yield Event(
        "report.daily",
        {"report": DayReport, "omitted_currencies": Annotated[int, OMITTED]},
        {"report": DAY_EXAMPLE, "omitted_currencies": 0},
    )
    yield Event("ping", {"callback_endpoint": NamedEndpoint}, {"callback_endpoint": ENDPOINT})


EVENTS = {event.kind: event for event in _events()}

HEADERS = {
    "webhook-id": ("The message's: the same in every attempt.", {"type": "string", "format": "uuid"}),
    "webhook-timestamp": ("When it was sent, this time: seconds since 1970.", {"type": "integer"}),
    "webhook-signature": (
        "`v1,` and base64 of HMAC-SHA256 over `id.timestamp.body`. Several while secrets rotate.",
        {"type": "string", "pattern": "^v1,[A-Za-z0-9+/=]+( v1,[A-Za-z0-9+/=]+)*$"},
    ),
}
RETRY_AFTER = {"Retry-After": {"description": "Not before that, up to a day.", "schema": {"type": "string"}}}
RESPONSES = {
    "2XX": {"description": "Received. Answer within 5 seconds, and work afterwards."},
    "410": {"description": "Nothing is wanted here any more: the endpoint is disabled at once."},
    "429": {"description": "Too much at once: sent again later.", "headers": RETRY_AFTER},
    "503": {"description": "Not now: sent again later.", "headers": RETRY_AFTER},
    "default": {"description": "Anything else, a redirect too, is a failure: sent again later."},
}


def webhooks() -> Members:
    """Return OpenAPI's ``webhooks``: what is sent, by type."""
    return {event.kind: {"post": _operation(event)} for event in EVENTS.values()}


def message_schemas() -> Members:
    """Return the schemas of all messages, and of what is in them, for ``#/components/schemas``."""
    mode: Literal["validation"] = "validation"
    models = [(event.model(), mode) for event in EVENTS.values()]
    _, found = models_json_schema(models, ref_template="#/components/schemas/{model}")
    schemas: Members = found["$defs"]
    return schemas


def _operation(event: Event) -> Members:
    reference = {"$ref": f"#/components/schemas/{event.name}Message"}
    return {
        "operationId": f"receive{event.name}",
        "summary": WHEN[event.kind].partition(".")[0].partition(":")[0],
        "description": WHEN[event.kind],
        "tags": ["Webhooks"],
        "security": [],
        "parameters": [
            {"name": name, "in": "header", "required": True, "description": text, "schema": schema}
            for name, (text, schema) in HEADERS.items()
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": reference, "example": event.message()}},
        },
        "responses": RESPONSES,
    }
