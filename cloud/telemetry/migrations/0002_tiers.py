"""Tiers: roll-ups by minute and hour, hour blocks for closed days, marks for what comes late."""

from __future__ import annotations

from alembic import op

revision = "telemetry_0002"
down_revision = "telemetry_0001"
branch_labels = None
depends_on = None

MEANS = (
    "power_w",
    *(f"{kind}_l{phase}_{unit}" for kind, unit in (("current", "ma"), ("voltage", "mv"))
      for phase in (1, 2, 3)),
)  # fmt: skip
PLANES = ("every_ms", *MEANS, "offered_ma")
"""int4 columns that a block keeps as two planes: the low 16 bits, and what is above them."""


def upgrade() -> None:
    """Add the tiers; samples stay where they are until the worker moves them."""
    for statement in (
        _MARKS,
        _rollups(),
        _blocks(),
        _unpack(),
        _compact(),
        _PARTITIONS,
        _HOT,
        _EVSES,
        _late(),
        _VIEWS,
    ):
        op.execute(statement)


_MARKS = """
-- How far each tier goes; times before `until` are rolled up but for the hours in telemetry.late.
-- 1970 stands for nothing yet.
CREATE TABLE telemetry.tier (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    fence timestamptz NOT NULL DEFAULT '1970-01-01 00:00+00',
    until timestamptz NOT NULL DEFAULT '1970-01-01 00:00+00',
    raw_from timestamptz NOT NULL DEFAULT '1970-01-01 00:00+00',
    minute_from timestamptz NOT NULL DEFAULT '1970-01-01 00:00+00',
    hour_from timestamptz NOT NULL DEFAULT '1970-01-01 00:00+00'
);
INSERT INTO telemetry.tier DEFAULT VALUES;
GRANT SELECT ON telemetry.tier TO karvon_app;
GRANT SELECT, UPDATE ON telemetry.tier TO karvon_commit;

-- Only ever added to and taken from: writers never wait for one another, nor for the worker.
CREATE TABLE telemetry.late (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    station_id integer NOT NULL,
    hour timestamptz NOT NULL
);
CREATE INDEX late_station ON telemetry.late (station_id, hour);
GRANT SELECT, DELETE ON telemetry.late TO karvon_commit;
"""


def _rollups() -> str:
    """Partial aggregates; `*_ms` is the weight of a mean where it differs from `weight`."""
    means = ", ".join(f"{name}_sum numeric, {name}_ms bigint" for name in MEANS)
    columns = (
        "station_id integer NOT NULL, evse smallint NOT NULL, samples integer NOT NULL,"
        " at timestamptz NOT NULL, weight bigint NOT NULL, energy_wh bigint,"
        " energy_at timestamptz, energy_min bigint, offered_at timestamptz, offered_ma integer,"
        f" power_max_w integer, {means}"
    )
    return f"""
CREATE TABLE telemetry.minute ({columns}) PARTITION BY RANGE (at);
CREATE INDEX minute_station ON telemetry.minute (station_id, evse, at);
CREATE INDEX minute_at ON telemetry.minute USING brin (at) WITH (pages_per_range = 16);
CREATE TABLE telemetry.hour ({columns});
CREATE INDEX hour_station ON telemetry.hour (station_id, evse, at);
CREATE INDEX hour_at ON telemetry.hour (at);
GRANT SELECT, INSERT, DELETE ON telemetry.minute, telemetry.hour TO karvon_commit;
"""


