"""When an update may begin, and when a new version has proven itself. Pure.

An update is fetched while everything goes on. It is installed when nobody charges: then free EVSEs
are taken out of service, so that nobody begins while others end, and a session that begins all the
same wins. Nothing here can stop a transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from edge_agent.updates.messages import (
    Current,
    Failure,
    Message,
    Nothing,
    Progress,
    Ready,
    Subject,
)
from protocols.agent_link import UpdateState
from protocols.release import Kind

LATE_MS: Final = 180_000
"""A new version that is not well by then, is not."""
STEADY_MS: Final = 10_000
"""It must be well for so long."""
EXTEND_MS: Final = 1_800_000
"""How much longer a trial waits for a cloud that was out of reach before it, too."""
FINAL: Final = frozenset(
    {
        UpdateState.INSTALLED,
        UpdateState.INSTALLATION_FAILED,
        UpdateState.INSTALL_VERIFICATION_FAILED,
        UpdateState.INVALID_SIGNATURE,
        UpdateState.DOWNLOAD_FAILED,
    }
)


class UpdateRefusedError(Exception):
    """An update cannot be looked for now; the text says why, and what to do."""


# --------------------------------------------------------------------------- actions


@dataclass(frozen=True, slots=True)
class Fetch:
    """Look for an update and make a slot of it; from a folder, where one is given."""

    request: UUID | None
    folder: str = ""


@dataclass(frozen=True, slots=True)
class StopFetching:
    """End the fetch that runs; what it has is kept for the next."""


@dataclass(frozen=True, slots=True)
class Tell:
    """Report this state."""

    about: Subject
    state: UpdateState
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Hold:
    """Keep EVSEs that nobody uses out of service."""


@dataclass(frozen=True, slots=True)
class LetGo:
    """Put them back into it."""


@dataclass(frozen=True, slots=True)
class Install:
    """Nobody charges: do it. Look once more right before.

    An agent's slot is tried by a restart, which ends this; anything else is told with `ended`.
    """

    ready: Ready


Action = Fetch | StopFetching | Tell | Hold | LetGo | Install

# --------------------------------------------------------------------------- waiting


class Phase(StrEnum):
    IDLE = "idle"
    FETCHING = "fetching"
    WAITING = "waiting"
    COMMITTED = "committed"


@dataclass(frozen=True, slots=True)
class Conditions:
    """What decides whether an installation may begin now."""

    wall_ms: int
    busy: Sequence[int] = ()
    """EVSEs with a transaction, or an id token that waits for its vehicle."""
    forbidden: str = ""
    """What forbids it whoever charges: power, disk; empty when nothing does."""


@dataclass(slots=True)
class UpdateRules:
    """One controller's update, from the first word of it to the restart."""

    hold_free: bool = True
    """Take free EVSEs out of service while others still charge."""
    phase: Phase = Phase.IDLE
    ready: Ready | None = None
    trouble: str = ""
    """Why the last look for an update failed; for people."""
    failed: dict[str, UUID | None] = field(default_factory=dict)
    """What was rolled back, and whose request it was: not tried again for the same."""
    aborted: UUID | None = None
    """Whose request a technician has ended: nobody goes on with it before it is asked for anew."""
    _sought: Fetch | None = None
    """The newest look: only its word counts, as an earlier one may still be ending."""
    _request: UUID | None = None
    _folder: str = ""
    _held: bool = False
    _told: Tell | None = None

    @property
    def folder(self) -> str:
        """Where is looked instead of at the cloud; empty: there."""
        return self._folder

    @property
    def holds(self) -> bool:
        """Whether EVSEs are kept out of service for an installation."""
        return self._held

    def asked(self, request: UUID | None, folder: str = "") -> list[Action]:
        """Look for an update now; what was fetched or waited for so far gives way to it.

        Raises UpdateRefusedError past the point of no return.
        """
        if self.phase is Phase.COMMITTED:
            raise UpdateRefusedError("an installation has begun; ask again when it is over")
        if request is not None and request == self.aborted:
            self.aborted = None
        actions: list[Action] = []
        if self.phase is Phase.FETCHING:
            if request == self._request and folder == self._folder:
                return []
            actions.append(StopFetching())
        self.phase, self._request, self._folder = Phase.FETCHING, request, folder
        return [*actions, *self._release(), self._seek()]

    def _seek(self) -> Fetch:
        self._sought = Fetch(self._request, self._folder)
        return self._sought

    def heard(self, message: Message, by: Fetch | None = None) -> list[Action]:
        """What the fetching process said; `by` the look that it was started for."""
        if by is not None and by is not self._sought:
            return []
        if self.phase is not Phase.FETCHING or self._ended_by_hand(message):
            return []
        if isinstance(message, Progress):
            return self._tell(Tell(message.about, message.state))
        self.trouble = message.reason if isinstance(message, Failure) else ""
        if isinstance(message, Ready) and self._had(message):
            self.phase, self.ready = Phase.IDLE, None
            self.trouble = (
                f"{message.about.version} was rolled back here; it is not tried again"
                " before it is asked for anew"
            )
            return []
        if isinstance(message, Ready):
            self.phase, self.ready = Phase.WAITING, message
            return self._tell(Tell(message.about, UpdateState.INSTALL_SCHEDULED))
        before, self.phase, self.ready = self.ready, Phase.IDLE, None
        if isinstance(message, Current):
            return self._tell(Tell(message.about, UpdateState.INSTALLED))
        if isinstance(message, Nothing):
            return self._withdrawn(before)
        return self._failed(message)

    def _ended_by_hand(self, message: Message) -> bool:
        if self.aborted is None or not isinstance(message, Progress | Ready):
            return False
        if message.about.request != self.aborted:
            return False
        if isinstance(message, Ready):
            self.phase, self.ready = Phase.IDLE, None
            self.trouble = (
                f"{message.about.version} was aborted here; it waits until it is asked for anew"
            )
        return True

    def abort(self, why: str) -> list[Action]:
        """A technician's word. Raises UpdateRefusedError when there is nothing to end any more."""
        if self.phase is Phase.COMMITTED:
            raise UpdateRefusedError("the installation has begun; wait until it is over")
        if self.phase is Phase.IDLE:
            raise UpdateRefusedError("no update is under way")
        about = None if self.ready is None else self.ready.about
        if about is None and self._told is not None and self._told.state not in FINAL:
            about = self._told.about
        stops = [StopFetching()] if self.phase is Phase.FETCHING else []
        self.aborted = self._request if about is None else about.request
        self.phase, self.ready = Phase.IDLE, None
        tell = Tell(about, UpdateState.INSTALLATION_FAILED, why) if about is not None else None
        return [*stops, *self._release(), *(self._tell(tell) if tell is not None else [])]

    def _had(self, ready: Ready) -> bool:
        """A technician with a stick may insist."""
        if self._folder or ready.slot not in self.failed:
            return False
        return self.failed[ready.slot] == ready.about.request

    def lost(self) -> None:
        """The fetch that ran is not there any more; nobody will hear of it."""
        if self.phase is Phase.FETCHING:
            self.phase, self.ready = Phase.IDLE, None

    def _withdrawn(self, before: Ready | None) -> list[Action]:
        """Nothing is asked for: what was, is not any more."""
        about = None if before is None else before.about
        if about is None and self._told is not None and self._told.state not in FINAL:
            about = self._told.about
        if about is None:
            return []
        why = "it is not asked for any more"
        return self._tell(Tell(about, UpdateState.INSTALLATION_FAILED, why))

    def _failed(self, failure: Failure) -> list[Action]:
        about = failure.about
        if about is None and self._request is not None:
            about = Subject(target="", version="", request=self._request)
        if about is None:
            return []
        return self._tell(Tell(about, failure.state, failure.reason))

    def tick(self, now: Conditions) -> list[Action]:
        """Each second: whether it may begin."""
        ready = self.ready
        if self.phase is not Phase.WAITING or ready is None:
            return []
        if now.wall_ms >= ready.valid_until_ms:
            self.phase = Phase.FETCHING
            return [*self._release(), self._seek()]
        waits = now.forbidden or self._outside(ready, now.wall_ms)
        if waits:
            return [*self._release(), *self._scheduled(ready, waits)]
        if ready.force and ready.kind is Kind.AGENT:  # transactions outlive nothing but that
            return self._commit(ready)
        if now.busy:
            waits = f"EVSE {', '.join(map(str, now.busy))} in use"
            return [*self._keep_free(), *self._scheduled(ready, waits)]
        if not self._held:
            self._held = True
            return [Hold()]
        return self._commit(ready)

    def _commit(self, ready: Ready) -> list[Action]:
        self.phase = Phase.COMMITTED
        told = self._tell(Tell(ready.about, UpdateState.INSTALLING))
        return [*told, Install(ready)]

    @staticmethod
    def _outside(ready: Ready, wall_ms: int) -> str:
        window = ready.window
        if window is None or ready.force or window.from_ms <= wall_ms < window.to_ms:
            return ""
        return "its window has not come" if wall_ms < window.from_ms else "its window has passed"

    def _scheduled(self, ready: Ready, why: str) -> list[Action]:
        return self._tell(Tell(ready.about, UpdateState.INSTALL_SCHEDULED, why))

    def _keep_free(self) -> list[Action]:
        if not self.hold_free:
            return self._release()
        self._held = True
        return [Hold()]

    def _release(self) -> list[Action]:
        if not self._held:
            return []
        self._held = False
        return [LetGo()]

    def interrupted(self, why: str) -> list[Action]:
        """The installation could not begin after all: somebody was quicker, or the disk refused."""
        if self.phase is not Phase.COMMITTED or self.ready is None:
            return []
        self.phase = Phase.WAITING
        return [*self._release(), *self._scheduled(self.ready, why)]

    def given_up(self, why: str) -> list[Action]:
        """The installation cannot begin at all."""
        return self.ended(UpdateState.INSTALLATION_FAILED, why)

    def ended(self, state: UpdateState, why: str = "") -> list[Action]:
        """The installation is over, without a restart."""
        ready, self.ready = self.ready, None
        if ready is None:
            return []
        self.phase = Phase.IDLE
        well = state is UpdateState.INSTALLED
        self.trouble = "" if well else why
        told = [*self._release(), *self._tell(Tell(ready.about, state, why))]
        if not well:
            self.failed[ready.slot] = ready.about.request
        return told

    def again(self) -> list[Action]:
        """There may be more to install where that came from."""
        return self.asked(self._request, self._folder)

    def resumed(self, ready: Ready) -> list[Action]:
        """What an earlier start had begun goes on: its EVSEs are out of service."""
        self.phase, self.ready, self._held = Phase.COMMITTED, ready, True
        self._request = ready.about.request
        told = self._tell(Tell(ready.about, UpdateState.INSTALLING, "taken up again"))
        return [Hold(), *told, Install(ready)]

    def proves(self, ready: Ready) -> list[Action]:
        """What an earlier start had put in is on trial; nobody is kept from charging for that."""
        self.phase, self.ready = Phase.COMMITTED, ready
        self._request = ready.about.request
        return self._tell(Tell(ready.about, UpdateState.INSTALL_REBOOTING))

    def _tell(self, tell: Tell) -> list[Action]:
        if tell == self._told:
            return []
        self._told = tell
        return [tell]


