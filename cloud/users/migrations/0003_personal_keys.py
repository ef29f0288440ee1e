"""Keys of a person's own, beside the sessions of their logins."""

from __future__ import annotations

from alembic import op

revision = "users_0003"
down_revision = "users_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Tell sessions from keys; a session made by the release before counts as a key."""
    op.execute("""
        ALTER TABLE users.api_key ADD COLUMN session boolean NOT NULL DEFAULT false;
        UPDATE users.api_key SET session = true WHERE person_id IS NOT NULL;
        CREATE INDEX person_folded ON users.person (tenant_id, lower(name), id);
    """)
