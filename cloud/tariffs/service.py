"""Giving tariffs their prices, saying where they hold, and telling what charging would cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cloud.kernel.database import Cursor, Database
from cloud.kernel.etags import Expected, version_of
from cloud.kernel.handover import Move
from cloud.kernel.http import Caller
from cloud.kernel.paging import Cut, Part
from cloud.stations.api import StationFinder
from cloud.tariffs import store
from cloud.tariffs.amounts import EXPONENTS, digits_shown, read_amount, read_price
from cloud.tariffs.api import (
    AssignmentNotFound,
    InThePast,
    NoPriceYet,
    NoTariff,
    TariffExists,
    TariffNotFound,
    TermsRefused,
    VersionNotFound,
)
from cloud.tariffs.pinning import pins
from cloud.tariffs.pricing import Cost, Measure, TariffVersion, Terms, price
from cloud.tariffs.store import Assignment, AssignmentFilters, Scope, Start, Tariff

_CLOCKS_DIFFER: Final = timedelta(minutes=5)
"""A beginning so little in the past was meant to be now."""


@dataclass(frozen=True)
class Draft:
    """Prices as they are entered, in decimal text of the currency's major unit."""

    per_kwh: str = "0"
    per_minute: str = "0"
    per_session: str = "0"
    tax: int = 0
    tax_included: bool = True
    min_total: str | None = None
    max_total: str | None = None
    shown_digits: int | None = None
    valid_from: datetime | None = None

    def terms(self, currency: str) -> Terms:
        """Raises TermsRefused."""
        least, most = (self._limit(text, currency) for text in (self.min_total, self.max_total))
        if least is not None and most is not None and most < least:
            raise TermsRefused(
                f"max_total {self.max_total} is less than min_total {self.min_total}",
                fields=["min_total", "max_total"],
            )
        digits = digits_shown(currency) if self.shown_digits is None else self.shown_digits
        if digits > EXPONENTS[currency]:
            raise TermsRefused(
                f"{currency} has {EXPONENTS[currency]} decimals; shown_digits cannot be {digits}",
                fields=["shown_digits"],
            )
        return Terms(
            currency=currency,
            per_kwh=read_price(self.per_kwh, currency),
            per_minute=read_price(self.per_minute, currency),
            per_session=read_price(self.per_session, currency),
            tax=self.tax,
            tax_included=self.tax_included,
            min_total=least,
            max_total=most,
            shown_digits=digits,
        )

    def _limit(self, text: str | None, currency: str) -> int | None:
        amount = None if text is None else read_amount(text, currency)
        if text is not None and amount is None:
            raise TermsRefused(
                f"{text} is no whole amount of {currency}: it has {EXPONENTS[currency]} decimals",
                fields=["min_total", "max_total"],
            )
        return amount

    def begins(self, now: datetime) -> datetime:
        """Raises InThePast: what was charged at other prices cannot be undone."""
        if self.valid_from is None:
            return now
        if self.valid_from < now - _CLOCKS_DIFFER:
            raise InThePast(
                "prices cannot begin in the past; leave valid_from out to begin now",
                valid_from=self.valid_from.isoformat(),
            )
        return max(self.valid_from, now)


@dataclass(frozen=True)
class Priced:
    """A tariff with the version that is in force now; None: its first one has not begun."""

    tariff: Tariff
    current: TariffVersion | None


@dataclass(frozen=True)
class Quote:
    version: TariffVersion
    cost: Cost


@dataclass(frozen=True)
class Place:
    """Where a tariff is to hold, as people name it; nothing named means everywhere."""

    site: int | None = None
    station: str | None = None
    evse: int | None = None


@dataclass(frozen=True)
class Placed:
    """An assignment with its station's identity."""

    row: Assignment
    station: str | None


