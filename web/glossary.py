"""What the members of the API's documents say, by name: the descriptions that a model does not give itself.

A name means the same everywhere; where it does not, the entry names the schema too: ``PackageAnswer.status``.
A new name needs an entry here, or a description in its model: tests/test_examples.py.
"""

from typing import Any

Document = dict[str, Any]

_PERIOD_START = "The period's first day."
_PERIOD_END = "The day after the period's last: a billing day."

WORDS = {
    "AttemptTotals.charged": "How many of them were charged.",
    "AttemptTotals.declined": "How many of them were declined.",
    "CurrencyReport.charged": "What was charged.",
    "age_s": "How long ago that was, in seconds.",
    "amount_minor": "What was to be collected, in minor units, such as kuruş.",
    "attempt": "Which attempt of its period it is: 1, 2 or 3.",
    "attempted_at": "When it was tried.",
    "as_of": "When that was, on the business clock.",
    "attempts": "Every attempt to deliver it, the first one first.",
    "body": "The text that is signed and sent, to the byte.",
    "by_attempt": "What became of first, second and third attempts.",
    "callback_endpoint": "The endpoint that it is about.",
    "callback_secret": "Signs this company's callbacks. Shown once.",
    "callback_url": "Where this company's callbacks go; null where it wants none.",
    "company": "The company.",
    "company_id": "The company's id.",
    "company_name": "What the company is called.",
    "company_package": "What the company has: a package with its current period.",
    "company_package_id": "The company package that it is for.",
    "created_at": "When it was written.",
    "currency": "ISO 4217.",
    "currencies": "By currency, in their order.",
    "current_password": "The password that stands.",
    "data": "What there is.",
    "database": "Whether the database answers.",
    "date": "The business day.",
    "decline_code": "Why it was declined, in the gateway's words; null where it was charged.",
    "detail": "What is the matter, in a sentence.",
    "disabled_at": "When the endpoint was disabled; null where it is enabled.",
    "due_now": "What has fallen due and is not collected yet, by currency.",
    "duration_ms": "How long it took, in milliseconds.",
    "email": "The e-mail that the company logs in with.",
    "end_date": _PERIOD_END,
    "error": "Why nothing came back; null where something did.",
    "errors": "Which fields were refused, and why.",
    "failing_since": "When the first of the failures in a row was; null where the last attempt succeeded.",
    "former_secret_expires_at": "Until then, messages are signed by the former secret too.",
    "heartbeat_at": "When a worker was last seen; null where none ever was.",
    "id": "Its id.",
    "lastname": "The last name of who registered.",
    "limit": "How many entries a page has at most.",
    "name": "The first name of who registered.",
    "new_password": "The password that takes its place.",
    "next_attempt_at": "When it is sent next; null where it is not.",
    "next_cursor": "Gets the next page as `cursor`; null on the last one.",
    "number": "Which attempt it is, from 1.",
    "package": "The package.",
    "package_id": "The package's id.",
    "packages_taken": "How many packages were taken.",
    "password": "The password that the company logs in with.",
    "payment": "The attempt to collect.",
    "period": "How long a period is.",
    "period_end": _PERIOD_END,
    "period_start": _PERIOD_START,
    "pointer": "Where the field stands: a JSON pointer (RFC 6901).",
    "previous": "What the change altered, as it was before.",
    "price_minor": "In minor units, such as kuruş.",
    "report": "What was on that day.",
    "reason": "Why it is disabled: it answered 410 (`gone`), or failed for five days (`failing`).",
    "recipient": "Whose endpoint it is for.",
    "recovered": "How many messages are sent again.",
    "refresh_token": "Gets fresh tokens; lives 30 days.",
    "registered_at": "When the company registered.",
    "schema": "Whether the database's schema is as new as the code.",
    "site_url": "The store's address.",
    "start_date": _PERIOD_START,
    "status": "1 = active, 0 = passive.",
    "status_code": "The HTTP status that came back; null where none did.",
    "timestamp": "When it happened, on the business clock.",
    "title": "What kind of problem it is, in a few words.",
    "token": "The access token; lives 1 hour.",
    "type": "What kind of message it is.",
    "url": "Where messages are sent.",
    "worker": "The worker that was last seen; null where the database did not tell.",
    "AliveAnswer.status": "Always `alive`.",
    "CallbackAnswer.status": "How the message stands.",
    "CallbackWithBody.status": "How the message stands.",
    "CompanyPackageAnswer.status": "1 = open, 0 = passive.",
    "EarlierCompanyPackage.status": "1 = open, 0 = passive.",
    "EndpointAnswer.status": "Whether messages are sent to it.",
    "NewPackage.name": "What the package is called.",
    "PackageAnswer.name": "What the package is called.",
    "PackageAnswer.status": "1 = on sale, 0 = withdrawn.",
    "PackageChanges.name": "What the package is called.",
    "PackageChanges.status": "1 = on sale, 0 = withdrawn.",
    "PingAnswer.error": "Why nothing came back; null where something did.",
    "Problem.status": "The HTTP status.",
    "Problem.type": "Which problem it is: a relative reference, `/problems/…`.",
    "ReadyAnswer.status": "Whether requests can be served.",
    "ValidationProblem.status": "The HTTP status.",
    "ValidationProblem.type": "Which problem it is: a relative reference, `/problems/…`.",
    "WasOpen.status": "1 = open.",
    "WorkerAnswer.status": "How the worker fares.",
    "getPackage.id": "The package's id.",
    "changePackage.id": "The package's id.",
    "getCallback.id": "The message's `webhook-id`.",
    "replayCallback.id": "The message's `webhook-id`.",
}
"""By name, or by schema (of parameters: operation) and name."""


def describe_members(schemas: Document) -> None:
    """Describe each member of the schemas that has no description."""
    for name, schema in schemas.items():
        for member, described in schema.get("properties", {}).items():
            _describe(described, name, member)


def describe_parameters(operation: Document) -> None:
    """Describe each parameter of an operation that has no description."""
    for parameter in operation.get("parameters", []):
        _describe(parameter, operation["operationId"], parameter["name"])


def _describe(described: Document, owner: str, name: str) -> None:
    text = WORDS.get(f"{owner}.{name}", WORDS.get(name))
    if text is not None and not described.get("description"):
        described["description"] = text
