"""Packages: what is sold."""

from collections.abc import Callable, Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from billing.errors import NotFoundError
from models import Package
from sentences import Sentence

NO_PACKAGE = Sentence("There is no package with this id.")


def create(session: Session, *, name: str, period: str, price_minor: int, currency: str) -> Package:
    """Offer a new package; ``price_minor`` is in minor units of ``currency`` (ISO 4217)."""
    package = Package(name=name, period=period, price_minor=price_minor, currency=currency, status=1)
    session.add(package)
    session.flush()
    return package


def find(session: Session, package_id: int) -> Package:
    """Return a package by its id, or raise `NotFoundError`."""
    package = session.get(Package, package_id)
    if package is None:
        raise NotFoundError(NO_PACKAGE)
    return package


def change(
    session: Session,
    package_id: int,
    changes: Mapping[str, str | int],
    *,
    check: Callable[[Package], None] = lambda _: None,
) -> Package:
    """Change a package's name, price or status. A price holds for periods that open from now on.

    ``check`` may refuse, by an error, to change the package as it stands, which then stays so.

    Raises:
        NotFoundError: when there is no such package.
    """
    package = session.get(Package, package_id, with_for_update={"key_share": True}, populate_existing=True)
    if package is None:
        raise NotFoundError(NO_PACKAGE)
    check(package)
    for field, value in changes.items():
        setattr(package, field, value)
    session.flush()
    return package


def list_packages(
    session: Session, *, status: int | None = None, after_id: int, limit: int
) -> Sequence[Package]:
    """Return up to ``limit`` packages whose id is above ``after_id``, by id, of a status or of any."""
    query = select(Package).where(Package.id > after_id).order_by(Package.id).limit(limit)
    if status is not None:
        query = query.where(Package.status == status)
    return session.scalars(query).all()
