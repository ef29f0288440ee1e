"""SQL of OCPP's security: how stations may connect, their passwords and certificates."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.paging import Column, Cut, Part, Sorts, Where, select_page
from cloud.kernel.rows import row, rows

STATION_CHANNEL: Final = "karvon_ocpp_station"
"""Told a station's key when what it must prove, or how it is talked to, was changed."""
CERTIFICATE_CHANNEL: Final = "karvon_certificate"
"""Told a station's key when one of its certificates was revoked."""


@dataclass(frozen=True)
class OcppStation:
    """How a station connects over OCPP; the defaults are those of a station without a row."""

    station_id: int
    security_profile: int = 0
    pending_profile: int | None = None
    password: str | None = None
    previous_password: str | None = None
    password_set_at: datetime | None = None
    key_form: str | None = None
    allow_no_subprotocol: bool = False
    time_zone: str | None = None
    ping_s: int | None = None
    updated_at: datetime | None = None

    def passwords(self) -> list[str]:
        """Those that are right now, the newest first."""
        return [kept for kept in (self.password, self.previous_password) if kept is not None]


_STATION: Final = (
    "station_id, security_profile, pending_profile, password, previous_password, password_set_at,"
    " key_form, allow_no_subprotocol, time_zone, ping_s, updated_at"
)


async def ocpp_station(cursor: Cursor, station_id: int, *, lock: bool = False) -> OcppStation:
    found = await row(
        cursor,
        OcppStation,
        f"SELECT {_STATION} FROM communication.ocpp_station WHERE station_id = %s"
        + (" FOR UPDATE" if lock else ""),
        (station_id,),
    )
    return found or OcppStation(station_id)


async def ocpp_stations(cursor: Cursor, stations: Collection[int]) -> dict[int, OcppStation]:
    found = await rows(
        cursor,
        OcppStation,
        f"SELECT {_STATION} FROM communication.ocpp_station WHERE station_id = ANY(%s)",
        (list(stations),),
    )
    return {one.station_id: one for one in found}


@dataclass(frozen=True)
class AtTheDoor:
    """What else an upgrade request is judged by."""

    has_agent: bool
    certificate_revoked: bool


async def with_agents(cursor: Cursor, stations: Collection[int]) -> set[int]:
    """Those of the stations that log in to the broker."""
    await cursor.execute(
        "SELECT station_id FROM communication.credential WHERE station_id = ANY(%s)",
        (list(stations),),
    )
    return {station for (station,) in await cursor.fetchall()}


async def hold_ocpp_station(
    cursor: Cursor, tenant: TenantId, station_id: int, now: datetime
) -> OcppStation:
    """The station's row, made when it is missing, locked until this transaction ends."""
    await cursor.execute(
        "INSERT INTO communication.ocpp_station (station_id, tenant_id, updated_at)"
        " VALUES (%s, %s, %s) ON CONFLICT (station_id) DO NOTHING",
        (station_id, tenant, now),
    )
    return await ocpp_station(cursor, station_id, lock=True)


SETTINGS: Final = (
    "security_profile",
    "pending_profile",
    "allow_no_subprotocol",
    "time_zone",
    "ping_s",
)


async def change_ocpp_station(
    cursor: Cursor, station_id: int, changes: dict[str, Any], now: datetime
) -> OcppStation:
    """Set some of SETTINGS of a row that is held, and wake the gateways at commit."""
    sets = "".join(f", {name} = %({name})s" for name in SETTINGS if name in changes)
    (changed,) = await rows(
        cursor,
        OcppStation,
        f"UPDATE communication.ocpp_station SET updated_at = %(now)s{sets}"
        f" WHERE station_id = %(id)s RETURNING {_STATION}",
        {**changes, "now": now, "id": station_id},
    )
    await _tell(cursor, STATION_CHANNEL, station_id)
    return changed