# --------------------------------------------------------------------------- the trial


@dataclass(frozen=True, slots=True)
class Expected:
    """What was well before the trial, and must be again."""

    boards: frozenset[str] = frozenset()
    cloud: bool = False

    def plain(self) -> dict[str, Any]:
        """As the boot record keeps it."""
        return {"boards": sorted(self.boards), "cloud": self.cloud}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Expected:
        boards = plain.get("boards", [])
        known = [name for name in boards if isinstance(name, str)]
        return cls(frozenset(known), bool(plain.get("cloud")))


@dataclass(frozen=True, slots=True)
class Health:
    """How the new version is doing."""

    journal: str = ""
    """What is wrong with it; empty: nothing."""
    stuck: Sequence[str] = ()
    boards: Collection[str] = ()
    """Those that answer."""
    cloud: bool = False


class Verdict(StrEnum):
    WAIT = "wait"
    CONFIRM = "confirm"
    FAIL = "fail"


@dataclass(slots=True)
class Trial:
    """A new version on trial, from its start."""

    expected: Expected
    began_ms: int
    why: str = ""
    """What it lacks; for people."""
    _well_since: int | None = field(default=None)

    def judge(self, health: Health, now_ms: int) -> Verdict:
        """Each second, on the monotonic clock. A verdict other than WAIT is the last."""
        self.why = self._lacks(health)
        if self.why:
            self._well_since = None
            late = now_ms - self.began_ms >= LATE_MS
            return Verdict.FAIL if late else Verdict.WAIT
        if self._well_since is None:
            self._well_since = now_ms
        steady = now_ms - self._well_since >= STEADY_MS
        heard = health.cloud or now_ms - self.began_ms >= EXTEND_MS
        return Verdict.CONFIRM if steady and heard else Verdict.WAIT

    def _lacks(self, health: Health) -> str:
        if health.journal:
            return f"journal: {health.journal}"
        if health.stuck:
            return f"stuck: {', '.join(health.stuck)}"
        silent = self.expected.boards - set(health.boards)
        if silent:
            return f"silent, and they answered before: {', '.join(sorted(silent))}"
        if self.expected.cloud and not health.cloud:
            return "the cloud is out of reach, and was not before"
        return ""
