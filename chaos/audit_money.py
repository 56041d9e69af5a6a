"""The audit of money: ledger against payments against periods, and who is passive for it."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from functools import cache
from itertools import pairwise
from typing import Any

from chaos.books import Books, Entry, PeriodKey
from chaos.days import Period, amount_minor, business_day, midnight, period_from

MOST_ATTEMPTS = 3
DAY = timedelta(hours=24)
CLOCK_SLACK = timedelta(milliseconds=1)
"""What rounding may make of two readings of the same machine's clock."""

_DATES = re.compile(r"(\d{4}-\d\d-\d\d) to (\d{4}-\d\d-\d\d)$")

Findings = Iterator[str]


def lost(books: Books) -> Findings:
    """What the gateway did with a key is in ``company_payments``."""
    kept = {row.key for row in books.payments}
    paid = {(e.company_id, e.description) for e in books.entries if e.succeeded and e.key in kept}
    for entry in books.entries:
        # Money that was taken twice has a line of its own.
        if entry.key not in kept and (entry.company_id, entry.description) not in paid:
            done = "charged" if entry.succeeded else "declined"
            yield f"{_named(entry)}: {done} under key {entry.key}, and there is no payment"


def invented(books: Books) -> Findings:
    """What is in ``company_payments`` is in the ledger, and says the same."""
    entries = {entry.key: entry for entry in books.entries}
    for row in books.payments:
        entry = entries.get(row.key)
        if entry is None:
            yield f"{_shown(row)}: key {row.key} is not in the ledger"
        elif (row.company_id, bool(row.status), row.reference) != (
            entry.company_id,
            entry.succeeded,
            entry.reference,
        ):
            yield f"{_shown(row)}: the ledger has {entry}"


def charged_twice(books: Books) -> Findings:
    """A period is charged once: in the ledger, and in the table."""
    in_ledger = Counter((e.company_id, e.description) for e in books.entries if e.succeeded)
    for (company_id, description), number in in_ledger.items():
        if number > 1:
            yield f"company {company_id}, {description}: charged {number} times in the ledger"
    in_table = Counter(
        (row.company_id, row.company_package_id, row.period_start) for row in books.payments if row.status
    )
    for key, number in in_table.items():
        if number > 1:
            yield f"{_period(key)}: {number} charged payments"


def day_charged_twice(books: Books) -> Findings:
    """No day of a company is in two different periods that were charged."""
    spans: defaultdict[tuple[str, int], set[tuple[date, date]]] = defaultdict(set)
    for row in books.payments:
        if row.status:
            spans["payments", row.company_id].add((row.period_start, row.period_end))
    for entry in books.entries:
        if entry.succeeded and (dates := _dates(entry)):
            spans["ledger", entry.company_id].add(dates)
    for (where, company_id), periods in spans.items():
        for (start, end), (next_start, next_end) in pairwise(sorted(periods)):
            if next_start < end:
                yield f"company {company_id}, {where}: {start} to {end} and {next_start} to {next_end}"


def amounts(books: Books) -> Findings:
    """Every attempt is for what its period costs: in the ledger, in the table, and as receivers were told."""
    walked = {key: (period, price) for key, period, price in _all_periods(books)}
    entries = {entry.key: entry for entry in books.entries}
    currencies = {row.id: books.packages[row.package_id].currency for row in books.company_packages}
    for row in (*books.payments, *books.jobs):
        found = walked.get((row.company_id, row.company_package_id, row.period_start))
        if found is None:
            continue
        due = (amount_minor(found[1], found[0]), currencies[row.company_package_id])
        entry = entries.get(getattr(row, "key", ""))
        if (row.amount_minor, row.currency) != due:
            yield f"{_shown(row)}: {row.amount_minor} {row.currency} instead of {due[0]} {due[1]}"
        elif entry is not None and (entry.amount_minor, entry.currency) != due:
            yield f"{_named(entry)}: {entry.amount_minor} {entry.currency} instead of {due[0]} {due[1]}"
    asked = {entry.key: (entry.amount_minor, entry.currency) for entry in books.entries}
    for message in books.received:
        payment = message.data.get("payment")
        if payment and (told := (payment["amount_minor"], payment["currency"])) != asked.get(
            payment["id"], told
        ):
            yield f"message {message.id}: {told} instead of {asked[payment['id']]}"


def periods(books: Books) -> Findings:
    """Periods follow each other without gap or overlap from the first day on, each charged or free."""
    charged = {
        (row.company_id, row.company_package_id, row.period_start) for row in books.payments if row.status
    }
    in_ledger = {(entry.company_id, _dates(entry)) for entry in books.entries if entry.succeeded}
    overlapping = {line.partition(",")[0] for line in day_charged_twice(books)}
    ends: dict[PeriodKey, date] = {}
    for row in books.company_packages:
        package = books.packages[row.package_id]
        *past, last = walk(books, row)
        is_ = f"company {row.company_id}, company package {row.id}"
        for period in past:
            paid = (row.company_id, row.id, period.start) in charged
            if not (
                paid
                or (row.company_id, period[:2]) in in_ledger
                or amount_minor(package.price_minor, period) == 0
            ):
                yield f"{is_}, {period.start} to {period.end}: rolled over, and not charged"
        stands = (row.start_date, row.end_date, row.full_days, row.price_minor, row.currency)
        if stands != (*last, package.price_minor, package.currency):
            yield f"{is_}: stands at {stands} instead of {(*last, package.price_minor, package.currency)}"
        if (row.company_id, row.id, last.start) in charged:
            yield f"{is_}, {last.start} to {last.end}: charged, and not rolled over"
        ends |= {(row.company_id, row.id, period.start): period.end for period in (*past, last)}
    for row in books.payments:
        end = ends.get((row.company_id, row.company_package_id, row.period_start))
        if end != row.period_end and f"company {row.company_id}" not in overlapping:
            yield f"{_shown(row)}: there is no such period"


