"""Work in a transaction of its own, repeated where the database asks for that."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

TRANSIENT = frozenset({"40001", "40P01", "55P03", "57014"})
"""SQLSTATEs after which the same statement may well succeed: serialization, deadlock, lock or time out."""

REFUSED = frozenset({"22", "23", "44", "54", "P0", "XX"})
"""SQLSTATE classes with which the database refuses a row: data, constraints, limits, triggers, rot."""

TRIES = 5

_PREFER_INDEXES = text("""
SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
    set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true)
""")

T = TypeVar("T")


def run_in_transaction(engine: Engine, work: Callable[[Session], T]) -> T:
    """Do some work, commit it and return what it returned; again where it failed by bad luck only.

    A connection that breaks may have committed all the same, so the work must bear to be done twice.
    """
    try_ = 0
    while True:
        try_ += 1
        try:
            with Session(engine) as session:
                done = work(session)
                session.commit()
                return done
        except DBAPIError as error:
            if try_ == TRIES or not (error.connection_invalidated or sqlstate(error) in TRANSIENT):
                raise
        time.sleep(random.uniform(0, 0.05 * try_))  # noqa: S311 - jitter, no secret


def prefer_indexes(session: Session) -> None:
    """Let the transaction's queries go by index, whatever the statistics say that moment.

    For batches: a handful of rows of a huge table.
    """
    session.execute(_PREFER_INDEXES)


def refuses_a_row(error: DBAPIError) -> bool:
    """Return whether the database refused what was to be written, rather than failed."""
    return sqlstate(error)[:2] in REFUSED


def is_servers_own(error: Exception) -> bool:
    """Return whether the server itself is in trouble, such as with its files, rather than with a row."""
    return isinstance(error, DBAPIError) and sqlstate(error).startswith("XX")


def sqlstate(error: DBAPIError) -> str:
    """Return the five characters by which PostgreSQL names an error; empty where it was not PostgreSQL's."""
    return getattr(error.orig, "sqlstate", None) or ""


def first_line(error: Exception) -> str:
    """Return what went wrong, without the details that follow, which may show rows."""
    text = str(getattr(error, "orig", None) or error)
    return next(iter(text.splitlines()), type(error).__name__)
