"""Tenants are made by the shell; users have a language."""

from __future__ import annotations

from alembic import op

revision = "users_0002"
down_revision = "users_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let the commit path's role make tenants; hide their names from everybody's requests."""
    op.execute("""
        REVOKE SELECT ON users.tenant FROM karvon_app;
        GRANT INSERT ON users.tenant TO karvon_commit;
        CREATE UNIQUE INDEX tenant_name ON users.tenant (lower(name));
        ALTER TABLE users.person ADD COLUMN language text NOT NULL DEFAULT 'en'
            CHECK (language IN ('uz', 'ru', 'en', 'de'));
    """)
