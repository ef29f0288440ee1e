"""Which id tokens OCPP stations keep, how far each has them, and the log of changes it follows."""

from __future__ import annotations

from alembic import op

revision = "authorization_0005"
down_revision = "authorization_0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Number every change of a token, and keep what left; the release before writes as it did.

    The numbers of one tenant are given under the lock of its `list_version`, so they become
    visible in their order.
    """
    op.execute("""
        CREATE SEQUENCE "authorization".list_change;
        GRANT USAGE ON SEQUENCE "authorization".list_change TO karvon_app, karvon_commit;

        ALTER TABLE "authorization".id_token
            ADD COLUMN changed bigint NOT NULL DEFAULT nextval('"authorization".list_change');
        ALTER TABLE "authorization".id_token ALTER COLUMN changed DROP DEFAULT;
        CREATE INDEX id_token_changed ON "authorization".id_token (tenant_id, changed);

        CREATE TABLE "authorization".list_departure (
            tenant_id integer NOT NULL,
            value text NOT NULL,
            type text NOT NULL,
            group_id integer NOT NULL,
            changed bigint NOT NULL
        );
        CREATE UNIQUE INDEX list_departure_once
            ON "authorization".list_departure (tenant_id, lower(value), group_id);
        CREATE INDEX list_departure_changed
            ON "authorization".list_departure (tenant_id, changed);

        CREATE FUNCTION "authorization".number_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF TG_OP <> 'INSERT' AND (TG_OP = 'DELETE' OR OLD.type <> NEW.type
                    OR OLD.group_id IS DISTINCT FROM NEW.group_id) THEN
                INSERT INTO "authorization".list_departure AS d
                    (tenant_id, value, type, group_id, changed)
                VALUES (OLD.tenant_id, OLD.value, OLD.type, coalesce(OLD.group_id, 0),
                        nextval('"authorization".list_change'))
                ON CONFLICT (tenant_id, lower(value), group_id) DO UPDATE
                SET value = excluded.value, type = excluded.type, changed = excluded.changed;
            END IF;
            IF TG_OP = 'DELETE' THEN
                RETURN OLD;
            END IF;
            IF TG_OP = 'UPDATE' OR NEW.changed IS NULL THEN
                NEW.changed := nextval('"authorization".list_change');
            END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER number_change BEFORE INSERT OR UPDATE OR DELETE ON "authorization".id_token
            FOR EACH ROW EXECUTE FUNCTION "authorization".number_change();

        CREATE FUNCTION "authorization".number_group() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            UPDATE "authorization".id_token SET group_id = group_id WHERE group_id = NEW.id;
            RETURN NULL;
        END $$;
        CREATE TRIGGER number_group AFTER UPDATE OF name ON "authorization".id_token_group
            FOR EACH ROW EXECUTE FUNCTION "authorization".number_group();

        CREATE OR REPLACE FUNCTION "authorization".tell_change() RETURNS trigger
        LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_notify('karvon_token', NEW.tenant_id::text);
            PERFORM pg_notify('karvon_kept_list', '');
            RETURN NULL;
        END $$;

        CREATE TABLE "authorization".list_policy (
            tenant_id integer NOT NULL,
            site_id integer,
            station_id integer,
            keep text NOT NULL CHECK (keep IN ('all', 'groups', 'none')),
            groups integer[] NOT NULL DEFAULT '{}',
            updated_at timestamptz NOT NULL,
            CHECK (site_id IS NULL OR station_id IS NULL)
        );
        CREATE UNIQUE INDEX list_policy_scope ON "authorization".list_policy
            (tenant_id, coalesce(site_id, 0), coalesce(station_id, 0));

        CREATE TABLE "authorization".station_list (
            station_id integer PRIMARY KEY,
            tenant_id integer NOT NULL,
            selection text NOT NULL DEFAULT '',
            held bigint,
            number bigint NOT NULL DEFAULT 0,
            through bigint NOT NULL DEFAULT 0,
            floor bigint NOT NULL DEFAULT 0,
            status text NOT NULL DEFAULT 'unknown',
            reason text NOT NULL DEFAULT '',
            failures integer NOT NULL DEFAULT 0,
            not_before timestamptz,
            command uuid,
            sent text,
            sent_selection text,
            sent_number bigint,
            sent_through bigint,
            sent_floor bigint,
            due_by timestamptz,
            firmware text NOT NULL DEFAULT '',
            checked_at timestamptz,
            since timestamptz NOT NULL
        );
        CREATE INDEX station_list_command ON "authorization".station_list (command)
            WHERE command IS NOT NULL;
        CREATE INDEX station_list_tenant ON "authorization".station_list (tenant_id);

        SELECT kernel.protect(t) FROM unnest(ARRAY[
            '"authorization".list_departure', '"authorization".list_policy',
            '"authorization".station_list']::regclass[]) t;
    """)
