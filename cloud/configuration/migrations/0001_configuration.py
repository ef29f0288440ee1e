"""Variables, charging profiles, external limits, reservations, local lists of OCPP stations."""

from __future__ import annotations

from alembic import op

revision = "configuration_0001"
down_revision = None
branch_labels = ("configuration",)
depends_on = ("kernel", "stations")


def upgrade() -> None:
    """Create the module's schema."""
    op.execute("""
        CREATE SCHEMA configuration;
        SELECT kernel.open_schema('configuration');

        CREATE TABLE configuration.variable (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            station_id integer NOT NULL,
            tenant_id integer NOT NULL,
            component text NOT NULL,
            component_instance text NOT NULL,
            evse integer NOT NULL,
            connector integer NOT NULL,
            variable text NOT NULL,
            variable_instance text NOT NULL,
            attribute text NOT NULL,
            value text,
            mutability text NOT NULL,
            characteristics jsonb NOT NULL,
            at timestamptz NOT NULL,
            UNIQUE (station_id, component, component_instance, evse, connector, variable,
                    variable_instance, attribute)
        );

        CREATE TABLE configuration.charging_profile (
            station_id integer NOT NULL,
            profile_id bigint NOT NULL,
            tenant_id integer NOT NULL,
            evse integer NOT NULL,
            purpose text NOT NULL,
            stack_level integer NOT NULL,
            source text NOT NULL,
            profile jsonb NOT NULL,
            command uuid,
            at timestamptz NOT NULL,
            PRIMARY KEY (station_id, profile_id)
        );

        CREATE TABLE configuration.external_limit (
            station_id integer NOT NULL,
            evse integer NOT NULL,
            source text NOT NULL,
            tenant_id integer NOT NULL,
            is_grid_critical boolean NOT NULL,
            schedules jsonb NOT NULL,
            at timestamptz NOT NULL,
            PRIMARY KEY (station_id, evse, source)
        );

        CREATE TABLE configuration.reservation (
            station_id integer NOT NULL,
            reservation_id bigint NOT NULL,
            tenant_id integer NOT NULL,
            evse integer NOT NULL,
            connector_type text NOT NULL,
            status text NOT NULL,
            expires_at timestamptz NOT NULL,
            command uuid,
            at timestamptz NOT NULL,
            PRIMARY KEY (station_id, reservation_id)
        );

        CREATE TABLE configuration.local_list (
            station_id integer PRIMARY KEY,
            tenant_id integer NOT NULL,
            version bigint NOT NULL,
            command uuid,
            at timestamptz NOT NULL
        );

        SELECT kernel.protect(t) FROM unnest(ARRAY[
            'configuration.variable', 'configuration.charging_profile',
            'configuration.external_limit', 'configuration.reservation',
            'configuration.local_list']::regclass[]) t;
    """)
