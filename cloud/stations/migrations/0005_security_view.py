"""Security events that agents told, for the list that has those of OCPP stations too."""

from __future__ import annotations

from alembic import op

revision = "stations_0005"
down_revision = "stations_0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Publish the view; its filter stands in it, since its owner may be above the policies."""
    op.execute("""
        CREATE VIEW stations.api_security_event WITH (security_barrier) AS
            SELECT id, station_id, tenant_id, at, type, text FROM stations.security_event
            WHERE tenant_id = kernel.tenant();
        GRANT SELECT ON stations.api_security_event TO karvon_app;
        CREATE INDEX security_event_time ON stations.security_event
            (station_id, at DESC, id DESC);
    """)
