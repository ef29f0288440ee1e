"""How a campaign goes through its waves: pure rules.

A `Rollout` takes what happens, one event at a time, and tells what follows. Whatever the order of
the events, three things hold: no more devices are under way than the current wave has; a device is
counted once, by what it came to; and the campaign halts with the very device that reaches the
threshold. What is counted:

| standing  | of the wave's size | means                                                       |
|-----------|--------------------|-------------------------------------------------------------|
| waiting   | yes                | its wave has not come, or is full                           |
| offered   | yes                | under way: it may install, until the deadline               |
| succeeded | yes                | proven to run the release, by what its `Proof` demands      |
| failed    | yes                | told so, silent at the deadline, or fell back later         |
| skipped   | no                 | ran the release before it was offered                       |
| gone      | no                 | deleted, moved to another tenant, or taken by a later one   |
| withdrawn | no                 | the campaign was aborted before it came to anything         |
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

INSTALLED: Final = "Installed"
FAILURES: Final = frozenset(
    {
        "DownloadFailed",
        "InstallationFailed",
        "InstallVerificationFailed",
        "InvalidChecksum",
        "InvalidSignature",
        "InvalidCertificate",
        "Rejected",
        "RevokedCertificate",
    }
)
"""OCPP 2.0.1's words for an update's bad end: firmware statuses, and answers to the request."""


class Stage(StrEnum):
    """Where a campaign stands."""

    DRAFT = "draft"
    """Waits for a second person's approval."""
    RUNNING = "running"
    PAUSED = "paused"
    """By a person. Nothing new is offered; what is under way goes on, also in the next one."""
    HALTED = "halted"
    """By itself: a threshold was reached."""
    FINISHED = "finished"
    ABORTED = "aborted"


LIVE: Final = frozenset({Stage.RUNNING, Stage.PAUSED, Stage.HALTED})


class Standing(StrEnum):
    """What a device came to; the table is above."""

    WAITING = "waiting"
    OFFERED = "offered"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"
    GONE = "gone"
    WITHDRAWN = "withdrawn"


class Proof(StrEnum):
    """What shows that a device runs the release. Its word alone is only enough for settings."""

    REPORT_AND_VERSION = "report_and_version"
    """An agent says Installed when its trial is over, and runs the version (fault 52)."""
    VERSION = "version"
    """An OCPP station's boot tells its version; often it never says Installed."""
    REPORT = "report"
    """Settings have no running version: Installed is told once they are in force."""


@dataclass(frozen=True)
class Plan:
    """What a campaign demands of its waves."""

    version: str
    success_percent: int
    """Of a wave, before the next one begins."""
    error_percent: int
    """Of a wave, or of all waves so far: reaching it halts the campaign."""
    min_sample: int
    """Devices that must have come to an end before failures halt it (fault 53)."""
    deadline: timedelta
    """From the offer, or from the window's end, until silence is failure (fault 51)."""


@dataclass(frozen=True)
class Device:
    """A station in a campaign."""

    station: int
    wave: int
    proof: Proof
    standing: Standing = Standing.WAITING
    request: UUID | None = None
    word: str = ""
    """The last status that it told for this request."""
    running: str = ""
    """The version that it was seen to run last."""
    reason: str = ""
    deadline: datetime | None = None
    excused: bool = False
    """Failed, and a person let the campaign go on all the same: it halts it no more."""


# --------------------------------------------------------------------------- what happens


@dataclass(frozen=True)
class Reported:
    """A station told how the request is doing."""

    station: int
    request: UUID
    state: str
    reason: str = ""


@dataclass(frozen=True)
class Running:
    """A station was seen to run a version."""

    station: int
    version: str


@dataclass(frozen=True)
class Gone:
    """A station was deleted, or is another tenant's or another campaign's now."""

    station: int
    reason: str = "it is no longer here"


@dataclass(frozen=True)
class Pause:
    pass


@dataclass(frozen=True)
class Resume:
    """Also after a halt: the failures so far are taken into the bargain."""


@dataclass(frozen=True)
class Abort:
    pass


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


Event = Reported | Running | Gone | Pause | Resume | Abort | Tick

# --------------------------------------------------------------------------- what follows


@dataclass(frozen=True)
class Offer:
    """Let the station install it from now on."""

    station: int


@dataclass(frozen=True)
class Withdraw:
    """The station shall not begin it any more."""

    station: int


@dataclass(frozen=True)
class Entered:
    """What goes into the device's history."""

    station: int
    what: str
    """A standing, or a word that the station told."""
    reason: str = ""


@dataclass(frozen=True)
class Staged:
    """The campaign's stage or wave is another."""

    stage: Stage
    wave: int
    reason: str = ""


