"""The tables, with what the database itself refuses (DESIGN.md, "Tables").

Everything of a company is found by its id: ``company_id`` leads every key but those of
``companies``, ``packages``, ``logins`` and of what belongs to no company, and the foreign keys are composite.
"""

from datetime import UTC, date, datetime
from enum import IntEnum, StrEnum
from typing import Any
from uuid import UUID

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Date,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, ExcludeConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, registry

MAXIMUM_ATTEMPTS = 3
"""The decline of this attempt of one period makes the company passive (DESIGN.md §2.6)."""

BIGINT_MAX = 2**63 - 1

PARKED_UNTIL = datetime(9999, 1, 1, tzinfo=UTC)
"""The end of a parked job's lease: never, in a way that every client can read."""

MAXIMUM_PRICE_MINOR = 10**15
"""Ten trillion of a currency: far above any price, and 2 × price × 366 days still is a bigint."""


class Base(DeclarativeBase):
    """What every table shares: how constraints are named and how Python types are stored."""

    registry = registry(
        metadata=MetaData(
            naming_convention={
                "pk": "%(table_name)s_pkey",
                "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
                "uq": "%(table_name)s_%(column_0_N_name)s_key",
                "ix": "%(table_name)s_%(column_0_N_name)s_idx",
                "ck": "%(table_name)s_%(constraint_name)s_check",
            }
        ),
        type_annotation_map={
            int: BigInteger,
            str: Text,
            date: Date,
            datetime: DateTime(timezone=True),
            UUID: Uuid(),
            dict[str, Any]: JSONB,
        },
    )


# The connections come from `database.py`, which takes any libpq URL as it is.
db = SQLAlchemy(model_class=Base, session_options={"expire_on_commit": False})


class Status(IntEnum):
    """1 and 0: an active, open, offered or charged row, and its opposite (DESIGN.md §1)."""

    PASSIVE = 0
    ACTIVE = 1


class CallbackStatus(StrEnum):
    """Where a callback stands.

    ``pending``: to be sent at ``next_attempt_at``. ``waiting``: behind an endpoint that is not to be sent
    more for now. ``held``: kept, because its endpoint is disabled. ``delivered``: answered with a 2xx.
    ``exhausted``: given up.
    """

    PENDING = "pending"
    WAITING = "waiting"
    HELD = "held"
    DELIVERED = "delivered"
    EXHAUSTED = "exhausted"


PLATFORM_ID = 0
"""The platform's ``company_id`` where endpoints are kept: no company has it."""

FREQUENT_TYPES = ("company_package.renewed", "payment.declined", "payment.succeeded")
"""What collection writes: so much of it that the other types have an index of their own."""


ROOM_FOR_UPDATES = {"fillfactor": 85, "autovacuum_vacuum_scale_factor": 0.05}
"""Of tables whose rows collection updates: a row's new version finds room on its page."""


