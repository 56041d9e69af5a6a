"""Many companies at once, all alike, by plain SQL."""

from datetime import date

CROWD = """
WITH package AS (
    INSERT INTO packages (name, period, price_minor, currency)
    VALUES ('Temel', 'monthly', {price_minor}, 'TRY') RETURNING id
), crowd AS (
    INSERT INTO companies (site_url, name, lastname, company_name, email, status, billing_day, registered_at)
    SELECT 'https://store-' || n || '.example', 'Ayşe', 'Yılmaz', 'Mağaza ' || n,
        'store-' || n || '@store.example', 1, {billing_day}, timestamptz '{start} 12:00+03'
    FROM generate_series(1, {number}) AS n RETURNING id
)
INSERT INTO company_packages (company_id, package_id, start_date, end_date, price_minor, currency, full_days)
SELECT crowd.id, package.id, '{start}', '{end}', {price_minor}, 'TRY', date '{end}' - date '{start}'
FROM crowd, package
"""


def crowd(
    number: int,
    *,
    start: date = date(2026, 1, 10),
    end: date = date(2026, 2, 10),
    price_minor: int = 31_000,
) -> str:
    """Return the statement that makes some companies which registered, and took a package, on one day."""
    return CROWD.format(number=number, start=start, end=end, price_minor=price_minor, billing_day=start.day)
