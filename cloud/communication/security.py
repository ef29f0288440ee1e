"""How stations have to connect over OCPP: settings, passwords, certificates, by operators' wish.

Each change is an event that names who made it; none holds a password.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import astuple, dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from cloud.communication import passwords
from cloud.communication import security_store as store
from cloud.communication.admission import Profile
from cloud.communication.api import (
    CertificateNotFound,
    CertificateRefused,
    CertificateRevoked,
    Known,
    NoAuthority,
    OcppContradiction,
    StationDirectory,
    TooManyCertificates,
)
from cloud.communication.pki import CertificateAuthority
from cloud.communication.security_store import CertificateFilters, CertificateRow, OcppStation
from cloud.kernel import events
from cloud.kernel.database import Cursor, Database
from cloud.kernel.etags import Expected, version_of
from cloud.kernel.events import Event
from cloud.kernel.http import Caller
from cloud.kernel.limiter import Limiter
from cloud.kernel.paging import Cut, Part

RENEW_BEFORE: Final = timedelta(days=30)
ASK_AGAIN_AFTER: Final = timedelta(days=1)
_BY_PASSWORD: Final = (Profile.BASIC, Profile.TLS_BASIC)


@dataclass(frozen=True)
class NewPassword:
    """The password, shown this once."""

    station: str
    password: str
    generated: bool
    earlier_holds: bool
    """Whether the one before is right, too, until this one was used."""


@dataclass(frozen=True)
class NamedCertificate:
    """A certificate and its station's identity."""

    row: CertificateRow
    station: str


def settings_version(station: OcppStation) -> str:
    """What a change is checked against; what the station shows by connecting is no part of it."""
    shown = replace(station, previous_password=None, key_form=None, updated_at=None)
    return version_of(astuple(shown))