def one_of(column: str, *values: int | str) -> CheckConstraint:
    """Return the check that a column holds one of some values."""
    listed = ", ".join(str(int(v)) if isinstance(v, int) else f"'{v}'" for v in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


def is_currency() -> CheckConstraint:
    """Return the check that ``currency`` looks like ISO 4217."""
    return CheckConstraint("currency ~ '^[A-Z]{3}$'", name="currency")


class Company(Base):
    """A store. ``billing_day`` is set once, at registration; ``passivated_at`` only for non-payment.

    ``sequence`` is how many changes there were: the latest one's ``data.sequence`` in callbacks.
    """

    __tablename__ = "companies"
    __table_args__ = (
        one_of("status", *Status),
        CheckConstraint("billing_day BETWEEN 1 AND 31", name="billing_day"),
        CheckConstraint("passivated_at IS NULL OR status = 0", name="passivated_at"),
        {"postgresql_with": ROOM_FOR_UPDATES},
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    site_url: Mapped[str]
    name: Mapped[str]
    lastname: Mapped[str]
    company_name: Mapped[str]
    email: Mapped[str]
    status: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    callback_url: Mapped[str | None]
    billing_day: Mapped[int] = mapped_column(SmallInteger)
    registered_at: Mapped[datetime]
    passivated_at: Mapped[datetime | None]
    sequence: Mapped[int] = mapped_column(server_default=text("0"), default=0)


class Login(Base):
    """Who may sign in as which company. The key is the e-mail in lower case.

    No foreign key: this table is found by e-mail, its company by id, and the two never join
    (DESIGN.md, "Tables").
    """

    __tablename__ = "logins"
    __table_args__ = (CheckConstraint("email = lower(email)", name="email"),)

    email: Mapped[str] = mapped_column(primary_key=True)
    company_id: Mapped[int]
    password_hash: Mapped[str]


class Package(Base):
    """What is sold. Period and currency never change; a price holds from the next period on."""

    __tablename__ = "packages"
    __table_args__ = (
        one_of("period", "monthly", "yearly"),
        one_of("status", *Status),
        CheckConstraint(f"price_minor BETWEEN 0 AND {MAXIMUM_PRICE_MINOR}", name="price_minor"),
        is_currency(),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str]
    period: Mapped[str]
    price_minor: Mapped[int]
    currency: Mapped[str]
    status: Mapped[int] = mapped_column(SmallInteger, server_default=text("1"))


class CompanyPackage(Base):
    """One company's package with its current period ``[start_date, end_date)`` and that period's price.

    ``full_days`` is the number of days that ``price_minor`` is for; a period that began off the billing
    day is shorter.
    """

    __tablename__ = "company_packages"
    __table_args__ = (
        one_of("status", *Status),
        CheckConstraint("start_date < end_date", name="period"),
        CheckConstraint("full_days >= end_date - start_date", name="full_days"),
        CheckConstraint(f"price_minor BETWEEN 0 AND {MAXIMUM_PRICE_MINOR}", name="price_minor"),
        is_currency(),
        Index(
            "company_packages_one_open_per_company_key",
            "company_id",
            unique=True,
            postgresql_where=text("status = 1"),
        ),
        # What the queue looks for: open packages in the order in which their periods end.
        Index(
            "company_packages_due_idx", "end_date", "company_id", "id", postgresql_where=text("status = 1")
        ),
        {"postgresql_with": ROOM_FOR_UPDATES},
    )

    company_id: Mapped[int] = mapped_column(ForeignKey("companies.id"), primary_key=True)
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    package_id: Mapped[int] = mapped_column(ForeignKey("packages.id"))
    status: Mapped[int] = mapped_column(SmallInteger, server_default=text("1"))
    start_date: Mapped[date]
    end_date: Mapped[date]
    price_minor: Mapped[int]
    currency: Mapped[str]
    full_days: Mapped[int] = mapped_column(SmallInteger)
    taken_at: Mapped[datetime | None]
    """Business time; null in rows from before it was kept."""


def _of_company_package(**options: Any) -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["company_id", "company_package_id"],
        ["company_packages.company_id", "company_packages.id"],
        **options,
    )


class CompanyPayment(Base):
    """One attempt to collect that the gateway answered. Rows are only ever added.

    ``id`` is the idempotency key that the gateway was sent. A trigger, per statement, refuses every
    change; see the first migration.
    """

    __tablename__ = "company_payments"
    __table_args__ = (
        _of_company_package(),
        UniqueConstraint(
            "company_id",
            "company_package_id",
            "period_start",
            "attempt",
            name="company_payments_attempt_of_period_key",
        ),
        one_of("status", *Status),
        CheckConstraint("attempt >= 1", name="attempt"),
        CheckConstraint("amount_minor > 0", name="amount_minor"),
        CheckConstraint("period_start < period_end", name="period"),
        is_currency(),
        # No day of a company package is charged twice: the days of a charged period are a stroke on the
        # line of its company package, and no two strokes touch. Exact for ids below 2^53; what is closed
        # is the box, hence the end's - 1. Measured against ranges and chains in docs/adr/0005.
        ExcludeConstraint(
            (
                text(
                    "box(point(company_package_id::float8, (period_start - date '1970-01-01')::float8),"
                    " point(company_package_id::float8, (period_end - date '1970-01-01' - 1)::float8))"
                ),
                "&&",
            ),
            name="company_payments_no_day_charged_twice_excl",
            using="gist",
            where=text("status = 1"),
        ),
        Index(
            "company_payments_newest_idx",
            "attempted_at",
            "company_id",
            "company_package_id",
            "period_start",
            "attempt",
        ),
    )

    company_id: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True)
    company_package_id: Mapped[int]
    attempt: Mapped[int] = mapped_column(SmallInteger)
    status: Mapped[int] = mapped_column(SmallInteger)
    amount_minor: Mapped[int]
    currency: Mapped[str]
    period_start: Mapped[date]
    period_end: Mapped[date]
    reference: Mapped[str]
    decline_code: Mapped[str | None]
    attempted_at: Mapped[datetime]


