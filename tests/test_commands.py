"""The commands: what they print is what they did, and what they refuse they say in a sentence."""

import re
import signal
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from sqlalchemy import text

from billing.documents import instant_text
from billing.gateways import ChargeRequest, GatewayUnavailable
from tests.conftest import settings_for
from tests.crowds import crowd
from tests.gateways import Ledger
from tests.processes import JWT_SECRET_KEY, Database, started, until
from tests.receivers import receiver
from tests.world import LedgerGateway, World, instant
from wsgi import create_app

Flask = Callable[..., Result]


@pytest.fixture
def flask(world: World) -> Flask:
    """Run a command in this process, on what is rolled back."""

    def invoke(*arguments: str, gateway: Any = None, **settings: Any) -> Result:
        former = world.vade
        world.app.extensions["vade"] = replace(
            former,
            gateway=gateway or former.gateway,
            settings=former.settings.model_copy(update=settings),
        )
        try:
            return world.app.test_cli_runner().invoke(args=arguments)
        finally:
            world.app.extensions["vade"] = former
            world.session.expire_all()

    return invoke


PRODUCTION = {"env": "production", "jwt_secret_key": JWT_SECRET_KEY}


def rows(table: str) -> list[list[str]]:
    """Return the cells of a printed table, header and footer too."""
    lines = [line for line in table.splitlines() if "│" in line or "┃" in line]
    return [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines]


def figures(table: str) -> Counter[str]:
    """Return the sums of a printed table, and check its footer against its rows."""
    header, *days, footer = rows(table)
    sums: Counter[str] = Counter()
    for day in days:
        for name, cell in zip(header[1:], day[1:], strict=True):
            sums[name] += round(
                float(cell.removesuffix(" TRY").replace(",", "")) * (100 if name == "money" else 1)
            )
    for name, cell in zip(header[1:-1], footer[1:-1], strict=True):
        assert int(cell.replace(",", "")) == sums[name], name
    assert footer[-1].removesuffix(" TRY").replace(",", "") == f"{sums['money'] / 100:.2f}"
    assert footer[0] == f"{len(days)} days"
    return sums


def in_the_books(database: Any) -> Counter[str]:
    """Return the same figures as the tables have them."""
    charged, declined, money = database(
        "SELECT count(*) FILTER (WHERE status = 1), count(*) FILTER (WHERE status = 0),"
        " coalesce(sum(amount_minor) FILTER (WHERE status = 1), 0)::bigint FROM company_payments"
    )
    (passive,) = database("SELECT count(*) FROM companies WHERE passivated_at IS NOT NULL")
    return Counter(charged=charged, declined=declined, passive=passive, money=money)


def test_a_run_prints_exactly_what_it_did(flask: Flask, world: World) -> None:
    for _ in range(6):
        world.customer(registered_at=instant("2026-01-10"))
    gateway = LedgerGateway(True, True, False, GatewayUnavailable, True, True)

    result = flask("billing", "run", "--as-of", "2026-02-10T00:00:00Z", gateway=gateway)

    assert result.exit_code == 0
    assert result.stdout == "queued 6, charged 4, declined 1, passive 0, failed 1\n"


def test_a_run_tells_who_became_passive(flask: Flask, world: World) -> None:
    world.customer(registered_at=instant("2026-01-10"))
    gateway = LedgerGateway(default=False)

    outputs = [
        flask("billing", "run", "--as-of", f"2026-02-{day}T12:00:00+03:00", gateway=gateway).stdout
        for day in (10, 11, 12, 13)
    ]

    assert outputs == [
        "queued 1, charged 0, declined 1, passive 0, failed 0\n",
        "queued 0, charged 0, declined 1, passive 0, failed 0\n",
        "queued 0, charged 0, declined 1, passive 1, failed 0\n",
        "queued 0, charged 0, declined 0, passive 0, failed 0\n",
    ]


def test_a_run_goes_on_until_nothing_is_due(flask: Flask, world: World) -> None:
    company = world.customer(registered_at=instant("2026-01-10"))

    result = flask("billing", "run", "--as-of", "2026-12-31T12:00:00Z", gateway=LedgerGateway(), batch_size=1)

    assert result.stdout == "queued 11, charged 11, declined 0, passive 0, failed 0\n"
    assert len(world.payments(company)) == 11


def test_a_run_without_an_instant_takes_the_clocks(flask: Flask, world: World) -> None:
    company = world.customer(registered_at=instant("2026-01-10"))
    world.travel(instant("2026-02-11"))

    assert flask("billing", "run", gateway=LedgerGateway()).stdout.startswith("queued 1, charged 1,")
    assert world.payments(company)[0].attempted_at == instant("2026-02-11")


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "now",
        "2026-02-10",
        "2026-02-30T00:00:00Z",
        "2026-02-10T00:00:00",
        "2026-02-10 00:00:00Z",
        "1769990400",
        "0001-01-01T00:00:00+03:00",
        "9999-12-31T23:59:59Z",
        "9999-12-31T23:59:59-12:00",
    ],
)
def test_an_instant_that_is_none_is_refused_by_name(flask: Flask, world: World, bad: str) -> None:
    world.customer(registered_at=instant("2026-01-10"))

    result = flask("billing", "run", "--as-of", bad)

    assert result.exit_code == 2
    assert "Invalid value for '--as-of'" in result.stderr
    assert "Traceback" not in result.output
    assert world.jobs() == []


