"""A station on the bench: a charger in memory, a real journal, a backend that the test plays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import yaml

from edge_agent.journal import Journal, JournalBudget
from edge_agent.records import LocalList
from edge_agent.rules.authorization import Heard
from edge_agent.rules.charging_profiles import Profiles
from edge_agent.uplink.ocpp import v16, v201
from edge_agent.uplink.ocpp.delivery import Delivery
from edge_agent.uplink.ocpp.device import About, DeviceModel, variables_of
from edge_agent.uplink.ocpp.port import Deed
from edge_agent.uplink.ocpp.station import (
    Action,
    Connected,
    Disconnected,
    Event,
    Perform,
    Received,
    Send,
    Station,
    StationSettings,
    Tick,
)
from protocols.agent_link import (
    ChargingState,
    ClockQuality,
    ConnectorStatus,
    EvseDescription,
    EvseStatus,
    IdToken,
    Sample,
    Stamp,
    StoppedReason,
    TransactionEvent,
    TransactionEventType,
    Trigger,
)
from protocols.ocpp.version import Version
from protocols.quantities import MilliAmperes, Milliseconds, MilliVolts, WattHours, Watts

WALL = 1_790_000_000_000
BOOT = UUID(int=1)
Payload = dict[str, Any]


def stamp(mono_ms: int, quality: ClockQuality = ClockQuality.SYNCED) -> Stamp:
    return Stamp(Milliseconds(WALL + mono_ms), Milliseconds(mono_ms), BOOT, quality)


class FakeCharger:
    """The agent, as far as a station sees it."""

    station, version = "KRV-1", "1.0"

    def __init__(self) -> None:
        self.mono_ms = 1000
        self.known: dict[int, EvseStatus] = {}
        self.samples: dict[int, Sample] = {}
        self.inoperative: set[int] = set()
        self.open: dict[UUID, int] = {}
        self.local = LocalList()
        self.remembered: dict[str, Heard] = {}
        self.cleared = 0
        self.held = Profiles()
        self.changes: list[tuple[str, str, str]] = []
        self.tell(1)
        self.tell(2)

    def tell(self, evse: int, **fields: Any) -> None:
        """An EVSE's status as of now."""
        plain = {"status": ConnectorStatus.AVAILABLE, "charging_state": ChargingState.IDLE}
        self.known[evse] = EvseStatus(evse=evse, at=self.now(), **{**plain, **fields})

    def charging(self, transaction: UUID, evse: int = 1) -> None:
        self.open[transaction] = self.when(self.now())
        self.tell(
            evse,
            status=ConnectorStatus.OCCUPIED,
            charging_state=ChargingState.CHARGING,
            transaction=transaction,
        )

    def read(self, evse: int = 1, **fields: Any) -> None:
        plain = {
            "energy_wh": WattHours(1000),
            "power_w": Watts(11_040),
            "current_l1_ma": MilliAmperes(16_000),
            "voltage_l1_mv": MilliVolts(230_100),
        }
        self.samples[evse] = Sample(evse=evse, at=self.now(), **{**plain, **fields})

    def now(self) -> Stamp:
        return stamp(self.mono_ms)

    def when(self, stamp: Stamp) -> int:
        return WALL + stamp.mono_ms if stamp.boot == BOOT else stamp.wall_ms

    def evses(self) -> tuple[EvseDescription, ...]:
        return tuple(
            EvseDescription(
                evse=evse,
                phases=3,
                max_ma=MilliAmperes(32_000),
                energy_step_wh=WattHours(1),
                billing_grade=True,
            )
            for evse in (1, 2)
        )

    def statuses(self) -> Mapping[int, EvseStatus]:
        return self.known

    def operative(self, evse: int) -> bool:
        return evse not in self.inoperative

    def latest(self, evse: int) -> Sample | None:
        return self.samples.get(evse)

    def started(self, transaction: UUID) -> int | None:
        return self.open.get(transaction)

    def waits(self, transaction: UUID | None) -> bool:
        return transaction is None

    def reservation(self, transaction: UUID) -> int | None:
        return None

    def local_list(self) -> LocalList:
        return self.local

    def set_local_list(self, local: LocalList) -> None:
        self.local = local

    def clear_cache(self) -> None:
        self.cleared += 1

    def remember(self, token: IdToken, heard: Heard) -> None:
        self.remembered[token.value] = heard

    def profiles(self) -> Profiles:
        return self.held

    def set_profiles(self, profiles: Profiles) -> None:
        self.held = profiles

    def configured(self, component: str, variable: str, value: str) -> None:
        self.changes.append((component, variable, value))


