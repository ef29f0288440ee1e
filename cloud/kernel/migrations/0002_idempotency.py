"""Answers that were given under an Idempotency-Key."""

from __future__ import annotations

from alembic import op

revision = "kernel_0002"
down_revision = "kernel_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One row per key, written in the transaction that did what was asked."""
    op.execute("""
        CREATE TABLE kernel.idempotency (
            tenant_id int NOT NULL,
            subject text NOT NULL,
            key_digest bytea NOT NULL,
            request_digest bytea NOT NULL,
            status int NOT NULL,
            answer bytea NOT NULL,
            created_at timestamptz NOT NULL,
            PRIMARY KEY (tenant_id, subject, key_digest)
        );
        CREATE INDEX idempotency_age ON kernel.idempotency (tenant_id, created_at);
        SELECT kernel.protect('kernel.idempotency');
    """)
