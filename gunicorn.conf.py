"""gunicorn: where it listens, how many workers and threads answer, and where these keep their counts."""

import sys
from pathlib import Path
from typing import Any

import logs
import metrics_directory
from billing.gateways import load_gateway
from config import ConfigError, Settings

try:
    # What each worker would refuse is refused here once: gunicorn prints tracebacks, one per worker.
    _settings = Settings.from_env()
    # Before prometheus_client is imported, by the application or by a gateway.
    metrics_directory.make(_settings.instance_dir, wanted=_settings.metrics_token is not None)
    load_gateway(_settings.payment_gateway)
except ConfigError as error:
    error.show()
    sys.exit(error.exit_code)
except ValueError as error:
    sys.exit(f"Error: PAYMENT_GATEWAY: {error}.")

_host = f"[{_settings.host}]" if ":" in _settings.host else _settings.host
bind = f"{_host}:{_settings.port}"
workers = _settings.web_concurrency
worker_class = "gthread"
threads = 8
keepalive = 5
# Addresses of 8,000 bytes are to be understood (RFC 9110 §4.1); longer ones never reach the API.
limit_request_line = 8190
graceful_timeout = 10
umask = 0o022
control_socket_disable = True

# A worker's sign of life is a file that it touches: on a slow disk that would block it.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - gunicorn makes the file safely

# Whom to believe about the client's address is the application's to say (TRUSTED_PROXIES).
forwarded_allow_ips = ""
secure_scheme_headers: dict[str, str] = {}

# At "info" it speaks of every process it starts.
loglevel = "warning" if _settings.log_level == "INFO" else _settings.log_level.lower()

if _settings.production:
    # What gunicorn itself has to say is JSON too. Its logger has no handler of its own then, but the root's.
    logconfig_dict = logs.configuration(_settings)
    logconfig_dict["loggers"]["gunicorn.error"] = {"level": loglevel.upper(), "propagate": True}


def child_exit(_server: Any, worker: Any) -> None:
    """Forget what a worker that is gone was doing; what it counted stays."""
    metrics_directory.forget(worker.pid)
