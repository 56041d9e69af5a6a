"""How a company, package, period or payment is shown to the outside, in answers and in callbacks.

Each document exists twice, as a Python function for one row and as a SQL expression for many; a test
holds the two together.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

Document = dict[str, Any]


def instant_text(instant: datetime) -> str:
    """Return an instant as RFC 3339 in UTC, always to the microsecond: ``2026-01-31T00:00:00.000000Z``."""
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def instant_sql(expression: str) -> str:
    """Return the SQL that writes an instant as `instant_text` does."""
    return f"to_char({expression} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"


def date_sql(expression: str) -> str:
    """Return the SQL that writes a date as ISO 8601, whatever the session's DateStyle."""
    return f"to_char({expression}, 'YYYY-MM-DD')"


def _sql(fields: Mapping[str, str]) -> str:
    return "json_build_object(" + ", ".join(f"'{name}', {value}" for name, value in fields.items()) + ")"


def company_document(row: Any) -> Document:
    """Return a company as in ``GET /api/v1/companies/me``: no secrets."""
    return {
        "id": row.id,
        "site_url": row.site_url,
        "name": row.name,
        "lastname": row.lastname,
        "company_name": row.company_name,
        "email": row.email,
        "status": row.status,
        "callback_url": row.callback_url,
        "registered_at": instant_text(row.registered_at),
    }


def company_sql(row: str) -> str:
    """Return the SQL of `company_document` for a row's alias."""
    return _sql(
        {
            "id": f"{row}.id",
            "site_url": f"{row}.site_url",
            "name": f"{row}.name",
            "lastname": f"{row}.lastname",
            "company_name": f"{row}.company_name",
            "email": f"{row}.email",
            "status": f"{row}.status",
            "callback_url": f"{row}.callback_url",
            "registered_at": instant_sql(f"{row}.registered_at"),
        }
    )


def package_document(row: Any) -> Document:
    """Return a package as in ``GET /api/v1/packages``."""
    return {
        "id": row.id,
        "name": row.name,
        "period": row.period,
        "price_minor": row.price_minor,
        "currency": row.currency,
        "status": row.status,
    }


def package_sql(row: str) -> str:
    """Return the SQL of `package_document` for the alias of a row of ``packages``."""
    fields = ("id", "name", "period", "price_minor", "currency", "status")
    return _sql({name: f"{row}.{name}" for name in fields})


def company_package_document(row: Any, package: Any) -> Document:
    """Return a company package with its current period and its package."""
    return {
        "id": row.id,
        "company_id": row.company_id,
        "status": row.status,
        "start_date": row.start_date.isoformat(),
        "end_date": row.end_date.isoformat(),
        "package": package_document(package),
    }


def company_package_sql(row: str, package: str) -> str:
    """Return the SQL of `company_package_document` for the aliases of the two rows."""
    return _sql(
        {
            "id": f"{row}.id",
            "company_id": f"{row}.company_id",
            "status": f"{row}.status",
            "start_date": date_sql(f"{row}.start_date"),
            "end_date": date_sql(f"{row}.end_date"),
            "package": package_sql(package),
        }
    )


def period_sql(start_date: str, end_date: str) -> str:
    """Return the SQL of the members of a company package that a roll-over changes."""
    return _sql({"start_date": date_sql(start_date), "end_date": date_sql(end_date)})


def payment_document(row: Any) -> Document:
    """Return an attempt to collect as in ``GET /api/v1/company-payments``."""
    return {
        "id": str(row.id),
        "company_id": row.company_id,
        "company_package_id": row.company_package_id,
        "attempt": row.attempt,
        "status": row.status,
        "amount_minor": row.amount_minor,
        "currency": row.currency,
        "period_start": row.period_start.isoformat(),
        "period_end": row.period_end.isoformat(),
        "reference": row.reference,
        "decline_code": row.decline_code,
        "attempted_at": instant_text(row.attempted_at),
    }


def payment_sql(row: str, *, attempted_at: str) -> str:
    """Return the SQL of `payment_document` for a settled job's alias; ``attempted_at`` is already text."""
    return _sql(
        {
            "id": f"{row}.idempotency_key",
            "company_id": f"{row}.company_id",
            "company_package_id": f"{row}.company_package_id",
            "attempt": f"{row}.attempt",
            "status": f"{row}.outcome",
            "amount_minor": f"{row}.amount_minor",
            "currency": f"{row}.currency",
            "period_start": date_sql(f"{row}.period_start"),
            "period_end": date_sql(f"{row}.period_end"),
            "reference": f"{row}.reference",
            "decline_code": f"{row}.decline_code",
            "attempted_at": attempted_at,
        }
    )


def callback_document(row: Any, attempts: Sequence[Any]) -> Document:
    """Return a callback as in ``GET /api/v1/callbacks``, with every attempt to deliver it."""
    return {
        "id": str(row.id),
        "company_id": row.company_id or None,
        "recipient": row.recipient,
        "type": row.type,
        "status": row.status,
        "created_at": instant_text(row.created_at),
        "next_attempt_at": _instant_or_none(row.next_attempt_at),
        "attempts": [
            {
                "number": attempt.number,
                "attempted_at": instant_text(attempt.attempted_at),
                "status_code": attempt.status_code,
                "duration_ms": attempt.duration_ms,
                "error": attempt.error,
                "answer": attempt.answer,
            }
            for attempt in attempts
        ],
    }


def endpoint_document(row: Any, *, former_secret_expires_at: datetime | None, now: datetime) -> Document:
    """Return a callback endpoint as in ``GET /api/v1/callback-endpoint`` at real time ``now``: no secrets."""
    return {
        "company_id": row.company_id or None,
        "url": row.url,
        "status": "enabled" if row.disabled_at is None else "disabled",
        "failures": row.failures,
        "failing_since": _instant_or_none(row.failing_since),
        "paused_until": _instant_or_none(
            row.open_until if row.open_until is not None and row.open_until > now else None
        ),
        "disabled_at": _instant_or_none(row.disabled_at),
        "disabled_reason": row.disabled_reason,
        "former_secret_expires_at": _instant_or_none(former_secret_expires_at),
    }


def _instant_or_none(instant: datetime | None) -> str | None:
    return None if instant is None else instant_text(instant)
