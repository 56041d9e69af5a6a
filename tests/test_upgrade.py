"""Version N's programs run on while version N+1's migration is applied: it only adds (CONTRIBUTING.md)."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest

from tests import record_queries, recordings
from tests.conftest import new_database
from tests.record_queries import migrate, newest_revision
from tests.recordings import RELEASED, Difference, Recording, compare_tables, replay

RECORDINGS = sorted(RELEASED.glob("*.json"))

CONTRACTIONS = {
    "a column dropped": "ALTER TABLE payment_jobs DROP COLUMN outages",
    "a column renamed": "ALTER TABLE company_packages RENAME full_days TO days",
    "a table renamed": "ALTER TABLE callback_attempts RENAME TO attempts",
    "a column that wants a value": """
        ALTER TABLE company_payments ADD note text NOT NULL DEFAULT '';
        ALTER TABLE company_payments ALTER note DROP DEFAULT""",
    "a default dropped": "ALTER TABLE callbacks ALTER attempts DROP DEFAULT",
    "a narrower check": "ALTER TABLE callbacks ADD CHECK (status <> 'waiting') NOT VALID",
    "a key that ON CONFLICT names": "ALTER TABLE worker_heartbeats DROP CONSTRAINT worker_heartbeats_pkey",
    "another type": "ALTER TABLE callback_attempts ALTER duration_ms TYPE text",
    "other rows": "UPDATE packages SET price_minor = price_minor + 1",
}


@pytest.fixture(scope="module")
def schema_of(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Give the URL of an empty database at a revision, in which time stands still; it is to be copied."""
    made: dict[str, str] = {}
    with ExitStack() as stack:

        def make(revision: str) -> str:
            if revision not in made:
                made[revision] = stack.enter_context(new_database(server_url, prefix="vade_released"))
                recordings.stop_time(made[revision])
                migrate(made[revision], tmp_path_factory.mktemp(revision), revision)
            return made[revision]

        yield make


@contextmanager
def copy_of(template: str) -> Iterator[str]:
    with psycopg.connect(template) as connection:
        name = connection.info.dbname
    with new_database(template, prefix="vade_upgrade", template=name) as url:
        recordings.use_stopped_time(url)
        yield url


def upgraded_amid(recording: Recording, template: str, change: Callable[[str], None], *, after: int) -> None:
    """Let the older version work, change the schema after some transactions, and let it work on."""
    with copy_of(template) as url:
        replay(recording, url, last=after)
        change(url)
        replay(recording, url, first=after)
        compare_tables(recording, url)


TRIES = 3
"""How often the present code is heard again where it said something new."""


def charged(recording: Recording) -> int:
    """Return how many transactions precede the first settlement: jobs are leased, messages on their way."""
    return next(
        number
        for number, transaction in enumerate(recording.transactions)
        if any("company_payments (" in recording.statements[said.statement] for said in transaction.said)
    )


def test_the_newest_recording_is_of_the_present_code(server_url: str, tmp_path: Path) -> None:
    path = RELEASED / f"{newest_revision()}.json"
    assert path.exists(), f"nothing is recorded on revision {newest_revision()}: run `make record`"

    known = recordings.read(path).inventory()
    changed = record_queries.record_anew(server_url, tmp_path).inventory() - known
    for _ in range(TRIES):
        # What is said only where threads happen to meet is not said every time; what changed is.
        if changed:
            changed &= record_queries.record_anew(server_url, tmp_path).inventory()
    assert not changed, f"the code says something else now: run `make record`\n{changed}"


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_a_recording_repeats_itself_on_its_own_schema(path: Path, schema_of: Callable[[str], str]) -> None:
    recording = recordings.read(path)

    upgraded_amid(recording, schema_of(recording.revision), lambda _: None, after=0)


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_programs_of_the_version_before_work_on_the_newest_schema(
    path: Path, schema_of: Callable[[str], str], tmp_path: Path
) -> None:
    recording = recordings.read(path)

    for after in (0, charged(recording)):
        upgraded_amid(
            recording, schema_of(recording.revision), lambda url: migrate(url, tmp_path), after=after
        )


@pytest.mark.slow
@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_programs_of_the_version_before_work_on_whenever_the_migration_comes(
    path: Path, schema_of: Callable[[str], str], tmp_path: Path
) -> None:
    recording = recordings.read(path)

    for after in sorted({*recording.steps().values(), *range(0, len(recording.transactions), 20)}):
        upgraded_amid(
            recording, schema_of(recording.revision), lambda url: migrate(url, tmp_path), after=after
        )


@pytest.mark.parametrize("contraction", CONTRACTIONS)
def test_a_migration_that_takes_away_is_found_out(contraction: str, schema_of: Callable[[str], str]) -> None:
    recording = recordings.read(RECORDINGS[-1])

    def contract(url: str) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(CONTRACTIONS[contraction].encode())

    with pytest.raises(Difference):
        upgraded_amid(recording, schema_of(recording.revision), contract, after=recording.steps()["deliver"])


def test_a_recording_is_read_as_it_was_written(tmp_path: Path) -> None:
    for path, copy in zip(RECORDINGS, map(tmp_path.joinpath, map(str, itertools.count())), strict=False):
        recordings.write(recordings.read(path), copy)

        assert copy.read_text() == path.read_text()
