"""Whether the database's schema is as new as the code."""

from functools import cache

from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

from config import PROJECT_DIR


@cache
def known_revisions() -> tuple[str, ...]:
    """Return the code's migrations, newest first."""
    script = ScriptDirectory(str(PROJECT_DIR / "migrations"))
    return tuple(revision.revision for revision in script.walk_revisions())


def is_outdated(session: Session) -> bool:
    """Return whether a migration is still to be applied.

    A revision that this code does not know is of a newer version, whose schema older code can use.
    """
    try:
        current = session.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    except ProgrammingError:
        session.rollback()
        return True
    return current is None or current in known_revisions()[1:]
