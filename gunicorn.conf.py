"""gunicorn: where it listens, and how many workers and threads answer."""

import sys
from pathlib import Path

from billing.gateways import load_gateway
from config import ConfigError, Settings

try:
    # What each worker would refuse is refused here once: gunicorn prints tracebacks, one per worker.
    _settings = Settings.from_env()
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
