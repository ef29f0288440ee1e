"""Roles, row-level security, stream marks, dead letters, the event log."""

from __future__ import annotations

from alembic import op

revision = "kernel_0001"
down_revision = None
branch_labels = ("kernel",)
depends_on = None


def upgrade() -> None:
    """Create the kernel's schema and the two roles that serve."""
    for statement in (_ROLES, _PROTECT, _MARKS, _EVENTS):
        op.execute(statement)


_ROLES = """
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'karvon_app') THEN
        CREATE ROLE karvon_app NOLOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'karvon_commit') THEN
        CREATE ROLE karvon_commit NOLOGIN BYPASSRLS;
    END IF;
    EXECUTE format('GRANT karvon_app, karvon_commit TO %I', current_user);
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL;  -- roles are shared by all databases of a server: another one made them just now
END $$;
CREATE SCHEMA kernel;
GRANT USAGE ON SCHEMA kernel TO karvon_app, karvon_commit;
"""

_PROTECT = """
CREATE FUNCTION kernel.tenant() RETURNS int LANGUAGE sql STABLE AS
    $$ SELECT nullif(current_setting('karvon.tenant', true), '')::int $$;

CREATE FUNCTION kernel.open_schema(name text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO karvon_app, karvon_commit', name);
END $$;

-- Tenant's rows only for karvon_app; karvon_commit writes tenant_id itself.
CREATE FUNCTION kernel.protect(owned regclass) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', owned);
    EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', owned);
    EXECUTE format('CREATE POLICY tenant ON %s USING (tenant_id = kernel.tenant())'
                   ' WITH CHECK (tenant_id = kernel.tenant())', owned);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s'
                   ' TO karvon_app, karvon_commit', owned);
END $$;
"""

_MARKS = """
CREATE TABLE kernel.outbox (
    station_id int NOT NULL,
    outbox uuid NOT NULL,
    tenant_id int NOT NULL,
    last_boot uuid NOT NULL,
    greeted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (station_id, outbox)
);
CREATE TABLE kernel.outbox_mark (
    station_id int NOT NULL,
    outbox uuid NOT NULL,
    stream text NOT NULL,
    committed int8multirange NOT NULL DEFAULT '{}',
    PRIMARY KEY (station_id, outbox, stream),
    FOREIGN KEY (station_id, outbox) REFERENCES kernel.outbox
);
CREATE TABLE kernel.dead_letter (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    tenant_id int,
    station_id int,
    topic text NOT NULL,
    reason text NOT NULL,
    payload bytea NOT NULL
);
CREATE INDEX dead_letter_station ON kernel.dead_letter (station_id, id);
GRANT SELECT, INSERT, UPDATE, DELETE ON kernel.outbox, kernel.outbox_mark TO karvon_commit;
SELECT kernel.protect('kernel.outbox'), kernel.protect('kernel.dead_letter');
"""

_EVENTS = """
CREATE TABLE kernel.event_partition (
    partition int PRIMARY KEY,
    next bigint NOT NULL DEFAULT 0
);
INSERT INTO kernel.event_partition (partition) SELECT generate_series(0, 15);
CREATE TABLE kernel.event (
    partition int NOT NULL,
    position bigint NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    tenant_id int NOT NULL,
    kind text NOT NULL,
    station_id int,
    subject text NOT NULL,
    data jsonb NOT NULL,
    PRIMARY KEY (partition, position)
);
CREATE TABLE kernel.event_consumer (
    consumer text NOT NULL,
    partition int NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (consumer, partition)
);
SELECT kernel.protect('kernel.event');
REVOKE UPDATE, DELETE ON kernel.event FROM karvon_app, karvon_commit;
GRANT SELECT, UPDATE ON kernel.event_partition TO karvon_app, karvon_commit;
GRANT SELECT, INSERT, UPDATE ON kernel.event_consumer TO karvon_commit;
"""