async def set_passwords(
    cursor: Cursor,
    station_id: int,
    password: str | None,
    previous: str | None,
    now: datetime,
) -> None:
    await cursor.execute(
        "UPDATE communication.ocpp_station SET password = %s, previous_password = %s,"
        " password_set_at = %s, key_form = NULL, updated_at = %s WHERE station_id = %s",
        (password, previous, None if password is None else now, now, station_id),
    )
    await _tell(cursor, STATION_CHANNEL, station_id)


async def settle_password(cursor: Cursor, station_id: int, password: str) -> bool:
    """Void the one before, now that this one is in use; False when it was, or is not the newest."""
    await cursor.execute(
        "UPDATE communication.ocpp_station SET previous_password = NULL"
        " WHERE station_id = %s AND password = %s AND previous_password IS NOT NULL",
        (station_id, password),
    )
    return cursor.rowcount > 0


async def note_form(cursor: Cursor, station_id: int, form: str) -> None:
    await cursor.execute(
        "UPDATE communication.ocpp_station SET key_form = %s WHERE station_id = %s",
        (form, station_id),
    )


async def raise_profile(cursor: Cursor, station_id: int, profile: int, now: datetime) -> bool:
    """Take the wished profile over; False when it was, or is not wished any more."""
    await cursor.execute(
        "UPDATE communication.ocpp_station SET security_profile = pending_profile,"
        " pending_profile = NULL, updated_at = %s"
        " WHERE station_id = %s AND pending_profile = %s AND security_profile < pending_profile",
        (now, station_id, profile),
    )
    if cursor.rowcount:
        await _tell(cursor, STATION_CHANNEL, station_id)
    return cursor.rowcount > 0


async def _tell(cursor: Cursor, channel: str, station_id: int) -> None:
    await cursor.execute("SELECT pg_notify(%s, %s)", (channel, str(station_id)))


# --------------------------------------------------------------------------- certificates


@dataclass(frozen=True)
class CertificateRow:
    serial: str
    station_id: int
    tenant_id: TenantId
    fingerprint: str
    pem: str
    issued_at: datetime
    not_before: datetime
    not_after: datetime
    renewal_asked_at: datetime | None
    revoked_at: datetime | None
    reason: str | None


_CERTIFICATE: Final = (
    "serial, station_id, tenant_id, fingerprint, pem, issued_at, not_before, not_after,"
    " renewal_asked_at, revoked_at, reason"
)
CERTIFICATES: Final = Sorts(
    "-issued_at",
    Column("serial"),
    issued_at=Column("issued_at", datetime),
    not_after=Column("not_after", datetime),
)


async def add_certificate(cursor: Cursor, certificate: CertificateRow) -> None:
    await cursor.execute(
        "INSERT INTO communication.certificate (serial, station_id, tenant_id, fingerprint, pem,"
        " issued_at, not_before, not_after) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
        (
            certificate.serial,
            certificate.station_id,
            certificate.tenant_id,
            certificate.fingerprint,
            certificate.pem,
            certificate.issued_at,
            certificate.not_before,
            certificate.not_after,
        ),
    )


async def certificate(cursor: Cursor, serial: str, *, lock: bool = False) -> CertificateRow | None:
    return await row(
        cursor,
        CertificateRow,
        f"SELECT {_CERTIFICATE} FROM communication.certificate WHERE serial = %s"
        + (" FOR UPDATE" if lock else ""),
        (serial,),
    )


@dataclass(frozen=True)
class CertificateFilters:
    """What a list of certificates is narrowed by; None does not narrow."""

    station_id: int | None = None
    revoked: bool | None = None
    ends_before: datetime | None = None


async def certificates(
    cursor: Cursor, part: Part, filters: CertificateFilters
) -> Cut[CertificateRow]:
    where = (
        Where()
        .add("station_id = {}", filters.station_id)
        .add("(revoked_at IS NOT NULL) = {}", filters.revoked)
        .add("not_after < {}", filters.ends_before)
    )
    source = "communication.certificate"
    return await select_page(cursor, CertificateRow, part, _CERTIFICATE, source, where)