def _blocks() -> str:
    planes = ", ".join(f"{name} smallint[], {name}_high integer[]" for name in PLANES)
    return f"""
-- One EVSE's samples of one hour. Sample i (from 0) was at hour + first_ms + i * pitch_ms + jitter.
CREATE TABLE telemetry.block (
    station_id integer NOT NULL, evse smallint NOT NULL, hour timestamptz NOT NULL,
    samples integer NOT NULL, first_ms integer NOT NULL, pitch_ms integer NOT NULL,
    jitter smallint[] NOT NULL, jitter_high integer[], micros smallint[],
    energy_wh smallint[], energy_wh_high bigint[], {planes}
) PARTITION BY RANGE (hour);
CREATE INDEX block_station ON telemetry.block (station_id, evse, hour);
CREATE TABLE telemetry.extra_block (
    station_id integer NOT NULL, evse smallint NOT NULL, hour timestamptz NOT NULL,
    name text NOT NULL, micros bigint[] NOT NULL, value smallint[] NOT NULL, value_high bigint[]
) PARTITION BY RANGE (hour);
CREATE INDEX extra_block_station ON telemetry.extra_block (station_id, evse, name, hour);
GRANT SELECT ON telemetry.block, telemetry.extra_block TO karvon_commit;

-- A number's planes. The low one is symmetric about 0, so that noise about 0 stays in it.
CREATE FUNCTION telemetry.low(value bigint) RETURNS smallint LANGUAGE sql IMMUTABLE AS
    $$ SELECT (((value + 32768) & 65535) - 32768)::smallint $$;
CREATE FUNCTION telemetry.high(value bigint) RETURNS integer LANGUAGE sql IMMUTABLE AS
    $$ SELECT ((value + 32768) >> 16)::integer $$;
-- For any bigint, which leaves no room to add to.
CREATE FUNCTION telemetry.wide_low(value bigint) RETURNS smallint LANGUAGE sql IMMUTABLE AS
    $$ SELECT ((value & 65535) - 32768)::smallint $$;
CREATE FUNCTION telemetry.wide_high(value bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS
    $$ SELECT value >> 16 $$;
CREATE FUNCTION telemetry.hour_of(at timestamptz) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS
    $$ SELECT date_bin(interval '1 hour', at, timestamptz '1970-01-01 00:00+00') $$;
"""


def _unpack() -> str:
    """A block's samples again, in SQL that the planner sees through."""
    names = ", ".join(f"{name}, {name}_high" for name in PLANES)
    arrays = ", ".join(f"b.{name}, b.{name}_high" for name in PLANES)
    types = ", ".join(f"{name} integer" for name in PLANES[1:])
    values = ", ".join(_int4(name) for name in PLANES[1:])
    return f"""
CREATE FUNCTION telemetry.unpack(b telemetry.block) RETURNS TABLE (
    "time" timestamptz, every_ms integer, energy_wh bigint, {types}
) LANGUAGE sql STABLE ROWS 360 AS $$
    SELECT b.hour + (b.first_ms + (u.i - 1) * b.pitch_ms + {_sum("jitter")})
                    * interval '1 millisecond'
                  + coalesce(u.micros, 0) * interval '1 microsecond',
        {_int4("every_ms")},
        ((u.energy_wh_high << 16) | (u.energy_wh::bigint + 32768)), {values}
    FROM unnest(b.jitter, b.jitter_high, b.micros, b.energy_wh, b.energy_wh_high, {arrays})
        WITH ORDINALITY AS u (jitter, jitter_high, micros, energy_wh, energy_wh_high, {names}, i)
$$;
"""


def _int4(name: str) -> str:
    """A value from its planes; above 16 bits the sum may pass int4 on its way, so bigint."""
    return f"{_sum(name)}::integer"


def _sum(name: str) -> str:
    return f"((coalesce(u.{name}_high, 0)::bigint << 16) + u.{name})"


