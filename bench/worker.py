"""One worker process of a benchmark: waits for the word, runs one pass, says how it went."""

import json
import resource
import sys
import time

from bench.world import make_app
from cli import make_collector
from web.context import vade


def main() -> None:
    """Run one whole pass on the database given as the first argument, with settings as the others give."""
    app = make_app(sys.argv[1], **dict(setting.split("=", 1) for setting in sys.argv[2:]))
    with app.app_context():
        collector = make_collector(vade())
        collector.run_pass()  # nothing is due yet: opens the connection and warms the code
        print("ready", flush=True)
        sys.stdin.readline()
        started_s = time.perf_counter()
        result = collector.run_pass()
        seconds = time.perf_counter() - started_s
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "attempts": result.attempts,
                "failed": result.failed,
                "seconds": seconds,
                "peak_kib": usage.ru_maxrss,
            }
        )
    )


if __name__ == "__main__":
    main()
