"""Core tables.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


REFUSE_CHANGES = """
CREATE FUNCTION refuse_change_of_company_payments() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'company payments are only ever added' USING ERRCODE = 'restrict_violation';
END
$$
"""

# Per statement: it costs an INSERT nothing.
REFUSING_TRIGGER = """
CREATE TRIGGER company_payments_only_ever_added BEFORE UPDATE OR DELETE OR TRUNCATE ON company_payments
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_company_payments()
"""


def upgrade() -> None:
    op.create_table(
        "callbacks",
        sa.Column("company_id", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("recipient", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("attempts", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "next_attempt_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=True
        ),
        sa.Column("last_attempt_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_status_code", sa.SmallInteger(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(status = 'pending') = (next_attempt_at IS NOT NULL)",
            name=op.f("callbacks_next_attempt_at_check"),
        ),
        sa.CheckConstraint("recipient IN ('platform', 'company')", name=op.f("callbacks_recipient_check")),
        sa.CheckConstraint(
            "status IN ('pending', 'delivered', 'exhausted')", name=op.f("callbacks_status_check")
        ),
        sa.PrimaryKeyConstraint("company_id", "id", name=op.f("callbacks_pkey")),
    )
    op.create_index(
        "callbacks_due_idx",
        "callbacks",
        ["next_attempt_at"],
        unique=False,
        postgresql_where=sa.text("next_attempt_at IS NOT NULL"),
    )
    op.create_table(
        "companies",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("site_url", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("lastname", sa.Text(), nullable=False),
        sa.Column("company_name", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("status", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("callback_url", sa.Text(), nullable=True),
        sa.Column("callback_secret", sa.Text(), nullable=True),
        sa.Column("billing_day", sa.SmallInteger(), nullable=False),
        sa.Column("registered_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("passivated_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(callback_url IS NULL) = (callback_secret IS NULL)", name=op.f("companies_callback_secret_check")
        ),
        sa.CheckConstraint("billing_day BETWEEN 1 AND 31", name=op.f("companies_billing_day_check")),
        sa.CheckConstraint("passivated_at IS NULL OR status = 0", name=op.f("companies_passivated_at_check")),
        sa.CheckConstraint("status IN (0, 1)", name=op.f("companies_status_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("companies_pkey")),
    )
    op.create_table(
        "logins",
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("company_id", sa.BigInteger(), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.CheckConstraint("email = lower(email)", name=op.f("logins_email_check")),
        sa.PrimaryKeyConstraint("email", name=op.f("logins_pkey")),
    )
    op.create_table(
        "packages",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column("price_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("status", sa.SmallInteger(), server_default=sa.text("1"), nullable=False),
        sa.CheckConstraint("currency ~ '^[A-Z]{3}$'", name=op.f("packages_currency_check")),
        sa.CheckConstraint("period IN ('monthly', 'yearly')", name=op.f("packages_period_check")),
        sa.CheckConstraint(
            "price_minor BETWEEN 0 AND 1000000000000000", name=op.f("packages_price_minor_check")
        ),
        sa.CheckConstraint("status IN (0, 1)", name=op.f("packages_status_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("packages_pkey")),
    )
    op.create_table(
        "rate_limits",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("hits", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("rate_limits_pkey")),
        prefixes=["UNLOGGED"],
    )
    op.create_index(op.f("rate_limits_expires_at_idx"), "rate_limits", ["expires_at"], unique=False)
    op.create_table(
        "settings",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("settings_pkey")),
    )
    op.create_table(
        "worker_heartbeats",
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("beat_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("worker", name=op.f("worker_heartbeats_pkey")),
    )
    op.create_table(
        "company_packages",
        sa.Column("company_id", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("package_id", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.SmallInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("start_date", sa.Date(), nullable=False),
        sa.Column("end_date", sa.Date(), nullable=False),
        sa.Column("price_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("full_days", sa.SmallInteger(), nullable=False),
        sa.CheckConstraint("currency ~ '^[A-Z]{3}$'", name=op.f("company_packages_currency_check")),
        sa.CheckConstraint(
            "full_days >= end_date - start_date", name=op.f("company_packages_full_days_check")
        ),
        sa.CheckConstraint(
            "price_minor BETWEEN 0 AND 1000000000000000", name=op.f("company_packages_price_minor_check")
        ),
        sa.CheckConstraint("start_date < end_date", name=op.f("company_packages_period_check")),
        sa.CheckConstraint("status IN (0, 1)", name=op.f("company_packages_status_check")),
        sa.ForeignKeyConstraint(
            ["company_id"], ["companies.id"], name=op.f("company_packages_company_id_fkey")
        ),
        sa.ForeignKeyConstraint(
            ["package_id"], ["packages.id"], name=op.f("company_packages_package_id_fkey")
        ),
        sa.PrimaryKeyConstraint("company_id", "id", name=op.f("company_packages_pkey")),
    )
    op.create_index(
        "company_packages_due_idx",
        "company_packages",
        ["end_date", "company_id", "id"],
        unique=False,
        postgresql_where=sa.text("status = 1"),
    )
    op.create_index(
        "company_packages_one_open_per_company_key",
        "company_packages",
        ["company_id"],
        unique=True,
        postgresql_where=sa.text("status = 1"),
    )
    op.create_table(
        "company_payments",
        sa.Column("company_id", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("company_package_id", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.SmallInteger(), nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("period_start", sa.Date(), nullable=False),
        sa.Column("period_end", sa.Date(), nullable=False),
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("decline_code", sa.Text(), nullable=True),
        sa.Column("attempted_at", sa.DateTime(timezone=True), nullable=False),
        postgresql.ExcludeConstraint(
            (
                sa.text(
                    "box(point(company_package_id::float8, (period_start - date '1970-01-01')::float8), point(company_package_id::float8, (period_end - date '1970-01-01' - 1)::float8))"
                ),
                "&&",
            ),
            where=sa.text("status = 1"),
            using="gist",
            name="company_payments_no_day_charged_twice_excl",
        ),
        sa.CheckConstraint("currency ~ '^[A-Z]{3}$'", name=op.f("company_payments_currency_check")),
        sa.CheckConstraint("amount_minor > 0", name=op.f("company_payments_amount_minor_check")),
        sa.CheckConstraint("attempt >= 1", name=op.f("company_payments_attempt_check")),
        sa.CheckConstraint("period_start < period_end", name=op.f("company_payments_period_check")),
        sa.CheckConstraint("status IN (0, 1)", name=op.f("company_payments_status_check")),
        sa.ForeignKeyConstraint(
            ["company_id", "company_package_id"],
            ["company_packages.company_id", "company_packages.id"],
            name=op.f("company_payments_company_id_company_package_id_fkey"),
        ),
        sa.PrimaryKeyConstraint("company_id", "id", name=op.f("company_payments_pkey")),
        sa.UniqueConstraint(
            "company_id",
            "company_package_id",
            "period_start",
            "attempt",
            name="company_payments_attempt_of_period_key",
        ),
    )
    op.create_index(
        "company_payments_newest_idx",
        "company_payments",
        ["attempted_at", "company_id", "company_package_id", "period_start", "attempt"],
        unique=False,
    )
    op.create_table(
        "payment_jobs",
        sa.Column("company_id", sa.BigInteger(), nullable=False),
        sa.Column("company_package_id", sa.BigInteger(), nullable=False),
        sa.Column("period_start", sa.Date(), nullable=False),
        sa.Column("period_end", sa.Date(), nullable=False),
        sa.Column("attempt", sa.SmallInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "leased_until",
            sa.DateTime(timezone=True),
            server_default=sa.text("'1970-01-01 00:00+00'"),
            nullable=False,
        ),
        sa.Column("idempotency_key", sa.Uuid(), nullable=True),
        sa.Column("outages", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint("currency ~ '^[A-Z]{3}$'", name=op.f("payment_jobs_currency_check")),
        sa.CheckConstraint("amount_minor >= 0", name=op.f("payment_jobs_amount_minor_check")),
        sa.CheckConstraint("attempt BETWEEN 1 AND 3", name=op.f("payment_jobs_attempt_check")),
        sa.CheckConstraint("period_start < period_end", name=op.f("payment_jobs_period_check")),
        sa.ForeignKeyConstraint(
            ["company_id", "company_package_id"],
            ["company_packages.company_id", "company_packages.id"],
            name=op.f("payment_jobs_company_id_company_package_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "company_id", "company_package_id", "period_start", name=op.f("payment_jobs_pkey")
        ),
        postgresql_with={
            "fillfactor": 50,
            "autovacuum_vacuum_scale_factor": 0,
            "autovacuum_vacuum_threshold": 20000,
            "autovacuum_analyze_scale_factor": 0,
            "autovacuum_analyze_threshold": 50000,
            "autovacuum_vacuum_cost_delay": 0,
        },
    )
    op.create_index("payment_jobs_due_idx", "payment_jobs", ["next_attempt_at", "company_id"], unique=False)
    op.execute(REFUSE_CHANGES)
    op.execute(REFUSING_TRIGGER)


def downgrade() -> None:
    # Indexes, constraints and the trigger go with their tables.
    op.drop_table("payment_jobs")
    op.drop_table("company_payments")
    op.drop_table("company_packages")
    op.drop_table("worker_heartbeats")
    op.drop_table("settings")
    op.drop_table("rate_limits")
    op.drop_table("packages")
    op.drop_table("logins")
    op.drop_table("companies")
    op.drop_table("callbacks")
    op.execute("DROP FUNCTION refuse_change_of_company_payments()")
