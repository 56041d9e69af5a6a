"""The scan that finds secrets in logs finds them: else its silence would say nothing."""

import logging
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

import logs
from billing.gateways import ChargeRequest, ChargeResult
from config import PROJECT_DIR
from tests import secrecy
from tests.crowds import crowd
from tests.deliveries import COMPANY_SECRET, KEYRING
from tests.metrics import METRICS_TOKEN
from tests.processes import JWT_SECRET_KEY, Database, run, until, worker
from tests.world import CALLBACK_SECRET, ENCRYPTION_KEY, PASSWORD, PASSWORD_HASH, World

SECRETS = {
    "JWT": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "callback secret": CALLBACK_SECRET,
    "company's secret": COMPANY_SECRET,
    "encrypted secret": KEYRING.encrypt(CALLBACK_SECRET),
    "password": PASSWORD,
    "hash": PASSWORD_HASH,
    "signing key": JWT_SECRET_KEY,
    "encryption key": ENCRYPTION_KEY,
    "token for metrics": METRICS_TOKEN,
    "header": "{'Authorization': 'x'}",
    "bearer": "Bearer abcdef",
    "URL": "postgresql://vade:hunter2@db.example/vade",
    "connection": "host=db.example password=hunter2",
    "document": "{'password': 'hunter2'}",
    "document of JSON": '{"password": "hunter2"}',
    "e-mail": "gul@cicek.example",
    "parameters": "[parameters: {'a': 1}]",
}


def taken() -> list[str]:
    """What the scan found, which then fails nothing."""
    found = secrecy.found[:]
    secrecy.found.clear()
    return found


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_a_secret_in_a_record_is_found(secret: str) -> None:
    logger = logging.getLogger("somewhere")

    logger.warning("this: %s", secret)
    assert taken(), "in the message"

    logger.warning("x", extra={"field": [secret]})
    assert taken(), "in a field"

    logger.error("x", exc_info=ValueError(secret))
    assert taken(), "in an error"


def test_what_is_no_secret_is_not_found() -> None:
    logger = logging.getLogger("somewhere")

    logger.warning(
        "no database: connection to server at 127.0.0.1 failed: password authentication failed",
        extra={
            "worker": "host:12",
            "route": "/api/v1/token/refresh",
            "url": "https://shop.example:8443/hook",
        },
    )

    assert taken() == []


def test_a_record_below_the_level_is_none(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("somewhere").debug(PASSWORD)

    assert taken() == []


class TalkativeGateway:
    """Tells a password when it fails."""

    def charge(self, request: ChargeRequest) -> ChargeResult:
        raise ValueError(f"{request.idempotency_key} {PASSWORD}")


@pytest.mark.slow
def test_a_secret_in_the_log_of_a_program_is_found(database_url: str, tmp_path: Path) -> None:
    Database(database_url).do(crowd(1))

    with worker(database_url, tmp_path, PAYMENT_GATEWAY="tests.test_secrecy:TalkativeGateway") as program:
        until(lambda: "ValueError" in program.text(), what=program.text)
    assert taken()

    run("-c", f"import sys; print({PASSWORD!r}, file=sys.stderr)")
    assert taken()


@pytest.mark.slow
def test_a_test_that_logs_a_secret_fails(tmp_path: Path) -> None:
    file = tmp_path / "test_it.py"
    file.write_text(f"import logging\n\ndef test_it():\n    logging.getLogger('x').error({PASSWORD!r})\n")
    ours = ("-c", str(PROJECT_DIR / "pyproject.toml"), "-p", "tests.conftest", "-p", "no:cacheprovider")

    for workers in ("0", "1"):
        done = run("-m", "pytest", "-q", *ours, "-n", workers, str(file))

        assert done.returncode == 1, done.stdout
        assert "a password in:" in done.stdout


@pytest.mark.parametrize("email", ["gul@cicek.example", "gul\n\n\n[x]@cicek.example"])
def test_a_refusal_of_the_database_is_logged_without_its_rows(world: World, email: str) -> None:
    company = world.company(email=email)
    again = text("INSERT INTO logins SELECT * FROM logins WHERE company_id = :id")
    with pytest.raises(IntegrityError) as refusal, world.session.begin_nested():
        world.session.execute(again, {"id": company.id})
    assert "DETAIL" in str(refusal.value), "there is something to leave out"

    logging.getLogger("somewhere").error("x", exc_info=refusal.value)

    assert taken() == []
    told = logs.UtcJsonFormatter("%(message)s").formatException(
        (IntegrityError, refusal.value, refusal.value.__traceback__)
    )
    assert told.count("duplicate key value") == 2, "of the driver and of SQLAlchemy"
    assert "INSERT INTO logins" in told
