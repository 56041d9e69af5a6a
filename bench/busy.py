"""A worker that is never done: each pass is a month later than the one before, until it is ended."""

import sys
from datetime import datetime, timedelta

from bench.world import AS_OF, make_app
from billing.clock import Clock
from cli import make_collector
from web.context import vade

MONTH = timedelta(days=31)


def main() -> None:
    """Collect on the database given as the argument, again and again."""
    app = make_app(sys.argv[1], BATCH_SIZE="1000")
    now = datetime.fromisoformat(AS_OF)
    with app.app_context():
        print("ready", flush=True)
        sys.stdin.readline()
        while True:
            make_collector(vade(), clock=Clock(now)).run_pass()
            now += MONTH


if __name__ == "__main__":
    main()
