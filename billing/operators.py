"""Operators: who of the platform's may call, in which role, and by which tokens. In real time."""

import re
import unicodedata
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Row, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from billing.errors import NotFoundError, OperatorError
from models import Operator, OperatorToken, Role

NAME = re.compile(r"[^\W_][\w.@+-]{0,63}")
"""What an operator may be called: a word, or an e-mail."""


class Rights(NamedTuple):
    """Whose a token is, and what its operator may do."""

    operator_id: int
    role: Role


def add(session: Session, name: str, role: Role, *, now: datetime) -> Operator:
    """Make an operator.

    Raises:
        OperatorError: when the name is none, or taken.
    """
    if not NAME.fullmatch(_normal(name)):
        raise OperatorError(
            "A name is 1 to 64 letters, digits and . _ - + @, and begins with a letter or digit."
        )
    made = _insert(session, name, role, now=now)
    if made is None:
        raise OperatorError("There is an operator %(name)s already.", name=name)
    return made


def find(session: Session, name: str) -> Operator:
    """Return an operator by name, or raise `NotFoundError`."""
    operator = session.scalar(select(Operator).where(Operator.name == _normal(name)))
    if operator is None:
        raise NotFoundError("There is no operator %(name)s.", name=name)
    return operator


def obtain(session: Session, role: Role, *, now: datetime) -> Operator:
    """Return the operator that is named after a role, made where missing.

    Raises:
        OperatorError: when the one of that name has another role by now.
    """
    _insert(session, role, role, now=now)
    operator = find(session, role)
    if operator.role != role:
        raise OperatorError(
            "The operator %(name)s has the role %(role)s: say for whom the token is.",
            name=role,
            role=operator.role,
        )
    return operator


def list_all(session: Session, *, now: datetime) -> Sequence[Row[Operator, int]]:
    """Return all operators by name, each with how many good tokens it has."""
    good = func.count(OperatorToken.id).filter(
        OperatorToken.revoked_at.is_(None), OperatorToken.expires_at > now, Operator.disabled_at.is_(None)
    )
    return session.execute(
        select(Operator, good).outerjoin(OperatorToken).group_by(Operator.id).order_by(Operator.name)
    ).all()


def give_token(session: Session, operator: Operator, *, lifetime: timedelta, now: datetime) -> OperatorToken:
    """Note that an operator gets a token, which is made with the row's id.

    Raises:
        OperatorError: when the operator is disabled.
    """
    if operator.disabled_at is not None:
        raise OperatorError("The operator %(name)s is disabled.", name=operator.name)
    token = OperatorToken(operator_id=operator.id, created_at=now, expires_at=now + lifetime)
    session.add(token)
    session.flush()
    return token


def list_tokens(session: Session, name: str | None = None) -> Sequence[Row[OperatorToken, Operator]]:
    """Return the tokens that were given to an operator, or to all, newest first.

    Raises:
        NotFoundError: when there is no operator of that name.
    """
    query = select(OperatorToken, Operator).join(Operator).order_by(OperatorToken.id.desc())
    if name is not None:
        query = query.where(Operator.id == find(session, name).id)
    return session.execute(query).all()


def revoke(session: Session, token_id: int, *, now: datetime) -> bool:
    """Revoke a token; return whether it was not revoked yet.

    Raises:
        NotFoundError: when there is none of this id.
    """
    if _revoke(session, OperatorToken.id == token_id, now=now):
        return True
    if session.get(OperatorToken, token_id) is None:
        raise NotFoundError("There is no token with this id.")
    return False


def revoke_all(session: Session, name: str, *, now: datetime) -> int:
    """Revoke every token of an operator; return how many were not revoked yet.

    Raises:
        NotFoundError: when there is no operator of that name.
    """
    return _revoke(session, OperatorToken.operator_id == find(session, name).id, now=now)


def find_rights(session: Session, token_id: int) -> Rights | None:
    """Return what a token gives the right to now; None where it is revoked, or its operator disabled."""
    row = session.execute(
        select(Operator.id, Operator.role)
        .join(OperatorToken, OperatorToken.operator_id == Operator.id)
        .where(
            OperatorToken.id == token_id, OperatorToken.revoked_at.is_(None), Operator.disabled_at.is_(None)
        )
    ).one_or_none()
    return None if row is None else Rights(row.id, Role(row.role))


def _insert(session: Session, name: str, role: Role, *, now: datetime) -> Operator | None:
    """Return a new operator; None where one has the name."""
    statement = insert(Operator).values(name=_normal(name), role=role, created_at=now)
    return session.scalar(statement.on_conflict_do_nothing().returning(Operator))


def _revoke(session: Session, which: Any, *, now: datetime) -> int:
    revoked: Any = session.execute(
        update(OperatorToken)
        .where(which, OperatorToken.revoked_at.is_(None))
        .values(revoked_at=now)
        .execution_options(synchronize_session=False)
    )
    count: int = revoked.rowcount
    return count


def _normal(name: str) -> str:
    # However an ş is composed.
    return unicodedata.normalize("NFC", name)
