"""The audit: every law a line, and under it the rows that break it. It shares no code with the product."""

from collections.abc import Callable, Iterator

from chaos import audit_messages, audit_money, audit_queue
from chaos.books import Books

LINES: dict[str, Callable[[Books], Iterator[str]]] = {
    "lost: answered by the gateway, and no payment": audit_money.lost,
    "lost: acknowledged by the API, and not there": audit_messages.acknowledged,
    "a payment that the ledger does not have": audit_money.invented,
    "doubled: a period charged twice": audit_money.charged_twice,
    "a day of a company charged twice": audit_money.day_charged_twice,
    "one key with two requests": audit_money.two_requests,
    "amount wrong": audit_money.amounts,
    "period wrong, or rolled over for nothing": audit_money.periods,
    "charged early": audit_money.early,
    "attempts counted wrong": audit_money.attempts,
    "status wrong": audit_money.statuses,
    "stuck: due without a job": audit_queue.without_job,
    "stuck: job due, and not taken": audit_queue.not_taken,
    "stuck: lease overdue, or still under way": audit_queue.under_way,
    "job wrong": audit_queue.without_period,
    "callback missing: platform": audit_messages.platform_missing,
    "callback missing: company": audit_messages.company_missing,
    "callback not delivered": audit_messages.undelivered,
    "callback falsified": audit_messages.falsified,
}
"""The lines of the table, and what finds the rows that break them. All are to be empty."""


def audit(books: Books) -> dict[str, list[str]]:
    """Return for each line the rows that break it."""
    return {name: [*find(books)] for name, find in LINES.items()}
