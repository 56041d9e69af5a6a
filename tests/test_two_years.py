"""One company through two years, 31 January to 31 January, by commands and HTTP alone."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from billing.documents import instant_text
from models import db
from tests.conftest import settings_for
from wsgi import create_app

MONTHLY = [
    date(2026, 1, 31),
    date(2026, 2, 28),
    date(2026, 3, 31),
    date(2026, 4, 30),
    date(2026, 5, 31),
    date(2026, 6, 30),
    date(2026, 7, 31),
    date(2026, 8, 31),
    date(2026, 9, 30),
    date(2026, 10, 31),
    date(2026, 11, 30),
    date(2026, 12, 31),
    date(2027, 1, 31),
    date(2027, 2, 28),
    date(2027, 3, 31),
    date(2027, 4, 30),
    date(2027, 5, 31),
    date(2027, 6, 30),
    date(2027, 7, 31),
    date(2027, 8, 31),
    date(2027, 9, 30),
    date(2027, 10, 31),
    date(2027, 11, 30),
    date(2027, 12, 31),
    date(2028, 1, 31),
    date(2028, 2, 29),
]
YEARLY = [date(2026, 1, 31), date(2027, 1, 31), date(2028, 1, 31), date(2029, 1, 31)]


class Outside:
    """A client of the API and of the commands, which knows nothing else."""

    def __init__(self, app: Flask) -> None:
        self._http = app.test_client()
        self._commands = app.test_cli_runner()

    def flask(self, *arguments: str) -> str:
        result = self._commands.invoke(args=arguments)
        assert result.exit_code == 0, result.output
        return result.stdout.strip()

    def call(
        self, method: str, path: str, *, token: str | None = None, status: int = 200, **json: Any
    ) -> Any:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = self._http.open(f"/api/v1/{path}", method=method, json=json or None, headers=headers)
        assert answer.status_code == status, answer.text
        return answer.get_json()


@pytest.fixture
def outside(database_url: str, tmp_path: Path) -> Iterator[Outside]:
    settings = settings_for(
        database_url,
        tmp_path,
        VADE_NOW="2026-01-31T21:30:00+03:00",
        PAYMENT_GATEWAY="tests.gateways:AlwaysCharges",
    )
    app = create_app(settings)
    yield Outside(app)
    with app.app_context():
        db.engine.dispose()


def midnight(day: date) -> datetime:
    """Return 00:00 of a day in Istanbul, which is three hours before UTC."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC) - timedelta(hours=3)


@pytest.mark.parametrize(("period", "boundaries"), [("monthly", MONTHLY), ("yearly", YEARLY)])
def test_every_period_from_the_31st_ends_on_the_31st_or_the_months_last_day(
    outside: Outside, period: str, boundaries: list[date]
) -> None:
    operator = outside.flask("operator", "token")
    package = outside.call(
        "POST",
        "packages",
        token=operator,
        status=201,
        name="Profesyonel",
        period=period,
        price_minor=129_900,
        currency="TRY",
    )
    registered = outside.call(
        "POST",
        "register",
        status=201,
        site_url="https://lale.example",
        name="Ayşe",
        lastname="Yılmaz",
        company_name="Lale Çiçekçilik",
        email="ayse@lale.example",
        password="correct horse battery",
    )
    logged_in = outside.call("POST", "login", email="AYSE@lale.example", password="correct horse battery")
    token, company_id = logged_in["token"], logged_in["company_id"]
    assert (registered["status"], logged_in["status"], registered["company_id"]) == (0, 1, company_id)
    taken = outside.call(
        "POST",
        "company-packages",
        token=token,
        status=201,
        company_id=company_id,
        package_id=package["id"],
    )
    assert (taken["start_date"], taken["end_date"]) == tuple(day.isoformat() for day in boundaries[:2])

    for number, (start, end) in enumerate(pairwise(boundaries[:-1]), start=1):
        early = instant_text(midnight(end) - timedelta(microseconds=1))
        nothing = outside.flask("billing", "run", "--as-of", early)
        assert nothing == "queued 0, charged 0, declined 0, passive 0, failed 0", end
        done = outside.flask("billing", "run", "--as-of", instant_text(midnight(end)))
        assert done == "queued 1, charged 1, declined 0, passive 0, failed 0", end

        current = outside.call("GET", "company-packages/current", token=token)
        assert current["company"]["status"] == 1
        shown = current["company_package"]
        following = boundaries[number + 1]
        assert (shown["status"], shown["start_date"], shown["end_date"]) == (
            1,
            end.isoformat(),
            following.isoformat(),
        )
        payments = outside.call("GET", "company-payments?limit=100", token=token)["data"]
        assert len(payments) == number
        assert (payments[0]["period_start"], payments[0]["period_end"]) == (
            start.isoformat(),
            end.isoformat(),
        )
        assert (payments[0]["status"], payments[0]["attempt"], payments[0]["amount_minor"]) == (1, 1, 129_900)
        assert payments[0]["attempted_at"] == instant_text(midnight(end))

    assert boundaries[-2] == date(2028, 1, 31)
    charged = [(p["period_start"], p["period_end"]) for p in reversed(payments)]
    assert charged == [(a.isoformat(), b.isoformat()) for a, b in pairwise(boundaries[:-1])]
    assert len({payment["id"] for payment in payments}) == len(payments)
