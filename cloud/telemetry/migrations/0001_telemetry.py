"""Samples (a hypertable where TimescaleDB is there), rare measurands, gaps, undated series."""

from __future__ import annotations

from alembic import op

revision = "telemetry_0001"
down_revision = None
branch_labels = ("telemetry",)
depends_on = ("kernel", "stations")


def upgrade() -> None:
    """Create the module's schema."""
    for statement in (_TABLES, _SAMPLES, _PARTITIONS, _VIEWS):
        op.execute(statement)


_TABLES = """
CREATE SCHEMA telemetry;
SELECT kernel.open_schema('telemetry');

CREATE TABLE telemetry.gap (
    station_id integer NOT NULL,
    id uuid NOT NULL,
    tenant_id integer NOT NULL,
    evse integer NOT NULL,
    first_at timestamptz NOT NULL,
    last_at timestamptz NOT NULL,
    samples bigint NOT NULL,
    cause text NOT NULL,
    PRIMARY KEY (station_id, id)
);
CREATE INDEX gap_time ON telemetry.gap (station_id, evse, first_at);

-- Series of an earlier boot whose clock is not known yet, kept until it is.
CREATE TABLE telemetry.undated (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id integer NOT NULL,
    station_id integer NOT NULL,
    boot uuid NOT NULL,
    received_at timestamptz NOT NULL,
    series text NOT NULL
);
CREATE INDEX undated_boot ON telemetry.undated (station_id, boot);

SELECT kernel.protect('telemetry.gap'), kernel.protect('telemetry.undated');
"""

# One index only: a time index would cost a third of the COPY throughput, and ranges of time are
# found by excluding chunks or partitions.
_SAMPLES = """
DO $do$
DECLARE
    sample text := 'CREATE TABLE telemetry.sample (
        time timestamptz NOT NULL, station_id integer NOT NULL, evse smallint NOT NULL,
        every_ms integer NOT NULL, energy_wh bigint, power_w integer, current_l1_ma integer,
        current_l2_ma integer, current_l3_ma integer, voltage_l1_mv integer,
        voltage_l2_mv integer, voltage_l3_mv integer, offered_ma integer)';
    extra text := 'CREATE TABLE telemetry.extra (
        time timestamptz NOT NULL, station_id integer NOT NULL, evse smallint NOT NULL,
        name text NOT NULL, value bigint NOT NULL)';
    hyper boolean := false;
BEGIN
    BEGIN
        IF EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb') THEN
            CREATE EXTENSION IF NOT EXISTS timescaledb;
            EXECUTE sample;
            EXECUTE extra;
            PERFORM create_hypertable('telemetry.sample', 'time',
                chunk_time_interval => interval '1 day', create_default_indexes => false);
            PERFORM create_hypertable('telemetry.extra', 'time',
                chunk_time_interval => interval '1 day', create_default_indexes => false);
            hyper := true;
        END IF;
    EXCEPTION WHEN others THEN
        RAISE NOTICE 'TimescaleDB is installed but cannot be used (%): native partitions', SQLERRM;
    END;
    IF NOT hyper THEN
        EXECUTE sample || ' PARTITION BY RANGE (time)';
        EXECUTE extra || ' PARTITION BY RANGE (time)';
    END IF;
END $do$;
CREATE INDEX sample_station ON telemetry.sample (station_id, evse, time);
CREATE INDEX extra_station ON telemetry.extra (station_id, evse, name, time);
GRANT SELECT, INSERT ON telemetry.sample, telemetry.extra TO karvon_commit;
"""

_PARTITIONS = """
CREATE FUNCTION telemetry.native(parent regclass) RETURNS boolean LANGUAGE sql STABLE AS
    $$ SELECT EXISTS (SELECT FROM pg_partitioned_table WHERE partrelid = parent) $$;

-- Makes the days' partitions; returns the days that had theirs already. A partition is made apart
-- and attached, since that does not lock out those who write and read other days.
CREATE FUNCTION telemetry.ensure_days(days date[]) RETURNS date[]
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    wanted date;
    parent text;
    part text;
    had date[] := '{}';
    known boolean;
BEGIN
    IF NOT telemetry.native('telemetry.sample') THEN
        RETURN days;
    END IF;
    FOR wanted IN SELECT DISTINCT d FROM unnest(days) d ORDER BY d LOOP
        known := true;
        FOREACH parent IN ARRAY ARRAY['sample', 'extra'] LOOP
            part := parent || to_char(wanted, '_YYYYMMDD');
            CONTINUE WHEN to_regclass('telemetry.' || part) IS NOT NULL;
            PERFORM pg_advisory_xact_lock(hashtext('telemetry.' || part));
            CONTINUE WHEN to_regclass('telemetry.' || part) IS NOT NULL;
            known := false;
            EXECUTE format('CREATE TABLE telemetry.%I (LIKE telemetry.%I INCLUDING ALL)',
                           part, parent);
            EXECUTE format('ALTER TABLE telemetry.%I ATTACH PARTITION telemetry.%I'
                           ' FOR VALUES FROM (%L) TO (%L)', parent, part,
                           wanted::text || ' 00:00+00', (wanted + 1)::text || ' 00:00+00');
        END LOOP;
        IF known THEN
            had := had || wanted;
        END IF;
    END LOOP;
    RETURN had;
END $$;

-- Drops whole days before the given one; returns how many partitions or chunks went.
CREATE FUNCTION telemetry.drop_before(oldest date) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    part regclass;
    gone integer := 0;
    one integer;
BEGIN
    IF NOT telemetry.native('telemetry.sample') THEN
        EXECUTE 'SELECT count(*) FROM drop_chunks(''telemetry.sample'', $1::timestamptz)'
            INTO gone USING oldest::text || ' 00:00+00';
        EXECUTE 'SELECT count(*) FROM drop_chunks(''telemetry.extra'', $1::timestamptz)'
            INTO one USING oldest::text || ' 00:00+00';
        RETURN gone + one;
    END IF;
    FOR part IN
        SELECT c.oid FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid
        WHERE i.inhparent IN ('telemetry.sample'::regclass, 'telemetry.extra'::regclass)
        AND c.relname < (SELECT relname FROM pg_class p WHERE p.oid = i.inhparent)
                        || to_char(oldest, '_YYYYMMDD')
    LOOP
        EXECUTE format('DROP TABLE %s', part);
        gone := gone + 1;
    END LOOP;
    RETURN gone;
END $$;
REVOKE ALL ON FUNCTION telemetry.ensure_days(date[]), telemetry.drop_before(date) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.ensure_days(date[]), telemetry.drop_before(date)
    TO karvon_commit;
"""

_VIEWS = """
CREATE VIEW telemetry.api_sample WITH (security_barrier) AS
    SELECT * FROM telemetry.sample
    WHERE station_id IN (SELECT id FROM stations.api_station);
CREATE VIEW telemetry.api_extra WITH (security_barrier) AS
    SELECT * FROM telemetry.extra
    WHERE station_id IN (SELECT id FROM stations.api_station);
GRANT SELECT ON telemetry.api_sample, telemetry.api_extra TO karvon_app;
"""
