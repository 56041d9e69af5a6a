"""The audit of the queue, once all has come to rest: nothing due is left, and nothing is under way."""

from collections.abc import Iterator
from datetime import timedelta

from chaos.audit_money import DAY, MOST_ATTEMPTS
from chaos.books import Books
from chaos.days import business_day, midnight

Findings = Iterator[str]


def without_job(books: Books) -> Findings:
    """Every period that has ended, of a package that is open, has its job."""
    queued = {(job.company_id, job.company_package_id, job.period_start) for job in books.jobs}
    today = business_day(books.now)
    for row in books.company_packages:
        if (
            row.status == 1
            and row.end_date <= today
            and (row.company_id, row.id, row.start_date) not in queued
        ):
            yield f"company {row.company_id}, company package {row.id}: ended on {row.end_date}, no job"


def without_period(books: Books) -> Findings:
    """Every job is for the period at which its package stands, at its time and with its number."""
    rows = {(row.company_id, row.id): row for row in books.company_packages}
    periods = books.of_periods()
    for job in books.jobs:
        key = (job.company_id, job.company_package_id, job.period_start)
        row, made = rows[key[:2]], periods.get(key, [])
        is_ = f"job of company {job.company_id}, {job.period_start}, attempt {job.attempt}"
        if row.status != 1 or (row.start_date, row.end_date) != (job.period_start, job.period_end):
            yield f"{is_}: the package stands at {row.start_date} to {row.end_date}, status {row.status}"
            continue
        due = made[-1].attempted_at + DAY if made else midnight(job.period_end)
        due -= books.aged.get((*key, job.attempt), timedelta())
        if job.attempt != len(made) + 1 or job.attempt > MOST_ATTEMPTS:
            yield f"{is_}: {len(made)} attempts were made"
        elif job.next_attempt_at != due and job.next_attempt_at > books.now:
            # One that is due already has a line of its own.
            yield f"{is_}: due at {job.next_attempt_at} instead of {due}"


def not_taken(books: Books) -> Findings:
    """No job that is due is left lying."""
    for job in books.jobs:
        if job.next_attempt_at <= books.now and job.idempotency_key is None:
            yield f"job of company {job.company_id}, {job.period_start}: due since {job.next_attempt_at}"


def under_way(books: Books) -> Findings:
    """No job is begun and not ended: its lease was overdue, or someone still has it."""
    for job in books.jobs:
        if job.idempotency_key is not None:
            yield (
                f"job of company {job.company_id}, {job.period_start}: begun under {job.idempotency_key}, "
                f"leased until {job.leased_until}"
            )