async def has_certificate(cursor: Cursor, station_id: int, now: datetime) -> bool:
    """Whether the station holds one that is good now."""
    await cursor.execute(
        "SELECT FROM communication.certificate WHERE station_id = %s AND revoked_at IS NULL"
        " AND not_before <= %s AND not_after > %s LIMIT 1",
        (station_id, now, now),
    )
    return await cursor.fetchone() is not None


async def revoke(cursor: Cursor, serial: str, reason: str, now: datetime) -> CertificateRow | None:
    """None when it was revoked before; wakes the gateways at commit."""
    revoked = await row(
        cursor,
        CertificateRow,
        "UPDATE communication.certificate SET revoked_at = %s, reason = %s"
        f" WHERE serial = %s AND revoked_at IS NULL RETURNING {_CERTIFICATE}",
        (now, reason, serial),
    )
    if revoked is not None:
        await _tell(cursor, CERTIFICATE_CHANNEL, revoked.station_id)
    return revoked


async def revoked_of(cursor: Cursor, fingerprints: Collection[str]) -> set[str]:
    """Those of the certificates in use that are revoked."""
    await cursor.execute(
        "SELECT fingerprint FROM communication.certificate"
        " WHERE fingerprint = ANY(%s) AND revoked_at IS NOT NULL",
        (list(fingerprints),),
    )
    return {fingerprint for (fingerprint,) in await cursor.fetchall()}


async def due_for_renewal(
    cursor: Cursor,
    stations: Collection[int],
    ends_before: datetime,
    asked_before: datetime,
    now: datetime,
    limit: int,
) -> list[CertificateRow]:
    """The last good certificate of each of the stations, where it ends soon; marked as asked."""
    return await rows(
        cursor,
        CertificateRow,
        "UPDATE communication.certificate SET renewal_asked_at = %(now)s WHERE serial IN ("
        " SELECT serial FROM communication.certificate c WHERE station_id = ANY(%(stations)s)"
        " AND revoked_at IS NULL AND not_after < %(ends)s AND not_after > %(now)s"
        " AND (renewal_asked_at IS NULL OR renewal_asked_at < %(asked)s)"
        " AND NOT EXISTS (SELECT FROM communication.certificate later"
        "  WHERE later.station_id = c.station_id AND later.revoked_at IS NULL"
        "  AND (later.not_after, later.serial) > (c.not_after, c.serial))"
        f" ORDER BY not_after LIMIT %(limit)s FOR UPDATE SKIP LOCKED) RETURNING {_CERTIFICATE}",
        {
            "now": now,
            "stations": list(stations),
            "ends": ends_before,
            "asked": asked_before,
            "limit": limit,
        },
    )


# --------------------------------------------------------------------------- as a whole


async def hand_over(cursor: Cursor, station_id: int, tenant: TenantId) -> None:
    """The station's way to connect to the tenant."""
    for sql in _HAND_OVER:
        await cursor.execute(sql, (tenant, station_id))


_HAND_OVER: Final = (
    "UPDATE communication.ocpp_station SET tenant_id = %s WHERE station_id = %s",
    "UPDATE communication.certificate SET tenant_id = %s WHERE station_id = %s",
)


async def forget_station(cursor: Cursor, station_id: int) -> None:
    """Void the station's password and certificates, and have its connection cut."""
    await cursor.execute(
        "DELETE FROM communication.ocpp_station WHERE station_id = %s", (station_id,)
    )
    await cursor.execute(
        "UPDATE communication.certificate SET revoked_at = now(),"
        " reason = 'the station was deleted' WHERE station_id = %s AND revoked_at IS NULL",
        (station_id,),
    )
    for channel in (STATION_CHANNEL, CERTIFICATE_CHANNEL):
        await _tell(cursor, channel, station_id)