ABOUT = About(
    identity="KRV-1",
    vendor="Karvon",
    model="Agent",
    security_profile=0,
    ping_s=30,
    message_timeout_s=30,
    connection_timeout_s=60,
    sample_s=300,
    allow_unknown=False,
    evses=[(1, 3, 22_000), (2, 3, 22_000)],
)
BOOTED = {"status": "Accepted", "currentTime": "2026-09-21T12:00:00Z", "interval": 600}
ANSWERS: dict[str, Payload] = {
    "BootNotification": BOOTED,
    "Heartbeat": {"currentTime": "2026-09-21T12:00:00Z"},
    "Authorize": {"idTagInfo": {"status": "Accepted"}},
    "StopTransaction": {},
}

OCMF: dict[str, str] = yaml.safe_load(
    (Path(__file__).parents[4] / "tests/vectors/ocmf.yaml").read_text()
)


class Bench:
    """Give it events; what the station says lies in `said`, unanswered until `answer`."""

    def __init__(
        self,
        folder: Path,
        version: Version = Version.V16,
        *,
        others: bool = True,
        per_second: int = 1000,
    ) -> None:
        self.folder, self.version = folder, version
        self.others, self.per_second = others, per_second
        self.charger = FakeCharger()
        self.now = 1000
        self.said: list[tuple[str, str, Payload]] = []
        """Calls: message id, action, payload."""
        self.answers: dict[str, Any] = {}
        """Of the station to our calls, by message id."""
        self.actions: list[Action] = []
        self.asked = 0
        self.start()

    def start(self) -> None:
        """A new process on the same journal."""
        budget = JournalBudget()
        self.journal = Journal.open(self.folder, station="KRV-1", boot=BOOT, budget=budget)
        extra = v16.extra_variables(self.charger) if self.version is Version.V16 else []
        made = variables_of(
            ABOUT,
            time=lambda: "2026-09-21T12:00:00.000Z",
            entries=lambda: 0,
            state=lambda _: "Available",
        )
        self.device = DeviceModel([*made, *extra], self.journal, self.charger.configured)
        numbers = self.journal.numbers()
        delivery = Delivery(self.journal, per_second=self.per_second, others=self.others)
        kind = v16.V16 if self.version is Version.V16 else v201.V201
        dialect = kind(self.charger, self.device, numbers, vendor="Karvon", model="Agent")
        self.station = Station(
            StationSettings(), dialect, self.device, self.charger, delivery, numbers
        )

    def restart(self) -> None:
        self.journal.close()
        self.start()

    # ------------------------------------------------------------------ playing

    def do(self, event: Event) -> list[Action]:
        actions = self.station.handle(event, self.now)
        for action in actions:
            if isinstance(action, Send):
                self._hear(json.loads(action.frame))
        self.actions += actions
        return actions

    def _hear(self, message: list[Any]) -> None:
        if message[0] == 2:
            self.said.append((message[1], message[2], message[3]))
        else:
            self.answers[message[1]] = message[2:] if message[0] == 4 else message[2]

    def later(self, ms: int) -> list[Action]:
        self.now += ms
        self.charger.mono_ms += ms
        return self.do(Tick())

    def answer(self, payload: Payload, *, action: str = "") -> list[Action]:
        """Answer the oldest open call."""
        message_id, named, _ = self.said.pop(0)
        assert action in {"", named}
        return self.do(Received(json.dumps([3, message_id, payload])))

    def refuse(self, code: str = "FormationViolation", text: str = "no") -> list[Action]:
        message_id, _, _ = self.said.pop(0)
        return self.do(Received(json.dumps([4, message_id, code, text, {}])))

    def ask(self, action: str, **payload: Any) -> Any:
        """A call of the backend; its answer, a list for an error, or the deed it waits for."""
        self.asked += 1
        message_id = f"b{self.asked}"
        actions = self.do(Received(json.dumps([2, message_id, action, payload])))
        deeds = [one.deed for one in actions if isinstance(one, Perform)]
        return deeds[0] if deeds else self.answers[message_id]

    def connect(self) -> None:
        """Connected and accepted, all statuses told."""
        self.do(Connected())
        self.answer(BOOTED, action="BootNotification")
        self.quiet()

    def lose(self) -> None:
        self.said.clear()
        self.do(Disconnected("lost"))

    def quiet(self, **answers: Payload) -> list[tuple[str, Payload]]:
        """Answer everything until nothing is said any more; returns what was said."""
        heard = []
        while self.said:
            _, action, payload = self.said[0]
            heard.append((action, payload))
            self.answer(answers.get(action, ANSWERS.get(action, {})))
        return heard

    def beating(self, action: str) -> None:
        """Let time pass, its heartbeats answered, until it says this."""
        for _ in range(1000):
            if self.actions_said() == [action]:
                return
            if self.said:
                self.answer(ANSWERS["Heartbeat"], action="Heartbeat")
            else:
                self.later(10_000)
        raise AssertionError(f"it never says {action}")

    @property
    def deeds(self) -> list[Deed]:
        return [one.deed for one in self.actions if isinstance(one, Perform)]

    def actions_said(self) -> list[str]:
        return [action for _, action, _ in self.said]

    # ------------------------------------------------------------------ what happens

    def commit(self, *events: TransactionEvent) -> None:
        self.journal.commit(facts=events)


