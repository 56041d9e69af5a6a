"""The daily report as tables for a terminal: one day in full, or several in a row each."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table

from billing.reports import NOTHING, CurrencyFigures, DayFigures, Total
from terminal import money

WIDE = 104
"""From so many columns on, there is room for longer bars, and in a row of several days for all figures."""

LONG, SHORT = 20, 10
"""How many characters a whole bar takes where there is room, and where there is little."""

ORDINALS = {1: "first", 2: "second", 3: "third"}


def bar(share: float, width: int) -> str:
    """Return a bar for a share from 0 to 1, to an eighth of a character."""
    eighths = round(max(0.0, min(share, 1.0)) * width * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")


def day_tables(day: DayFigures, *, width: int) -> Iterator[Table]:
    """Yield one day: its companies, then a table for each currency."""
    companies = Table(title=f"{day.date:%A}, {day.date}", box=box.SIMPLE_HEAD, title_justify="left")
    figures = {
        "new companies": day.new_companies,
        "packages taken": day.packages_taken,
        "companies lost": day.companies_lost,
    }
    for name in figures:
        companies.add_column(name, justify="right")
    companies.add_row(*(f"{number:,}" for number in figures.values()))
    yield companies
    for each in day.currencies:
        yield _currency_table(each, bar_width=LONG if width >= WIDE else SHORT)


def _currency_table(figures: CurrencyFigures, *, bar_width: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(figures.currency, min_width=26)
    # Figures are never cut, however narrow the terminal.
    table.add_column("number", justify="right", overflow="fold")
    table.add_column("amount", justify="right", overflow="fold", min_width=18)
    table.add_column("of all attempts", min_width=bar_width + 5)
    rows: list[tuple[str, Total]] = [("attempts", figures.attempts)]
    for name in ("charged", "declined"):
        rows.append((name, getattr(figures, name)))
        by_attempt = getattr(figures, f"{name}_by_attempt")
        rows += [(f"  {ORDINALS.get(n, n)} attempt", total) for n, total in by_attempt.items()]
    rows += [("recovered after a decline", figures.recovered), ("made passive", figures.made_passive)]
    for name, total in rows:
        style = None if name.startswith(" ") or name not in {"attempts", "charged", "declined"} else "bold"
        share = total.number / figures.attempts.number if figures.attempts.number else 0.0
        table.add_row(
            name, *_cells(figures.currency, total), f"{share:4.0%} {bar(share, bar_width)}", style=style
        )
    table.add_row("outages", *_cells(figures.currency, figures.outages), "")
    table.add_row("packages taken", f"{figures.packages_taken:,}", "", "")
    return table


def _cells(currency: str, total: Total) -> tuple[str, str]:
    return f"{total.number:,}", money({currency: total.amount_minor})


def days_table(days: Sequence[DayFigures], *, width: int) -> Table:
    """Return a row for each day and currency, with a bar for what was charged, and the sums below."""
    wide = width >= WIDE
    shown = [(day, figures) for day in days for figures in day.currencies]
    most: defaultdict[str, int] = defaultdict(int)
    for _, figures in shown:
        most[figures.currency] = max(most[figures.currency], figures.charged.amount_minor)
    table = Table(box=box.SIMPLE_HEAD, show_footer=True, padding=(0, 1, 0, 0))
    sums = [figures for _, figures in shown]
    numbers = [
        *(["attempts"] if wide else []),
        *("charged", "declined", "recovered", "made_passive"),
        *(["outages"] if wide else []),
    ]
    table.add_column("date", footer=f"{len(days)} days", no_wrap=True)

    def add_figure(name: str, number: int) -> None:
        table.add_column(name, justify="right", footer=f"{number:,}", overflow="fold", min_width=len(name))

    add_figure("new", sum(day.new_companies for day in days))
    for name in numbers:
        total = sum((getattr(figures, name) for figures in sums), NOTHING)
        add_figure(name.replace("made_passive", "lost"), total.number)
    collected: defaultdict[str, int] = defaultdict(int)
    for figures in sums:
        collected[figures.currency] += figures.charged.amount_minor
    table.add_column("collected", justify="right", footer=money(collected), overflow="fold", min_width=16)
    if wide:
        table.add_column("", min_width=LONG)
    for day in days:
        new = f"{day.new_companies:,}"
        if not day.currencies:
            table.add_row(day.date.isoformat(), new)
        for place, figures in enumerate(day.currencies):
            first = [day.date.isoformat(), new] if place == 0 else ["", ""]
            cells = [f"{getattr(figures, name).number:,}" for name in numbers]
            amount_minor = figures.charged.amount_minor
            share = amount_minor / most[figures.currency] if most[figures.currency] else 0.0
            table.add_row(*first, *cells, money({figures.currency: amount_minor}), *[bar(share, LONG)] * wide)
    return table