Action = Offer | Withdraw | Entered | Staged

# --------------------------------------------------------------------------- counting


@dataclass
class Count:
    """What has become of some devices."""

    waiting: int = 0
    offered: int = 0
    succeeded: int = 0
    failed: int = 0
    excused: int = 0
    """Of the failed ones."""
    skipped: int = 0
    gone: int = 0
    withdrawn: int = 0

    @property
    def size(self) -> int:
        """Those that shares are taken of."""
        return self.waiting + self.offered + self.settled

    @property
    def settled(self) -> int:
        return self.succeeded + self.failed - self.excused

    def add(self, device: Device, number: int) -> None:
        standing = str(device.standing)
        setattr(self, standing, getattr(self, standing) + number)
        if device.excused and device.standing is Standing.FAILED:
            self.excused += number


def total(counts: Iterable[Count]) -> Count:
    """All of them together."""
    sums = Count()
    for count in counts:
        sums.waiting += count.waiting
        sums.offered += count.offered
        sums.succeeded += count.succeeded
        sums.failed += count.failed
        sums.excused += count.excused
        sums.skipped += count.skipped
        sums.gone += count.gone
        sums.withdrawn += count.withdrawn
    return sums


def share_of(percent: int, size: int) -> int:
    """The least number that is so many percent of the size."""
    return -(-percent * size // 100)


# --------------------------------------------------------------------------- the rules


class Rollout:
    """A campaign under way; `devices` and `counts` are what it knows, `handle` what it does."""

    def __init__(
        self, plan: Plan, devices: Iterable[Device], stage: Stage = Stage.RUNNING, wave: int = 0
    ) -> None:
        self.plan = plan
        self.stage = stage
        self.wave = wave
        self.devices = {device.station: device for device in devices}
        waves = 1 + max((device.wave for device in self.devices.values()), default=0)
        self.counts = [Count() for _ in range(waves)]
        self._waiting: list[deque[int]] = [deque() for _ in range(waves)]
        self._actions: list[Action] = []
        self._is_counted_anew = False
        for device in self.devices.values():
            self.counts[device.wave].add(device, 1)
            if device.standing is Standing.WAITING:
                self._waiting[device.wave].append(device.station)

    @property
    def count(self) -> Count:
        """Over all waves."""
        return total(self.counts)

    def handle(self, event: Event, now: datetime, starts: datetime | None = None) -> list[Action]:
        """What follows from the event. `starts`: when a window opens that offers wait for."""
        self._actions = []
        self._is_counted_anew = False
        if isinstance(event, Reported | Running | Gone):
            self._of_device(event)
        elif isinstance(event, Tick):
            self._expire(now)
        else:
            self._order(event)
        if self._is_counted_anew or not isinstance(event, Reported | Running | Gone):
            self._judge(max(now, starts or now))
        return self._actions

    # ------------------------------------------------------------------ devices

    def _of_device(self, event: Reported | Running | Gone) -> None:
        device = self.devices.get(event.station)
        if device is None or device.standing is Standing.GONE:
            return
        if isinstance(event, Gone):
            self._enter(replace(device, standing=Standing.GONE), event.reason)
        elif isinstance(event, Running):
            self._running(device, event.version)
        elif event.request == device.request:
            self._reported(device, event)

    def _running(self, device: Device, version: str) -> None:
        if version == device.running:
            return
        seen = self._put(replace(device, running=version))
        if seen.standing is Standing.SUCCEEDED and not self._runs_it(seen):
            self._enter(replace(seen, standing=Standing.FAILED), f"it fell back to {version}")
            self._actions.append(Withdraw(seen.station))
        else:
            self._prove(seen)

    def _reported(self, device: Device, told: Reported) -> None:
        if told.state == device.word:  # a repeat: outboxes replay what was not acknowledged
            return
        self._actions.append(Entered(device.station, told.state, told.reason))
        told_so = self._put(replace(device, word=told.state))
        if told.state not in FAILURES:
            self._prove(told_so)
        elif told_so.standing in {Standing.OFFERED, Standing.SUCCEEDED}:
            reason = f"{told.state}: {told.reason}" if told.reason else told.state
            self._enter(replace(told_so, standing=Standing.FAILED), reason)
            self._actions.append(Withdraw(device.station))

    def _prove(self, device: Device) -> None:
        if device.standing is Standing.OFFERED and self._is_proven(device):
            self._enter(replace(device, standing=Standing.SUCCEEDED), "")

    def _is_proven(self, device: Device) -> bool:
        told = device.word == INSTALLED
        if device.proof is Proof.REPORT:
            return told
        return self._runs_it(device) and (told or device.proof is Proof.VERSION)

    def _runs_it(self, device: Device) -> bool:
        return device.proof is Proof.REPORT or _plain(device.running) == _plain(self.plan.version)

    def _expire(self, now: datetime) -> None:
        for device in list(self.devices.values()):
            late = device.deadline is not None and now >= device.deadline
            if late and device.standing is Standing.OFFERED:
                last = device.word or "nothing"
                reason = f"the deadline passed without proof; it told {last} last"
                self._enter(replace(device, standing=Standing.FAILED), reason)
                self._actions.append(Withdraw(device.station))

    def _put(self, device: Device) -> Device:
        """Keep it, and its place in the counts."""
        old = self.devices[device.station]
        self.devices[device.station] = device
        if (old.standing, old.excused) != (device.standing, device.excused):
            self.counts[device.wave].add(old, -1)
            self.counts[device.wave].add(device, 1)
            self._is_counted_anew = True
        return device

    def _enter(self, device: Device, reason: str) -> None:
        self._put(replace(device, reason=reason))
        self._actions.append(Entered(device.station, device.standing, reason))

    # ------------------------------------------------------------------ the campaign

    def _order(self, order: Pause | Resume | Abort) -> None:
        if isinstance(order, Pause) and self.stage is Stage.RUNNING:
            self._stage(Stage.PAUSED)
        elif isinstance(order, Resume) and self.stage in {Stage.PAUSED, Stage.HALTED}:
            if self.stage is Stage.HALTED:
                self._excuse()
            self._stage(Stage.RUNNING)
        elif isinstance(order, Abort) and self.stage in LIVE:
            self._withdraw_all()
            self._stage(Stage.ABORTED)

    def _excuse(self) -> None:
        for device in list(self.devices.values()):
            if device.standing is Standing.FAILED and not device.excused:
                self._put(replace(device, excused=True))

    def _withdraw_all(self) -> None:
        for device in list(self.devices.values()):
            if device.standing is Standing.OFFERED:
                self._actions.append(Withdraw(device.station))
            if device.standing in {Standing.OFFERED, Standing.WAITING}:
                self._enter(
                    replace(device, standing=Standing.WITHDRAWN), "the campaign was aborted"
                )

    def _stage(self, stage: Stage, reason: str = "") -> None:
        self.stage = stage
        self._actions.append(Staged(stage, self.wave, reason))

    def _judge(self, opens: datetime) -> None:
        """Halt, go on to the next wave, finish, or offer; `opens` is when offers can begin."""
        if self.stage is not Stage.RUNNING:
            return
        reason = self._failing()
        while not reason and self._has_passed(self.counts[self.wave]):
            if self.wave + 1 == len(self.counts):
                break
            self.wave += 1
            self._stage(Stage.RUNNING)
            reason = self._failing()
        reason = reason or self._fallen_short()
        if reason:
            self._stage(Stage.HALTED, reason)
        elif not any(count.waiting or count.offered for count in self.counts):
            self._stage(Stage.FINISHED)
        else:
            self._offer(opens)

    def _failing(self) -> str:
        begun = self.counts[: self.wave + 1]
        if not any(count.failed > count.excused for count in begun):
            return ""
        named = [(f"wave {number}", count) for number, count in enumerate(begun, 1)]
        for name, count in (*named, ("all waves so far", total(begun))):
            failed = count.failed - count.excused
            most = share_of(self.plan.error_percent, count.size)
            if failed and count.settled >= self.plan.min_sample and failed >= most:
                return f"{failed} of {count.size} devices of {name} failed"
        return ""

    def _has_passed(self, count: Count) -> bool:
        if count.succeeded >= share_of(self.plan.success_percent, count.size):
            return True
        few = 0 < count.size < self.plan.min_sample  # one of them says little (fault 53)
        return few and count.succeeded > 0 and not count.waiting and not count.offered

    def _fallen_short(self) -> str:
        count = self.counts[self.wave]
        if count.waiting or count.offered or self._has_passed(count):
            return ""
        return f"only {count.succeeded} of {count.size} devices of wave {self.wave + 1} succeeded"

    def _offer(self, opens: datetime) -> None:
        room = self.counts[self.wave].size - sum(count.offered for count in self.counts)
        for waiting in self._waiting[: self.wave + 1]:
            while room > 0 and waiting:
                device = self.devices[waiting.popleft()]
                if device.standing is not Standing.WAITING:
                    continue
                deadline = opens + self.plan.deadline
                self._put(replace(device, standing=Standing.OFFERED, deadline=deadline))
                self._actions += [
                    Offer(device.station),
                    Entered(device.station, Standing.OFFERED),
                ]
                room -= 1


def _plain(version: str) -> str:
    """Stations write `v2.1` and `2.1 ` for 2.1."""
    return version.strip().lower().removeprefix("v").strip()