def test_an_instant_later_than_now_is_refused_in_production(flask: Flask, world: World) -> None:
    world.customer(registered_at=instant("2026-01-10"))
    later = world.session.execute(text("SELECT clock_timestamp() + interval '1 minute'")).scalar_one()

    result = flask("billing", "run", "--as-of", instant_text(later), **PRODUCTION)

    assert result.exit_code == 1
    assert "--as-of" in result.stderr
    assert "production" in result.stderr
    assert world.jobs() == [], "nothing was queued"


def test_an_instant_that_is_over_is_taken_in_production(flask: Flask, world: World) -> None:
    world.customer(registered_at=instant("2026-01-10"))

    result = flask("billing", "run", "--as-of", "2026-02-10T09:00:00Z", gateway=LedgerGateway(), **PRODUCTION)

    assert result.exit_code == 0
    assert result.stdout.startswith("queued 1, charged 1,")


def test_a_simulation_is_refused_in_production(flask: Flask, world: World) -> None:
    world.customer(registered_at=instant("2026-01-10"))

    result = flask("billing", "simulate", "--days", "60", **PRODUCTION)

    assert result.exit_code == 1
    assert "simulate is refused in production" in result.stderr
    assert world.jobs() == []
    assert world.session.execute(text("SELECT count(*) FROM settings")).scalar_one() == 0


@pytest.mark.parametrize("days", ["0", "-1", "1.5", "x", "100000"])
def test_a_number_of_days_that_is_none_is_refused(flask: Flask, days: str) -> None:
    result = flask("billing", "simulate", "--days", days)

    assert result.exit_code == 2
    assert "--days" in result.stderr


def test_a_simulations_figures_add_up_with_the_tables(flask: Flask, world: World) -> None:
    for day in range(10, 25, 3):
        world.session.execute(
            text(crowd(4, start=date(2026, 1, day), end=date(2026, 2, day), price_minor=129_999))
        )
    world.session.commit()

    result = flask("billing", "simulate", "--days", "65")

    assert result.exit_code == 0, result.output
    printed = figures(result.stdout)
    books = in_the_books(lambda query: world.session.execute(text(query)).one())
    assert {name: printed[name] for name in books} == dict(books)
    assert printed["charged"] > 10
    assert printed["declined"] > 10
    days = [row[0] for row in rows(result.stdout)[1:-1]]
    assert days == [(date(2026, 1, 11) + timedelta(days=n)).isoformat() for n in range(65)]


def test_a_simulation_moves_by_whole_days_and_really_collects(flask: Flask, world: World) -> None:
    company = world.customer(registered_at=instant("2026-01-10"))
    gateway = LedgerGateway(False, False, True)

    flask("billing", "simulate", "--days", "40", gateway=gateway)

    assert [(p.attempt, p.status, p.attempted_at) for p in world.payments(company)] == [
        (1, 0, instant("2026-02-10", hour=12)),
        (2, 0, instant("2026-02-11", hour=12)),
        (3, 1, instant("2026-02-12", hour=12)),
    ]


def test_a_simulation_goes_on_where_the_last_one_stopped(flask: Flask, world: World) -> None:
    company = world.customer(registered_at=instant("2026-01-10"))
    gateway = LedgerGateway()

    first = flask("billing", "simulate", "--days", "20", gateway=gateway)
    second = flask("billing", "simulate", "--days", "20", gateway=gateway)

    assert rows(first.stdout)[-2][0] == "2026-01-30"
    assert rows(second.stdout)[1][0] == "2026-01-31"
    assert figures(first.stdout)["charged"] + figures(second.stdout)["charged"] == 1
    assert len(world.payments(company)) == 1


def test_a_simulation_begins_at_the_present_when_that_is_later(flask: Flask, world: World) -> None:
    flask("billing", "simulate", "--days", "3")
    world.travel(instant("2026-06-01"))

    later = flask("billing", "simulate", "--days", "1")

    assert rows(later.stdout)[1][0] == "2026-06-02"


