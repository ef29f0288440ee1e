"""Charging profiles of an OCPP backend: which limit holds when, and what comes next (pure).

Per purpose the valid profile of the highest stack level leads; where its schedule says nothing
(not yet begun, over), the next lower one does. A transaction follows its own profile, else the
EVSE's default, else the default of all EVSEs; the station's maximum bounds all of them together
(1.6, 3.13; 2.0.1 Part 2, K01). Times are wall times in ms, limits mA per phase or W.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import UUID

import msgspec

from protocols.quantities import MilliAmperes

NOMINAL_MV: Final = 230_000
"""Phase to neutral: what turns a limit in W into one in mA."""
DAY_MS: Final = 86_400_000
STATION: Final = 0
MOST_POINTS: Final = 500
"""Change points of one composite schedule; what is beyond is not told."""


class Purpose(StrEnum):
    """2.x's ChargingProfilePurposeEnumType, as far as a backend may set them."""

    STATION_MAX = "ChargingStationMaxProfile"
    DEFAULT = "TxDefaultProfile"
    TRANSACTION = "TxProfile"


class Pattern(StrEnum):
    """2.x's ChargingProfileKindEnumType with RecurrencyKindEnumType."""

    ABSOLUTE = "absolute"
    DAILY = "daily"
    WEEKLY = "weekly"
    RELATIVE = "relative"

    @property
    def every_ms(self) -> int | None:
        return {Pattern.DAILY: DAY_MS, Pattern.WEEKLY: 7 * DAY_MS}.get(self)


class Unit(StrEnum):
    AMPERE = "A"
    WATT = "W"


class Period(msgspec.Struct, frozen=True):
    """From `start_s` of its schedule on, until the next one."""

    start_s: int
    limit: int
    """mA per phase or W, as the schedule's unit says."""
    phases: int | None = None


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One profile with its schedule, as a backend set it."""

    id: int
    evse: int
    stack: int
    purpose: Purpose
    pattern: Pattern
    unit: Unit
    periods: tuple[Period, ...]
    set_ms: int
    """When it was set: where a schedule without a start of its own begins."""
    start_ms: int | None = None
    duration_s: int | None = None
    valid_from_ms: int | None = None
    valid_to_ms: int | None = None
    transaction: UUID | None = None

    def began(self, at_ms: int, transaction_ms: int | None) -> int | None:
        """When the run of its schedule that holds at a time has begun; None: none does."""
        if self.pattern is Pattern.RELATIVE:
            return self.set_ms if transaction_ms is None else transaction_ms
        start = self.set_ms if self.start_ms is None else self.start_ms
        every = self.pattern.every_ms
        if every is None or at_ms < start:
            return start
        return at_ms - (at_ms - start) % every

    def valid(self, at_ms: int) -> bool:
        early = self.valid_from_ms is not None and at_ms < self.valid_from_ms
        late = self.valid_to_ms is not None and at_ms >= self.valid_to_ms
        return not (early or late)

    def period(self, at_ms: int, transaction_ms: int | None) -> Period | None:
        """The period that holds at a time; None where this profile says nothing then."""
        began = self.began(at_ms, transaction_ms)
        if began is None or not self.valid(at_ms) or at_ms < began:
            return None
        gone_ms = at_ms - began
        if self.duration_s is not None and gone_ms >= self.duration_s * 1000:
            return None
        found = [one for one in self.periods if one.start_s * 1000 <= gone_ms]
        return found[-1] if found else None

    def changes(self, from_ms: int, to_ms: int, transaction_ms: int | None) -> Iterator[int]:
        """Every time after `from_ms` and before `to_ms` at which what it says may change."""
        for at in (self.valid_from_ms, self.valid_to_ms):
            if at is not None:
                yield at
        began = self.began(from_ms, transaction_ms)
        every = self.pattern.every_ms
        while began is not None and began < to_ms:
            yield began
            yield from (began + one.start_s * 1000 for one in self.periods)
            if self.duration_s is not None:
                yield began + self.duration_s * 1000
            began = None if every is None else began + every


def wrong(profile: Profile) -> str:
    """Why it cannot be used; empty when it can."""
    starts = [one.start_s for one in profile.periods]
    if not starts or starts[0] != 0:
        return "the first period must start at 0"
    if sorted(set(starts)) != starts:
        return "periods must start one after the other"
    if any(one.limit < 0 for one in profile.periods):
        return "a limit is not below 0"
    if profile.purpose is Purpose.STATION_MAX:
        if profile.evse != STATION:
            return "the station's maximum belongs to the station, not to an EVSE"
        if profile.pattern is Pattern.RELATIVE:
            return "the station's maximum cannot be relative to a transaction"
    if profile.purpose is Purpose.TRANSACTION and profile.evse == STATION:
        return "a transaction's profile needs its EVSE"
    if profile.pattern.every_ms is not None and profile.start_ms is None:
        return "a recurring profile needs a start"
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """The transaction of an EVSE, if one is open."""

    id: UUID
    started_ms: int


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a composite schedule: a limit in mA from then on; None: no profile limits."""

    start_s: int
    limit: MilliAmperes | None


