"""`python -m bench.against REVISION`: `GET current` beside that of an earlier revision, in one run.

1. Clone the revision, and serve it twice and this tree once, each with gunicorn on a database of its own.
2. Round by round, in an order that turns, load each for some seconds with autocannon.
3. The revision beside itself tells how much of a difference is noise.

The revision is served by its own ``bench`` with the packages that are installed here.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.load import CONNECTIONS, CURRENT, Measured, add, calls, fire
from bench.world import spread
from config import PROJECT_DIR

ROUNDS = 15
SECONDS = 4

_SERVE = """
import json, sys
from bench import api, world
with world.server() as server, world.database(server, "vade_against", template=world.TEMPLATE) as url:
    world.fill(url, companies=50_000, due=50_000)
    token = api.token(url, 5000)
    with api.serving(url) as port:
        print(json.dumps({"port": port, "token": token}), flush=True)
        sys.stdin.read()
"""


def main() -> None:
    """Measure, and print rates and ratios."""
    parser = argparse.ArgumentParser("python -m bench.against")
    parser.add_argument("revision", help="such as HEAD~1 or a tag")
    revision = parser.parse_args().revision
    with ExitStack() as stack:
        earlier = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vade-against-")), "vade")
        _git("clone", "--quiet", "--shared", str(PROJECT_DIR), str(earlier))
        _git("-C", str(earlier), "checkout", "--quiet", "--detach", _commit(revision))
        trees = {revision: earlier, f"{revision} again": earlier, "this tree": PROJECT_DIR}
        served = {name: stack.enter_context(_serving(tree)) for name, tree in trees.items()}
        measured = {name: Measured() for name in trees}
        for port, arguments in served.values():
            fire(port, arguments, seconds=2)
        for round_ in track(range(ROUNDS), "GET current", console=Console(stderr=True), transient=True):
            names = list(trees)
            for name in names[round_ % 3 :] + names[: round_ % 3]:
                port, arguments = served[name]
                add(measured[name], fire(port, arguments, seconds=SECONDS))
    Console(width=None if sys.stdout.isatty() else 120).print(_table(measured, revision))


@contextmanager
def _serving(tree: Path) -> Iterator[tuple[int, list[str]]]:
    """Serve a tree's API, and give its port and what autocannon calls."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE],
        cwd=tree,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{tree} cannot be served: see above.")
        ready = json.loads(line)
        yield ready["port"], calls(ready["token"])[CURRENT]
    finally:
        # The end of its input is the end of its work.
        process.communicate()


def _table(measured: dict[str, Measured], revision: str) -> Table:
    how = (
        f"{CONNECTIONS} connections of autocannon for {SECONDS} s, median of {ROUNDS} rounds (least to most)"
    )
    table = Table("served", "requests/s", f"÷ {revision}", "errors", title=f"GET current, {how}")
    for name, each in measured.items():
        ratios = [a / b for a, b in zip(each.rates, measured[revision].rates, strict=True)]
        table.add_row(name, spread(each.rates, ",.0f"), spread(ratios, ".3f"), str(each.errors))
    return table


def _commit(revision: str) -> str:
    return _git("rev-parse", "--verify", f"{revision}^{{commit}}").strip()


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
