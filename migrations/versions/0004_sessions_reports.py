"""Sessions that can be ended, operators with roles, kept answers, and figures for reports.

Only adds: programs of the revision before go on on the new schema. What is there already is counted for the
reports while ``company_payments`` takes no rows: collection waits for it. Requests go on meanwhile, but for those
that write in the moment at the end in which companies and their packages are counted.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# The quarter of an hour is the largest step in which the business days of all zones begin and end.
QUARTER = "date_bin('15 minutes', {}, timestamptz '2000-01-01 00:00+00')"

ATTEMPTS = f"""
    SELECT {QUARTER.format("attempted_at")}, CASE WHEN status = 1 THEN 'charged' ELSE 'declined' END,
        currency, attempt, count(*), sum(amount_minor)
    FROM {{source}} GROUP BY 1, 2, 3, 4
"""
REGISTERED = f"""
    SELECT {QUARTER.format("registered_at")}, 'registered', '', 0, count(*), 0 FROM {{source}} GROUP BY 1
"""
# A row that does not say when it was taken was taken on the first day that is known of it: at ten o'clock in
# UTC, which is that day in all zones from Hawaii to New Zealand.
TAKEN = f"""
    SELECT {QUARTER.format("coalesce(taken_at, (start_date + time '10:00') AT TIME ZONE 'UTC')")}, 'taken',
        currency, 0, count(*), 0
    FROM {{source}} GROUP BY 1, 3
"""
# What was paid is locked by then, so this is all that there will be of packages from before.
FIRST_DAYS = """
    CREATE TEMPORARY TABLE first_days ON COMMIT DROP AS
    SELECT company_id, company_package_id, min(period_start) AS day FROM company_payments GROUP BY 1, 2
"""
TAKEN_BEFORE = """(
    SELECT NULL::timestamptz AS taken_at, cp.currency, least(cp.start_date, first.day) AS start_date
    FROM company_packages cp LEFT JOIN first_days first
        ON first.company_id = cp.company_id AND first.company_package_id = cp.id
) AS taken"""

INTO = "INSERT INTO report_entries (at, figure, currency, attempt, number, amount_minor)"

COUNTED = {
    # table: what an entry says of new rows, and what those are that are there already
    "company_payments": (ATTEMPTS, "company_payments"),
    "companies": (REGISTERED, "companies"),
    "company_packages": (TAKEN, TAKEN_BEFORE),
}


def count_rows(table: str, query: str) -> None:
    """Let each statement that adds rows add entries too, in its own transaction: as many as it has kinds."""
    op.execute(f"""
CREATE FUNCTION count_{table}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    {INTO}
    {query.format(source="added").strip()};
    RETURN NULL;
END
$$
""")
    op.execute(f"""
CREATE TRIGGER {table}_counted AFTER INSERT ON {table} REFERENCING NEW TABLE AS added
FOR EACH STATEMENT EXECUTE FUNCTION count_{table}()
""")


def upgrade() -> None:
    """Count first, and lock the tables of requests last: each lock is held to the end."""
    create_entries()
    for table, (query, source) in COUNTED.items():
        # A trigger's lock keeps others from adding rows: what is there is counted once, what comes by it.
        count_rows(table, query)
        op.execute(f"{INTO} {query.format(source=source)}")
        if table == "company_payments":
            op.execute(FIRST_DAYS)
    create_others()
    op.add_column("company_packages", sa.Column("taken_at", sa.DateTime(timezone=True), nullable=True))


def create_entries() -> None:
    op.create_table(
        "report_entries",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("figure", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("attempt", sa.SmallInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "figure IN ('charged', 'declined', 'outage', 'registered', 'taken')",
            name=op.f("report_entries_figure_check"),
        ),
        sa.PrimaryKeyConstraint(
            "at", "figure", "currency", "attempt", "id", name=op.f("report_entries_pkey")
        ),
    )
    op.create_index("report_entries_single_idx", "report_entries", ["at"], postgresql_where=sa.text("id > 0"))


def create_others() -> None:
    op.create_table(
        "company_sessions",
        sa.Column("company_id", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("generation", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["company_id"],
            ["companies.id"],
            name=op.f("company_sessions_company_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("company_id", "id", name=op.f("company_sessions_pkey")),
    )
    op.create_index(op.f("company_sessions_expires_at_idx"), "company_sessions", ["expires_at"])
    op.create_table(
        "operators",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("role IN ('read', 'support', 'admin')", name=op.f("operators_role_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("operators_pkey")),
        sa.UniqueConstraint("name", name=op.f("operators_name_key")),
    )
    op.create_table(
        "operator_tokens",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("operator_id", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["operator_id"], ["operators.id"], name=op.f("operator_tokens_operator_id_fkey")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("operator_tokens_pkey")),
    )
    op.create_index(op.f("operator_tokens_operator_id_idx"), "operator_tokens", ["operator_id"])
    op.create_table(
        "idempotency_keys",
        sa.Column("company_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("claim", sa.Uuid(), nullable=False),
        sa.Column("leased_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("answer", sa.dialects.postgresql.JSONB(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("company_id", "digest", name=op.f("idempotency_keys_pkey")),
        postgresql_with={"fillfactor": 70, "autovacuum_vacuum_scale_factor": 0.05},
    )
    op.create_index(op.f("idempotency_keys_created_at_idx"), "idempotency_keys", ["created_at"])
    op.create_table(
        "daily_reports",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("day", name=op.f("daily_reports_pkey")),
    )


def downgrade() -> None:
    for table in COUNTED:
        op.execute(f"DROP TRIGGER {table}_counted ON {table}")
        op.execute(f"DROP FUNCTION count_{table}()")
    op.drop_column("company_packages", "taken_at")
    for table in (
        "daily_reports",
        "report_entries",
        "idempotency_keys",
        "operator_tokens",
        "operators",
        "company_sessions",
    ):
        op.drop_table(table)