class Drive:
    """One transaction's events as the connector makes them."""

    def __init__(self, bench: Bench, evse: int = 1, token: str | None = "CARD") -> None:
        self.bench = bench
        self.id = uuid4()
        self.evse = evse
        self.token = IdToken(token) if token else None
        self.began = bench.charger.now()
        self.seq = -1
        self.wh = 0

    def _event(self, kind: TransactionEventType, trigger: Trigger, **more: Any) -> TransactionEvent:
        self.seq += 1
        plain = TransactionEvent(
            id=uuid4(),
            transaction=self.id,
            type=kind,
            seq_no=self.seq,
            at=self.bench.charger.now(),
            trigger=trigger,
            evse=self.evse,
            started=self.began,
            charging_state=ChargingState.CHARGING,
            energy_wh=WattHours(self.wh),
            meter_wh=WattHours(5000 + self.wh),
            id_token=self.token,
        )
        event = msgspec.structs.replace(plain, **more)
        self.bench.commit(event)
        return event

    def start(self, **more: Any) -> TransactionEvent:
        known = {"trigger": Trigger.AUTHORIZED, **more}
        return self._event(TransactionEventType.STARTED, **known)

    def sample(self, wh: int = 100) -> TransactionEvent:
        self.wh += wh
        return self._event(TransactionEventType.UPDATED, Trigger.METER_VALUE_PERIODIC)

    def state(self) -> TransactionEvent:
        return self._event(TransactionEventType.UPDATED, Trigger.CHARGING_STATE_CHANGED)

    def end(self, wh: int = 100, **more: Any) -> TransactionEvent:
        self.wh += wh
        known = {"reason": StoppedReason.LOCAL, "trigger": Trigger.STOP_AUTHORIZED, **more}
        return self._event(TransactionEventType.ENDED, **known)


def started(number: int, status: str = "Accepted") -> Payload:
    """StartTransaction's answer."""
    return {"transactionId": number, "idTagInfo": {"status": status}}
