"""Real servers in directories of their own, real processes that join, leave and are killed."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

import embedded
import postgres_server
from config import PROJECT_DIR, ConfigError

pytestmark = pytest.mark.slow

JOIN = """
import sys, embedded
from config import Settings
print(embedded.join(Settings.from_env()), flush=True)
sys.stdin.readline()
"""
JOIN_AND_FORK = """
import os, sys, embedded
from config import Settings
print(embedded.join(Settings.from_env()), flush=True)
child = os.fork()
if child == 0:
    if "joins" in sys.argv:
        embedded.join(Settings.from_env())
    print("forked", flush=True)
    sys.stdin.readline()
    sys.exit(0)
if "outlived" in sys.argv:
    os.waitpid(child, 0)
    sys.stdin.readline()
"""


class Joined:
    """A process of its own that joins the server of an instance directory, and leaves when told to."""

    def __init__(self, home: Path, script: str = JOIN, *arguments: str, answers: bool = True) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", script, *arguments],
            cwd=PROJECT_DIR,
            env=environment(home),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.url = self.says() if answers else ""
        assert self.url or not answers, self.leave()

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def leave(self) -> tuple[int, str]:
        _, errors = self.process.communicate("\n", timeout=60)
        return self.process.returncode, errors

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.killpg(self.process.pid, number)
        self.process.communicate(timeout=60)


def environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    return kept | {"INSTANCE_DIR": str(home)}


def answers(url: str) -> bool:
    try:
        with psycopg.connect(url, connect_timeout=10) as connection:
            return connection.execute("SELECT 1").fetchone() == (1,)
    except psycopg.OperationalError:
        return False


def server_pid(home: Path) -> int:
    return int((home / "postgres" / "postmaster.pid").read_text().split()[0])


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An instance directory with its data made, to be copied: making it takes longer than most tests."""
    home = tmp_path_factory.mktemp("made") / "instance"
    assert Joined(home).leave() == (0, "")
    return home


@pytest.fixture
def home(made: Path) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="vade-test-"))
    subprocess.run(["cp", "-a", str(made), str(directory / "i")], check=True)
    yield directory / "i"
    # A test that failed may have left its server.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.kill(server_pid(directory / "i"), signal.SIGQUIT)
    shutil.rmtree(directory, ignore_errors=True)


def test_the_last_to_leave_stops_the_server(home: Path) -> None:
    first, second = Joined(home), Joined(home)
    assert first.url == second.url

    assert first.leave() == (0, "")
    assert answers(second.url)

    assert second.leave() == (0, "")
    assert not answers(second.url)
    assert not (home / "postgres" / "postmaster.pid").exists()


def test_processes_that_come_at_once_share_one_server_made_once(tmp_path: Path) -> None:
    several = [Joined(tmp_path / "instance", answers=False) for _ in range(4)]

    urls = {one.says() for one in several}

    assert len(urls) == 1
    assert answers(next(iter(urls)))
    assert [one.leave() for one in several] == [(0, "")] * 4
    assert not answers(next(iter(urls)))


@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_a_directory_at_any_depth_and_of_any_mode_will_do(made: Path, tmp_path: Path, mode: int) -> None:
    above = tmp_path / ("d" * 60) / ("e" * 60)
    above.mkdir(parents=True)
    above.parent.chmod(mode)
    subprocess.run(["cp", "-a", str(made), str(above / "i")], check=True)

    joined = Joined(above / "i")

    assert answers(joined.url)
    assert above.parent.stat().st_mode & 0o777 == mode
    assert joined.leave() == (0, "")
    socket_dir = Path(joined.url.split("host=")[1].split("&")[0])
    assert not socket_dir.is_relative_to(tmp_path)
    assert not socket_dir.exists()


def test_the_database_is_in_utf_8_and_utc(home: Path) -> None:
    joined = Joined(home)

    with psycopg.connect(joined.url) as connection:
        row = connection.execute(
            "SELECT current_database(), pg_encoding_to_char(encoding), datlocale,"
            " current_setting('TimeZone'), current_setting('fsync'), current_setting('listen_addresses')"
            " FROM pg_database WHERE datname = current_database()"
        ).fetchone()

    assert row == ("vade", "UTF8", "C.UTF-8", "UTC", "on", "")
    assert joined.leave() == (0, "")


def test_who_comes_after_a_killed_process_joins_its_server_and_stops_it(home: Path) -> None:
    killed = Joined(home)
    killed.kill()
    assert answers(killed.url)

    heir = Joined(home)

    assert heir.url == killed.url
    assert heir.leave() == (0, "")
    assert not answers(heir.url)


def test_ctrl_c_stops_a_command_and_not_the_server_that_others_use(home: Path) -> None:
    starter = Joined(home)
    other = Joined(home)

    starter.kill(signal.SIGINT)

    assert answers(other.url)
    assert other.leave() == (0, "")
    assert not answers(other.url)