def _compact() -> str:
    """Move what is hot in whole hours into blocks; what a block of that hour holds joins it."""
    samples = ", ".join(
        f"{_plane(name, f'telemetry.low({name})')}, {_high(name)}" for name in PLANES
    )
    names = ", ".join(f"{name}, {name}_high" for name in PLANES)
    columns = "every_ms, energy_wh, " + ", ".join(PLANES[1:])
    unpacked = "u.every_ms, u.energy_wh, " + ", ".join(f"u.{name}" for name in PLANES[1:])
    return f"""
CREATE FUNCTION telemetry.compact(first timestamptz, last timestamptz) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    moved bigint;
BEGIN
    WITH gone AS (
        DELETE FROM telemetry.sample WHERE "time" >= first AND "time" < last RETURNING *
    ), met AS (
        SELECT DISTINCT station_id, evse, telemetry.hour_of("time") AS hour FROM gone
    ), old AS (
        DELETE FROM telemetry.block b USING met m
        WHERE b.hour >= first AND b.hour < last AND b.station_id = m.station_id
            AND b.evse = m.evse AND b.hour = m.hour
        RETURNING b.*
    ), every AS (
        SELECT station_id, evse, telemetry.hour_of("time") AS hour, "time", {columns} FROM gone
        UNION ALL
        SELECT o.station_id, o.evse, o.hour, u."time", {unpacked}
        FROM old o, LATERAL telemetry.unpack(ROW(o.*)::telemetry.block) u
    ), timed AS (
        SELECT *, (extract(epoch FROM "time" - hour) * 1000000)::bigint AS us FROM every
    ), numbered AS (
        SELECT *, us / 1000 AS ms, row_number() OVER hourly - 1 AS i,
            first_value(us / 1000) OVER hourly AS first_ms,
            greatest(0, least(3600000,
                min(every_ms) OVER (PARTITION BY station_id, evse, hour))) AS pitch_ms
        FROM timed WINDOW hourly AS (PARTITION BY station_id, evse, hour ORDER BY "time")
    ), placed AS (
        SELECT *, ms - first_ms - i * pitch_ms AS jitter FROM numbered
    ), packed AS (
        INSERT INTO telemetry.block (station_id, evse, hour, samples, first_ms, pitch_ms, jitter,
            jitter_high, micros, energy_wh, energy_wh_high, {names})
        SELECT station_id, evse, hour, count(*), min(first_ms), min(pitch_ms),
            array_agg(telemetry.low(jitter) ORDER BY i),
            {_high("jitter")},
            CASE WHEN bool_or(us % 1000 <> 0)
                THEN array_agg((us % 1000)::smallint ORDER BY i) END,
            {_plane("energy_wh", "telemetry.wide_low(energy_wh)")},
            {_plane("energy_wh", "telemetry.wide_high(energy_wh)")},
            {samples}
        FROM placed GROUP BY station_id, evse, hour
    )
    SELECT count(*) INTO moved FROM gone;

    WITH gone AS (
        DELETE FROM telemetry.extra WHERE "time" >= first AND "time" < last RETURNING *
    ), met AS (
        SELECT DISTINCT station_id, evse, name, telemetry.hour_of("time") AS hour FROM gone
    ), old AS (
        DELETE FROM telemetry.extra_block b USING met m
        WHERE b.hour >= first AND b.hour < last AND b.station_id = m.station_id
            AND b.evse = m.evse AND b.name = m.name AND b.hour = m.hour
        RETURNING b.*
    ), every AS (
        SELECT station_id, evse, telemetry.hour_of("time") AS hour, name, value,
            (extract(epoch FROM "time" - telemetry.hour_of("time")) * 1000000)::bigint AS us
        FROM gone
        UNION ALL
        SELECT o.station_id, o.evse, o.hour, o.name,
            (u.value_high << 16) | (u.value::bigint + 32768), u.us
        FROM old o, LATERAL unnest(o.micros, o.value, o.value_high) AS u (us, value, value_high)
    )
    INSERT INTO telemetry.extra_block (station_id, evse, hour, name, micros, value, value_high)
    SELECT station_id, evse, hour, name, array_agg(us ORDER BY us, value),
        array_agg(telemetry.wide_low(value) ORDER BY us, value),
        array_agg(telemetry.wide_high(value) ORDER BY us, value)
    FROM every GROUP BY station_id, evse, hour, name;
    RETURN moved;
END $$;
"""


def _plane(name: str, plane: str) -> str:
    """Nothing at all where nothing was measured."""
    return f"CASE WHEN count({name}) > 0 THEN array_agg({plane} ORDER BY i) END"


def _high(name: str) -> str:
    """Nothing where the low plane says it all."""
    plane = f"telemetry.high({name})"
    return f"CASE WHEN bool_or({plane} <> 0) THEN array_agg({plane} ORDER BY i) END"