class PaymentJob(Base):
    """One period of one company package whose money is still to be collected. A finished job is deleted.

    ``next_attempt_at`` is business time. ``leased_until`` is real time: until then the job is some
    worker's, or rests after an outage; a parked one's lease has no end. ``idempotency_key`` is the attempt's,
    and stays through all of these; ``failures`` counts how often it could not be settled.
    """

    __tablename__ = "payment_jobs"
    __table_args__ = (
        _of_company_package(ondelete="CASCADE"),
        CheckConstraint("period_start < period_end", name="period"),
        CheckConstraint(f"attempt BETWEEN 1 AND {MAXIMUM_ATTEMPTS}", name="attempt"),
        CheckConstraint("amount_minor >= 0", name="amount_minor"),
        is_currency(),
        Index("payment_jobs_due_idx", "next_attempt_at", "company_id"),
        {
            "postgresql_with": {
                # Room on each page for the claim's new version of a row, which then touches no index.
                "fillfactor": 50,
                # The queue's rows live for seconds: dead ones are swept by their number, not their share.
                "autovacuum_vacuum_scale_factor": 0,
                "autovacuum_vacuum_threshold": 20000,
                "autovacuum_analyze_scale_factor": 0,
                "autovacuum_analyze_threshold": 50000,
                "autovacuum_vacuum_cost_delay": 0,
            }
        },
    )

    company_id: Mapped[int] = mapped_column(primary_key=True)
    company_package_id: Mapped[int] = mapped_column(primary_key=True)
    period_start: Mapped[date] = mapped_column(primary_key=True)
    period_end: Mapped[date]
    attempt: Mapped[int] = mapped_column(SmallInteger, server_default=text("1"))
    amount_minor: Mapped[int]
    currency: Mapped[str]
    next_attempt_at: Mapped[datetime]
    leased_until: Mapped[datetime] = mapped_column(server_default=text("'1970-01-01 00:00+00'"))
    idempotency_key: Mapped[UUID | None]
    outages: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    failures: Mapped[int] = mapped_column(Integer, server_default=text("0"))


class ParkedJob(Base):
    """A payment job that failed again and again for a reason of ours, and what was decided about it.

    While ``decision`` is null the job stands in the queue under an endless lease. ``outcome`` and
    ``reference`` are what the gateway had answered. Rows stay. All instants are real time.
    """

    __tablename__ = "parked_jobs"
    __table_args__ = (
        _of_company_package(),
        one_of("decision", "released", "dropped"),
        one_of("outcome", "charged", "declined", "free"),
        CheckConstraint(
            "(decision IS NULL) = (decided_at IS NULL) AND (decision IS NULL) = (decided_by IS NULL)",
            name="decided",
        ),
        Index(
            "parked_jobs_one_open_per_job_key",
            "company_id",
            "company_package_id",
            "period_start",
            unique=True,
            postgresql_where=text("decision IS NULL"),
        ),
        Index(
            "parked_jobs_open_idx",
            "parked_at",
            "company_id",
            "id",
            postgresql_where=text("decision IS NULL"),
        ),
    )

    company_id: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    company_package_id: Mapped[int]
    period_start: Mapped[date]
    period_end: Mapped[date]
    attempt: Mapped[int] = mapped_column(SmallInteger)
    amount_minor: Mapped[int]
    currency: Mapped[str]
    idempotency_key: Mapped[UUID]
    outcome: Mapped[str | None]
    reference: Mapped[str | None]
    error: Mapped[str]
    parked_at: Mapped[datetime]
    decision: Mapped[str | None]
    decided_at: Mapped[datetime | None]
    decided_by: Mapped[str | None]


