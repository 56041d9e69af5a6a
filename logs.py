"""Logging: plain lines in development, one JSON object a line in production.

Every record has a ``request_id``, that of the request or pass it was logged for; plain lines leave it out.
"""

import logging
import logging.config
import re
import time
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from billing import tracing
from config import Settings

# What `extra` adds to a record is everything that a plain record does not have.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

# What PostgreSQL adds to an error shows the rows it is about: e-mails, hashes, names.
_ROWS = re.compile(
    r"^DETAIL:.*?(?=^(?:\[SQL:|The above exception|During handling)|\Z)", re.MULTILINE | re.DOTALL
)

REQUEST_ID = "request_id"


class RequestIdFilter(logging.Filter):
    """Puts the present id on a record that names none itself."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record through."""
        if not hasattr(record, REQUEST_ID) and (id_ := tracing.current_id()) is not None:
            record.request_id = id_
        return True


class _WithoutRows(logging.Formatter):
    """Shows an error without the rows that the database was given."""

    def formatException(self, ei: Any) -> str:  # noqa: N802 - as logging calls it
        """Return a traceback."""
        return _ROWS.sub("", super().formatException(ei))


class PlainFormatter(_WithoutRows):
    """``time level logger: message key=value …`` with the record's extra fields at the end."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, and its traceback below."""
        extra = {key: value for key, value in vars(record).items() if key not in _STANDARD | {REQUEST_ID}}
        fields = "".join(f" {key}={_plain(value)}" for key, value in extra.items())
        head, newline, traceback = super().format(record).partition("\n")
        return f"{head}{fields}{newline}{traceback}"


class UtcJsonFormatter(_WithoutRows, JsonFormatter):
    """One JSON object a line: time (RFC 3339 in UTC), level, logger, message, and the extra fields."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


def _plain(value: object) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def configure(settings: Settings) -> None:
    """Send the log of this process to standard error."""
    logging.config.dictConfig(configuration(settings))


def configuration(settings: Settings) -> dict[str, Any]:
    """Return how this process logs, as `logging.config.dictConfig` takes it."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "plain": {
                "()": PlainFormatter,
                "format": "%(asctime)s %(levelname)s %(name)s: %(message)s",
                "datefmt": "%H:%M:%S",
            },
            "json": {
                "()": UtcJsonFormatter,
                "format": "%(asctime)s %(levelname)s %(name)s %(message)s",
                "rename_fields": {"asctime": "time", "levelname": "level", "name": "logger"},
            },
        },
        "filters": {"request_id": {"()": RequestIdFilter}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": "json" if settings.production else "plain",
                "filters": ["request_id"],
            }
        },
        "root": {"level": settings.log_level, "handlers": ["stderr"]},
        "loggers": {
            # It tells of every poll, and warns of each one that finds the pass before it still going on.
            "apscheduler": {"level": "ERROR"},
            "alembic.runtime.plugins": {"level": "WARNING"},
            "urllib3": {"level": "ERROR"},
        },
    }
