"""The daily report: asked for over HTTP and at a terminal; made once for each day, by whoever comes first."""

import csv
import io
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, text

from billing import daily_reports
from billing.callbacks import MAXIMUM_BODY_BYTES
from billing.clock import Moment
from billing.daily_reports import list_due, make, make_due
from billing.gateways import GatewayUnavailable
from models import PLATFORM_ID, Callback, DailyReport, ReportEntry, db
from report_tables import bar
from tests.api import DescribedClient, assert_problem
from tests.figures import ISTANBUL
from tests.processes import until
from tests.world import LedgerGateway, World, instant

URL = "/api/v1/reports/daily"


@pytest.fixture
def story(world: World) -> World:
    """Three days in February: a charge, a decline that is recovered, one that is not, and an outage."""
    for price_minor, currency in ((10_000, "TRY"), (20_000, "TRY"), (300, "EUR"), (40_000, "TRY")):
        world.travel(instant("2026-01-10"))
        world.customer(price_minor=price_minor, currency=currency)

    def verdict(request: Any) -> Any:
        raise GatewayUnavailable("down")

    by_amount: dict[tuple[int, str], Any] = {
        (10_000, "2026-02-10"): True,
        (20_000, "2026-02-10"): False,
        (20_000, "2026-02-11"): True,
        **{(300, f"2026-02-{day}"): False for day in (10, 11, 12)},
    }
    for day in ("2026-02-10", "2026-02-11", "2026-02-12"):

        class Gateway(LedgerGateway):
            def charge(self, request: Any, day: str = day) -> Any:
                answer = by_amount.get((request.amount_minor, day), GatewayUnavailable)
                self._default = answer
                return super().charge(request)

        world.collect(Gateway(), at=instant(day))
        world.end_leases()
    world.travel(instant("2026-02-13", hour=1))
    return world


def total(number: int, amount_minor: int = 0) -> dict[str, int]:
    return {"number": number, "amount_minor": amount_minor}


def test_a_report_tells_what_was_by_currency_and_attempt(story: World, client: DescribedClient) -> None:
    answer = client.get(f"{URL}?from=2026-02-10&to=2026-02-12", headers=story.operator())

    assert answer.status_code == 200
    first, second, third = answer.json["data"]
    assert (first["date"], first["new_companies"], first["companies_lost"]) == ("2026-02-10", 0, 0)
    euro, lira = first["currencies"]
    assert (euro["currency"], euro["declined"], euro["charged"]) == ("EUR", total(1, 300), total(0))
    assert lira == {
        "currency": "TRY",
        "attempts": total(2, 30_000),
        "charged": total(1, 10_000),
        "declined": total(1, 20_000),
        "by_attempt": [
            {"attempt": 1, "charged": total(1, 10_000), "declined": total(1, 20_000)},
            {"attempt": 2, "charged": total(0), "declined": total(0)},
            {"attempt": 3, "charged": total(0), "declined": total(0)},
        ],
        "recovered": total(0),
        "made_passive": total(0),
        "outages": total(1, 40_000),
        "packages_taken": 0,
    }
    (_, lira) = second["currencies"]
    assert (lira["recovered"], lira["charged"]) == (total(1, 20_000), total(1, 20_000))
    assert lira["by_attempt"][1]["charged"] == total(1, 20_000)
    (euro, _) = third["currencies"]
    assert (third["companies_lost"], euro["made_passive"]) == (1, total(1, 300))
    assert euro["by_attempt"][2]["declined"] == total(1, 300)


def test_new_companies_and_packages_taken_are_told(story: World, client: DescribedClient) -> None:
    (day,) = client.get(f"{URL}?from=2026-01-10", headers=story.operator()).json["data"]

    assert (day["new_companies"], day["packages_taken"]) == (4, 4)
    assert [(c["currency"], c["packages_taken"]) for c in day["currencies"]] == [("EUR", 1), ("TRY", 3)]


