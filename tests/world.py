"""What tests are made of: companies, packages, gateways whose answers are decided, and passes."""

import hashlib
import itertools
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import Engine, delete, select, text, update
from sqlalchemy.orm import Session

from billing import callback_endpoints, company_packages, operators, sessions
from billing.charging import ChargePool
from billing.clock import Clock
from billing.collection import Collector, PassResult
from billing.gateways import ChargeRequest, ChargeResult, GatewayUnavailable
from billing.periods import billing_day_of
from models import (
    PLATFORM_ID,
    CallbackAttempt,
    CallbackSecret,
    Company,
    CompanyPackage,
    CompanyPayment,
    CompanySession,
    Login,
    Package,
    PaymentJob,
    Role,
    db,
)
from web.access import operator_token, session_tokens
from web.context import Vade

CALLBACK_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ENCRYPTION_KEY = "a key for tests that is long enough: 32 bytes"
PASSWORD = "correct horse battery"
PASSWORD_HASH = "scrypt:32768:8:1$x$x"  # fits no password; tests that log in register first

_numbers = itertools.count(1)

Verdict = bool | type[GatewayUnavailable] | Callable[[ChargeRequest], Any]


class LedgerGateway:
    """A gateway that does as told, and keeps the promise of one: the same key gets its first answer again.

    ``verdicts`` are used up one a new key; then ``default`` holds. True charges, False declines,
    GatewayUnavailable is an outage, and a function may do and answer anything.
    """

    def __init__(self, *verdicts: Verdict, default: Verdict = True) -> None:
        self._verdicts = iter(verdicts)
        self._default = default
        self.answers: dict[str, ChargeResult] = {}
        self.requests: list[ChargeRequest] = []

    def charge(self, request: ChargeRequest) -> ChargeResult:
        self.requests.append(request)
        if request.idempotency_key in self.answers:
            return self.answers[request.idempotency_key]
        verdict = next(self._verdicts, self._default)
        if verdict is GatewayUnavailable:
            raise GatewayUnavailable("down")
        if not isinstance(verdict, bool):
            answer: ChargeResult = verdict(request)  # type: ignore[assignment]
            return answer
        reference = hashlib.sha256(request.idempotency_key.encode()).hexdigest()
        answer = ChargeResult(verdict, reference, None if verdict else "insufficient_funds")
        self.answers[request.idempotency_key] = answer
        return answer

    @property
    def charged(self) -> list[ChargeRequest]:
        """The requests that took money, once each."""
        by_key = {request.idempotency_key: request for request in self.requests}
        return [by_key[key] for key, answer in self.answers.items() if answer.succeeded]


