"""`make fuzz`: let schemathesis call the really running API with all its checks, links included.

1. Make a database on DATABASE_URL's server, else on an embedded one; seed it, collect, and try to deliver.
2. Start gunicorn on a free port, without rate limits: there is no waiting in what is made up.
3. Run schemathesis at once as nobody, as a company and as an operator: schemathesis.toml, fuzz_hooks.py.

Without SECONDS the requests are few and the same each time; with it, others for so long. SEED repeats a run.
"""

import os
import re
import secrets
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import embedded
from config import PROJECT_DIR, Settings
from tests.conftest import new_database
from tests.processes import JWT_SECRET_KEY, api, environment, run
from tests.world import CALLBACK_SECRET

CALLERS = ("nobody", "company", "operator")
EXAMPLES = "2"
SEED = "20260131"

FEW = {
    "nobody": "/(register|login|v1/packages|packages/{id}|companies/me|healthz|readyz)$",
    "company": "/(companies/me|password|logout|token/refresh|company-|callback)",
    "operator": "/(v1/packages|company-payments|company-packages$|callback|reports)",
}
"""Where time is short: the operations that each of them has a use for, as the others answer them alike."""

SAID = {"operations": r"Tested: (\d+)", "cases": r"(\d+) generated", "failures": r"(\d+) unique failures?"}
"""What schemathesis says in its summary."""

STORY = (
    ("db", "upgrade"),
    ("seed", "--companies", "5"),
    ("billing", "run", "--as-of", "2027-03-01T00:00:00Z"),
    ("callbacks", "deliver"),
)
"""What a database is made of: attempts that were charged and declined, messages that nobody received."""


def main() -> None:
    """Call the API as each caller, and say how often; exit with 1 where something was found."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    os.chdir(PROJECT_DIR)
    seconds = os.environ.get("SECONDS", "")
    seed = os.environ.get("SEED") or (str(secrets.randbelow(2**32)) if seconds else SEED)
    how_long = ["--max-time", seconds] if seconds else ["-n", EXAMPLES]
    with ExitStack() as stack:
        home = Path(stack.enter_context(TemporaryDirectory(prefix="vade-fuzz-")))
        stack.callback(embedded.leave)
        server = os.environ.get("DATABASE_URL") or embedded.join(
            Settings.from_env({"INSTANCE_DIR": str(home)})
        )
        settings = {
            "DATABASE_URL": stack.enter_context(new_database(server, prefix="vade_fuzz")),
            "INSTANCE_DIR": str(home),
            "VADE_ENV": "development",
            "JWT_SECRET_KEY": JWT_SECRET_KEY,
            # A port that nobody listens on; what is made up stays on this machine: tests/fuzz_hooks.py.
            "CALLBACK_URL": "http://127.0.0.1:1024/callbacks",
            "CALLBACK_SECRET": CALLBACK_SECRET,
            "CALLBACK_ALLOW_PRIVATE": "on",
        }
        for command in STORY:
            done = run("flask", *command, **settings)
            if done.returncode:
                sys.exit(done.stdout + done.stderr)
        token = run("flask", "operator", "token", **settings).stdout.strip()
        program, address = stack.enter_context(api(settings["DATABASE_URL"], home, **settings))
        told = {"FUZZ_OPERATOR_TOKEN": token}
        options = ["--seed", seed, *how_long]
        with ThreadPoolExecutor(len(CALLERS)) as threads:
            calls = [
                threads.submit(
                    fuzz,
                    address,
                    options if seconds else [*options, "--include-path-regex", FEW[caller]],
                    told | {"FUZZ_CALLER": caller},
                )
                for caller in CALLERS
            ]
            clean = [call.result() for call in calls]
        if not all(clean):
            sys.exit(
                f"fuzz: make fuzz SEED={seed} SECONDS={seconds} shows it again\n{program.text()[-5000:]}"
            )


def fuzz(address: str, options: list[str], told: dict[str, str]) -> bool:
    """Run schemathesis as one caller; return whether it found nothing, and show what it found."""
    config = str(PROJECT_DIR / "tests" / "schemathesis.toml")
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", config, "run"]
    command += [f"{address}/openapi.json", "--wait-for-schema", "60", "--no-color", *options]
    env = environment(**told, FUZZ_ADDRESS=address, PYTHONPATH=str(PROJECT_DIR))
    with TemporaryDirectory(prefix="vade-fuzz-") as cwd:
        # What it remembers of failures would change the next run.
        done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(f"{done.stdout}{done.stderr}schemathesis ended with {done.returncode}\n")
    said = {name: re.search(pattern, done.stdout) for name, pattern in SAID.items()}
    counts = ", ".join(f"{match[1] if match else 'no'} {name}" for name, match in said.items())
    print(f"fuzz: as {told['FUZZ_CALLER']}: {counts}")  # noqa: T201
    return done.returncode == 0


if __name__ == "__main__":
    main()
