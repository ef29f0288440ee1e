"""How stations connect over OCPP: security settings, passwords, certificates."""

from __future__ import annotations

from alembic import op

revision = "communication_0004"
down_revision = "communication_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables; a station without a row connects by the defaults."""
    op.execute("""
        CREATE TABLE communication.ocpp_station (
            station_id integer PRIMARY KEY,
            tenant_id integer NOT NULL,
            security_profile smallint NOT NULL DEFAULT 0 CHECK (security_profile BETWEEN 0 AND 3),
            pending_profile smallint CHECK (pending_profile BETWEEN 1 AND 3),
            password text,
            previous_password text,
            password_set_at timestamptz,
            key_form text,
            allow_no_subprotocol boolean NOT NULL DEFAULT false,
            time_zone text,
            ping_s integer CHECK (ping_s >= 0),
            updated_at timestamptz NOT NULL
        );
        CREATE INDEX ocpp_station_tenant ON communication.ocpp_station (tenant_id, station_id);

        CREATE TABLE communication.certificate (
            serial text PRIMARY KEY,
            tenant_id integer NOT NULL,
            station_id integer NOT NULL,
            fingerprint text NOT NULL UNIQUE,
            pem text NOT NULL,
            issued_at timestamptz NOT NULL,
            not_before timestamptz NOT NULL,
            not_after timestamptz NOT NULL,
            renewal_asked_at timestamptz,
            revoked_at timestamptz,
            reason text
        );
        CREATE INDEX certificate_station ON communication.certificate
            (station_id, not_after DESC, serial);
        CREATE INDEX certificate_tenant ON communication.certificate
            (tenant_id, not_after, serial);
        CREATE INDEX certificate_revoked ON communication.certificate (revoked_at)
            WHERE revoked_at IS NOT NULL;

        SELECT kernel.protect('communication.ocpp_station'),
               kernel.protect('communication.certificate');
    """)