@pytest.mark.parametrize(
    ("query", "days"),
    [
        ("", ["2026-02-12"]),
        ("?from=2026-02-10", ["2026-02-10"]),
        ("?to=2026-02-11", ["2026-02-11"]),
        ("?from=2026-02-28&to=2026-03-01", ["2026-02-28", "2026-03-01"]),
    ],
)
def test_days_are_both_included_and_yesterday_where_none_is_named(
    story: World, client: DescribedClient, query: str, days: list[str]
) -> None:
    answer = client.get(URL + query, headers=story.operator())

    assert [day["date"] for day in answer.json["data"]] == days


@pytest.mark.parametrize(
    ("query", "pointers"),
    [
        ("?from=2026-02-10&to=2026-02-09", ["#/to"]),
        ("?from=2024-02-10&to=2025-02-10", ["#/to"]),
        ("?from=0001-01-01&to=9999-12-31", ["#/to"]),
        ("?from=yesterday", ["#/from"]),
        ("?from=2026-02-30&to=1700000000", ["#/from", "#/to"]),
        ("?to=2026-02-10T00:00:00Z", ["#/to"]),
        ("?since=2026-02-10", ["#/since"]),
        ("?from_=2026-02-10", ["#/from_"]),
    ],
)
def test_what_is_no_range_of_days_is_refused(
    world: World, client: DescribedClient, query: str, pointers: list[str]
) -> None:
    assert_problem(client.get(URL + query, headers=world.operator()), 422, pointers=pointers)


def test_a_year_is_not_too_long(world: World, client: DescribedClient) -> None:
    answer = client.get(f"{URL}?from=2024-01-01&to=2024-12-31", headers=world.operator())

    assert len(answer.json["data"]) == 366


