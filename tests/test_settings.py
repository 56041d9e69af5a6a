"""A setting that is wrong is refused at the start: by name, in one sentence, with no secret in it."""

from pathlib import Path

import click
import psycopg
import pytest

import database
import scheduler
from config import ConfigError, Settings
from tests.conftest import settings_for
from tests.processes import JWT_SECRET_KEY, run
from wsgi import create_app

PRODUCTION = {"VADE_ENV": "production", "JWT_SECRET_KEY": JWT_SECRET_KEY}
CALLBACKS = {"CALLBACK_URL": "https://platform.example/", "CALLBACK_SECRET": "whsec_eA=="}

BAD: dict[str, list[str]] = {
    "DATABASE_URL": [
        "mysql://root@localhost/vade",
        "sqlite:///vade.db",
        "localhost/vade",
        "postgresql:vade",
        "postgresql://localhost/vade?no_such_option=1",
        "postgresql://localhost:five/vade",
        "postgresql://[::1/vade",
    ],
    "PORT": ["0", "65536", "-1", "8000.5", "http"],
    "BILLING_TIMEZONE": ["Mars/Olympus", "Europe", "+03:00", "../etc/passwd", "CET", "\0"],
    "VADE_ENV": ["prod", "Production", "1"],
    "VADE_NOW": ["now", "2026-01-31", "2026-01-31T00:00:00", "2026-02-30T00:00:00Z", "0001-01-01T00:00:00Z"],
    "PAYMENT_GATEWAY": [
        "RandomHashGateway",
        "billing.gateways.RandomHashGateway",
        "billing.gateways:",
        ":X",
        "a:b c",
    ],
    "WORKER_POLL_S": ["0", "-1", "nan", "inf", "often"],
    "BATCH_SIZE": ["0", "-1", "1.5", "many", "1000000"],
    "LEASE_S": ["0", "-1", "nan", "inf"],
    "GATEWAY_TIMEOUT_S": ["0", "-1", "nan", "inf"],
    "GATEWAY_THREADS": ["0", "-1", "2.5", "100000"],
    "CALLBACK_URL": ["ftp://platform.example/", "platform.example", "http://"],
    "CALLBACK_SECRET": ["whsec_", "whsec_???", "secret!"],
    "CALLBACK_ALLOW_PRIVATE": ["perhaps", "2"],
    "CALLBACK_CONCURRENCY": ["0", "33", "few"],
    "CALLBACK_RETENTION_DAYS": ["0", "-1", "1.5"],
    "CALLBACK_SECRET_OVERLAP_S": ["-1", "nan", "inf"],
    "ENCRYPTION_KEY": ["secret", "x" * 31, "x" * 32 + ",short"],
    "RATE_LIMITS": ["perhaps", "10"],
    "RATE_LIMIT_STORAGE": [
        "redis",
        "memory://",
        "redis://",
        "redis://127.0.0.1:port/0",
        "redis://127.0.0.1:6379/zero",
        "http://127.0.0.1:6379",
    ],
    "CORS_ORIGINS": [
        "shop.example",
        "https://shop.example/",
        "https://shop.example,*",
        "https://shop.example:99999999",
        "https://*.example",
        "null",
        "https://Shop.example",
        ",",
    ],
    "TRUSTED_PROXIES": ["-1", "all", "11"],
    "JWT_SECRET_KEY": ["secret", "x" * 31],
    "WEB_CONCURRENCY": ["0", "-2", "auto"],
    "METRICS_TOKEN": ["secret", "x" * 31, "x y" * 20, "ğ" * 32],
    "METRICS_PORT": ["0", "65536", "-1", "http"],
    "LOG_LEVEL": ["LOUD", "info", "10"],
}

TOGETHER = {
    "production without a key": ({"VADE_ENV": "production"}, "JWT_SECRET_KEY"),
    "production at another time": (PRODUCTION | {"VADE_NOW": "2026-01-31T00:00:00Z"}, "VADE_NOW"),
    "an endpoint without a secret": ({"CALLBACK_URL": "https://platform.example/"}, "CALLBACK_SECRET"),
    "metrics of the worker for whoever comes": ({"METRICS_PORT": "9100", "HOST": "0.0.0.0"}, "METRICS_TOKEN"),
    "metrics of the worker where the API is": ({"METRICS_PORT": "9100", "PORT": "9100"}, "METRICS_PORT"),
    "a secret without an endpoint": ({"CALLBACK_SECRET": "whsec_eA=="}, "CALLBACK_URL"),
}

NO_GATEWAYS = [
    "no_such_module:Gateway",
    "billing.gateways:NoSuchClass",
    "billing.gateways:ChargeRequest",
    "json:JSONDecoder",
    "tests.gateways:SlowGateway",  # wants settings of its own, and has none
]


def sentence(error: click.ClickException) -> str:
    text = error.format_message()
    assert text.endswith(".")
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD.items() for value in values]
)
def test_a_value_that_is_none_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        Settings.from_env((CALLBACKS if name.startswith("CALLBACK") else {}) | {name: value})

    assert sentence(refusal.value).startswith(f"{name}: ")


