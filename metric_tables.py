"""The metrics report as tables with bars for a terminal."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from billing.documents import Document
from report_tables import LONG, SHORT, WIDE, bar
from terminal import money


def metric_tables(report: Document, *, width: int) -> Iterator[RenderableType]:
    """Yield what recurs, then the months, then what falls due; narrow terminals get fewer columns."""
    head = Text(f"As of {report['as_of']}", style="italic")
    yield Group(head, _recurring(report))
    yield _months(report["months"], wide=width >= WIDE)
    yield _due(report, bar_width=LONG if width >= WIDE else SHORT)


def _recurring(report: Document) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("companies", "active", "MRR", "monthly packages", "yearly packages"):
        table.add_column(name, justify="right", overflow="fold")
    companies = [f"{report[name]:,}" for name in ("companies", "active_companies")]
    for place, each in enumerate(report["currencies"]):
        table.add_row(
            *(companies if place == 0 else ["", ""]),
            money({each["currency"]: each["mrr_minor"]}),
            f"{each['monthly_packages']:,}",
            f"{each['yearly_packages']:,}",
        )
    if not report["currencies"]:
        table.add_row(*companies, "0.00", "0", "0")
    return table


def _months(months: Sequence[Document], *, wide: bool) -> Table:
    most = _most(month["collected"] for month in months)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("month", no_wrap=True)
    names = ["active", "taken", "lost", "churn", *(["declined", "recovered"] if wide else []), "recovery"]
    for name in names:
        table.add_column(name, justify="right", overflow="fold", min_width=len(name))
    table.add_column("collected", justify="right", overflow="fold", min_width=16)
    table.add_column("", min_width=LONG if wide else SHORT)
    for month in months:
        numbers = ["active_companies", "packages_taken", "companies_lost"]
        cells = [f"{month[name]:,}" for name in numbers] + [_percent(month["churn_rate"])]
        if wide:
            cells += [f"{month[name]:,}" for name in ("first_declines", "recovered")]
        cells.append(_percent(month["recovery_rate"]))
        table.add_row(month["month"], *cells, *_amounts(month["collected"], most, LONG if wide else SHORT))
    return table


def _due(report: Document, *, bar_width: int) -> Table:
    days = [day for day in report["forecast"] if day["currencies"]]
    most = _most([report["due_now"], *(day["currencies"] for day in days)])
    table = Table(box=box.SIMPLE_HEAD, show_footer=True)
    every = [total for day in report["forecast"] for total in day["currencies"]]
    table.add_column("due", footer=f"next {len(report['forecast'])} days", no_wrap=True)
    table.add_column(
        "periods", justify="right", footer=f"{sum(total['number'] for total in every):,}", overflow="fold"
    )
    table.add_column("amount", justify="right", footer=_sum(every), overflow="fold", min_width=16)
    table.add_column("", min_width=bar_width)
    for name, totals in [
        ("now", report["due_now"]),
        ("  of it retried", [each["retried"] | {"currency": each["currency"]} for each in report["due_now"]]),
        *((day["date"], day["currencies"]) for day in days),
    ]:
        number = f"{sum(total['number'] for total in totals):,}"
        table.add_row(name, number, *_amounts(totals, most, bar_width))
    return table


def _amounts(totals: Sequence[Document], most: dict[str, int], width: int) -> tuple[str, str]:
    """Return amounts and their bars, a line for each currency; the longest is the most of its currency."""
    bars = (
        bar(total["amount_minor"] / most[total["currency"]] if most[total["currency"]] else 0.0, width)
        for total in totals
    )
    return _sum(totals), "\n".join(bars)


def _most(lists: Iterator[Sequence[Document]] | Sequence[Sequence[Document]]) -> dict[str, int]:
    most: dict[str, int] = {}
    for totals in lists:
        for total in totals:
            most[total["currency"]] = max(most.get(total["currency"], 0), total["amount_minor"])
    return most


def _sum(totals: Sequence[Document]) -> str:
    amounts: dict[str, int] = {}
    for total in totals:
        amounts[total["currency"]] = amounts.get(total["currency"], 0) + total["amount_minor"]
    return money(amounts)


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.1%}"