def amperes(limit: int, unit: Unit, phases: int) -> MilliAmperes:
    """A limit as mA per phase."""
    if unit is Unit.AMPERE:
        return MilliAmperes(limit)
    return MilliAmperes(limit * 1_000_000 // (NOMINAL_MV * max(1, phases)))


def watts(limit: int, phases: int) -> int:
    """A limit in mA per phase as W."""
    return limit * NOMINAL_MV * max(1, phases) // 1_000_000


class Profiles(msgspec.Struct, frozen=True):
    """All profiles that a backend has set here."""

    held: tuple[Profile, ...] = ()

    # ------------------------------------------------------------------ changing

    def put(self, profile: Profile) -> Profiles:
        """With one more; it takes the place of its id, and of its purpose, level and EVSE."""

        def replaced(old: Profile) -> bool:
            place = (old.evse, old.purpose, old.stack, old.transaction)
            return old.id == profile.id or place == (
                profile.evse,
                profile.purpose,
                profile.stack,
                profile.transaction,
            )

        return Profiles((*(old for old in self.held if not replaced(old)), profile))

    def matching(
        self,
        *,
        id: int | None = None,  # noqa: A002  # the field's own name
        evse: int | None = None,
        purpose: Purpose | None = None,
        stack: int | None = None,
    ) -> tuple[Profile, ...]:
        """Those that fit all that is named."""
        return tuple(
            one
            for one in self.held
            if id in {None, one.id}
            and evse in {None, one.evse}
            and purpose in {None, one.purpose}
            and stack in {None, one.stack}
        )

    def without(self, gone: Iterable[Profile]) -> Profiles:
        dropped = {one.id for one in gone}
        return Profiles(tuple(one for one in self.held if one.id not in dropped))

    def current(self, running: Iterable[UUID], at_ms: int) -> Profiles:
        """Without those of transactions that are over, and those whose time has passed."""
        open_here = {*running}
        return Profiles(
            tuple(
                one
                for one in self.held
                if (one.transaction is None or one.transaction in open_here)
                and (one.valid_to_ms is None or at_ms < one.valid_to_ms)
            )
        )

    # ------------------------------------------------------------------ what holds

    def limit(
        self, evse: int, running: Running | None, at_ms: int, phases: int
    ) -> MilliAmperes | None:
        """What the profiles allow to this EVSE itself; None where none says anything."""
        started = running.started_ms if running else None
        for level in self._levels(evse, running):
            period = self._leading(level, at_ms, started)
            if period is not None:
                return amperes(period[1].limit, period[0].unit, period[1].phases or phases)
        return None

    def station_limit(self, at_ms: int, phases: int) -> MilliAmperes | None:
        """What all EVSEs may take together."""
        most = self.matching(evse=STATION, purpose=Purpose.STATION_MAX)
        found = self._leading(most, at_ms, None)
        if found is None:
            return None
        return amperes(found[1].limit, found[0].unit, found[1].phases or phases)

    def _levels(self, evse: int, running: Running | None) -> Iterator[tuple[Profile, ...]]:
        """From the most to the least particular."""
        if running is not None:
            own = self.matching(evse=evse, purpose=Purpose.TRANSACTION)
            yield tuple(one for one in own if one.transaction in {None, running.id})
        yield self.matching(evse=evse, purpose=Purpose.DEFAULT)
        if evse != STATION:
            yield self.matching(evse=STATION, purpose=Purpose.DEFAULT)

    @staticmethod
    def _leading(
        profiles: Iterable[Profile], at_ms: int, started: int | None
    ) -> tuple[Profile, Period] | None:
        for one in sorted(profiles, key=lambda each: -each.stack):
            period = one.period(at_ms, started)
            if period is not None:
                return one, period
        return None

    # ------------------------------------------------------------------ what comes

    def composite(
        self, evse: int, running: Running | None, from_ms: int, duration_s: int, phases: int
    ) -> tuple[Step, ...]:
        """What holds from then on, step by step, all purposes together."""
        to_ms = from_ms + duration_s * 1000
        started = running.started_ms if running else None
        seconds = {0}
        for one in self.held:
            for at in one.changes(from_ms, to_ms, started):
                seconds.add(max(0, -((from_ms - at) // 1000)))  # told from the next whole second on
        steps: list[Step] = []
        for second in sorted(one for one in seconds if one < max(duration_s, 1))[:MOST_POINTS]:
            limit = self._together(evse, running, from_ms + second * 1000, phases)
            if not steps or steps[-1].limit != limit:
                steps.append(Step(second, limit))
        return tuple(steps)

    def _together(
        self, evse: int, running: Running | None, at_ms: int, phases: int
    ) -> MilliAmperes | None:
        own = None if evse == STATION else self.limit(evse, running, at_ms, phases)
        known = [one for one in (own, self.station_limit(at_ms, phases)) if one is not None]
        return min(known, default=None)