def command(world: World, *arguments: str) -> str:
    result = world.app.test_cli_runner().invoke(args=["report", "daily", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout_bytes.decode()


def test_the_command_says_the_same_as_the_api(story: World, client: DescribedClient) -> None:
    asked = ("--date", "2026-02-10", "--to", "2026-02-12", "--format", "json")
    told = json.loads(command(story, *asked))

    assert told == client.get(f"{URL}?from=2026-02-10&to=2026-02-12", headers=story.operator()).json
    assert [day["date"] for day in json.loads(command(story, "--format", "json"))["data"]] == ["2026-02-12"]


def test_each_column_of_the_csv_adds_up(story: World) -> None:
    printed = command(story, "--date", "2026-01-10", "--to", "2026-02-12", "--format", "csv")

    assert printed.endswith("\r\n")
    rows = list(csv.DictReader(io.StringIO(printed, newline=""), strict=True))
    assert len({(row["date"], row["currency"]) for row in rows}) == len(rows)
    assert len({row["date"] for row in rows}) == 34, "days without anything too"
    sums = {name: sum(int(row[name]) for row in rows) for name in rows[0] if name not in {"date", "currency"}}
    assert {name: value for name, value in sums.items() if value} == {
        "attempts": 6,
        "attempts_minor": 50_900,
        "charged": 2,
        "charged_minor": 30_000,
        "declined": 4,
        "declined_minor": 20_900,
        "recovered": 1,
        "recovered_minor": 20_000,
        "made_passive": 1,
        "made_passive_minor": 300,
        "outages": 3,
        "outages_minor": 120_000,
        "charged_1": 1,
        "charged_1_minor": 10_000,
        "declined_1": 2,
        "declined_1_minor": 20_300,
        "charged_2": 1,
        "charged_2_minor": 20_000,
        "declined_2": 1,
        "declined_2_minor": 300,
        "declined_3": 1,
        "declined_3_minor": 300,
        "packages_taken": 4,
        "new_companies": 4,
    }


@pytest.mark.parametrize("columns", ["80", "120"])
def test_the_tables_fit_the_terminal(story: World, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("report_commands.WIDTH", int(columns))

    one = command(story, "--date", "2026-02-10")
    several = command(story, "--date", "2026-02-09", "--to", "2026-02-12")

    for printed in (one, several):
        assert "…" not in printed
        assert max(map(len, printed.splitlines())) <= int(columns)
    assert "Tuesday, 2026-02-10" in one
    assert "10,000" not in one, "money is in whole units"
    assert "100.00 TRY" in one
    assert "300.00 TRY" in several.splitlines()[-2] + several.splitlines()[-1]


def test_the_command_refuses_a_range_that_ends_before_it_begins(world: World) -> None:
    arguments = ["report", "daily", "--date", "2026-02-10", "--to", "2026-02-09"]
    result = world.app.test_cli_runner().invoke(args=arguments)

    assert result.exit_code == 2
    assert "--to: This is before" in result.output


@pytest.mark.parametrize(
    ("share", "width", "drawn"),
    [(0, 4, ""), (1, 4, "████"), (0.5, 4, "██"), (0.28, 4, "█▏"), (2, 2, "██"), (-1, 2, "")],
)
def test_a_bar_is_as_long_as_its_share(share: float, width: int, drawn: str) -> None:
    assert bar(share, width) == drawn


def now(day: str, minutes: int = 10) -> Moment:
    """Some minutes after the midnight with which a day begins."""
    business = instant(day, hour=0) + timedelta(minutes=minutes)
    return Moment(business, datetime(2026, 6, 1, tzinfo=UTC))


def due(world: World, day: str, minutes: int = 10) -> list[str]:
    days = list_due(world.session, now(day, minutes).business, zone=ISTANBUL)
    return [found.isoformat() for found in days]


def knows_since(world: World, day: str) -> None:
    world.company(registered_at=instant(day))


def made(world: World, day: str) -> None:
    world.session.add(DailyReport(day=date.fromisoformat(day), made_at=now(day).real))
    world.session.flush()


def test_yesterday_is_due_some_minutes_after_midnight(world: World) -> None:
    knows_since(world, "2026-01-05")

    assert due(world, "2026-02-10", minutes=9) == ["2026-02-08"]
    assert due(world, "2026-02-10", minutes=10) == ["2026-02-09"]


def test_a_fresh_installation_reports_no_day_of_which_it_knows_nothing(world: World) -> None:
    assert due(world, "2026-02-10") == []

    knows_since(world, "2026-02-10")

    assert due(world, "2026-02-10") == []
    assert due(world, "2026-02-11") == ["2026-02-10"]


def test_days_that_were_missed_are_made_up_for_oldest_first(world: World) -> None:
    knows_since(world, "2025-01-05")
    made(world, "2026-02-06")

    assert due(world, "2026-02-10") == ["2026-02-07", "2026-02-08", "2026-02-09"]
    assert due(world, "2026-02-07") == []
    assert due(world, "2026-02-01") == [], "when the clock was ahead"


def test_of_very_many_missed_days_the_latest_month_is_made_up_for(world: World) -> None:
    made(world, "2025-02-06")

    days = due(world, "2026-02-10")

    assert (len(days), days[0], days[-1]) == (31, "2026-01-10", "2026-02-09")


def messages(world: World) -> list[Callback]:
    query = select(Callback).where(Callback.type == daily_reports.DAILY).order_by(Callback.body)
    return list(world.session.scalars(query))


def make_all(world: World, day: str, *, by_platform: bool = True) -> list[date]:
    return [
        each
        for each in list_due(world.session, now(day).business, zone=ISTANBUL)
        if make(world.session, each, now(day), zone=ISTANBUL, by_platform=by_platform)
    ]


def test_the_platform_is_told_once_what_the_api_tells(story: World, client: DescribedClient) -> None:
    assert make_all(story, "2026-02-13") == [date(2026, 2, 12)]
    assert make_all(story, "2026-02-13") == []
    assert not make(story.session, date(2026, 2, 12), now("2026-02-13"), zone=ISTANBUL, by_platform=True)

    (message,) = messages(story)
    body = json.loads(message.body)
    (day,) = client.get(f"{URL}?from=2026-02-12", headers=story.operator()).json["data"]
    assert body == {
        "type": "report.daily",
        "timestamp": "2026-02-12T21:10:00.000000Z",
        "data": {"report": day, "omitted_currencies": 0},
    }
    assert (message.company_id, message.recipient, message.status) == (PLATFORM_ID, "platform", "pending")


def test_where_the_platform_does_not_listen_the_day_is_done_all_the_same(story: World) -> None:
    make_all(story, "2026-02-13", by_platform=False)

    assert messages(story) == []
    assert make_all(story, "2026-02-13") == []


def test_a_day_on_which_nothing_was_is_reported_too(story: World) -> None:
    made(story, "2026-02-20")

    assert make_all(story, "2026-02-23") == [date(2026, 2, 21), date(2026, 2, 22)]
    assert [json.loads(each.body)["data"]["report"]["currencies"] for each in messages(story)] == [[], []]


def test_a_message_stays_short_with_every_currency_and_the_largest_figures(world: World) -> None:
    largest = 2**63 - 1
    for number in range(170):
        currency = f"{chr(65 + number // 26)}{chr(65 + number % 26)}X"
        for figure in ("charged", "declined", "outage", "taken"):
            for attempt in (1, 2, 3) if figure in {"charged", "declined"} else (0,):
                # Those in the middle have the most attempts.
                share = largest // 7 - abs(number - 85)
                world.session.add(
                    ReportEntry(
                        at=instant("2026-02-09"),
                        figure=figure,
                        currency=currency,
                        attempt=attempt,
                        number=share,
                        amount_minor=largest // 7,
                    )
                )
    world.session.flush()

    make_all(world, "2026-02-10")

    (message,) = messages(world)
    data = json.loads(message.body)["data"]
    assert 15_000 < len(message.body.encode()) < MAXIMUM_BODY_BYTES
    shown = [figures["currency"] for figures in data["report"]["currencies"]]
    assert len(shown) + data["omitted_currencies"] == 170
    assert shown == sorted(shown)
    assert "DHX" in shown, "the one in the middle"
    assert not {"AAX", "GNX"} & set(shown)


def test_a_simulation_tells_nothing(world: World) -> None:
    world.travel(instant("2026-01-10"))
    world.customer()

    result = world.app.test_cli_runner().invoke(args=["billing", "simulate", "--days", "3"])

    assert result.exit_code == 0, result.output
    assert messages(world) == []
    assert not world.session.scalars(select(DailyReport)).all()


def test_of_two_at_once_one_makes_it_and_the_other_waits_for_that(committed: World) -> None:
    knows_since(committed, "2026-01-05")
    day, moment = date(2026, 1, 9), now("2026-01-10")
    assert make(committed.session, day, moment, zone=ISTANBUL, by_platform=True)

    with ThreadPoolExecutor(1) as pool:
        committed.travel(moment.business)
        other = pool.submit(make_due, db.engine, committed.vade.clock, zone=ISTANBUL, by_platform=True)
        waits_for_lock(committed, other)
        committed.session.commit()
        assert other.result(30) == []

    assert len(messages(committed)) == 1


def test_where_the_first_fails_the_other_makes_it(committed: World) -> None:
    knows_since(committed, "2026-01-05")
    moment = now("2026-01-10")
    assert make(committed.session, date(2026, 1, 9), moment, zone=ISTANBUL, by_platform=True)

    with ThreadPoolExecutor(1) as pool:
        committed.travel(moment.business)
        other = pool.submit(make_due, db.engine, committed.vade.clock, zone=ISTANBUL, by_platform=True)
        waits_for_lock(committed, other)
        committed.session.rollback()
        assert other.result(30) == [date(2026, 1, 9)]

    assert len(messages(committed)) == 1


def waits_for_lock(world: World, future: Any) -> None:
    """Return once another session waits; what this one has written stays open."""
    engine = db.engine.execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        query = text(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"
        )
        until(lambda: future.done() or connection.execute(query).scalar_one())
    assert not future.done(), future.result()
