"""How stations' connections stand, for lists of the modules above."""

from __future__ import annotations

from alembic import op

revision = "communication_presence"
down_revision = "communication_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Publish the view; its filter stands in it, since its owner may be above the policies."""
    op.execute("""
        CREATE VIEW communication.api_connection WITH (security_barrier) AS
            SELECT station_id, tenant_id, online, last_seen FROM communication.connection
            WHERE tenant_id = kernel.tenant();
        GRANT SELECT ON communication.api_connection TO karvon_app;
    """)
