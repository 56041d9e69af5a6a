"""That what the peers' statement writes is what Vade writes, column by column."""

import psycopg
from psycopg.rows import dict_row

from bench.peers.work import charge
from bench.world import AS_OF, TEMPLATE, database, fill, make_app
from cli import make_collector
from web.context import vade

DUE = 100

_TABLES = {
    "company_payments": "*",
    "company_packages": "*",
    "companies": "*",
    # When a message was made is real time, and the id of the pass that made it is Vade's own.
    "callbacks": "company_id, id, recipient, type, body, status",
}

_RIGHT = f"""SELECT count(*) FROM company_payments
WHERE attempt = 1 AND reference = encode(sha256(id::text::bytea), 'hex')
    AND status = CASE WHEN right(reference, 1) IN ('1','3','5','7','9','b','d','f') THEN 1 ELSE 0 END
    AND decline_code IS NOT DISTINCT FROM CASE WHEN status = 0 THEN 'declined_by_bank' END
    AND amount_minor = 19900 AND currency = 'TRY' AND attempted_at = '{AS_OF}'
    AND period_end = period_start + interval '1 month'"""

COUNTS = {
    "attempts": "SELECT count(*) FROM company_payments",
    "declined": "SELECT count(*) FROM company_payments WHERE status = 0",
    "right": _RIGHT,
    "rolled": "SELECT count(*) FROM company_packages cp JOIN company_payments pa ON pa.status = 1"
    " AND pa.company_id = cp.company_id AND pa.company_package_id = cp.id AND pa.period_end = cp.start_date",
    "messages": "SELECT count(*) FROM callbacks",
    "sequence": "SELECT sum(sequence)::bigint FROM companies",
}
"""What is counted after a run: how many rows are as they have to be."""


def check(url: str, collect: str) -> None:
    """Let Vade collect, and the statement with the same idempotency keys; compare all that was written.

    Raises:
        RuntimeError: where a row differs.
    """
    with database(url, "vade_bench_vade", template=TEMPLATE) as ours:
        fill(ours, companies=DUE, due=DUE)
        app = make_app(ours)
        with app.app_context():
            make_collector(vade()).run_pass()
        vades = _rows(ours)
    with database(url, "vade_bench_peer", template=TEMPLATE) as theirs:
        fill(theirs, companies=DUE, due=DUE)
        with psycopg.connect(theirs) as connection:
            for row in vades["company_payments"]:
                connection.execute(collect.encode(), _parameters(row))
        peers = _rows(theirs)
    for name, rows in vades.items():
        for row, other in zip(rows, peers[name], strict=True):
            if row != other:
                raise RuntimeError(f"{name}: Vade writes {row}, and the peers' statement {other}")


def _parameters(payment: dict[str, object]) -> dict[str, object]:
    place = {name: payment[name] for name in ("company_id", "company_package_id", "period_start")}
    return charge(place, payment["attempted_at"], key=payment["id"])  # type: ignore[arg-type]


def _rows(url: str) -> dict[str, list[dict[str, object]]]:
    with psycopg.connect(url, row_factory=dict_row) as connection:
        return {
            name: connection.execute(f"SELECT {columns} FROM {name} ORDER BY 1, 2, 3".encode()).fetchall()
            for name, columns in _TABLES.items()
        }
