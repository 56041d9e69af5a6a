"""What a version says to the database, written down, and said again to the schema of a later one.

A recording is made of every statement with its parameters, in its transactions, with what it brought. Time
stands still in the database meanwhile, so that the same statements on the same schema bring the same rows, to
the letter: on a newer schema any difference is a change that workers of the older version would meet.
"""

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import psycopg
from psycopg.sql import Literal
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext

RELEASED = Path(__file__).parent / "released"
"""One recording for each version whose programs may still run while a migration is applied."""

# The functions that tell time are found before PostgreSQL's own. The settings hold for new sessions.
_STOP_TIME = """
CREATE SCHEMA stopped;
CREATE TABLE stopped.clock (instant timestamptz NOT NULL);
INSERT INTO stopped.clock VALUES ('2026-01-10 09:00:00+00');
CREATE FUNCTION stopped.now() RETURNS timestamptz LANGUAGE sql STABLE
    RETURN (SELECT instant FROM stopped.clock);
CREATE FUNCTION stopped.clock_timestamp() RETURNS timestamptz LANGUAGE sql STABLE
    RETURN (SELECT instant FROM stopped.clock);
"""
_SETTINGS = {"search_path": "public, stopped, pg_catalog", "timezone": "UTC", "datestyle": "ISO"}

_TABLES = """
SELECT table_name, array_agg(column_name::text ORDER BY ordinal_position)
FROM information_schema.columns
WHERE table_schema = 'public' AND table_name <> 'alembic_version' GROUP BY table_name ORDER BY table_name
"""

_INTEGERS, _TEXTS = {20, 21, 23}, {25, 1043}
"""OIDs of types between which a program makes no difference."""

Rows = list[list[str | None]]


@dataclass(slots=True)
class Said:
    """One use of a statement: its parameters as SQL, and the rows or the error that it brought."""

    statement: int
    values: dict[str, str]
    rows: Rows | None = None
    """None of a statement that returns none, or that was said for several rows of parameters at once."""
    types: list[str] | None = None
    """What kind of value each column of the rows has."""
    changed: int = -1
    error: str | None = None
    """SQLSTATE, by which the code knows what went wrong."""


@dataclass(slots=True)
class Transaction:
    """What was said in one transaction, of one step, while the clock stood at an instant."""

    step: str
    at: str
    said: list[Said] = field(default_factory=list)
    ends: str = ""


@dataclass(slots=True)
class Table:
    """What a table held in the end, in the columns that it had then."""

    columns: list[str]
    rows: Rows


@dataclass(slots=True)
class Recording:
    """All that was said, and what came of it; ``statements`` are the different ones, once each."""

    revision: str
    statements: list[str] = field(default_factory=list)
    transactions: list[Transaction] = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)

    def steps(self) -> dict[str, int]:
        """Return the number of each step's first transaction."""
        return {t.step: n for n, t in reversed(list(enumerate(self.transactions)))}

    def inventory(self) -> set[str]:
        """Return the different statements, however many values a list in them had."""
        return {re.sub(r"(%\(\w+\)s(::\w+)?(, )?)+", "…", statement) for statement in self.statements}


class Difference(AssertionError):  # noqa: N818 - it is one, not an accident
    """A statement of an older version brings something else on the schema."""


def write(recording: Recording, path: Path) -> None:
    """Keep a recording, so that it can be read and compared line by line."""
    document = asdict(recording)
    document["statements"] = [statement.split("\n") for statement in recording.statements]
    for transaction in document["transactions"]:
        transaction["said"] = [
            _Line({name: value for name, value in said.items() if value not in (None, -1)})
            for said in transaction["said"]
        ]
    for table in document["tables"].values():
        table["rows"] = [_Line(row) for row in table["rows"]]
        table["columns"] = _Line(table["columns"])
    lines: list[str] = []
    text = json.dumps(document, indent=1, ensure_ascii=False, default=lambda line: line.mark(lines))
    path.write_text(re.sub(r'"line (\d+)"', lambda match: lines[int(match[1])], text) + "\n")


class _Line:
    """What is written on a line of its own."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def mark(self, lines: list[str]) -> str:
        lines.append(json.dumps(self._value, ensure_ascii=False))
        return f"line {len(lines) - 1}"


def read(path: Path) -> Recording:
    """Return a recording that was written."""
    document = json.loads(path.read_text())
    return Recording(
        revision=document["revision"],
        statements=["\n".join(lines) for lines in document["statements"]],
        transactions=[
            Transaction(t["step"], t["at"], [Said(**said) for said in t["said"]], t["ends"])
            for t in document["transactions"]
        ],
        tables={name: Table(**table) for name, table in document["tables"].items()},
    )


def stop_time(url: str) -> None:
    """Let time stand still in a database, for the sessions that begin from now on."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_STOP_TIME)
    use_stopped_time(url)


def use_stopped_time(url: str) -> None:
    """The same in a copy of such a database: its settings are not copied with it."""
    with psycopg.connect(url, autocommit=True) as connection:
        name = connection.info.dbname
        for setting, value in _SETTINGS.items():
            connection.execute(f'ALTER DATABASE "{name}" SET {setting} = {value}'.encode())


