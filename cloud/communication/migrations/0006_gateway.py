"""OCPP gateways: who they are, which link a station uses, the frame log, deviations."""

from __future__ import annotations

from alembic import op

revision = "communication_0006"
down_revision = "communication_0005"
branch_labels = None
depends_on = "kernel_0004"


def upgrade() -> None:
    """Add tables, and columns with defaults."""
    op.execute("""
        ALTER TABLE communication.connection
            ADD COLUMN link text NOT NULL DEFAULT 'agent',
            ADD COLUMN security_profile smallint,
            ADD COLUMN address text,
            ADD COLUMN closed_at timestamptz,
            ADD COLUMN closed_because text;

        CREATE TABLE communication.gateway (
            id uuid PRIMARY KEY,
            started_at timestamptz NOT NULL,
            seen_at timestamptz NOT NULL
        );
        GRANT SELECT, INSERT, UPDATE, DELETE ON communication.gateway TO karvon_commit;

        CREATE TABLE communication.frame (
            at timestamptz NOT NULL,
            tenant_id integer NOT NULL,
            station_id integer NOT NULL,
            direction smallint NOT NULL,
            frame bytea NOT NULL,
            action text
        ) PARTITION BY RANGE (at);
        CREATE TABLE communication.frame_of_no_day PARTITION OF communication.frame DEFAULT;
        CREATE INDEX frame_station ON communication.frame (station_id, at);
        SELECT kernel.protect('communication.frame'),
               kernel.protect('communication.frame_of_no_day');

        -- The commit role owns nothing: what it must create and drop it does through these.
        CREATE FUNCTION communication.ensure_frame_days(days date[]) RETURNS void
            LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
        DECLARE day date;
        BEGIN
            PERFORM pg_advisory_xact_lock(hashtext('communication.frame'));
            FOREACH day IN ARRAY days LOOP
                IF to_regclass(format('communication.frame_%s', to_char(day, 'YYYYMMDD'))) IS NULL
                THEN
                    EXECUTE format('CREATE TABLE communication.%I PARTITION OF communication.frame'
                        ' FOR VALUES FROM (%L) TO (%L)', 'frame_' || to_char(day, 'YYYYMMDD'),
                        day::timestamp AT TIME ZONE 'UTC',
                        (day + 1)::timestamp AT TIME ZONE 'UTC');
                    PERFORM kernel.protect(
                        format('communication.frame_%s', to_char(day, 'YYYYMMDD'))::regclass);
                END IF;
            END LOOP;
        END $$;
        CREATE FUNCTION communication.forget_frames(before date) RETURNS integer
            LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
        DECLARE part regclass; gone integer := 0;
        BEGIN
            FOR part IN SELECT inhrelid FROM pg_inherits
                WHERE inhparent = 'communication.frame'::regclass LOOP
                IF substring(part::text FROM 'frame_(\\d{8})') < to_char(before, 'YYYYMMDD') THEN
                    EXECUTE format('DROP TABLE %s', part);
                    gone := gone + 1;
                END IF;
            END LOOP;
            RETURN gone;
        END $$;
        REVOKE ALL ON FUNCTION communication.ensure_frame_days(date[]),
            communication.forget_frames(date) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION communication.ensure_frame_days(date[]),
            communication.forget_frames(date) TO karvon_commit;

        CREATE TABLE communication.deviation (
            station_id integer NOT NULL,
            name text NOT NULL,
            tenant_id integer NOT NULL,
            count bigint NOT NULL,
            first_at timestamptz NOT NULL,
            last_at timestamptz NOT NULL,
            example text NOT NULL,
            PRIMARY KEY (station_id, name)
        );
        SELECT kernel.protect('communication.deviation');
    """)
