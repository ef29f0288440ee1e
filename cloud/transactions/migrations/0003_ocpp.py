"""Transactions of stations that speak OCPP themselves."""

from __future__ import annotations

from alembic import op

revision = "transactions_0003"
down_revision = "transactions_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add native identities, register-based measures, conclusions and reviews.

    A number is unique within its station; drawn from one sequence for all, so that one that another
    station or another system gave is hardly ever one of this station's.
    """
    op.execute("""
        ALTER TABLE transactions.transaction
            ADD COLUMN origin text NOT NULL DEFAULT 'agent',
            ADD COLUMN native_key text,
            ADD COLUMN incarnation integer NOT NULL DEFAULT 1,
            ADD COLUMN number integer,
            ADD COLUMN remote_start_id bigint,
            ADD COLUMN concluded boolean NOT NULL DEFAULT false,
            ADD COLUMN review text,
            ADD COLUMN start_wh bigint,
            ADD COLUMN start_told boolean NOT NULL DEFAULT false,
            ADD COLUMN power_w bigint,
            ADD COLUMN power_wms bigint NOT NULL DEFAULT 0;
        CREATE UNIQUE INDEX transaction_native
            ON transactions.transaction (station_id, native_key, incarnation)
            WHERE native_key IS NOT NULL;
        CREATE UNIQUE INDEX transaction_number
            ON transactions.transaction (number, station_id) WHERE number IS NOT NULL;
        CREATE INDEX transaction_review
            ON transactions.transaction (tenant_id, started_at DESC, id DESC)
            WHERE review IS NOT NULL;
        CREATE INDEX transaction_quiet ON transactions.transaction (id) WHERE state = 'open';
        CREATE SEQUENCE transactions.number AS integer MINVALUE 1 CYCLE;
        GRANT USAGE ON SEQUENCE transactions.number TO karvon_commit;
    """)
