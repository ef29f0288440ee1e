"""Whoever keeps id tokens in memory hears of changes."""

from __future__ import annotations

from alembic import op

revision = "authorization_0003"
down_revision = "authorization_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Every change of tokens or groups gives the tenant's list a new version; that is the news."""
    op.execute("""
        CREATE FUNCTION "authorization".tell_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_notify('karvon_token', NEW.tenant_id::text);
            RETURN NULL;
        END $$;
        CREATE TRIGGER tell_change AFTER INSERT OR UPDATE ON "authorization".list_version
            FOR EACH ROW EXECUTE FUNCTION "authorization".tell_change();
    """)