class Tariffs:
    def __init__(
        self, database: Database, stations: StationFinder, clock: Callable[[], datetime]
    ) -> None:
        self._database = database
        self._stations = stations
        self._clock = clock

    # ------------------------------------------------------------------ tariffs

    async def list_tariffs(
        self, caller: Caller, part: Part, *, currency: str | None, text: str | None
    ) -> Cut[Priced]:
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            cut = await store.tariffs(cursor, part, currency, text)
            return Cut(await self._priced(cursor, cut.rows), cut.next)

    async def _priced(self, cursor: Cursor, tariffs: Sequence[Tariff]) -> list[Priced]:
        current = await store.in_force(cursor, {one.id for one in tariffs}, self._clock())
        return [Priced(one, current.get(one.id)) for one in tariffs]

    async def create(self, caller: Caller, name: str, currency: str, draft: Draft) -> Priced:
        """A tariff with its first version. Raises TariffExists, TermsRefused, InThePast."""
        terms, now = draft.terms(currency), self._clock()
        valid_from = draft.begins(now)
        async with self._database.unit(caller.tenant_id) as cursor:
            made = await store.add_tariff(cursor, caller.tenant_id, name, currency, now)
            if made is None:
                raise _tariff_exists(name)
            await store.add_version(
                cursor,
                caller.tenant_id,
                made.id,
                terms,
                valid_from=valid_from,
                by=caller.subject,
                now=now,
            )
            return await self._one(cursor, made.id)

    async def tariff(self, caller: Caller, tariff_id: int) -> Priced:
        """Raises TariffNotFound."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            return await self._one(cursor, tariff_id)

    async def _one(self, cursor: Cursor, tariff_id: int) -> Priced:
        return (await self._priced(cursor, [await self._tariff(cursor, tariff_id)]))[0]

    async def _tariff(self, cursor: Cursor, tariff_id: int, *, lock: bool = False) -> Tariff:
        tariff = await store.tariff(cursor, tariff_id, lock=lock)
        if tariff is None:
            raise TariffNotFound(
                f"there is no tariff {tariff_id}; list the tariffs first", tariff=tariff_id
            )
        return tariff

    async def rename(
        self, caller: Caller, tariff_id: int, name: str | None, expected: Expected
    ) -> Priced:
        """Raises TariffNotFound, TariffExists, Stale."""
        async with self._database.unit(caller.tenant_id) as cursor:
            expected.check(version_of(await self._tariff(cursor, tariff_id, lock=True)))
            if name is not None and await store.rename_tariff(cursor, tariff_id, name) is None:
                raise _tariff_exists(name)
            return await self._one(cursor, tariff_id)

    # ------------------------------------------------------------------ versions

    async def add_version(
        self, caller: Caller, tariff_id: int, draft: Draft, expected: Expected
    ) -> TariffVersion:
        """New prices from a moment on. Raises TariffNotFound, TermsRefused, InThePast, Stale."""
        async with self._database.unit(caller.tenant_id) as cursor:
            tariff = await self._tariff(cursor, tariff_id, lock=True)
            expected.check(version_of(tariff))
            now = self._clock()
            return await store.add_version(
                cursor,
                caller.tenant_id,
                tariff_id,
                draft.terms(tariff.currency),
                valid_from=draft.begins(now),
                by=caller.subject,
                now=now,
            )

    async def history(self, caller: Caller, tariff_id: int, part: Part) -> Cut[TariffVersion]:
        """Raises TariffNotFound."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            await self._tariff(cursor, tariff_id)
            return await store.history(cursor, part, tariff_id)

    async def quote(
        self,
        caller: Caller,
        tariff_id: int,
        measure: Measure,
        *,
        number: int | None = None,
        at: datetime | None = None,
    ) -> Quote:
        """The measure's price by the version of that number, else by the one in force then.

        Raises TariffNotFound, VersionNotFound, NoPriceYet.
        """
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            await self._tariff(cursor, tariff_id)
            if number is None:
                version = await self._in_force(cursor, tariff_id, at or self._clock())
            else:
                version = await self._numbered(cursor, tariff_id, number)
        return Quote(version, price(version, measure))

    async def _in_force(self, cursor: Cursor, tariff_id: int, at: datetime) -> TariffVersion:
        found = (await store.in_force(cursor, [tariff_id], at)).get(tariff_id)
        if found is None:
            raise NoPriceYet(
                f"tariff {tariff_id} has no prices at that time; name a version of its history",
                tariff=tariff_id,
            )
        return found

    async def _numbered(self, cursor: Cursor, tariff_id: int, number: int) -> TariffVersion:
        found = await store.version(cursor, tariff_id, number)
        if found is None:
            raise VersionNotFound(
                f"tariff {tariff_id} has no version {number}; see its history",
                tariff=tariff_id,
                version=number,
            )
        return found

    # ------------------------------------------------------------------ where they hold

    async def list_assignments(
        self,
        caller: Caller,
        part: Part,
        *,
        tariff: int | None,
        site: int | None,
        station: str | None,
        ended: bool,
    ) -> Cut[Placed]:
        """Raises StationNotFound."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            keys = None if station is None else await self._stations.keys_ever(cursor, station)
            filters = AssignmentFilters(tariff, site, keys, ended)
            cut = await store.assignments(cursor, part, filters)
            return Cut(await self._placed(cursor, cut.rows), cut.next)

    async def _placed(self, cursor: Cursor, found: Sequence[Assignment]) -> list[Placed]:
        keys = {row.station_id for row in found if row.station_id is not None}
        names = await self._stations.identities(cursor, keys)
        return [
            Placed(row, None if row.station_id is None else names.get(row.station_id, ""))
            for row in found
        ]

    async def assign(self, caller: Caller, tariff_id: int, place: Place) -> Placed:
        """Have the tariff hold there from now on, instead of what held at exactly that place.

        Raises TariffNotFound, SiteNotFound, StationNotFound, EvseNotFound.
        """
        async with self._database.unit(caller.tenant_id) as cursor:
            await self._tariff(cursor, tariff_id)
            scope = await self._scope(cursor, place)
            await store.hold_assignments(cursor, caller.tenant_id)
            held = await store.assigned(cursor, caller.tenant_id, scope)
            if held is None or held.tariff != tariff_id:
                now = self._clock()
                if held is not None:
                    now = max(now, held.since)  # clocks of other processes may be ahead
                    await store.end(cursor, held.id, now)
                held = await store.assign(
                    cursor, caller.tenant_id, tariff_id, scope, now, caller.subject
                )
            return (await self._placed(cursor, [held]))[0]

    async def _scope(self, cursor: Cursor, place: Place) -> Scope:
        """The place by our own keys, if it is there."""
        if place.site is not None:
            await self._stations.at_site(cursor, place.site)
            return Scope(site_id=place.site)
        if place.station is None:
            return Scope()
        station = await self._stations.find(cursor, place.station)
        if place.evse is not None:
            await self._stations.evse(cursor, station, place.evse)
        return Scope(station_id=station.id, evse=place.evse)

    async def assignment(self, caller: Caller, assignment_id: int) -> Placed:
        """Raises AssignmentNotFound, also for one that has ended."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            row = await self._assignment(cursor, assignment_id)
            return (await self._placed(cursor, [row]))[0]

    async def _assignment(
        self, cursor: Cursor, assignment_id: int, *, lock: bool = False
    ) -> Assignment:
        row = await store.assignment(cursor, assignment_id, lock=lock)
        if row is None:
            raise AssignmentNotFound(
                f"no tariff assignment {assignment_id} holds; list the assignments first",
                assignment=assignment_id,
            )
        return row

    async def unassign(self, caller: Caller, assignment_id: int, expected: Expected) -> None:
        """From now on the next wider assignment holds there. Raises AssignmentNotFound, Stale."""
        async with self._database.unit(caller.tenant_id) as cursor:
            expected.check(version_of(await self._assignment(cursor, assignment_id, lock=True)))
            await store.end(cursor, assignment_id, self._clock())

    async def applied(self, caller: Caller, identity: str, evse: int) -> Priced:
        """What who starts there now would pay. Raises StationNotFound, EvseNotFound, NoTariff."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            station = await self._stations.find(cursor, identity)
            await self._stations.evse(cursor, station, evse)
            start = Start(caller.tenant_id, station.id, evse, self._clock())
            (pinned,) = await pins(cursor, [start])
            if pinned is None:
                raise NoTariff(
                    f"no tariff holds at EVSE {evse} of station {identity!r}; assign one to it,"
                    " to its site, or to all",
                    station=identity,
                    evse=evse,
                )
            version = (await store.versions(cursor, [pinned]))[pinned]
            return Priced(await self._tariff(cursor, version.tariff_id), version)


class TariffHandover:
    """A station's assignments end with its tenant; what started before keeps their prices."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock

    async def station_moved(self, cursor: Cursor, move: Move) -> None:
        await store.end_of_station(cursor, move.old, move.station_id, self._clock())


def _tariff_exists(name: str) -> TariffExists:
    return TariffExists(f"a tariff {name!r} exists; choose another name", name=name)