@pytest.mark.parametrize(("settings", "name"), TOGETHER.values(), ids=TOGETHER)
def test_settings_that_do_not_go_together_are_refused_by_name(settings: dict[str, str], name: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        Settings.from_env(settings)

    assert name in sentence(refusal.value)


def test_every_setting_that_can_be_wrong_is_tried() -> None:
    names = {field.alias for field in Settings.model_fields.values()}

    assert names - BAD.keys() == {"HOST", "INSTANCE_DIR"}, "what these say is known when they are used"


@pytest.mark.parametrize(
    "settings",
    [
        {"JWT_SECRET_KEY": "hunter2"},
        CALLBACKS | {"CALLBACK_SECRET": "whsec_hunter2!"},
        {"ENCRYPTION_KEY": "hunter2"},
        {"METRICS_TOKEN": "hunter2"},
        {"METRICS_TOKEN": "hunter2 " * 8},
        {"DATABASE_URL": "postgresql://vade:hunter2%zz@localhost/vade"},
        {"DATABASE_URL": "postgresql://vade:hunter2@localhost/vade?nonsense=hunter2"},
        {"DATABASE_URL": "vade:hunter2@localhost"},
    ],
)
def test_no_secret_is_told(settings: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as refusal:
        Settings.from_env(settings)

    assert "hunter2" not in sentence(refusal.value)


def test_no_secret_is_in_what_settings_look_like() -> None:
    shown = repr(Settings.from_env(CALLBACKS | {"JWT_SECRET_KEY": JWT_SECRET_KEY}))

    assert JWT_SECRET_KEY not in shown
    assert "whsec_" not in shown


def test_an_empty_value_is_one_that_is_not_set() -> None:
    assert Settings.from_env(dict.fromkeys(BAD, "")) == Settings.from_env({})


@pytest.mark.parametrize("name", NO_GATEWAYS)
def test_a_gateway_that_is_none_is_refused_by_name(tmp_path: Path, name: str) -> None:
    settings = Settings.from_env({"PAYMENT_GATEWAY": name, "INSTANCE_DIR": str(tmp_path)})

    with pytest.raises(ConfigError) as refusal:
        create_app(settings)

    assert sentence(refusal.value).startswith(f"PAYMENT_GATEWAY: {name!r} ")


def test_a_directory_that_cannot_be_used_is_refused_by_name() -> None:
    with pytest.raises(ConfigError) as refusal:
        create_app(Settings.from_env({"INSTANCE_DIR": "/dev/null/instance"}))

    assert sentence(refusal.value).startswith("INSTANCE_DIR: ")


@pytest.fixture
def old_server(server_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings whose server says that it is PostgreSQL 14."""
    monkeypatch.setattr(psycopg.ConnectionInfo, "server_version", 140_011)
    return settings_for(server_url, tmp_path)


OLD = "DATABASE_URL: PostgreSQL 15 or newer is wanted, this server is 14."


def test_an_older_server_is_refused(old_server: Settings) -> None:
    with pytest.raises(ConfigError, match=OLD):
        database.connect(old_server)


@pytest.mark.parametrize(
    "command", [["billing", "run"], ["db", "upgrade"], ["callbacks", "deliver"]], ids=" ".join
)
def test_an_older_server_is_refused_by_commands(old_server: Settings, command: list[str]) -> None:
    app = create_app(old_server)
    if command[0] == "db":
        from flask_migrate.cli import db as group

        app.cli.add_command(group)

    result = app.test_cli_runner().invoke(args=command)

    assert (result.exit_code, result.stderr) == (1, f"Error: {OLD}\n")


def test_an_older_server_is_refused_by_the_worker(
    old_server: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "create_app", lambda: create_app(old_server))

    with pytest.raises(SystemExit) as ended:
        scheduler.main()

    assert ended.value.code == f"Error: {OLD}", "printed, and status 1"


PROGRAMS = {
    "flask": ("flask", "billing", "run"),
    "worker": ("scheduler.py",),
    "gunicorn": ("-m", "gunicorn", "--config", "gunicorn.conf.py", "wsgi:create_app()"),
}


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("settings", "beginning"),
    [
        ({"BILLING_TIMEZONE": "Mars/Olympus"}, "BILLING_TIMEZONE: 'Mars/Olympus' is not a time zone"),
        ({"DATABASE_URL": "mysql://localhost/vade"}, "DATABASE_URL: Vade runs on PostgreSQL only"),
        ({"PAYMENT_GATEWAY": "nowhere:Gateway"}, "PAYMENT_GATEWAY: 'nowhere:Gateway' cannot be loaded"),
        ({"VADE_ENV": "production"}, "JWT_SECRET_KEY must be set when VADE_ENV=production"),
    ],
    ids=lambda value: "" if isinstance(value, str) else ",".join(value),
)
def test_every_program_ends_with_a_sentence(
    tmp_path: Path, program: str, settings: dict[str, str], beginning: str
) -> None:
    result = run(*PROGRAMS[program], **({"INSTANCE_DIR": str(tmp_path)} | settings))

    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: {beginning}")
    assert result.stdout == ""
