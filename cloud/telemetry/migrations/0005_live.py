"""Whether samples are live, asked by the statement that appends them."""

from __future__ import annotations

from alembic import op

revision = "telemetry_0005"
down_revision = "telemetry_0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """It takes a transaction number first, for the reason that `note_late` does."""
    op.execute("""
        CREATE FUNCTION telemetry.is_live(first timestamptz) RETURNS boolean
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
        BEGIN
            PERFORM pg_current_xact_id();
            RETURN (SELECT first >= t.fence FROM telemetry.tier t);
        END $$;
        REVOKE ALL ON FUNCTION telemetry.is_live(timestamptz) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION telemetry.is_live(timestamptz) TO karvon_commit;
    """)
