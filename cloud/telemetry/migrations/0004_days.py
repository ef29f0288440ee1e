"""Partitions for new days are made by one transaction at a time."""

from __future__ import annotations

from alembic import op

revision = "telemetry_0004"
down_revision = "telemetry_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One lock for all days: with one a day, whoever made two of them could deadlock with others.

    He held the parent's lock from the first day while he waited for the second one's, and whoever
    held that waited for the parent.
    """
    op.execute("""
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
            PERFORM pg_advisory_xact_lock(hashtext('telemetry.days'));
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
""")
