"""Parked jobs, the request that a callback goes back to, and when the outbox is vacuumed.

Only adds: workers of the revision before go on on the new schema.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SETTINGS = {
    # Each message is updated two or three times: a hundredth of the table is soon dead.
    "callbacks": {
        "autovacuum_vacuum_scale_factor": "0.01",
        "autovacuum_vacuum_threshold": "20000",
        "autovacuum_analyze_scale_factor": "0.02",
    },
    # Each attempt updates its company, and each charge its company package: with room on the page, the new
    # version of a row stays near, and that of a company in no need of its indexes. Vacuumed about daily.
    "companies": {"fillfactor": "85", "autovacuum_vacuum_scale_factor": "0.05"},
    "company_packages": {"fillfactor": "85", "autovacuum_vacuum_scale_factor": "0.05"},
}


def upgrade() -> None:
    op.add_column("payment_jobs", sa.Column("failures", sa.Integer(), server_default="0", nullable=False))
    op.add_column("callbacks", sa.Column("request_id", sa.Text(), nullable=True))
    op.create_index(
        "callback_endpoints_troubled_idx",
        "callback_endpoints",
        ["company_id"],
        postgresql_where=sa.text("open_until IS NOT NULL OR disabled_at IS NOT NULL"),
    )
    for table, settings in SETTINGS.items():
        listed = ", ".join(f"{name} = {value}" for name, value in settings.items())
        op.execute(f"ALTER TABLE {table} SET ({listed})")
    op.create_table(
        "parked_jobs",
        sa.Column("company_id", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("company_package_id", sa.BigInteger(), nullable=False),
        sa.Column("period_start", sa.Date(), nullable=False),
        sa.Column("period_end", sa.Date(), nullable=False),
        sa.Column("attempt", sa.SmallInteger(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Uuid(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("reference", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("parked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decision", sa.Text(), nullable=True),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.CheckConstraint("decision IN ('released', 'dropped')", name=op.f("parked_jobs_decision_check")),
        sa.CheckConstraint(
            "(decision IS NULL) = (decided_at IS NULL) AND (decision IS NULL) = (decided_by IS NULL)",
            name=op.f("parked_jobs_decided_check"),
        ),
        sa.CheckConstraint(
            "outcome IN ('charged', 'declined', 'free')", name=op.f("parked_jobs_outcome_check")
        ),
        sa.ForeignKeyConstraint(
            ["company_id", "company_package_id"],
            ["company_packages.company_id", "company_packages.id"],
            name=op.f("parked_jobs_company_id_company_package_id_fkey"),
        ),
        sa.PrimaryKeyConstraint("company_id", "id", name=op.f("parked_jobs_pkey")),
    )
    op.create_index(
        "parked_jobs_one_open_per_job_key",
        "parked_jobs",
        ["company_id", "company_package_id", "period_start"],
        unique=True,
        postgresql_where=sa.text("decision IS NULL"),
    )
    op.create_index(
        "parked_jobs_open_idx",
        "parked_jobs",
        ["parked_at", "company_id", "id"],
        postgresql_where=sa.text("decision IS NULL"),
    )


def downgrade() -> None:
    op.drop_table("parked_jobs")
    for table, settings in SETTINGS.items():
        op.execute(f"ALTER TABLE {table} RESET ({', '.join(settings)})")
    op.drop_index("callback_endpoints_troubled_idx", table_name="callback_endpoints")
    op.drop_column("callbacks", "request_id")
    op.drop_column("payment_jobs", "failures")
