"""The files in which the processes of one gunicorn add up what they count.

Each gunicorn has a directory of its own, locked for as long as any of its processes lives. One that was
killed leaves its directory behind: the next to start with the same INSTANCE_DIR removes it.
"""

import atexit
import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Where prometheus_client looks for it, as soon as it is imported."""

_LOCK = "lock"

# In memory where that can be had: on a slow disk a count would block the request that it counts.
HOME = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path(tempfile.gettempdir())  # noqa: S108


def prefix(instance_dir: Path) -> str:
    """Return how the names begin of all directories for an INSTANCE_DIR."""
    digest = hashlib.sha256(str(instance_dir.resolve()).encode()).hexdigest()
    return f"vade-metrics-{digest[:12]}-"


def make(instance_dir: Path, *, wanted: bool) -> None:
    """Let this process and its children count in files; where that is not ``wanted``, each for itself."""
    # Another's, whose files would be mixed with ours.
    os.environ.pop(VARIABLE, None)
    if not wanted:
        return
    for path in HOME.glob(f"{prefix(instance_dir)}*"):
        _remove_if_left(path)
    directory = _locked_directory(instance_dir)
    while not directory.exists():
        # Another that started at the same time took it for one that was left.
        directory = _locked_directory(instance_dir)
    os.environ[VARIABLE] = str(directory)
    atexit.register(_remove_at_end, directory, of=os.getpid())


def _locked_directory(instance_dir: Path) -> Path:
    directory = Path(tempfile.mkdtemp(prefix=prefix(instance_dir), dir=HOME))
    with contextlib.suppress(FileNotFoundError):
        # Never closed: workers inherit it, and it is free when the last of them is gone.
        fcntl.flock(os.open(directory / _LOCK, os.O_CREAT | os.O_RDWR, 0o600), fcntl.LOCK_EX)
    return directory


def forget(pid: int) -> None:
    """Forget what a process that is gone was doing at the moment; what it counted stays."""
    if VARIABLE in os.environ:
        from prometheus_client import multiprocess  # noqa: PLC0415 - not before the directory is known

        multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]


def _remove_at_end(directory: Path, *, of: int) -> None:
    # Workers end with their parent's duties.
    if os.getpid() == of:
        shutil.rmtree(directory, ignore_errors=True)


def _remove_if_left(directory: Path) -> None:
    """Remove a directory that no process holds; one that is another user's, or still being made, stays."""
    with contextlib.suppress(OSError):
        lock = os.open(directory / _LOCK, os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        finally:
            os.close(lock)
