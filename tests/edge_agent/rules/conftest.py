"""A bench for the connector's rules: a board and a disk that obey, and a referee that watches."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from uuid import UUID

import msgspec
import pytest

from edge_agent.hardware.board import EnergyKind, EvseInfo, EvseReading, IecState
from edge_agent.records import Register, Transaction
from edge_agent.rules.actions import (
    Action,
    Authorized,
    ConnectorSettings,
    Emit,
    Event,
    Forget,
    Keep,
    Offered,
    Read,
    Release,
    ReportStatus,
    SetLimit,
    StopAsked,
    Withhold,
    rank,
)
from edge_agent.rules.connector import Connector
from edge_agent.rules.power_limit import Offer
from protocols.agent_link import (
    BillingFact,
    ClockQuality,
    EvseStatus,
    IdToken,
    Stamp,
    StoppedReason,
    TransactionEvent,
    TransactionEventType,
    Trigger,
)
from protocols.quantities import MilliAmperes, Milliseconds, WattHours

INFO = EvseInfo(
    evse=1,
    phases=3,
    min_current=MilliAmperes(6_000),
    max_current=MilliAmperes(32_000),
    energy_kind=EnergyKind.SESSION,
    energy_step=WattHours(1),
    energy_modulus=None,
    billing_grade=True,
)
CARD = IdToken("04A1B2C3")


def _is_durable(action: Action) -> bool:
    return isinstance(action, Emit | Keep | Forget)


class Bench:
    """Carries out what the rules ask, in their order, and checks the rules of safety."""

    def __init__(self, info: EvseInfo = INFO, settings: ConnectorSettings | None = None) -> None:
        self.info = info
        self.settings = settings or ConnectorSettings()
        self.mono = 0
        self.boot = UUID(int=1)
        self._ids = 0
        self.plugged = self.released = self.broken = self.autostart = False
        self.awaits_release = False
        self.wants = 16_000
        self.limit = 0
        self.raw = self.true_wh = 0
        self.facts: list[BillingFact] = []
        self.kept: dict[UUID, Transaction] = {}
        self.register: Register | None = None
        self.status: EvseStatus | None = None
        self.log: list[str] = []
        self.connector = self._new_connector()
        self.connector.handle(Offered(Offer(MilliAmperes(16_000), "board")), self.now)

    def _new_connector(self) -> Connector:
        return Connector(self.info, self.settings, self.new_id, register=self.register)

    def new_id(self) -> UUID:
        self._ids += 1
        return UUID(int=1_000 + self._ids)

    @property
    def now(self) -> Stamp:
        wall = Milliseconds(1_760_000_000_000 + self.mono)
        return Stamp(wall, Milliseconds(self.mono), self.boot, ClockQuality.SYNCED)

    @property
    def drawn(self) -> int:
        may = self.plugged and (self.released or self.autostart) and not self.broken
        offered = min(self.limit, self.wants)
        return offered if may and offered >= 6_000 else 0

    def reading(self) -> EvseReading:
        state = IecState.CONNECTED if self.plugged else IecState.NO_VEHICLE
        if self.drawn:
            state = IecState.CHARGING
        current = MilliAmperes(self.drawn)
        return EvseReading(
            evse=self.info.evse,
            taken_at=self.mono / 1000,
            state=IecState.FAULT if self.broken else state,
            current=(current, current, current),
            energy=WattHours(self.raw),
            applied_limit=MilliAmperes(self.limit),
            awaits_release=self.awaits_release,
        )

    def wait(self, seconds: float) -> None:
        """Time passes and energy flows, unseen."""
        self.mono += round(seconds * 1000)
        gained = round(self.drawn * 690 * seconds / 3_600_000)
        self.raw += gained
        self.true_wh += gained

    def poll(self, seconds: int = 1) -> list[Action]:
        """So many seconds, read once each."""
        done: list[Action] = []
        for _ in range(seconds):
            self.wait(1)
            done += self.tell(Read(self.reading()))
        return done

    def tell(self, event: Event) -> list[Action]:
        actions = self.connector.handle(event, self.now)
        assert [rank(a) for a in actions] == sorted(rank(a) for a in actions)
        for action in actions:
            self._do(action)
        if any(isinstance(action, Release) for action in actions):
            actions = actions + self.tell(Read(self.reading()))
        return actions

    def killed_in(self, event: Event, deeds: int) -> None:
        """The agent dies after so many deeds of what this leads to; a commit is one deed."""
        due: list[Event] = [event]
        for event in due:
            for durable, group in groupby(self.connector.handle(event, self.now), _is_durable):
                for deed in [tuple(group)] if durable else [(each,) for each in group]:
                    if deeds == 0:
                        self.die()
                        return
                    deeds -= 1
                    for action in deed:
                        self._do(action)
                    if isinstance(deed[0], Release):
                        due.append(Read(self.reading()))
        self.die()

    def _do(self, action: Action) -> None:  # one line per kind of action
        self.log.append(type(action).__name__)
        if isinstance(action, Withhold):
            self.released = self.awaits_release = False
        elif isinstance(action, SetLimit):
            self.limit = action.limit
        elif isinstance(action, Release):
            assert self.kept, "released without a persisted transaction"
            if not self.released:
                self.raw = 0
            self.released, self.awaits_release = True, False
        elif isinstance(action, Emit):
            self.facts.append(action.fact)
        elif isinstance(action, Forget):
            self.kept.pop(action.transaction, None)
        elif isinstance(action, ReportStatus):
            self.status = action.status
        elif isinstance(action, Keep):
            self._keep(action.record)

    def _keep(self, record: Transaction | Register) -> None:
        if isinstance(record, Register):
            self.register = record
        else:
            self.kept[record.id] = record

    def plug(self, wants: int = 16_000) -> None:
        self.plugged, self.wants = True, wants

    def unplug(self) -> None:
        self.plugged = False

    def present(self, token: IdToken = CARD) -> list[Action]:
        return self.tell(Authorized(id_token=token, trigger=Trigger.AUTHORIZED))

    def stop(self, reason: StoppedReason = StoppedReason.LOCAL) -> list[Action]:
        return self.tell(StopAsked(reason=reason, trigger=Trigger.STOP_AUTHORIZED))

    def charge(self, seconds: int) -> None:
        """A session that is running: plugged, card shown, charging for that long."""
        self.plug()
        self.poll(2)
        self.present()
        self.poll(seconds)

    def die(self) -> None:
        """The agent is gone; what it kept is all that the next one knows."""
        self.boot = UUID(int=self.boot.int + 1)
        self.connector = self._new_connector()
        for record in self.kept.values():
            copy = msgspec.json.decode(msgspec.json.encode(record), type=Transaction)
            self.connector.resume(copy, self.now)
        self.connector.handle(Offered(Offer(MilliAmperes(16_000), "board")), self.now)

    def events(self, kind: TransactionEventType | None = None) -> list[TransactionEvent]:
        told = [fact for fact in self.facts if isinstance(fact, TransactionEvent)]
        return [event for event in told if kind in {None, event.type}]


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def make_bench() -> Callable[..., Bench]:
    return Bench
