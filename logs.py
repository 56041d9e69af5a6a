"""Logging: plain lines in development, one JSON object a line in production."""

import logging
import logging.config
import time

from pythonjsonlogger.json import JsonFormatter

from config import Settings

# What `extra` adds to a record is everything that a plain record does not have.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class PlainFormatter(logging.Formatter):
    """``time level logger: message key=value …`` with the record's extra fields at the end."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, and its traceback below."""
        extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        fields = "".join(f" {key}={_plain(value)}" for key, value in extra.items())
        head, newline, traceback = super().format(record).partition("\n")
        return f"{head}{fields}{newline}{traceback}"


class UtcJsonFormatter(JsonFormatter):
    """One JSON object a line: time (RFC 3339 in UTC), level, logger, message, and the extra fields."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


def _plain(value: object) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def configure(settings: Settings) -> None:
    """Send the log of this process to standard error."""
    logging.config.dictConfig(
        {
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
            "handlers": {
                "stderr": {
                    "class": "logging.StreamHandler",
                    "formatter": "json" if settings.production else "plain",
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
    )