class Recorder:
    """Writes down what an engine's connections say, from when it is made until it is left."""

    def __init__(self, engine: Engine, url: str, revision: str) -> None:
        self.recording = Recording(revision)
        self._engine = engine
        self._url = url
        self._known: dict[str, int] = {}
        self._open: dict[int, list[Said]] = {}
        self._step, self._at = "", ""
        # A worker settles one batch while it charges the next.
        self._lock = threading.Lock()
        self._listeners: dict[str, Callable[..., None]] = {
            "after_cursor_execute": self._executed,
            "handle_error": self._failed,
            "commit": lambda connection: self._end(connection, "COMMIT"),
            "rollback": lambda connection: self._end(connection, "ROLLBACK"),
        }

    def __enter__(self) -> Self:
        for name, listener in self._listeners.items():
            event.listen(self._engine, name, listener)
        return self

    def __exit__(self, *_: object) -> None:
        for name, listener in self._listeners.items():
            event.remove(self._engine, name, listener)
        with psycopg.connect(self._url, autocommit=True) as connection:
            for name, columns in connection.execute(_TABLES).fetchall():
                self.recording.tables[name] = Table(columns, _contents(connection, name, columns))

    def step(self, name: str, at: str) -> None:
        """Begin another step, with the database's clock at an instant."""
        self._step, self._at = name, at
        with psycopg.connect(self._url, autocommit=True) as connection:
            set_clock(connection, at)

    @property
    def heard(self) -> int:
        """How many transactions have ended."""
        return len(self.recording.transactions)

    def _executed(
        self, connection: Connection, cursor: Any, statement: str, parameters: Any, *_: Any
    ) -> None:
        if isinstance(parameters, dict):
            brought = {"rows": _rows(cursor), "types": _types(cursor)} if cursor.description else {}
            self._add(connection, statement, parameters, changed=cursor.rowcount, **brought)
        else:
            for values in parameters:
                self._add(connection, statement, values)

    def _failed(self, context: ExceptionContext) -> None:
        assert context.connection is not None
        assert context.statement is not None
        error = context.original_exception
        assert isinstance(error, psycopg.Error)
        self._add(context.connection, context.statement, context.parameters, error=error.sqlstate)

    def _add(self, connection: Connection, statement: str, parameters: Any, **brought: Any) -> None:
        with self._lock:
            number = self._known.setdefault(statement, len(self._known))
            if number == len(self.recording.statements):
                self.recording.statements.append(statement)
        driver: Any = connection.connection.driver_connection
        values = {name: Literal(value).as_string(driver) for name, value in parameters.items()}
        self._open.setdefault(id(driver), []).append(Said(number, values, **brought))

    def _end(self, connection: Connection, ends: str) -> None:
        said = self._open.pop(id(connection.connection.driver_connection), None)
        if said is not None:
            self.recording.transactions.append(Transaction(self._step, self._at, said, ends))


def replay(recording: Recording, url: str, *, first: int = 0, last: int | None = None) -> None:
    """Say some transactions of a recording again, all unless told otherwise.

    Raises:
        Difference: when a statement fails, or brings other rows than it did.
    """
    with psycopg.connect(url) as connection:
        for transaction in recording.transactions[first:last]:
            set_clock(connection, transaction.at)
            connection.commit()
            for said in transaction.said:
                _say(connection, recording.statements[said.statement], said, transaction.step)
            connection.execute(transaction.ends.encode())


def compare_tables(recording: Recording, url: str) -> None:
    """Compare the tables with what they held, in the columns that they had.

    Raises:
        Difference: when they hold something else.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        for name, table in recording.tables.items():
            with _difference(f"{recording.revision}: {name}"):
                _same(_contents(connection, name, table.columns), table.rows, name)


def set_clock(connection: psycopg.Connection[Any], at: str) -> None:
    """Set the clock that stands still."""
    connection.execute("UPDATE stopped.clock SET instant = %s", [at])


def _say(connection: psycopg.Connection[Any], statement: str, said: Said, step: str) -> None:
    with _difference(f"{step}: {statement}"):
        try:
            cursor = connection.execute((statement % said.values).encode())
        except psycopg.Error as error:
            if error.sqlstate != said.error:
                raise
            return
        _same([None], [said.error], "error")
        if said.rows is not None:
            _same(_rows(cursor), said.rows, "rows")
            _same(_types(cursor), said.types or [], "types")
        if said.changed >= 0:
            _same([cursor.rowcount], [said.changed], "number")


@contextlib.contextmanager
def _difference(where: str) -> Iterator[None]:
    try:
        yield
    except (psycopg.Error, Difference) as error:
        raise Difference(f"{str(error).strip()}\nin {where}") from error


def _same(found: Sequence[Any], recorded: Sequence[Any], what: str) -> None:
    """Compare rows, in whatever order they came: that of RETURNING is nobody's promise."""
    there, here = (sorted(map(json.dumps, rows)) for rows in (recorded, found))
    if there != here:
        raise Difference(f"{what}: recorded {there}, found {here}")


def _rows(cursor: Any) -> Rows:
    """Return a result's rows as the server wrote them, and leave them to be read."""
    result = cursor.pgresult
    values = (
        [result.get_value(row, column) for column in range(result.nfields)] for row in range(result.ntuples)
    )
    return [[None if value is None else value.decode() for value in row] for row in values]


def _types(cursor: Any) -> list[str]:
    oids = [cursor.pgresult.ftype(column) for column in range(cursor.pgresult.nfields)]
    return ["integer" if oid in _INTEGERS else "text" if oid in _TEXTS else str(oid) for oid in oids]


def _contents(connection: psycopg.Connection[Any], table: str, columns: Sequence[str]) -> Rows:
    listed = ", ".join(f'"{column}"' for column in columns)
    return sorted(_rows(connection.execute(f'SELECT {listed} FROM "{table}"'.encode())), key=json.dumps)
