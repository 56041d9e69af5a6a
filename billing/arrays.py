"""Arrays as PostgreSQL writes them, for statements that are fed thousands of rows.

The driver's own lists take a seventh of a settlement: it asks each element how it is to be written.
"""

from collections.abc import Iterable


def array(values: Iterable[object]) -> str:
    """Return an array of values whose text needs no quotes: numbers, dates, UUIDs."""
    return f"{{{','.join(map(str, values))}}}"


def texts(values: Iterable[str | None]) -> str:
    """Return an array of any texts, of which some may be missing."""
    return array("NULL" if value is None else _quoted(value) for value in values)


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