def test_a_simulation_that_is_interrupted_tells_all_that_it_collected(
    committed: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of a day: that day is repeated, and no figure is lost or told twice."""
    committed.session.execute(text(crowd(30)))
    committed.session.commit()
    state = committed.vade
    asked = 0

    class InterruptingGateway(LedgerGateway):
        def charge(self, request: ChargeRequest) -> Any:
            nonlocal asked
            asked += 1
            if asked == 40:
                signal.raise_signal(signal.SIGINT)
            return super().charge(request)

    committed.app.extensions["vade"] = replace(
        state,
        gateway=InterruptingGateway(),
        settings=state.settings.model_copy(update={"batch_size": 5, "gateway_threads": 2}),
    )
    runner = committed.app.test_cli_runner()

    first = runner.invoke(args=["billing", "simulate", "--days", "100"])
    in_between = in_the_books(lambda query: committed.session.execute(text(query)).one())
    second = runner.invoke(args=["billing", "simulate", "--days", "10"])

    assert first.exit_code == 130
    assert "Interrupted after 58 of 100 days; the next call goes on from there." in first.stdout
    assert 30 < in_between["charged"] < 60, "in the middle of the second month"
    assert figures(first.stdout)["charged"] == in_between["charged"]
    assert second.exit_code == 0
    assert rows(second.stdout)[1][0] == rows(first.stdout)[-2][0] == "2026-03-10", "the day is repeated"
    sums = figures(first.stdout) + figures(second.stdout)
    books = in_the_books(lambda query: committed.session.execute(text(query)).one())
    assert {name: sums[name] for name in books} == dict(books)
    assert books["charged"] == 60


@pytest.mark.slow
def test_a_run_that_is_interrupted_settles_and_releases(database_url: str, tmp_path: Path) -> None:
    database, ledger = Database(database_url), Ledger(tmp_path / "ledger")
    database.do(crowd(30))
    command = ("-m", "flask", "--app", "wsgi", "billing", "run", "--as-of", "2026-02-10T09:00:00Z")
    settings = {
        "DATABASE_URL": database_url,
        "INSTANCE_DIR": str(tmp_path),
        "PAYMENT_GATEWAY": "tests.gateways:SlowGateway",
        "LEDGER_DIR": str(tmp_path / "ledger"),
        "GATEWAY_DELAY_S": "0.3",
        "GATEWAY_THREADS": "3",
    }

    with started(tmp_path / "run.log", *command, **settings) as program:
        until(lambda: len(ledger.keys()) >= 2, what=program.text)
        program.tell(signal.SIGINT)
        program.tell(signal.SIGINT)
        assert program.ended(within_s=10) == 130

    charged = len(ledger.keys())
    assert charged < 30
    assert program.text().splitlines()[-1] == f"queued 30, charged {charged}, declined 0, passive 0, failed 0"
    assert database.one("SELECT count(*) FROM company_payments") == charged
    assert database.one("SELECT count(*) FROM payment_jobs WHERE leased_until <= now()") == 30 - charged


def test_callbacks_that_are_due_are_delivered_and_counted(flask: Flask, world: World) -> None:
    with receiver() as good, receiver(500) as bad:
        for url in (good.url, bad.url, None):
            fields: dict[str, Any] = {"callback_url": url, "callback_secret": "whsec_eA=="} if url else {}
            company = world.company(**fields)
            previous = {"company": {"name": "Former"}}
            world.vade.outbox.write(
                world.session, "company.updated", company, now=world.now, previous=previous
            )
            if url is good.url:
                world.listen(company, None)
        world.session.commit()

        first = flask("callbacks", "deliver", callback_url=good.url)
        second = flask("callbacks", "deliver", callback_url=good.url)

        assert first.stdout == "delivered 3, failed 1, exhausted 1\n"
        assert second.stdout == "delivered 0, failed 0, exhausted 0\n"
        assert (len(good.received), len(bad.received)) == (3, 1)


@pytest.mark.parametrize(
    "command",
    [
        ["billing", "run"],
        ["billing", "simulate", "--days", "1"],
        ["callbacks", "deliver"],
        ["operator", "token"],
        ["operator", "list"],
    ],
    ids=" ".join,
)
def test_a_database_that_does_not_answer_gets_a_sentence(tmp_path: Path, command: list[str]) -> None:
    app = create_app(settings_for("postgresql://127.0.0.1:9/x", tmp_path))

    result = app.test_cli_runner().invoke(args=command)

    assert result.exit_code == 1
    assert result.stderr.startswith("Error: The database fails: ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "command", [["billing", "run"], ["billing", "simulate", "--days", "1"]], ids=" ".join
)
def test_a_gateway_that_hangs_gets_a_sentence(flask: Flask, world: World, command: list[str]) -> None:
    for _ in range(4):
        world.customer(registered_at=instant("2026-01-10"))
    world.travel(instant("2026-02-10"))
    opened = threading.Event()

    class HangingGateway:
        def charge(self, _: ChargeRequest) -> None:
            opened.wait(30)

    result = flask(*command, gateway=HangingGateway(), gateway_threads=1, gateway_timeout_s=0.05)
    opened.set()

    assert result.exit_code == 1
    assert result.stderr == "Error: 2 threads hang in the payment gateway.\n"
    assert len(world.jobs()) == 4


def test_signals_are_heard_as_before_after_a_command(flask: Flask) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    flask("callbacks", "deliver")

    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
