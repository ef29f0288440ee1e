"""Commands that carry a local list keep its version only."""

from __future__ import annotations

from alembic import op

revision = "communication_0003"
down_revision = "communication_presence"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Drop the lists of commands that are over; index the list of a tenant's commands."""
    op.execute("""
        UPDATE communication.command SET action = action - 'entries'
            WHERE action ->> 'action' = 'set_local_list'
            AND status IN ('rejected', 'executed', 'failed', 'expired');
        CREATE INDEX command_time ON communication.command
            (tenant_id, requested_at DESC, id DESC);
        ALTER TABLE communication.command DROP CONSTRAINT command_status_check;
        ALTER TABLE communication.command ADD CONSTRAINT command_status_check
            CHECK (status IN ('requested', 'sent', 'accepted', 'rejected', 'executed', 'failed',
                              'expired', 'cancelled'));
    """)