class Callback(Base):
    """A message about a change, for one recipient: written with the change, delivered by the worker.

    ``id`` is the ``webhook-id``; ``body`` is what is signed, the same bytes on every attempt. All instants
    are real time. ``next_attempt_at`` is set while the message is pending; ``attempts`` counts all attempts,
    ``schedule_step`` those since the message was written or last replayed. ``request_id`` names the request
    or pass that caused it.
    """

    __tablename__ = "callbacks"
    __table_args__ = (
        one_of("recipient", "platform", "company"),
        one_of("status", *CallbackStatus),
        CheckConstraint("(status = 'pending') = (next_attempt_at IS NOT NULL)", name="next_attempt_at"),
        Index(
            "callbacks_due_idx",
            "recipient",
            "next_attempt_at",
            postgresql_where=text("next_attempt_at IS NOT NULL"),
        ),
        Index(
            "callbacks_waiting_idx", "company_id", "created_at", postgresql_where=text("status = 'waiting'")
        ),
        # The lists, newest first: of all, of one company's endpoint, of what failed, of the rarer types.
        Index("callbacks_newest_idx", "created_at", "company_id", "id"),
        Index(
            "callbacks_newest_of_company_idx",
            "company_id",
            "created_at",
            "id",
            postgresql_where=text("recipient = 'company'"),
        ),
        Index(
            "callbacks_newest_failed_idx",
            "created_at",
            "company_id",
            "id",
            postgresql_where=text("status IN ('exhausted', 'held')"),
        ),
        Index(
            "callbacks_newest_of_type_idx",
            "type",
            "created_at",
            "company_id",
            "id",
            postgresql_where=text(f"type NOT IN {FREQUENT_TYPES}"),
        ),
        {
            "postgresql_with": {
                # Each message is updated two or three times: a hundredth of the table is soon dead.
                "autovacuum_vacuum_scale_factor": 0.01,
                "autovacuum_vacuum_threshold": 20000,
                "autovacuum_analyze_scale_factor": 0.02,
            }
        },
    )

    company_id: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True)
    recipient: Mapped[str]
    type: Mapped[str]
    body: Mapped[str]
    status: Mapped[str] = mapped_column(server_default=text("'pending'"))
    attempts: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    schedule_step: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    next_attempt_at: Mapped[datetime | None] = mapped_column(server_default=func.now())
    request_id: Mapped[str | None]


class CallbackAttempt(Base):
    """One attempt to deliver a callback, and what came back: a status code, or an error."""

    __tablename__ = "callback_attempts"
    __table_args__ = (
        ForeignKeyConstraint(
            ["company_id", "callback_id"], ["callbacks.company_id", "callbacks.id"], ondelete="CASCADE"
        ),
    )

    company_id: Mapped[int] = mapped_column(primary_key=True)
    callback_id: Mapped[UUID] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    attempted_at: Mapped[datetime]
    status_code: Mapped[int | None] = mapped_column(SmallInteger)
    duration_ms: Mapped[int] = mapped_column(Integer)
    error: Mapped[str | None]
    answer: Mapped[str | None]


class CallbackEndpoint(Base):
    """Where a company's callbacks go, or the platform's (``company_id`` 0), and how it fares. Real time.

    ``url`` is null once it was taken away. ``failures`` counts failed attempts in a row, since
    ``failing_since``. Until ``open_until`` nothing is sent (the circuit breaker); then one message is tried.
    A disabled endpoint is sent nothing.
    """

    __tablename__ = "callback_endpoints"
    __table_args__ = (
        one_of("disabled_reason", "gone", "failing"),
        CheckConstraint("(disabled_at IS NULL) = (disabled_reason IS NULL)", name="disabled_at"),
        CheckConstraint("(failures = 0) = (failing_since IS NULL)", name="failing_since"),
        Index(
            "callback_endpoints_waiting_idx",
            text("open_until NULLS FIRST"),
            postgresql_where=text("has_waiting"),
        ),
        Index(
            "callback_endpoints_troubled_idx",
            "company_id",
            postgresql_where=text("open_until IS NOT NULL OR disabled_at IS NOT NULL"),
        ),
    )

    company_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    url: Mapped[str | None]
    failures: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    failing_since: Mapped[datetime | None]
    open_until: Mapped[datetime | None]
    has_waiting: Mapped[bool] = mapped_column(server_default=text("false"))
    disabled_at: Mapped[datetime | None]
    disabled_reason: Mapped[str | None]