def early(books: Books) -> Findings:
    """Nothing was asked for before it was due, by the gateway's clock as by the table's."""
    first_asked: dict[str, datetime] = {}
    for ask in books.asks:
        first_asked[ask.key] = min(ask.at, first_asked.get(ask.key, ask.at))
    for key, rows in books.of_periods().items():
        made = {row.attempt: row for row in rows}
        for row in rows:
            before = made.get(row.attempt - 1)
            due = before.attempted_at + DAY if before else midnight(row.period_end)
            due -= books.aged.get((*key, row.attempt), timedelta())
            asked = first_asked.get(row.key, row.attempted_at)
            if min(asked + CLOCK_SLACK, row.attempted_at) < due:
                yield f"{_shown(row)}: asked at {asked}, made at {row.attempted_at}, due at {due}"


def attempts(books: Books) -> Findings:
    """The attempts of a period are counted from 1, end with a charge, and are three at most."""
    for key, rows in books.of_periods().items():
        numbers = [row.attempt for row in rows]
        if numbers != [*range(1, len(rows) + 1)] or len(rows) > MOST_ATTEMPTS:
            # Two rows that charge one period have a line of their own.
            if sum(row.status for row in rows) < 2:
                yield f"{_period(key)}: attempts {numbers}"
        elif any(row.status for row in rows[:-1]) and not rows[-1].status:
            yield f"{_period(key)}: tried again after a charge"


def statuses(books: Books) -> Findings:
    """Passive for non-payment is who was declined three times in one period, and nobody else."""
    given_up = {
        key[0]: (key[1], rows[MOST_ATTEMPTS - 1].attempted_at)
        for key, rows in books.of_periods().items()
        if len(rows) >= MOST_ATTEMPTS and not any(row.status for row in rows)
    }
    logged_in = {fact["company_id"] for fact in books.acknowledged if fact["kind"] == "logged in"}
    crowd = {row.company_id for row in books.company_packages if row.id in books.begun} - {
        fact["company_id"] for fact in books.acknowledged if fact["kind"] == "took"
    }
    for company in books.companies.values():
        passive_since = given_up.get(company.id, (None, None))[1]
        must_be_active = company.id in logged_in | crowd
        if company.passivated_at != passive_since:
            yield f"company {company.id}: passive since {company.passivated_at} instead of {passive_since}"
        elif passive_since is not None and company.status != 0:
            yield f"company {company.id}: active after three declines"
        elif passive_since is None and must_be_active and company.status != 1:
            yield f"company {company.id}: status {company.status} without three declines"
    for row in books.company_packages:
        closed = given_up.get(row.company_id, (None, None))[0] == row.id
        if row.status != int(not closed):
            yield f"company package {row.id} of company {row.company_id}: status {row.status}"


def two_requests(books: Books) -> Findings:
    """The same key comes with the same request, to the letter."""
    requests: dict[str, Any] = {}
    for ask in books.asks:
        request = ask[1:5]
        if requests.setdefault(ask.key, request) != request:
            yield f"key {ask.key}: {requests[ask.key]}, and then {request}"


def walk(books: Books, row: Any) -> list[Period]:
    """Return the periods of a company package from its first day to the one that should stand now.

    Where it should stand is where the day that it stands at, or the next after it, is.
    """
    billing_day = business_day(books.companies[row.company_id].registered_at).day
    period_name = books.packages[row.package_id].period
    found = [_from(books.begun.get(row.id, row.start_date), billing_day, period_name)]
    while found[-1].start < row.start_date:
        found.append(_from(found[-1].end, billing_day, period_name))
    return found


_from = cache(period_from)


def _all_periods(books: Books) -> Iterator[tuple[PeriodKey, Period, int]]:
    """Give every period of every company package, in their order, and the price."""
    for row in books.company_packages:
        for period in walk(books, row):
            yield (row.company_id, row.id, period.start), period, books.packages[row.package_id].price_minor


def _dates(entry: Entry) -> tuple[date, date] | None:
    """Return the period that a charge was for, as its description says it."""
    found = _DATES.search(entry.description)
    return (date.fromisoformat(found[1]), date.fromisoformat(found[2])) if found else None


def _period(key: PeriodKey) -> str:
    return f"company {key[0]}, company package {key[1]}, from {key[2]}"


def _shown(row: Any) -> str:
    return (
        f"company {row.company_id}, company package {row.company_package_id}, {row.period_start} to "
        f"{row.period_end}, attempt {row.attempt}"
    )


def _named(entry: Entry) -> str:
    return f"company {entry.company_id}, {entry.description}"
