"""Companies: register, log in, change."""

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from werkzeug.security import check_password_hash, generate_password_hash

from billing import callback_endpoints
from billing.callbacks import Outbox
from billing.clock import Moment
from billing.errors import CredentialsError, EmailTakenError, NotFoundError
from billing.keyring import Keyring
from billing.periods import billing_day_of
from models import Company, Login, Status

UNIQUE_VIOLATION = "23505"

HASH_METHOD = "scrypt:32768:8:1"

NOBODYS_HASH = f"{HASH_METHOD}${'0' * 16}${'0' * 128}"
"""A hash that no password fits, and that takes as long to compare with as a real one."""


@dataclass(frozen=True, slots=True)
class Registration:
    """What a store says of itself when it registers."""

    site_url: str
    name: str
    lastname: str
    company_name: str
    email: str
    password: str


def is_unique_violation(error: IntegrityError) -> bool:
    """Return whether a unique key was violated. Known by SQLSTATE: a constraint's name differs on a shard."""
    return getattr(error.orig, "sqlstate", None) == UNIQUE_VIOLATION


def email_key(email: str) -> str:
    """Return the e-mail as ``logins`` knows it: compared without case, and however an é is composed."""
    return unicodedata.normalize("NFC", email.lower())


def register(
    session: Session, registration: Registration, *, now: datetime, zone: ZoneInfo, outbox: Outbox
) -> Company:
    """Create a company with status 0, and its login.

    Raises:
        EmailTakenError: when the e-mail has a login, in whatever case.
    """
    company = Company(
        site_url=registration.site_url,
        name=registration.name,
        lastname=registration.lastname,
        company_name=registration.company_name,
        email=registration.email,
        status=Status.PASSIVE,
        billing_day=billing_day_of(now, zone),
        registered_at=now,
    )
    # Slow on purpose, and done before the transaction begins.
    password_hash = generate_password_hash(registration.password, HASH_METHOD)
    session.add(company)
    session.flush()
    session.add(
        Login(email=email_key(registration.email), company_id=company.id, password_hash=password_hash)
    )
    try:
        session.flush()
    except IntegrityError as error:
        if is_unique_violation(error):
            raise EmailTakenError from None
        raise
    outbox.write(session, "company.registered", company, now=now, previous={"company": None})
    return company


def check_login(session: Session, *, email: str, password: str) -> Login:
    """Return the login of an e-mail and its password. Ends the session's transaction.

    An unknown e-mail takes as long as a wrong password.

    Raises:
        CredentialsError: when the e-mail or the password is wrong.
    """
    login = session.get(Login, email_key(email))
    # Nothing is held while the password is hashed, which is slow on purpose.
    session.commit()
    known = check_password_hash(login.password_hash if login else NOBODYS_HASH, password)
    if login is None or not known:
        raise CredentialsError
    return login


def log_in(session: Session, login: Login, *, now: datetime, outbox: Outbox) -> Company:
    """Return the company after a login: the first one activates it, unless it is passive for non-payment.

    Raises:
        CredentialsError: when the company is gone, or its password was changed since it was checked.
    """
    # A change of the password ends sessions: it waits for this one to begin, or this one never does.
    stands = select(Login.email).where(Login.email == login.email, Login.password_hash == login.password_hash)
    if session.scalar(stands.with_for_update(read=True)) is None:
        raise CredentialsError
    company_id = login.company_id
    activated = session.execute(
        update(Company)
        .where(Company.id == company_id, Company.status == Status.PASSIVE, Company.passivated_at.is_(None))
        .values(status=Status.ACTIVE)
        .returning(Company.id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    company = session.get(Company, company_id, populate_existing=True)
    if company is None:
        raise CredentialsError
    if activated is not None:
        previous = {"company": {"status": int(Status.PASSIVE)}}
        outbox.write(session, "company.activated", company, now=now, previous=previous)
    return company


def change_password(session: Session, company_id: int, *, current: str, new: str) -> None:
    """Give a company's login another password. Ends the session's transaction, then begins one.

    Raises:
        CredentialsError: when the current password is wrong, or was changed meanwhile.
    """
    login = session.get(Login, email_key(find(session, company_id).email))
    session.commit()
    if login is None or not check_password_hash(login.password_hash, current):
        raise CredentialsError
    password_hash = generate_password_hash(new, HASH_METHOD)
    # Of two changes at once one wins: the other's current password is current no more.
    changed = session.execute(
        update(Login)
        .where(Login.email == login.email, Login.password_hash == login.password_hash)
        .values(password_hash=password_hash)
        .returning(Login.email)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if changed is None:
        raise CredentialsError


def find(session: Session, company_id: int) -> Company:
    """Return a company by its id, or raise `NotFoundError`."""
    company = session.get(Company, company_id)
    if company is None:
        raise NotFoundError("There is no company with this id.")
    return company


def change(
    session: Session,
    company_id: int,
    changes: Mapping[str, str | None],
    *,
    moment: Moment,
    outbox: Outbox,
    keyring: Keyring,
    check: Callable[[Company], None] = lambda _: None,
) -> tuple[Company, str | None]:
    """Change what a company says of itself; return it, and the secret of its new endpoint if it set one.

    A change to the values that stand changes nothing and tells nobody. A company that sets another
    ``callback_url`` gets a new secret with it, and one that sets None loses both. Setting the one that
    stands enables it again, where it was disabled.

    ``check`` may refuse, by an error, to change the company as it stands, which then stays so.
    """
    company = session.get(Company, company_id, with_for_update={"key_share": True}, populate_existing=True)
    if company is None:
        raise NotFoundError("There is no company with this id.")
    check(company)
    changed = {field: value for field, value in changes.items() if getattr(company, field) != value}
    if changes.get("callback_url") is not None and "callback_url" not in changed:
        callback_endpoints.enable(session, company_id)
    if not changed:
        return company, None
    previous = {"company": {field: getattr(company, field) for field in changed}}
    secret = None
    if "callback_url" in changed:
        url = changed["callback_url"]
        if url is None:
            callback_endpoints.remove(session, company_id)
        else:
            secret = callback_endpoints.put(session, company_id, url, keyring, now=moment.real)
    for field, value in changed.items():
        setattr(company, field, value)
    session.flush()
    outbox.write(session, "company.updated", company, now=moment.business, previous=previous)
    return company, secret