_PARTITIONS = """
-- Asked of the catalogue's rows: a name looked up once and not found stays so in this session's
-- cache, behind a lock too.
CREATE FUNCTION telemetry.has_part(part text) RETURNS boolean LANGUAGE sql VOLATILE AS $$
    SELECT EXISTS (SELECT FROM pg_class
                   WHERE relname = part AND relnamespace = 'telemetry'::regnamespace)
$$;

-- As before, but two that make the same day at the same moment no longer meet.
CREATE OR REPLACE FUNCTION telemetry.ensure_days(days date[]) RETURNS date[]
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
            CONTINUE WHEN telemetry.has_part(part);
            PERFORM pg_advisory_xact_lock(hashtext('telemetry.' || part));
            CONTINUE WHEN telemetry.has_part(part);
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

-- Partitions for these days' minutes and blocks.
CREATE FUNCTION telemetry.ensure_tiers(days date[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    one record;
    part text;
BEGIN
    FOR one IN
        SELECT DISTINCT 'minute' AS parent, d AS first, d + 1 AS last FROM unnest(days) d
        UNION
        SELECT DISTINCT p, date_trunc('month', d::timestamp)::date,
            (date_trunc('month', d::timestamp) + interval '1 month')::date
        FROM unnest(days) d, unnest(ARRAY['block', 'extra_block']) p
        ORDER BY 1, 2
    LOOP
        part := one.parent || to_char(one.first, '_YYYYMMDD');
        CONTINUE WHEN telemetry.has_part(part);
        EXECUTE format('CREATE TABLE telemetry.%I (LIKE telemetry.%I INCLUDING ALL)',
                       part, one.parent);
        EXECUTE format('ALTER TABLE telemetry.%I ATTACH PARTITION telemetry.%I'
                       ' FOR VALUES FROM (%L) TO (%L)', one.parent, part,
                       one.first::text || ' 00:00+00', one.last::text || ' 00:00+00');
    END LOOP;
END $$;

-- Drops partitions that hold nothing younger; returns how many.
CREATE FUNCTION telemetry.drop_tiers(blocks date, minutes date) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    part regclass;
    gone integer := 0;
BEGIN
    FOR part IN
        SELECT c.oid FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid
        JOIN (VALUES
            ('telemetry.minute'::regclass, 'minute', minutes),
            ('telemetry.block'::regclass, 'block', date_trunc('month', blocks::timestamp)::date),
            ('telemetry.extra_block'::regclass, 'extra_block',
                date_trunc('month', blocks::timestamp)::date)
        ) AS t (parent, name, oldest) ON t.parent = i.inhparent
        WHERE c.relname < t.name || to_char(t.oldest, '_YYYYMMDD')
    LOOP
        EXECUTE format('DROP TABLE %s', part);
        gone := gone + 1;
    END LOOP;
    RETURN gone;
END $$;
"""

_HOT = """
-- The days that have hot partitions or chunks, with their size in bytes.
CREATE FUNCTION telemetry.hot_days() RETURNS TABLE (day date, bytes bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF telemetry.native('telemetry.sample') THEN
        RETURN QUERY
            SELECT to_date(right(c.relname, 8), 'YYYYMMDD'),
                coalesce(sum(pg_relation_size(c.oid)), 0)::bigint  -- null: dropped meanwhile
            FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid
            WHERE i.inhparent IN ('telemetry.sample'::regclass, 'telemetry.extra'::regclass)
            GROUP BY 1 ORDER BY 1;
    ELSE
        RETURN QUERY EXECUTE
            'SELECT (range_start AT TIME ZONE ''UTC'')::date,'
            ' coalesce(sum(pg_relation_size('
            ' to_regclass(format(''%I.%I'', chunk_schema, chunk_name)))), 0)::bigint'
            ' FROM timescaledb_information.chunks WHERE hypertable_schema = ''telemetry'''
            ' AND hypertable_name IN (''sample'', ''extra'') GROUP BY 1 ORDER BY 1';
    END IF;
END $$;

-- Drops an emptied day; false when a late sample is in it, or on its way. Whoever writes late
-- holds the day's lock shared, so nobody copies into what is about to go.
CREATE FUNCTION telemetry.drop_hot(day date) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    first timestamptz := day::timestamp AT TIME ZONE 'UTC';
    last timestamptz := (day + 1)::timestamp AT TIME ZONE 'UTC';
    parent text;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('telemetry.late_' || day)) THEN
        RETURN false;
    END IF;
    IF EXISTS (SELECT FROM telemetry.sample WHERE "time" >= first AND "time" < last)
        OR EXISTS (SELECT FROM telemetry.extra WHERE "time" >= first AND "time" < last) THEN
        RETURN false;
    END IF;
    FOREACH parent IN ARRAY ARRAY['sample', 'extra'] LOOP
        IF telemetry.native('telemetry.sample') THEN
            EXECUTE format('DROP TABLE IF EXISTS telemetry.%I',
                           parent || to_char(day, '_YYYYMMDD'));
        ELSE
            EXECUTE 'SELECT count(*) FROM drop_chunks($1::regclass, older_than => $2,'
                    ' newer_than => $3)' USING 'telemetry.' || parent, last, first;
        END IF;
    END LOOP;
    RETURN true;
END $$;

-- TimescaleDB's own compression of one day's chunks; false where the licence does not offer it.
CREATE FUNCTION telemetry.compress_hot(day date) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    first timestamptz := day::timestamp AT TIME ZONE 'UTC';
    last timestamptz := (day + 1)::timestamp AT TIME ZONE 'UTC';
    parent text;
BEGIN
    IF telemetry.native('telemetry.sample')
        OR current_setting('timescaledb.license', true) IS DISTINCT FROM 'timescale' THEN
        RETURN false;
    END IF;
    FOREACH parent IN ARRAY ARRAY['sample', 'extra'] LOOP
        IF NOT (SELECT compression_enabled FROM timescaledb_information.hypertables
                WHERE hypertable_schema = 'telemetry' AND hypertable_name = parent) THEN
            EXECUTE format('ALTER TABLE telemetry.%I SET (timescaledb.compress,'
                           ' timescaledb.compress_segmentby = ''station_id, evse'','
                           ' timescaledb.compress_orderby = ''"time"'')', parent);
        END IF;
        EXECUTE 'SELECT count(compress_chunk(c, if_not_compressed => true))'
                ' FROM show_chunks($1::regclass, older_than => $2, newer_than => $3) c'
            USING 'telemetry.' || parent, last, first;
    END LOOP;
    RETURN true;
END $$;
"""