class OcppSecurity:
    def __init__(
        self,
        database: Database,
        directory: StationDirectory,
        authority: CertificateAuthority | None,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._directory = directory
        self._authority = authority
        self._clock = clock
        self._signing = Limiter(burst=5, every=timedelta(minutes=10))

    # ------------------------------------------------------------------ settings

    async def settings(self, caller: Caller, identity: str) -> OcppStation:
        """Raises the directory's not-found error."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            station_id = await self._directory.key_of(cursor, identity)
            return await store.ocpp_station(cursor, station_id)

    async def change(
        self, caller: Caller, identity: str, changes: dict[str, Any], expected: Expected
    ) -> OcppStation:
        """Set some of `security_store.SETTINGS`. Raises OcppContradiction, Stale."""
        now = self._clock()
        async with self._database.unit(caller.tenant_id) as cursor:
            held = await self._hold(cursor, caller, identity, expected)
            changes = _without_the_reached(held, changes)
            wished = replace(held, **changes)
            await self._possible(cursor, wished, now)
            changed = await store.change_ocpp_station(cursor, held.station_id, changes, now)
            told = {
                name: {"from": getattr(held, name), "to": value}
                for name, value in changes.items()
                if value != getattr(held, name)
            }
            await self._log(cursor, caller, held, identity, "ocpp.settings_changed", changes=told)
        return changed

    async def _possible(self, cursor: Cursor, wished: OcppStation, now: datetime) -> None:
        """Nobody is locked out by a wish that he cannot fulfil."""
        profile, pending = wished.security_profile, wished.pending_profile
        if pending is not None and pending <= profile:
            raise OcppContradiction(
                f"the station must reach profile {profile} already; to lower it, set"
                " security_profile",
                security_profile=profile,
            )
        if wished.password is None and {profile, pending} & set(_BY_PASSWORD):
            raise OcppContradiction("security profiles 1 and 2 need a password; set one first")
        if profile == Profile.MUTUAL_TLS and not await store.has_certificate(
            cursor, wished.station_id, now
        ):
            raise OcppContradiction(
                "the station has no certificate of ours; set pending_profile to 3, and it is"
                " raised when it has connected with one"
            )

    async def _hold(
        self, cursor: Cursor, caller: Caller, identity: str, expected: Expected
    ) -> OcppStation:
        known = await self._directory.resolve(cursor, identity, hold=True)
        if known is None:
            await self._directory.key_of(cursor, identity)
            raise LookupError(identity)  # it raises
        held = await store.hold_ocpp_station(cursor, caller.tenant_id, known.id, self._clock())
        expected.check(settings_version(held))
        return held

    async def _log(
        self,
        cursor: Cursor,
        caller: Caller,
        station: OcppStation,
        identity: str,
        kind: str,
        **data: Any,
    ) -> None:
        event = Event(
            caller.tenant_id, kind, station.station_id, identity, {"by": caller.subject, **data}
        )
        await events.append(cursor, [event])

    # ------------------------------------------------------------------ passwords

    async def set_password(
        self,
        caller: Caller,
        identity: str,
        chosen: str | None,
        expected: Expected,
        *,
        keep_earlier: bool = True,
    ) -> NewPassword:
        """Give the station another password (None: one that we make). Raises Stale.

        While the change is under way the one before holds, too: that which the station has used
        last, should this be changed twice before it took notice.
        """
        password = passwords.generate() if chosen is None else chosen
        kept = await asyncio.to_thread(passwords.keep, password, generated=chosen is None)
        now = self._clock()
        async with self._database.unit(caller.tenant_id) as cursor:
            held = await self._hold(cursor, caller, identity, expected)
            earlier = (held.previous_password or held.password) if keep_earlier else None
            await store.set_passwords(cursor, held.station_id, kept, earlier, now)
            told = {"generated": chosen is None, "earlier_holds": earlier is not None}
            await self._log(cursor, caller, held, identity, "ocpp.password_set", **told)
        return NewPassword(identity, password, chosen is None, earlier is not None)

    async def remove_password(self, caller: Caller, identity: str, expected: Expected) -> None:
        """Raises OcppContradiction, Stale."""
        now = self._clock()
        async with self._database.unit(caller.tenant_id) as cursor:
            held = await self._hold(cursor, caller, identity, expected)
            await self._possible(cursor, replace(held, password=None), now)
            await store.set_passwords(cursor, held.station_id, None, None, now)
            await self._log(cursor, caller, held, identity, "ocpp.password_removed")

    async def password_confirmed(self, station: Known, identity: str) -> None:
        """The station has said that it took the newest password: the one before is void."""
        async with self._database.commit_unit() as cursor:
            held = await store.ocpp_station(cursor, station.id, lock=True)
            if held.password is not None and await store.settle_password(
                cursor, station.id, held.password
            ):
                event = Event(station.tenant_id, "ocpp.password_in_use", station.id, identity, {})
                await events.append(cursor, [event])

    # ------------------------------------------------------------------ certificates

    @property
    def authority_pem(self) -> str:
        """What stations trust. Raises NoAuthority."""
        return self._signer().pem

    def _signer(self) -> CertificateAuthority:
        if self._authority is None:
            raise NoAuthority(
                "this process holds no authority for certificates; give all of them the same one"
                " (ocpp_ca_file, ocpp_ca_key_file)"
            )
        return self._authority

    async def sign_for(self, caller: Caller, identity: str, csr: str) -> NamedCertificate:
        """For an operator who brings the station's request. Raises CertificateRefused."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            key = await self._directory.key_of(cursor, identity)
        return await self._sign(Known(key, caller.tenant_id), identity, csr, caller.subject)

    async def sign(self, station: Known, identity: str, csr: str) -> NamedCertificate:
        """A certificate for the station that asks for it.

        Raises CertificateRefused, TooManyCertificates, NoAuthority; what was refused is an event.
        """
        if not self._signing.allow(str(station.id), self._clock()):
            raise TooManyCertificates(
                f"station {identity!r} asks for certificates too often; try again in ten minutes",
                station=identity,
            )
        return await self._sign(station, identity, csr, "station")

    async def sign_joining(
        self, station: Known, identity: str, csr: str
    ) -> NamedCertificate | None:
        """For a station that has just claimed its credentials; None where nobody can sign here."""
        return await self._sign(station, identity, csr, "claim") if self._authority else None

    async def _sign(self, station: Known, identity: str, csr: str, by: str) -> NamedCertificate:
        now, signer = self._clock(), self._signer()
        try:
            signed = signer.sign(csr, identity, now)
        except CertificateRefused as refused:
            data = {"by": by, "why": refused.params.get("why"), "detail": refused.detail}
            await self._tell(station, identity, "ocpp.certificate_refused", data)
            raise
        row = CertificateRow(
            serial=signed.serial,
            station_id=station.id,
            tenant_id=station.tenant_id,
            fingerprint=signed.fingerprint,
            pem=signed.pem,
            issued_at=now,
            not_before=signed.not_before,
            not_after=signed.not_after,
            renewal_asked_at=None,
            revoked_at=None,
            reason=None,
        )
        data = {"by": by, "serial": row.serial, "not_after": row.not_after.isoformat()}
        async with self._database.unit(station.tenant_id) as cursor:
            await store.add_certificate(cursor, row)
            event = Event(station.tenant_id, "ocpp.certificate_issued", station.id, identity, data)
            await events.append(cursor, [event])
        return NamedCertificate(row, identity)

    async def _tell(self, station: Known, identity: str, kind: str, data: dict[str, Any]) -> None:
        """In a transaction of its own: the caller's ends with the refusal."""
        async with self._database.commit_unit() as cursor:
            event = Event(station.tenant_id, kind, station.id, identity, data)
            await events.append(cursor, [event])

    async def list_certificates(
        self, caller: Caller, part: Part, station: str | None = None, **filters: Any
    ) -> Cut[NamedCertificate]:
        """Filters are CertificateFilters'; raises the directory's not-found error."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            key = None if station is None else await self._directory.key_of(cursor, station)
            narrowed = CertificateFilters(station_id=key, **filters)
            cut = await store.certificates(cursor, part, narrowed)
            return Cut(await self._named(cursor, cut.rows), cut.next)

    async def certificate(self, caller: Caller, serial: str) -> NamedCertificate:
        """Raises CertificateNotFound."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            found = await self._certificate(cursor, serial)
            return (await self._named(cursor, [found]))[0]

    async def _certificate(self, cursor: Cursor, serial: str) -> CertificateRow:
        found = await store.certificate(cursor, serial)
        if found is None:
            raise CertificateNotFound(f"there is no certificate {serial}", serial=serial)
        return found

    async def _named(
        self, cursor: Cursor, found: Sequence[CertificateRow]
    ) -> list[NamedCertificate]:
        names = await self._directory.identities(cursor, {row.station_id for row in found})
        return [NamedCertificate(row, names.get(row.station_id, "")) for row in found]

    async def revoke(self, caller: Caller, serial: str, reason: str) -> NamedCertificate:
        """Gateways cut off who uses it. Raises CertificateNotFound, CertificateRevoked."""
        async with self._database.unit(caller.tenant_id) as cursor:
            revoked = await store.revoke(cursor, serial, reason, self._clock())
            if revoked is None:
                held = await self._certificate(cursor, serial)
                raise CertificateRevoked(
                    f"certificate {serial} was revoked before: {held.reason}", serial=serial
                )
            named = (await self._named(cursor, [revoked]))[0]
            data = {"by": caller.subject, "serial": serial, "reason": reason}
            event = Event(
                caller.tenant_id,
                "ocpp.certificate_revoked",
                revoked.station_id,
                named.station,
                data,
            )
            await events.append(cursor, [event])
        return named

    async def due_for_renewal(
        self, stations: Collection[int], margin: timedelta = RENEW_BEFORE, limit: int = 50
    ) -> list[CertificateRow]:
        """Of the stations that are connected here, whom to ask for a new signing request now.

        Each is named again a day later, should nothing have come of it.
        """
        now = self._clock()
        async with self._database.commit_unit() as cursor:
            return await store.due_for_renewal(
                cursor, stations, now + margin, now - ASK_AGAIN_AFTER, now, limit
            )


def _without_the_reached(held: OcppStation, changes: dict[str, Any]) -> dict[str, Any]:
    """A profile set by hand ends the wish that it fulfils."""
    profile, pending = changes.get("security_profile"), held.pending_profile
    if profile is not None and "pending_profile" not in changes and pending is not None:
        return {**changes, "pending_profile": None if pending <= profile else pending}
    return changes