def test_a_killed_server_is_started_again_though_its_pid_is_now_anothers(home: Path) -> None:
    joined = Joined(home)
    pid_file = home / "postgres" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    os.kill(int(lines[0]), signal.SIGKILL)
    joined.kill()
    owner = pid_file.stat()
    sleeper = subprocess.Popen(
        ["sleep", "60"],
        cwd="/",
        user=owner.st_uid,
        group=owner.st_gid,
        extra_groups=[] if os.geteuid() == 0 else None,
    )
    pid_file.write_text("\n".join([str(sleeper.pid), *lines[1:]]) + "\n")

    again = Joined(home)

    assert answers(again.url)
    assert again.leave() == (0, "")
    sleeper.kill()
    sleeper.wait()


def test_an_attempt_to_make_the_data_that_was_killed_is_begun_anew(tmp_path: Path) -> None:
    home = tmp_path / "instance"
    killed = Joined(home, answers=False)
    while not list(home.glob("postgres-new-*/base")):
        assert killed.process.poll() is None
        time.sleep(0.01)
    killed.kill()
    assert not (home / "postgres").exists()
    # What it had started may still write, and is not what this is about.
    while any(str(home) in " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])):
        time.sleep(0.05)

    joined = Joined(home)

    assert answers(joined.url)
    assert not list(home.glob("postgres-new-*"))
    assert joined.leave() == (0, "")


def test_a_child_that_forked_off_leaves_only_what_it_joined(home: Path) -> None:
    parent = Joined(home, JOIN_AND_FORK, "outlived")
    assert parent.says() == "forked"
    assert parent.process.stdin is not None
    parent.process.stdin.write("\n")
    parent.process.stdin.flush()

    # The child has ended: its parent's server goes on.
    joined = Joined(home)
    assert joined.leave() == (0, "")
    assert answers(parent.url)
    assert parent.leave() == (0, "")
    assert not answers(parent.url)


def test_a_child_that_joined_outlives_its_parent(home: Path) -> None:
    parent = Joined(home, JOIN_AND_FORK, "joins")
    assert parent.says() == "forked"
    parent.process.wait(timeout=60)
    assert answers(parent.url)

    assert parent.leave() == (0, "")

    # communicate() returned, so the child has closed its end: it is past its leave.
    assert not answers(parent.url)


def test_a_supervised_server_is_joined_and_stopped_by_its_supervisor_alone(home: Path) -> None:
    supervised = subprocess.Popen(
        [sys.executable, "launch.py", "serve"], cwd=PROJECT_DIR, env=environment(home)
    )
    pid_file = home / "postgres" / "postmaster.pid"
    while not pid_file.exists() or "ready" not in pid_file.read_text():
        assert supervised.poll() is None
        time.sleep(0.01)
    joined = Joined(home)
    assert server_pid(home) == supervised.pid

    assert joined.leave() == (0, "")
    assert answers(joined.url)

    supervised.send_signal(signal.SIGINT)
    assert supervised.wait(timeout=60) == 0
    assert not answers(joined.url)


def test_a_supervisor_stands_for_the_server_of_a_command(home: Path) -> None:
    joined = Joined(home)
    supervised = subprocess.Popen(
        [sys.executable, "launch.py", "serve"], cwd=PROJECT_DIR, env=environment(home)
    )
    while not embedded._held(home / embedded.SUPERVISED):
        assert supervised.poll() is None
        time.sleep(0.01)
    assert joined.leave() == (0, "")
    assert answers(joined.url)

    supervised.send_signal(signal.SIGINT)
    assert supervised.wait(timeout=60) == 0
    assert not answers(joined.url)


def ask(home: Path) -> subprocess.CompletedProcess[str]:
    """Ask the data's server something, as a person would."""
    return subprocess.run(
        [sys.executable, "embedded.py", "psql", "-c", "SELECT 1"],
        cwd=PROJECT_DIR,
        env=environment(home),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("version", ["17", "nonsense"])
def test_the_data_of_another_postgresql_is_refused_in_a_sentence(home: Path, version: str) -> None:
    (home / "postgres" / "PG_VERSION").write_text(f"{version}\n")

    refused = ask(home)

    assert refused.returncode == 1
    assert refused.stderr.startswith(f"Error: The data in {home}/postgres is of PostgreSQL {version}")
    assert refused.stderr.count("\n") == 1


def test_a_server_that_does_not_start_says_why_in_a_sentence(home: Path) -> None:
    (home / "postgres" / "global" / "pg_control").unlink()

    refused = ask(home)

    assert refused.returncode == 1
    assert "did not start" in refused.stderr
    assert "pg_control" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_socket_directory_that_another_put_there_is_not_trusted(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    socket_dir = postgres_server._socket_dir(deep)
    socket_dir.chmod(0o755)

    with pytest.raises(ConfigError, match="is not its own"):
        postgres_server._socket_dir(deep)