_EVSES = """
-- The last register that the roll-ups know from before that time, however long before. A function,
-- because behind a view's barrier the planner would sort an EVSE's whole history for it.
CREATE FUNCTION telemetry.api_register(station integer, of_evse smallint, before timestamptz)
RETURNS bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    whole timestamptz := telemetry.hour_of(before);
    found bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM stations.api_station WHERE id = station) THEN
        RETURN NULL;
    END IF;
    IF whole < before THEN
        SELECT energy_wh INTO found FROM telemetry.minute
        WHERE station_id = station AND evse = of_evse AND at >= whole AND at < before
            AND energy_wh IS NOT NULL ORDER BY at DESC LIMIT 1;
    END IF;
    IF found IS NULL THEN
        SELECT energy_wh INTO found FROM telemetry.hour
        WHERE station_id = station AND evse = of_evse AND at < whole
            AND energy_wh IS NOT NULL ORDER BY at DESC LIMIT 1;
    END IF;
    RETURN found;
END $$;
REVOKE ALL ON FUNCTION telemetry.api_register(integer, smallint, timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.api_register(integer, smallint, timestamptz) TO karvon_app;

-- The EVSEs with samples of a station on these days, by hops in the index: asked for the station
-- and a time alone, the index would be read for all of the day.
CREATE FUNCTION telemetry.evses(station integer, first timestamptz, last timestamptz)
RETURNS smallint[]
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    midnight timestamptz := date_bin(interval '1 day', first, '1970-01-01 00:00+00');
    next timestamptz := date_bin(interval '1 day', last, '1970-01-01 00:00+00') + interval '1 day';
    found smallint[] := ARRAY(
        SELECT DISTINCT evse FROM telemetry.block WHERE station_id = station
        AND hour > first - interval '1 hour' AND hour < last
    );
    one smallint := -32768;
BEGIN
    LOOP
        SELECT evse INTO one FROM telemetry.sample
        WHERE station_id = station AND evse > one AND "time" >= midnight AND "time" < next
        ORDER BY evse LIMIT 1;
        EXIT WHEN one IS NULL;
        found := found || one;
    END LOOP;
    RETURN ARRAY(SELECT DISTINCT unnest(found));
END $$;
CREATE FUNCTION telemetry.api_evses(station integer, first timestamptz, last timestamptz)
RETURNS smallint[]
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT telemetry.evses(id, first, last) FROM stations.api_station WHERE id = station
$$;
REVOKE ALL ON FUNCTION telemetry.api_evses(integer, timestamptz, timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.api_evses(integer, timestamptz, timestamptz) TO karvon_app;
"""


