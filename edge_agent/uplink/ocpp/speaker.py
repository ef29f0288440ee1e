"""What the station says and does alike in every version; `v16` and `v201` put words to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from edge_agent.records import LocalList
from edge_agent.rules.charging_profiles import (
    STATION,
    Profile,
    Purpose,
    Running,
    Step,
    Unit,
    watts,
    wrong,
)
from edge_agent.uplink.ocpp import device as model
from edge_agent.uplink.ocpp.device import DeviceModel
from edge_agent.uplink.ocpp.port import Charger, Deed, Done, LogKind, Outcome, Upload
from edge_agent.uplink.ocpp.station import Reply
from protocols.agent_link import (
    ConnectorStatus,
    EvseStatus,
    IdToken,
    LocalListEntry,
    Stamp,
)
from protocols.ocpp.sampling import iso
from protocols.quantities import Milliseconds

UNKNOWN_TOKEN: Final = "UNKNOWN"  # noqa: S105  # no secret
"""A transaction whose token is not known, such as one adopted after a loss of the journal."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a profile or a list is not taken; `code` is 2.x's reasonCode."""

    code: str
    text: str


def unix_ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def optional_ms(moment: datetime | None) -> int | None:
    return None if moment is None else unix_ms(moment)


def told(**fields: Any) -> dict[str, Any]:
    """A payload without what is not told."""
    return {name: value for name, value in fields.items() if value is not None}


