"""The audit of promises: what was acknowledged stands, and every change was told, signed and unaltered."""

import base64
import hashlib
import hmac
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from chaos.audit_money import MOST_ATTEMPTS, walk
from chaos.books import Books, Message

PLATFORM_PATH = "/platform"
TOLERANCE_S = 300.0
"""How far a message's timestamp may be from the receiver's clock (Standard Webhooks)."""

Findings = Iterator[str]


def acknowledged(books: Books) -> Findings:
    """What the API said yes to is there, and could be read at once."""
    yield from books.misread
    packages = {row.id: row for row in books.company_packages}
    last: dict[tuple[int, str], str] = {}
    for fact in books.acknowledged:
        company = books.companies.get(fact["company_id"])
        if company is None:
            yield f"company {fact['company_id']} is not there: {fact}"
        elif fact["kind"] == "registered" and company.email != fact["email"]:
            yield f"company {company.id} has another e-mail than {fact['email']}"
        elif fact["kind"] == "took":
            row = packages.get(fact["company_package_id"])
            if row is None or (row.company_id, row.package_id) != (company.id, fact["package_id"]):
                yield f"company {company.id} has not the company package {fact['company_package_id']}"
        elif fact["kind"] == "changed":
            last[company.id, fact["field"]] = fact["value"]
    for (company_id, field), value in last.items():
        now = getattr(books.companies[company_id], field)
        if now != value and (company_id, field, now) not in books.doubted:
            yield f"company {company_id}: {field} is {now!r} instead of {value!r}"


def platform_missing(books: Books) -> Findings:
    """The platform has received every change of every company: each number once, and each known event."""
    told = _Told(books)
    for company in books.companies.values():
        numbers = sorted(told.sequences[company.id])
        if numbers != [*range(1, company.sequence + 1)]:
            gaps = sorted({*range(1, company.sequence + 1)} ^ {*numbers})
            yield f"company {company.id}, sequence {company.sequence}: not received once: {gaps or numbers}"
    for wanted in _events(books):
        if wanted not in told.events and wanted[0] in books.companies:
            yield f"company {wanted[0]}: {wanted[1]} {wanted[2:]} was not told"


def company_missing(books: Books) -> Findings:
    """A company that had set an endpoint has received its own copy of each change since."""
    copies = {
        (message.data["company"]["id"], message.data["sequence"])
        for message in books.received
        if message.path != PLATFORM_PATH and "sequence" in message.data
    }
    for message in _first_of_each(books):
        company = message.data.get("company") or {}
        if message.path == PLATFORM_PATH and company.get("callback_url"):
            id_ = (company["id"], message.data["sequence"])
            if id_ not in copies:
                yield f"company {id_[0]}: {message.type}, sequence {id_[1]}, did not reach its own endpoint"


def undelivered(books: Books) -> Findings:
    """Every message of the outbox has been delivered."""
    for row in books.callbacks:
        if row.status != "delivered":
            yield f"message {row.id} of company {row.company_id} to the {row.recipient}: {row.status}"


def falsified(books: Books) -> Findings:
    """Every message is signed for its receiver, at its time, always the same, and as the outbox has it."""
    bodies = {str(row.id): row.body for row in books.callbacks}
    secrets = {
        urlsplit(fact["value"]).path: fact["secret"]
        for fact in books.acknowledged
        if fact.get("field") == "callback_url"
    } | {PLATFORM_PATH: books.platform_secret}
    for message in books.received:
        where = f"message {message.id} to {message.path}"
        secret = secrets.get(message.path)
        if bodies.get(message.id) != message.body:
            yield f"{where}: not as it stands in the outbox"
        elif secret is not None and not _signed(message, secret):
            yield f"{where}: the signature is wrong"
        elif abs(message.at.timestamp() - float(message.timestamp)) > TOLERANCE_S:
            yield f"{where}: its timestamp is {message.timestamp}, and it came at {message.at}"
        elif message.path not in {PLATFORM_PATH, *_own_paths(message)}:
            yield f"{where}: it is another company's"


class _Told:
    """What the platform was told, by company: each message once, however often it came."""

    def __init__(self, books: Books) -> None:
        self._messages = [
            m for m in _first_of_each(books) if m.path == PLATFORM_PATH and "sequence" in m.data
        ]
        self.sequences: defaultdict[int, list[int]] = defaultdict(list)
        for message in self._messages:
            self.sequences[message.data["company"]["id"]].append(message.data["sequence"])

    @cached_property
    def events(self) -> set[tuple[Any, ...]]:
        """What the messages say, in the form of `_events`."""
        return {event for message in self._messages for event in _said(message)}


def _said(message: Message) -> Iterator[tuple[Any, ...]]:
    data, type_ = message.data, message.type
    id_ = data["company"]["id"]
    if type_ == "company.updated":
        for field in data["previous"]["company"]:
            yield id_, type_, field, data["company"][field]
    elif type_ == "company_package.assigned":
        yield id_, type_, data["company_package"]["id"]
    elif type_ == "company_package.renewed":
        yield id_, type_, data["company_package"]["id"], data["company_package"]["start_date"]
    elif type_.startswith("payment."):
        payment = data["payment"]
        yield id_, type_, payment["id"]
    else:
        yield id_, type_


def _events(books: Books) -> Iterator[tuple[Any, ...]]:
    """Give all that is known to have happened, from the rows and from what the API acknowledged."""
    for row in books.payments:
        type_ = "payment.succeeded" if row.status else "payment.declined"
        yield row.company_id, type_, row.key
        if not row.status and row.attempt >= MOST_ATTEMPTS:
            yield row.company_id, "company.passivated"
    for row in books.company_packages:
        for period in walk(books, row)[1:]:
            if period.start <= row.start_date:
                yield row.company_id, "company_package.renewed", row.id, period.start.isoformat()
    yield from _acknowledged_events(books.acknowledged)


def _acknowledged_events(facts: Iterable[dict[str, Any]]) -> Iterator[tuple[Any, ...]]:
    for fact in facts:
        id_ = fact["company_id"]
        if fact["kind"] == "registered":
            yield id_, "company.registered"
        elif fact["kind"] == "logged in":
            yield id_, "company.activated"
        elif fact["kind"] == "took":
            yield id_, "company_package.assigned", fact["company_package_id"]
        elif fact["field"] != "name" or fact["value"] != "Ayşe":
            yield id_, "company.updated", fact["field"], fact["value"]


def _first_of_each(books: Books) -> list[Message]:
    found: dict[tuple[str, str], Message] = {}
    for message in books.received:
        found.setdefault((message.path, message.id), message)
    return [*found.values()]


def _own_paths(message: Message) -> set[str]:
    """Return the path on which a message to a company came, where it is one of that company's."""
    own = f"/{(message.data.get('company') or {}).get('id')}/"
    return {message.path} if message.path.startswith(own) else set()


def _signed(message: Message, secret: str) -> bool:
    """Return whether one of the signatures is HMAC-SHA256 over id, timestamp and body (Standard Webhooks)."""
    signed = f"{message.id}.{message.timestamp}.{message.body}".encode()
    digest = hmac.digest(base64.b64decode(secret.removeprefix("whsec_")), signed, hashlib.sha256)
    wanted = "v1," + base64.b64encode(digest).decode()
    return any(hmac.compare_digest(wanted, given) for given in message.signature.split(" "))