def _late() -> str:
    functions = (
        "telemetry.evses(integer, timestamptz, timestamptz),"
        " telemetry.compact(timestamptz, timestamptz), telemetry.ensure_tiers(date[]),"
        " telemetry.drop_tiers(date, date), telemetry.hot_days(), telemetry.drop_hot(date),"
        " telemetry.compress_hot(date),"
        " telemetry.note_late(integer[], timestamptz[], timestamptz[])"
    )
    return f"""
-- Marks the hours that these spans touch below the fence; returns how many. To be called before
-- the samples are copied, in the same transaction. It takes a transaction number first: the worker
-- raises the fence, then waits until every number given out by then has ended, so whoever read
-- the old fence is either seen by the roll-up or has marked what it wrote. No lock is needed.
CREATE FUNCTION telemetry.note_late(
    stations integer[], firsts timestamptz[], lasts timestamptz[]
) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    fence timestamptz;
    hours timestamptz[];
    days date[];
    one date;
BEGIN
    PERFORM pg_current_xact_id();
    SELECT t.fence INTO fence FROM telemetry.tier t;
    WITH noted AS (
        INSERT INTO telemetry.late (station_id, hour)
        SELECT DISTINCT s.station_id, h
        FROM unnest(stations, firsts, lasts) AS s (station_id, first, last),
            generate_series(telemetry.hour_of(s.first), s.last, interval '1 hour') h
        WHERE s.first < fence AND h < fence
        RETURNING hour
    )
    SELECT array_agg(hour) INTO hours FROM noted;
    IF hours IS NULL THEN
        RETURN 0;
    END IF;
    SELECT array_agg(DISTINCT (h AT TIME ZONE 'UTC')::date) INTO days FROM unnest(hours) h;
    FOREACH one IN ARRAY days LOOP
        PERFORM pg_advisory_xact_lock_shared(hashtext('telemetry.late_' || one));
    END LOOP;
    PERFORM telemetry.ensure_days(days);
    RETURN cardinality(hours);
END $$;
REVOKE ALL ON FUNCTION {functions} FROM PUBLIC;
GRANT EXECUTE ON FUNCTION {functions} TO karvon_commit;
"""


_VALUES = ("every_ms", "energy_wh", *MEANS, "offered_ma")
_COLUMNS = ", ".join(_VALUES)
_UNPACKED = ", ".join(f"u.{name}" for name in _VALUES)

_VIEWS = f"""
-- Hot and compacted samples as one relation. `hour` finds the blocks: always ask for it besides.
CREATE VIEW telemetry.every_sample AS
    SELECT "time", station_id, evse, {_COLUMNS}, telemetry.hour_of("time") AS hour
    FROM telemetry.sample
    UNION ALL
    SELECT u."time", b.station_id, b.evse, {_UNPACKED}, b.hour
    FROM telemetry.block b, LATERAL telemetry.unpack(b) u;
CREATE VIEW telemetry.every_extra AS
    SELECT "time", station_id, evse, name, value, telemetry.hour_of("time") AS hour
    FROM telemetry.extra
    UNION ALL
    SELECT b.hour + u.us * interval '1 microsecond', b.station_id, b.evse, b.name,
        (u.value_high << 16) | (u.value::bigint + 32768), b.hour
    FROM telemetry.extra_block b,
        LATERAL unnest(b.micros, b.value, b.value_high) AS u (us, value, value_high);

CREATE OR REPLACE VIEW telemetry.api_sample WITH (security_barrier) AS
    SELECT * FROM telemetry.every_sample
    WHERE station_id IN (SELECT id FROM stations.api_station);
CREATE OR REPLACE VIEW telemetry.api_extra WITH (security_barrier) AS
    SELECT * FROM telemetry.every_extra
    WHERE station_id IN (SELECT id FROM stations.api_station);
CREATE VIEW telemetry.api_minute WITH (security_barrier) AS
    SELECT * FROM telemetry.minute WHERE station_id IN (SELECT id FROM stations.api_station);
CREATE VIEW telemetry.api_hour WITH (security_barrier) AS
    SELECT * FROM telemetry.hour WHERE station_id IN (SELECT id FROM stations.api_station);
CREATE VIEW telemetry.api_late WITH (security_barrier) AS
    SELECT * FROM telemetry.late WHERE station_id IN (SELECT id FROM stations.api_station);
GRANT SELECT ON telemetry.every_sample, telemetry.every_extra TO karvon_commit;
GRANT SELECT ON telemetry.api_minute, telemetry.api_hour, telemetry.api_late TO karvon_app;
"""