class CallbackSecret(Base):
    """A secret that signs an endpoint's messages, encrypted: the present one, or until ``expires_at``."""

    __tablename__ = "callback_secrets"
    __table_args__ = (
        Index(
            "callback_secrets_present_key",
            "company_id",
            unique=True,
            postgresql_where=text("expires_at IS NULL"),
        ),
    )

    company_id: Mapped[int] = mapped_column(
        ForeignKey("callback_endpoints.company_id", ondelete="CASCADE"), primary_key=True
    )
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    encrypted: Mapped[str]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]


class CompanySession(Base):
    """What a company's tokens belong to, from a login on: while the row stands they are good. Real time.

    ``generation`` counts refreshes: the refresh token of an earlier one was used already. A session that ends
    is deleted.
    """

    __tablename__ = "company_sessions"

    company_id: Mapped[int] = mapped_column(ForeignKey("companies.id", ondelete="CASCADE"), primary_key=True)
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    generation: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)


class Role(StrEnum):
    """What an operator may do; each role may all that the ones before it may."""

    READ = "read"
    SUPPORT = "support"
    ADMIN = "admin"


class Operator(Base):
    """Someone of the platform's, or a program of theirs. A disabled one's tokens are good for nothing."""

    __tablename__ = "operators"
    __table_args__ = (one_of("role", *Role),)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    role: Mapped[str]
    created_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]


class OperatorToken(Base):
    """A token that an operator was given, by its id; the token itself is not kept. Real time."""

    __tablename__ = "operator_tokens"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    operator_id: Mapped[int] = mapped_column(ForeignKey("operators.id"), index=True)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]


class IdempotencyKey(Base):
    """A request that came with an ``Idempotency-Key``, and once it is done, what was answered. Real time.

    ``company_id`` is 0 where no company called. ``digest`` stands for the caller and the key, ``fingerprint``
    for what was asked: HMACs, so that nothing of a request is kept. Until ``leased_until`` the request is the
    process's whose ``claim`` it is. ``answer`` is written with the effect, in one transaction.
    """

    __tablename__ = "idempotency_keys"
    __table_args__ = {  # noqa: RUF012
        # Each row is written, answered once, and deleted a day later.
        "postgresql_with": {"fillfactor": 70, "autovacuum_vacuum_scale_factor": 0.05}
    }

    company_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    digest: Mapped[bytes] = mapped_column(primary_key=True)
    fingerprint: Mapped[bytes]
    claim: Mapped[UUID]
    leased_until: Mapped[datetime]
    answer: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(index=True)


class ReportEntry(Base):
    """A part of a figure in the reports: so many, of so much money, at that quarter of an hour or day.

    Written with what it counts, in the same transaction: by triggers where rows are added to
    ``company_payments``, ``companies`` and ``company_packages``. A figure is the sum of its entries, which
    the worker adds up now and then: what was added up for a day has ``id`` 0. ``at`` is business time.
    """

    __tablename__ = "report_entries"
    __table_args__ = (
        one_of("figure", "charged", "declined", "outage", "registered", "taken"),
        # What is not added up yet for its day.
        Index("report_entries_single_idx", "at", postgresql_where=text("id > 0")),
    )

    at: Mapped[datetime] = mapped_column(primary_key=True)
    figure: Mapped[str] = mapped_column(primary_key=True)
    currency: Mapped[str] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    number: Mapped[int]
    amount_minor: Mapped[int]


class DailyReport(Base):
    """A business day whose report was made and sent, in real time: once, whoever comes to it."""

    __tablename__ = "daily_reports"

    day: Mapped[date] = mapped_column(primary_key=True, autoincrement=False)
    made_at: Mapped[datetime]


class Counter(Base):
    """How often something rare happened, ever."""

    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[int]


class WorkerHeartbeat(Base):
    """When each worker process was last seen alive, by the database's clock."""

    __tablename__ = "worker_heartbeats"

    worker: Mapped[str] = mapped_column(primary_key=True)
    started_at: Mapped[datetime]
    beat_at: Mapped[datetime]


class Setting(Base):
    """A fact that outlives a process, such as where a simulation stands."""

    __tablename__ = "settings"

    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[dict[str, Any]]


class RateLimit(Base):
    """How often a caller came in the present window; unlogged, because it may be lost in a crash."""

    __tablename__ = "rate_limits"
    __table_args__ = {"prefixes": ["UNLOGGED"]}  # noqa: RUF012

    key: Mapped[str] = mapped_column(primary_key=True)
    hits: Mapped[int]
    expires_at: Mapped[datetime] = mapped_column(index=True)
