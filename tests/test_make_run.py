"""``make run`` as a person uses it: everything starts, says so, and stops without a trace."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from config import PROJECT_DIR
from tests.processes import environment, until

TIMEOUT_S = 90

pytestmark = pytest.mark.slow


class MakeRun:
    """A ``make run`` with a port and a directory of its own, in a process group as a terminal gives it."""

    def __init__(self, settings: dict[str, str]) -> None:
        self.log = Path(settings["INSTANCE_DIR"]).with_name(f"run-{time.monotonic_ns()}.log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["make", "run", f"PYTHON={sys.executable}"],
                cwd=PROJECT_DIR,
                env=environment(**settings),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def says(self, wanted: str, *, times: int = 1) -> str:
        """Return the line that matches, once there are so many."""

        def lines() -> list[str]:
            found = [line for line in self.output.splitlines() if re.search(wanted, line)]
            assert len(found) >= times or self.process.poll() is None, self.output
            return found[times - 1 :]

        return until(lines, within_s=TIMEOUT_S, what=lambda: self.output)[0]

    def ends(self) -> int:
        return self.process.wait(timeout=TIMEOUT_S)


@pytest.fixture
def settings() -> Iterator[dict[str, str]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="vade-run-") as directory:
        settings = {"PORT": str(port), "INSTANCE_DIR": f"{directory}/instance"}
        yield settings
        psutil.wait_procs([kill(process) for process in processes_of(settings)], timeout=10)


def kill(process: psutil.Process) -> psutil.Process:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
    return process


def processes_of(settings: dict[str, str]) -> list[psutil.Process]:
    """The living processes that were started with this INSTANCE_DIR."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("INSTANCE_DIR") == settings["INSTANCE_DIR"]:
                found.append(process)
        except psutil.Error:
            continue
    return found


def get(settings: dict[str, str], path: str) -> int:
    return requests.get(f"http://127.0.0.1:{settings['PORT']}{path}", timeout=10).status_code


def test_it_says_how_to_log_in_and_ctrl_c_stops_all_of_it(settings: dict[str, str]) -> None:
    run = MakeRun(settings)
    command = run.says("^curl ")

    assert f"http://127.0.0.1:{settings['PORT']}/docs" in run.output
    assert get(settings, "/readyz") == 200
    assert get(settings, "/docs") == 200
    if shutil.which("curl"):
        answer = subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout
        assert '"refresh_token"' in answer

    os.killpg(run.process.pid, signal.SIGINT)

    run.ends()
    assert processes_of(settings) == []
    assert "Traceback" not in run.output


def test_a_second_run_goes_on_with_the_data_and_sigterm_stops_it(settings: dict[str, str]) -> None:
    first = MakeRun(settings)
    command = first.says("^curl ")
    first.process.terminate()
    first.ends()
    assert processes_of(settings) == []

    second = MakeRun(settings)

    assert second.says("^curl ") == command
    assert "Nothing was added" in second.output
    second.process.terminate()
    second.ends()
    assert processes_of(settings) == []
    assert "Traceback" not in first.output + second.output


def test_a_program_that_is_killed_is_started_again(settings: dict[str, str]) -> None:
    run = MakeRun(settings)
    run.says("worker started")
    worker = next(one for one in processes_of(settings) if "scheduler.py" in one.cmdline())

    worker.kill()

    run.says("worker started", times=2)
    run.process.terminate()
    run.ends()
    assert processes_of(settings) == []


def test_it_stops_though_nobody_reads_its_output_any_more(settings: dict[str, str]) -> None:
    reader, writer = os.pipe()
    run = subprocess.Popen(
        ["make", "run", f"PYTHON={sys.executable}"],
        cwd=PROJECT_DIR,
        env=environment(**settings),
        stdout=writer,
        stderr=writer,
        start_new_session=True,
    )
    os.close(writer)
    with os.fdopen(reader) as output:
        assert any(line.startswith("curl ") for line in output)

    run.terminate()

    run.wait(timeout=TIMEOUT_S)
    assert processes_of(settings) == []


def test_data_in_use_and_a_taken_port_get_a_sentence(settings: dict[str, str], tmp_path: Path) -> None:
    home = Path(settings["INSTANCE_DIR"])
    first = MakeRun(settings)
    first.says("^curl ")
    pid = (home / "run.pid").read_text().strip()

    same_data = MakeRun(settings)
    assert same_data.ends() != 0
    same_port = MakeRun(settings | {"INSTANCE_DIR": str(tmp_path / "other")})
    assert same_port.ends() != 0

    assert f"already runs on the data in {home} (process {pid})" in same_data.output
    assert f"Port {settings['PORT']} on 127.0.0.1 is taken" in same_port.output
    assert "Traceback" not in same_data.output + same_port.output
    assert get(settings, "/readyz") == 200
    first.process.terminate()
    first.ends()


def test_a_wrong_setting_gets_a_sentence(settings: dict[str, str]) -> None:
    for name, value in (("BATCH_SIZE", "0"), ("PAYMENT_GATEWAY", "no:Gateway"), ("BILLING_TIMEZONE", "Mars")):
        run = MakeRun(settings | {name: value})

        assert run.ends() != 0

        assert f"Error: {name}: " in run.output
        assert "Traceback" not in run.output
        assert processes_of(settings) == []