class World:
    """Makes what a test is given, on an application's database."""

    def __init__(self, app: Flask) -> None:
        self.app = app

    @property
    def vade(self) -> Vade:
        state: Vade = self.app.extensions["vade"]
        return state

    @property
    def session(self) -> Session:
        return db.session()

    @property
    def now(self) -> datetime:
        return self.vade.clock.read(self.session).business

    def travel(self, to: datetime) -> None:
        """Hold the business clock of the application at an instant."""
        self.app.extensions["vade"] = replace(self.vade, clock=Clock(to))

    def package(
        self, *, price_minor: int = 31_000, period: str = "monthly", currency: str = "TRY", **fields: Any
    ) -> Package:
        package = Package(
            name="Profesyonel", period=period, price_minor=price_minor, currency=currency, status=1, **fields
        )
        self.session.add(package)
        self.session.commit()
        return package

    def company(self, *, registered_at: datetime | None = None, status: int = 1, **fields: Any) -> Company:
        number = next(_numbers)
        instant = registered_at or self.now
        secret = fields.pop("callback_secret", None)
        company = Company(
            **{
                "site_url": f"https://store-{number}.example",
                "name": "Ayşe",
                "lastname": "Yılmaz",
                "company_name": f"Mağaza {number}",
                "email": f"store-{number}-{uuid.uuid4().hex[:6]}@store.example",
                "status": status,
                "billing_day": billing_day_of(instant, self.vade.zone),
                "registered_at": instant,
            }
            | fields
        )
        self.session.add(company)
        self.session.flush()
        self.session.add(
            Login(email=company.email.lower(), company_id=company.id, password_hash=PASSWORD_HASH)
        )
        if secret is not None:
            self.listen(company, company.callback_url, secret=secret)
        self.begin_session(company)
        self.session.commit()
        return company

    def listen(self, company: Company, url: str | None, *, secret: str | None = None) -> None:
        """Give a company an endpoint, with a secret of the test's; None takes it away."""
        company.callback_url = url
        if url is None:
            callback_endpoints.remove(self.session, company.id)
        else:
            now = self.vade.clock.read(self.session).real
            callback_endpoints.put(self.session, company.id, url, self.vade.keyring, now=now)
        if secret is not None:
            encrypted = self.vade.keyring.encrypt(secret)
            self.session.execute(
                update(CallbackSecret)
                .where(CallbackSecret.company_id == company.id)
                .values(encrypted=encrypted)
            )
        self.session.commit()

    def assign(self, company: Company, package: Package) -> CompanyPackage:
        """Let a company take a package at the business clock's present."""
        assigned, _ = company_packages.assign(
            self.session, company.id, package.id, now=self.now, zone=self.vade.zone, outbox=self.vade.outbox
        )
        self.session.commit()
        return assigned

    def customer(self, *, registered_at: datetime | None = None, **package: Any) -> Company:
        """A company that registered, and took a package the same day."""
        company = self.company(registered_at=registered_at)
        self.assign(company, self.package(**package))
        return company

    def collector(self, gateway: Any, *, at: datetime | None = None, **changes: Any) -> Collector:
        settings = self.vade.settings
        return replace(
            Collector(
                engine=db.engine,
                clock=Clock(at) if at is not None else self.vade.clock,
                pool=ChargePool(gateway, threads=4, timeout_s=settings.gateway_timeout_s),
                zone=settings.billing_timezone,
                batch_size=settings.batch_size,
                lease=timedelta(seconds=settings.lease_s),
                by_platform=self.vade.outbox.by_platform,
                # A connection that is rolled back in the end is the only one.
                overlap=isinstance(db.engine, Engine),
            ),
            **changes,
        )

    def collect(self, gateway: Any, *, at: datetime, **changes: Any) -> PassResult:
        """Run one whole pass with the business clock at an instant."""
        collector = self.collector(gateway, at=at, **changes)
        try:
            return collector.run_pass()
        finally:
            collector.pool.close()
            self.session.expire_all()

    def secrets(self, company: Company) -> list[str]:
        """The secrets that sign for a company's endpoint now, newest first."""
        now = self.vade.clock.read(self.session).real
        found = callback_endpoints.read_secrets(self.session, [company.id], now=now)
        return self.vade.keyring.readable(found.get(company.id, ()))

    def rotate_platform(self) -> str:
        """Give the platform's endpoint, which was sent something before, a new secret."""
        now = self.vade.clock.read(self.session).real
        secret, _ = callback_endpoints.rotate_secret(
            self.session, PLATFORM_ID, self.vade.keyring, now=now, overlap=self.vade.secret_overlap
        )
        self.session.commit()
        return secret

    def attempts(self) -> list[CallbackAttempt]:
        """All attempts to deliver callbacks, in their order."""
        query = select(CallbackAttempt).order_by(CallbackAttempt.attempted_at, CallbackAttempt.number)
        return list(self.session.scalars(query.execution_options(populate_existing=True)))

    def payments(self, company: Company) -> list[CompanyPayment]:
        query = select(CompanyPayment).where(CompanyPayment.company_id == company.id)
        return list(self.session.scalars(query.order_by(CompanyPayment.period_start, CompanyPayment.attempt)))

    def company_package(self, company: Company) -> CompanyPackage:
        query = select(CompanyPackage).where(CompanyPackage.company_id == company.id)
        return self.session.scalars(query.execution_options(populate_existing=True)).one()

    def jobs(self) -> list[PaymentJob]:
        """The queue as it stands; what is returned stays as it was."""
        query = select(PaymentJob).order_by(PaymentJob.company_id, PaymentJob.period_start)
        jobs = list(self.session.scalars(query.execution_options(populate_existing=True)))
        for job in jobs:
            self.session.expunge(job)
        return jobs

    def callbacks(self) -> list[tuple[str, str]]:
        """The recipients and types of all messages, in a stable order."""
        rows = self.session.execute(text("SELECT recipient, type FROM callbacks ORDER BY type, recipient"))
        return [(row.recipient, row.type) for row in rows]

    def end_leases(self) -> None:
        """Let all leases and pauses be over, as if real time had passed."""
        self.session.execute(text("UPDATE payment_jobs SET leased_until = '1970-01-01 00:00+00'"))
        self.session.commit()

    def token(self, company: Company) -> dict[str, str]:
        """The header with which a company calls."""
        return bearer(self.tokens(company)["token"])

    def tokens(self, company: Company) -> dict[str, str]:
        """Both tokens of a company's first session, which is begun where there is none."""
        first = (
            select(CompanySession.id, CompanySession.generation)
            .where(CompanySession.company_id == company.id)
            .order_by(CompanySession.id)
            .limit(1)
        )
        id_, generation = self.session.execute(first).one_or_none() or (self.begin_session(company), 0)
        return self._minted(company, id_, generation)

    def session_tokens(self, company: Company) -> dict[str, str]:
        """Both tokens of a session that is begun for them."""
        return self._minted(company, self.begin_session(company), 0)

    def _minted(self, company: Company, session_id: int, generation: int) -> dict[str, str]:
        self.session.commit()
        with self.app.test_request_context():
            return session_tokens(company.id, session_id, generation)

    def remove(self, company: Company) -> None:
        """Let a company be gone, with its sessions; its login stays."""
        for table, key in ((CompanySession, CompanySession.company_id), (Company, Company.id)):
            self.session.execute(delete(table).where(key == company.id))
        self.session.commit()
        self.session.expunge_all()

    def begin_session(self, company: Company) -> int:
        """Begin a session, as a login does; return its id."""
        return sessions.begin(self.session, company.id, now=self.vade.clock.read(self.session).real)

    def operator(self, role: Role = Role.ADMIN) -> dict[str, str]:
        """The header with which an operator calls who is named after the role."""
        return bearer(self.operator_token(role)[1])

    def operator_token(self, name: str, *, lifetime: timedelta = timedelta(hours=1)) -> tuple[int, str]:
        """A token of an operator, by its id; one that is named after a role is made where missing."""
        now = self.vade.clock.read(self.session).real
        if name in list(Role):
            operators.obtain(self.session, Role(name), now=now)
        whose = operators.find(self.session, name)
        given = operators.give_token(self.session, whose, lifetime=lifetime, now=now)
        self.session.commit()
        with self.app.test_request_context():
            return given.id, operator_token(given.id, lifetime)


def bearer(token: str) -> dict[str, str]:
    """Return the header that carries a token."""
    return {"Authorization": f"Bearer {token}"}


def wait_until_it_waits(world: World, future: "Future[Any]") -> None:
    """Return once another session of the database waits for a lock."""
    while not future.done():
        waiting = world.session.execute(
            text(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"
            )
        ).scalar_one()
        world.session.commit()
        if waiting:
            return
    result = future.result()
    pytest.fail(f"it did not wait, but brought {getattr(result, 'text', result)}")


def instant(day: str, hour: int = 9) -> datetime:
    """Return an instant on a business day in Istanbul, which is three hours before UTC since 2016."""
    return datetime.combine(date.fromisoformat(day), datetime.min.time(), UTC) + timedelta(hours=hour - 3)


def dates(payments: Iterable[CompanyPayment]) -> list[tuple[str, str]]:
    """Return the periods of payments, as text."""
    return [(p.period_start.isoformat(), p.period_end.isoformat()) for p in payments]
