"""Endpoints of callbacks with their secrets and how they fare, every attempt, and a sequence of changes.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import context, op
from flask import current_app

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

NEWEST = ["created_at", "company_id", "id"]

READ_SECRETS = """
SELECT id, callback_secret FROM companies WHERE callback_url IS NOT NULL AND id > :after ORDER BY id LIMIT 1000
"""
READ_ENCRYPTED = """
SELECT company_id AS id, encrypted AS callback_secret FROM callback_secrets
WHERE expires_at IS NULL AND company_id > :after ORDER BY company_id LIMIT 1000
"""


def upgrade() -> None:
    op.add_column("companies", sa.Column("sequence", sa.BigInteger(), server_default="0", nullable=False))
    create_endpoints()
    move_secrets(
        READ_SECRETS,
        "INSERT INTO callback_secrets (company_id, encrypted, created_at) VALUES (:id, :secret, now())",
        current_app.extensions["vade"].keyring.encrypt,
    )
    op.drop_constraint(op.f("companies_callback_secret_check"), "companies", type_="check")
    op.drop_column("companies", "callback_secret")
    change_callbacks()
    op.create_table(
        "counters",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("counters_pkey")),
    )


def create_endpoints() -> None:
    op.create_table(
        "callback_endpoints",
        sa.Column("company_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("url", sa.Text(), nullable=True),
        sa.Column("failures", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("failing_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("open_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("has_waiting", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("disabled_reason", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(disabled_at IS NULL) = (disabled_reason IS NULL)",
            name=op.f("callback_endpoints_disabled_at_check"),
        ),
        sa.CheckConstraint(
            "(failures = 0) = (failing_since IS NULL)", name=op.f("callback_endpoints_failing_since_check")
        ),
        sa.CheckConstraint(
            "disabled_reason IN ('gone', 'failing')", name=op.f("callback_endpoints_disabled_reason_check")
        ),
        sa.PrimaryKeyConstraint("company_id", name=op.f("callback_endpoints_pkey")),
    )
    op.create_index(
        "callback_endpoints_waiting_idx",
        "callback_endpoints",
        [sa.text("open_until NULLS FIRST")],
        postgresql_where=sa.text("has_waiting"),
    )
    op.create_table(
        "callback_secrets",
        sa.Column("company_id", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("encrypted", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["company_id"],
            ["callback_endpoints.company_id"],
            name=op.f("callback_secrets_company_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("company_id", "id", name=op.f("callback_secrets_pkey")),
    )
    op.create_index(
        "callback_secrets_present_key",
        "callback_secrets",
        ["company_id"],
        unique=True,
        postgresql_where=sa.text("expires_at IS NULL"),
    )
    op.execute(
        "INSERT INTO callback_endpoints (company_id, url)"
        " SELECT id, callback_url FROM companies WHERE callback_url IS NOT NULL"
    )


def change_callbacks() -> None:
    for column in ("last_attempt_at", "last_status_code", "last_error"):
        op.drop_column("callbacks", column)
    op.add_column(
        "callbacks", sa.Column("schedule_step", sa.SmallInteger(), server_default="0", nullable=False)
    )
    op.execute("UPDATE callbacks SET schedule_step = attempts WHERE attempts > 0")
    # An id now begins with the company's. What was sent already and will be again keeps the id it was sent with.
    op.execute(
        "UPDATE callbacks SET id = (lpad(to_hex(company_id), 16, '0') || right(replace(id::text, '-', ''), 16))::uuid"
        " WHERE NOT (status = 'pending' AND attempts > 0)"
    )
    op.drop_constraint(op.f("callbacks_status_check"), "callbacks", type_="check")
    op.create_check_constraint(
        op.f("callbacks_status_check"),
        "callbacks",
        "status IN ('pending', 'waiting', 'held', 'delivered', 'exhausted')",
    )
    op.drop_index("callbacks_due_idx", "callbacks")
    for name, columns, where in (
        ("callbacks_due_idx", ["recipient", "next_attempt_at"], "next_attempt_at IS NOT NULL"),
        ("callbacks_waiting_idx", ["company_id", "created_at"], "status = 'waiting'"),
        ("callbacks_newest_idx", NEWEST, None),
        ("callbacks_newest_of_company_idx", ["company_id", "created_at", "id"], "recipient = 'company'"),
        ("callbacks_newest_failed_idx", NEWEST, "status IN ('exhausted', 'held')"),
        (
            "callbacks_newest_of_type_idx",
            ["type", *NEWEST],
            "type NOT IN ('company_package.renewed', 'payment.declined', 'payment.succeeded')",
        ),
    ):
        op.create_index(name, "callbacks", columns, postgresql_where=where and sa.text(where))
    op.create_table(
        "callback_attempts",
        sa.Column("company_id", sa.BigInteger(), nullable=False),
        sa.Column("callback_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.SmallInteger(), nullable=False),
        sa.Column("attempted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("status_code", sa.SmallInteger(), nullable=True),
        sa.Column("duration_ms", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["company_id", "callback_id"],
            ["callbacks.company_id", "callbacks.id"],
            name=op.f("callback_attempts_company_id_callback_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("company_id", "callback_id", "number", name=op.f("callback_attempts_pkey")),
    )


def downgrade() -> None:
    op.add_column("companies", sa.Column("callback_secret", sa.Text(), nullable=True))
    move_secrets(
        READ_ENCRYPTED,
        "UPDATE companies SET callback_secret = :secret WHERE id = :id",
        current_app.extensions["vade"].keyring.decrypt,
    )
    op.create_check_constraint(
        op.f("companies_callback_secret_check"),
        "companies",
        "(callback_url IS NULL) = (callback_secret IS NULL)",
    )
    op.drop_column("companies", "sequence")
    for table in ("callback_attempts", "callback_secrets", "callback_endpoints", "counters"):
        op.drop_table(table)
    for name in ("waiting", "newest", "newest_of_company", "newest_failed", "newest_of_type", "due"):
        op.drop_index(f"callbacks_{name}_idx", "callbacks")
    op.drop_constraint(op.f("callbacks_status_check"), "callbacks", type_="check")
    op.execute("UPDATE callbacks SET status = 'exhausted' WHERE status IN ('waiting', 'held')")
    op.create_check_constraint(
        op.f("callbacks_status_check"), "callbacks", "status IN ('pending', 'delivered', 'exhausted')"
    )
    op.create_index(
        "callbacks_due_idx",
        "callbacks",
        ["next_attempt_at"],
        postgresql_where=sa.text("next_attempt_at IS NOT NULL"),
    )
    op.drop_column("callbacks", "schedule_step")
    op.add_column("callbacks", sa.Column("last_attempt_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("callbacks", sa.Column("last_status_code", sa.SmallInteger(), nullable=True))
    op.add_column("callbacks", sa.Column("last_error", sa.Text(), nullable=True))


def move_secrets(read: str, write: str, convert) -> None:  # type: ignore[no-untyped-def]
    """Convert the secrets of all companies, some at a time; written out as SQL, there are none."""
    if context.is_offline_mode():
        return
    connection, after = op.get_bind(), 0
    while rows := connection.execute(sa.text(read), {"after": after}).all():
        secrets = [{"id": row.id, "secret": convert(row.callback_secret)} for row in rows]
        connection.execute(sa.text(write), secrets)
        after = rows[-1].id
