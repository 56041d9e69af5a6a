"""A short `make chaos`: every kind of fault once, and the books are right; Ctrl-C leaves nothing behind."""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from chaos.audit import LINES
from chaos.database_faults import DATABASE_FAULTS
from chaos.faults import PROCESS_FAULTS
from config import PROJECT_DIR
from tests.processes import environment, until

SEED = "2026"
WITHIN_S = 600

pytestmark = pytest.mark.slow


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where the run has its files: a short path, for the database's socket is in it."""
    directory = Path(tempfile.mkdtemp(prefix="vade-t-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def chaos(temporary: Path, log: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "chaos", "--seed", SEED, "--workers", "2", *arguments],
            cwd=PROJECT_DIR,
            env=environment(TMPDIR=str(temporary)),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def left_behind(temporary: Path) -> list[str]:
    """Files of a run, and processes that have to do with them."""
    found = [str(path) for path in temporary.iterdir()]
    processes = psutil.process_iter(["cmdline", "cwd"])
    return found + [str(p) for p in processes if any(str(temporary) in str(v) for v in p.info.values())]


def test_under_every_kind_of_fault_the_books_are_right(temporary: Path, tmp_path: Path) -> None:
    log, report = tmp_path / "log", tmp_path / "report.json"

    status = chaos(temporary, log, "--seconds", "1", "--report", str(report)).wait(WITHIN_S)

    assert status == 0, log.read_text()
    outcome = json.loads(report.read_text())
    assert outcome["broken"] == {line: [] for line in LINES}
    assert outcome["faults"].keys() == PROCESS_FAULTS.keys() | DATABASE_FAULTS.keys()
    assert min(outcome["faults"].values()) >= 1
    assert min(outcome["figures"].values()) >= 1
    assert f"--seed {SEED}" in log.read_text(), "how to repeat it"
    assert left_behind(temporary) == []


def test_ctrl_c_ends_it_in_order_and_what_ran_is_audited(temporary: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    run = chaos(temporary, log, "--seconds", "600")

    until(lambda: "killed: " in log.read_text(), within_s=WITHIN_S, what=log.read_text)
    run.send_signal(signal.SIGINT)
    status = run.wait(WITHIN_S)

    assert status == 130, log.read_text()
    assert all(line in log.read_text() for line in LINES)
    assert "Interrupted" in log.read_text()
    assert left_behind(temporary) == []
