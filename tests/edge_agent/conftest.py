"""An agent without processes: fake boards, a store in memory, time that only the test moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

if TYPE_CHECKING:
    from ota_world import Maker

from edge_agent.clock import Clock
from edge_agent.desk import Desk
from edge_agent.hardware.board import Failsafe
from edge_agent.hardware.testing import FakePowerBoard, ManualClock
from edge_agent.journal import JournalError
from edge_agent.ledger import Ledger
from edge_agent.loop import Line, Loop, LoopSettings
from edge_agent.records import LocalList, Register, SiteLimit, Transaction
from edge_agent.rules.actions import ConnectorSettings
from edge_agent.rules.authorization import Authorizer, OfflinePolicy
from edge_agent.rules.clock import ClockRules, SystemTime
from edge_agent.rules.connector import Connector
from edge_agent.rules.station import Station, StationSettings
from protocols.agent_link import (
    BillingFact,
    CommandResult,
    EvseStatus,
    IdToken,
    LocalListEntry,
    Sample,
    StateFact,
    TransactionEvent,
    TransactionEventType,
    UpdateStatus,
)
from protocols.quantities import MilliAmperes

EPOCH_MS = 1_760_000_000_000
LISTED = LocalList(
    version=1,
    entries=(LocalListEntry(IdToken("CARD")), LocalListEntry(IdToken("OTHER"))),
)


class MemoryStore:
    """A journal in memory; `broken` makes every write fail with that text."""

    def __init__(self) -> None:
        self.broken = ""
        self.facts: list[BillingFact] = []
        self.open: dict[UUID, Transaction] = {}
        self.meters: dict[int, Register] = {}
        self.site_limits: dict[int, SiteLimit] = {}
        self.local = LISTED
        self.operative: dict[int, bool] = {}
        self.state: dict[object, StateFact] = {}
        self.updates: list[UpdateStatus] = []
        self.samples: list[Sample] = []
        self.commits = 0

    def transactions(self) -> list[Transaction]:
        return list(self.open.values())

    def registers(self) -> dict[int, Register]:
        return dict(self.meters)

    def limits(self) -> list[SiteLimit]:
        return list(self.site_limits.values())

    def local_list(self) -> LocalList:
        return self.local

    def availability(self) -> dict[int, bool]:
        return dict(self.operative)

    def commit(
        self,
        *,
        facts: Sequence[BillingFact] = (),
        put: Sequence[Transaction | Register | SiteLimit] = (),
        ended: Sequence[UUID] = (),
        lifted: Sequence[int] = (),
        local_list: LocalList | None = None,
        availability: Mapping[int, bool] | None = None,
    ) -> None:
        self._check()
        self.commits += 1
        self.facts += facts
        for record in put:
            self._put(record)
        for transaction in ended:
            self.open.pop(transaction, None)
        for evse in lifted:
            self.site_limits.pop(evse, None)
        self.local = local_list or self.local
        self.operative.update(availability or {})

    def _put(self, record: Transaction | Register | SiteLimit) -> None:
        if isinstance(record, Transaction):
            self.open[record.id] = record
        elif isinstance(record, Register):
            self.meters[record.evse] = record
        else:
            self.site_limits[record.evse] = record

    def _check(self) -> None:
        if self.broken:
            raise JournalError("not written", self.broken, "Free some space")

    def result_of(self, command: UUID) -> CommandResult | None:
        results = [f for f in self.facts if isinstance(f, CommandResult) and f.command == command]
        return results[-1] if results else None

    def put_state(self, fact: StateFact) -> None:
        if isinstance(fact, UpdateStatus):
            self.updates.append(fact)
        else:
            self.state[fact.evse if isinstance(fact, EvseStatus) else "station"] = fact

    def add(self, samples: Sequence[Sample]) -> None:
        self.samples += samples


class Rig:
    """One controller under test; `lives` of it share boards, store and time."""

    def __init__(
        self,
        boards: int = 1,
        settings: LoopSettings | None = None,
        station: StationSettings | None = None,
        policy: OfflinePolicy | None = None,
        store: Any = None,
        **board: Any,
    ) -> None:
        self.time = ManualClock()
        self.synced = True
        self.boards = [FakePowerBoard(self.time, **board) for _ in range(boards)]
        self.store = store or MemoryStore()
        self.settings = settings or LoopSettings(
            failsafe=Failsafe(timeout_s=60, fallback=MilliAmperes(6_000))
        )
        self.station_settings = station or StationSettings()
        self.policy = policy or OfflinePolicy()
        self.start()

    def system_time(self) -> SystemTime:
        mono = round(self.time() * 1000)
        return SystemTime(wall_ms=EPOCH_MS + mono, mono_ms=mono, synced=self.synced)

    def start(self) -> None:
        """A new process: it knows what the store has kept, and nothing else."""
        registers = self.store.registers()
        connectors, lines = {}, []
        number = 0
        for index, board in enumerate(self.boards):
            numbers = {}
            for info in board.evses:
                number += 1
                numbers[info.evse] = number
                connectors[number] = self._connector(info, number, registers)
            lines.append(Line(f"board{index + 1}", board, numbers))
        self.clock = Clock(ClockRules(uuid4(), EPOCH_MS), self.system_time)
        self.clock.observe()
        authorizer = Authorizer(self.store.local_list(), self.policy)
        self.station = Station(connectors, self.station_settings, authorizer)
        self.ledger = Ledger(self.store)
        self.loop = Loop(lines, self.station, self.ledger, self.clock, self.settings)
        self.desk = Desk(self.loop)
        self.loop.recover()

    @staticmethod
    def _connector(info: Any, number: int, registers: dict[int, Register]) -> Connector:
        from dataclasses import replace

        return Connector(
            replace(info, evse=number),
            ConnectorSettings(),
            uuid4,
            register=registers.get(number),
        )

    @property
    def board(self) -> FakePowerBoard:
        return self.boards[0]

    async def seconds(self, count: int) -> None:
        for _ in range(count):
            self.time.advance(1)
            for line in self.loop.lines:
                await self.loop.step(line)

    async def card(self, value: str = "CARD", evse: int | None = None) -> str:
        return await self.desk.present(IdToken(value), evse)

    async def charge(self, seconds: int, board: int = 0) -> None:
        self.boards[board].plug()
        await self.seconds(2)
        await self.card()
        await self.seconds(seconds)

    def events(self, kind: TransactionEventType | None = None) -> list[TransactionEvent]:
        told = [f for f in self.store.facts if isinstance(f, TransactionEvent)]
        return [event for event in told if kind in {None, event.type}]

    def status(self, evse: int = 1) -> EvseStatus:
        status = self.store.state[evse]
        assert isinstance(status, EvseStatus)
        return status


@pytest.fixture
def make_rig() -> Callable[..., Rig]:
    return Rig


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture(scope="session")
def makers(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Makers of releases who have published their keys, and nothing else."""
    from ota_world import Maker

    folder = tmp_path_factory.mktemp("makers")
    maker = Maker(folder / "repo")
    maker.publish(folder / "shown")
    return maker