class Speaker:
    """Shared by the versions: the agent, its settings, and what does not depend on words."""

    def __init__(self, charger: Charger, device: DeviceModel, numbers: Mapping[UUID, int]) -> None:
        self.charger = charger
        self.device = device
        self.numbers = numbers
        self.transfer = "Idle"
        """How the last upload went, or goes."""
        self.lean = False
        """Beside the register nothing is said of a transaction: the month's traffic is short."""
        self._had: set[int] = set()

    def at(self, stamp: Stamp) -> str:
        """A time as far as it is known by now."""
        return iso(self.charger.when(stamp))

    def now(self) -> str:
        return self.at(self.charger.now())

    def measurands(self) -> tuple[str, ...]:
        """What is said beside the register while a transaction goes on."""
        if self.lean:
            return ()
        return self.device.list("SampledDataCtrlr", "TxUpdatedMeasurands")

    def evse_numbers(self) -> list[int]:
        return [one.evse for one in self.charger.evses()]

    def phases(self, evse: int) -> int:
        found = {one.evse: one.phases for one in self.charger.evses()}
        return found.get(evse) or max(found.values(), default=3)

    def finishing(self, status: EvseStatus) -> bool:
        """The vehicle whose transaction has ended is still there."""
        if status.transaction is not None:
            self._had.add(status.evse)
        elif status.status is not ConnectorStatus.OCCUPIED:
            self._had.discard(status.evse)
        return status.transaction is None and status.evse in self._had

    def running(self, evse: int) -> Running | None:
        status = self.charger.statuses().get(evse)
        if status is None or status.transaction is None:
            return None
        started = self.charger.started(status.transaction)
        return Running(id=status.transaction, started_ms=started or status.at.wall_ms)

    def transaction_of(self, number: int) -> UUID | None:
        return next((one for one, mine in self.numbers.items() if mine == number), None)

    # ------------------------------------------------------------------ deeds

    @staticmethod
    def deed(deed: Deed, words: Mapping[Outcome, str]) -> Reply:
        """A deed whose outcome is told as a status."""

        def worded(done: Done) -> dict[str, Any]:
            return {"status": words.get(done.outcome, words[Outcome.REJECTED])}

        return Reply(deed=deed, worded=worded)

    @staticmethod
    def get_log(asked: Any) -> Reply:
        """The same words in 2.0.1 and in 1.6's whitepaper."""
        upload = Upload(
            kind=LogKind(asked.logType),
            location=asked.log.remoteLocation,
            request_id=asked.requestId,
            since_ms=optional_ms(asked.log.oldestTimestamp),
            until_ms=optional_ms(asked.log.latestTimestamp),
            retries=asked.retries or 0,
            interval_s=asked.retryInterval or 60,
        )

        def worded(done: Done) -> dict[str, Any]:
            if done.outcome is Outcome.REJECTED:
                return {"status": "Rejected"}
            return told(status="Accepted", filename=done.text or None)

        return Reply(deed=upload, worded=worded)

    # ------------------------------------------------------------------ the local list

    def update_list(
        self, version: int, entries: Iterable[tuple[IdToken, LocalListEntry | None]], *, full: bool
    ) -> Refusal | None:
        """Replace the list, or change it: no entry takes a token off. Raises JournalError."""
        known = self.charger.local_list()
        if not full and version <= known.version:
            return Refusal("VersionMismatch", f"the list here has version {known.version}")
        kept = {} if full else {_key(one.id_token): one for one in known.entries}
        for token, entry in entries:
            if entry is None:
                kept.pop(_key(token), None)
            else:
                kept[_key(token)] = entry
        if len(kept) > model.MOST_ENTRIES:
            return Refusal("TooManyElements", f"at most {model.MOST_ENTRIES} tokens fit here")
        self.charger.set_local_list(LocalList(version=version, entries=tuple(kept.values())))
        return None

    @staticmethod
    def entry(
        token: IdToken, *, accepted: bool, expires: datetime | None, group: str | None
    ) -> LocalListEntry:
        expires_ms = None if expires is None else Milliseconds(unix_ms(expires))
        return LocalListEntry(
            id_token=token, expires_ms=expires_ms, group=group, blocked=not accepted
        )

    # ------------------------------------------------------------------ charging profiles

    def set_profile(self, profile: Profile) -> Refusal | None:
        """Take a profile, or say why not. Raises JournalError."""
        why = self._unfit(profile)
        if why is not None:
            return why
        if profile.purpose is Purpose.TRANSACTION:
            running = self.running(profile.evse)
            if running is None:
                return Refusal("TxNotFound", f"EVSE {profile.evse} has no transaction")
            if profile.transaction not in {None, running.id}:
                return Refusal("TxNotFound", "that transaction does not run on this EVSE")
            profile = msgspec.structs.replace(profile, transaction=running.id)
        held = self.charger.profiles().put(profile)
        if len(held.held) > model.MOST_PROFILES:
            return Refusal("TooManyElements", f"at most {model.MOST_PROFILES} profiles")
        self.charger.set_profiles(held)
        return None

    def _unfit(self, profile: Profile) -> Refusal | None:
        if profile.evse != STATION and profile.evse not in self.evse_numbers():
            return Refusal("UnknownEvse", f"there is no EVSE {profile.evse}")
        if not 0 <= profile.stack <= model.MOST_STACK:
            return Refusal("InvalidStackLevel", f"0 to {model.MOST_STACK}")
        if len(profile.periods) > model.MOST_PERIODS:
            return Refusal("InvalidSchedule", f"at most {model.MOST_PERIODS} periods")
        text = wrong(profile)
        return Refusal("InvalidProfile", text) if text else None

    def clear_profiles(
        self, id_: int | None, evse: int | None, purpose: Purpose | None, stack: int | None
    ) -> bool:
        """Whether there were any that fit. Raises JournalError."""
        held = self.charger.profiles()
        fitting = held.matching(id=id_, evse=evse, purpose=purpose, stack=stack)
        if fitting:
            self.charger.set_profiles(held.without(fitting))
        return bool(fitting)

    def composite(self, evse: int, duration_s: int) -> tuple[int, tuple[Step, ...]]:
        """When it begins (ms since 1970), and its steps."""
        begins = self.charger.now().wall_ms
        running = None if evse == STATION else self.running(evse)
        profiles, phases = self.charger.profiles(), self.phases(evse)
        return begins, profiles.composite(evse, running, begins, duration_s, phases)

    def limit_of(self, step: Step, evse: int, unit: Unit) -> float:
        """A step's limit in a unit; without a profile what the hardware gives."""
        ratings = {one.evse: one.max_ma for one in self.charger.evses()}
        rating = ratings[evse] if evse in ratings else sum(ratings.values())
        limit = rating if step.limit is None else min(step.limit, rating)
        if unit is Unit.AMPERE:
            return limit // 100 / 10
        return float(watts(limit, self.phases(evse)))


def tenths(limit: float, unit: Unit) -> int:
    """A schedule's limit as mA or W."""
    return round(limit * 1000) if unit is Unit.AMPERE else round(limit)


def _key(token: IdToken) -> tuple[str, str]:
    return token.type.casefold(), token.value.casefold()
