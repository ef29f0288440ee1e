"""The controller as a whole: whose card starts or stops what, and who may take how much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from edge_agent.records import SiteLimit
from edge_agent.rules.actions import (
    Adopt,
    Authorized,
    CloudEnded,
    Event,
    StopAsked,
)
from edge_agent.rules.authorization import Authorizer, Heard
from edge_agent.rules.charging_profiles import Profiles, Running
from edge_agent.rules.connector import Connector
from edge_agent.rules.phases import NONE, Lines, everywhere, most, on, placed, total, wired
from edge_agent.rules.power_limit import (
    NOTHING,
    PAUSE,
    Bound,
    CommandLimit,
    Offer,
    Ramp,
    smallest,
)
from edge_agent.rules.reservation import Reservation
from edge_agent.rules.reserve import REACTION_MS, Reserve
from edge_agent.rules.site import LoadManager, Share, SiteRules, View
from edge_agent.rules.vehicle import Shown
from protocols.agent_link import (
    ClockQuality,
    IdToken,
    RemoteStart,
    RemoteStop,
    SetLimit,
    Stamp,
    StoppedReason,
    Trigger,
    Welcome,
)
from protocols.quantities import IEC_MIN_CURRENT, MilliAmperes

SITE = 0
"""The EVSE number that stands for the whole site in limits and availability."""
NO_LIMIT: Final = 2**31
RESUME: Final = 6
"""Who was paused for want of a share waits so many times as long as who was lowered."""


class RefusedError(Exception):
    """What was asked cannot be done now; the text says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """How an EVSE is connected to the site, and its place among others."""

    rotation: str = "RST"
    priority: int = 0
    surplus: bool = False
    """It charges only on what the sun leaves over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StationSettings:
    """What commissioning fixed for this controller."""

    site: SiteRules | None = None
    failsafe: MilliAmperes = IEC_MIN_CURRENT
    """What an expired command leaves, and what a board falls back to when nobody feeds it."""
    failsafe_ms: int = 60_000
    """The boards' own timeout until then."""
    cables: Mapping[int, MilliAmperes] = field(default_factory=dict)
    wiring: Mapping[int, Wiring] = field(default_factory=dict)
    hold_ms: int = 10_000
    """A limit that was lowered is raised again after this."""


class Station:
    """Knows all EVSEs of a controller, and decides what concerns more than one."""

    def __init__(
        self, connectors: Mapping[int, Connector], settings: StationSettings, authorizer: Authorizer
    ) -> None:
        self.connectors = dict(connectors)
        self.settings = settings
        self.authorizer = authorizer
        self.site = LoadManager(settings.site or SiteRules(limit=everywhere(NO_LIMIT)))
        self.commands: dict[int, CommandLimit] = {}
        self.profiles = Profiles()
        """What an OCPP backend has set."""
        self.reservations: dict[int, Reservation] = {}
        """By EVSE."""
        self._ramps: dict[int, Ramp] = {}
        self._reserves: dict[int, Reserve] = {}
        self._shown: dict[int, Shown] = {}
        self._seen_ms: dict[int, int] = {}
        self._born_ms: int | None = None

    # ------------------------------------------------------------------ limits

    def recall(self, limit: SiteLimit, now: Stamp) -> None:
        """Take over a commanded limit; while the clock is unset it counts as expired."""
        left = limit.until_wall_ms - now.wall_ms
        if now.quality is ClockQuality.UNSET:
            left = type(left)(0)
        until = now.mono_ms + max(0, left)
        self.commands[limit.evse] = CommandLimit(limit=limit.limit_ma, until_ms=until)

    def hold(self, asked: SetLimit, now: Stamp) -> None:
        """A limit came by command: it holds from now on."""
        if asked.limit_ma is not None:
            until = now.mono_ms + asked.valid_ms
            self.commands[asked.evse] = CommandLimit(limit=asked.limit_ma, until_ms=until)

    def offer(self, evse: int, now: Stamp) -> Offer:
        """What this EVSE may offer now; without a transaction nothing."""
        self._observe(evse, now)
        if not self._active(evse):
            self._ramps.pop(evse, None)
            return NOTHING
        own, share = self._bounds(evse, now), self._share(evse, now)
        hold = self.settings.hold_ms
        ramp = self._ramps.get(evse, Ramp(hold_ms=hold, resume_ms=RESUME * hold))
        if share is None:
            self._ramps[evse] = ramp.follow(smallest(own), now.mono_ms)
            return self._ramps[evse].offer
        name = share.limited_by
        target = smallest([*own, Bound(name, MilliAmperes(share.limit))])
        ceiling = smallest([*own, Bound(name, MilliAmperes(share.ceiling))])
        self._ramps[evse] = ramp.follow(target, now.mono_ms, ceiling)
        return self._ramps[evse].offer

    def _active(self, evse: int) -> bool:
        running = self.connectors[evse].state.session
        return running is not None and running.stop is None

    def bounds(self, evse: int, now: Stamp) -> list[Bound]:
        """Every limit that would hold for this EVSE now, transaction or not."""
        share = self._share(evse, now)
        shared = [] if share is None else [Bound(share.limited_by, MilliAmperes(share.limit))]
        return [*self._bounds(evse, now), *shared]

    def _bounds(self, evse: int, now: Stamp) -> list[Bound]:
        """What limits this EVSE by itself, whatever others take."""
        connector = self.connectors[evse]
        bounds = [Bound("board", connector.info.max_current)]
        if connector.state.lost or connector.state.reading is None:
            bounds.append(Bound("failsafe", PAUSE))
        if evse in self.settings.cables:
            bounds.append(Bound("cable", self.settings.cables[evse]))
        for commanded in {evse, SITE} & self.commands.keys():
            bound = self.commands[commanded].bound(now.mono_ms, self.settings.failsafe)
            if commanded == evse or bound.name == "failsafe":
                bounds.append(bound)
        if self.profiles.held:
            bounds += self._profile_bounds(connector, now)
        running = connector.state.session
        if running is None or running.record.command is not None:
            return bounds  # who was started by the cloud is known there
        token, energy = running.record.id_token, running.energy(connector.state.meter)
        cap = self.authorizer.cap(token)
        if self.authorizer.used_up(token, energy):
            cap = PAUSE
        return bounds if cap is None else [*bounds, Bound("authorization", cap)]

    def _profile_bounds(self, connector: Connector, now: Stamp) -> list[Bound]:
        phases, evse = connector.info.phases, connector.evse
        limit = self.profiles.limit(evse, self.running(evse), now.wall_ms, phases)
        return [] if limit is None else [Bound("profile", limit)]

    def running(self, evse: int) -> Running | None:
        """The open transaction, as charging profiles see it."""
        session = self.connectors[evse].state.session
        if session is None:
            return None
        return Running(id=session.record.id, started_ms=session.record.started.wall_ms)

    def _together(self, now: Stamp) -> Bound | None:
        """What a command, or a backend's maximum of the station, leaves to all EVSEs together.

        A command that expired limits each EVSE by itself.
        """
        bounds = []
        command = self.commands.get(SITE)
        if command is not None and now.mono_ms < command.until_ms:
            bounds.append(Bound("command", command.limit))
        if self.profiles.held:
            phases = max(connector.info.phases for connector in self.connectors.values())
            limit = self.profiles.station_limit(now.wall_ms, phases)
            bounds += [] if limit is None else [Bound("profile", limit)]
        return min(bounds, key=lambda bound: bound.limit, default=None)

    # ------------------------------------------------------------------ what EVSEs share

    def _share(self, evse: int, now: Stamp) -> Share | None:
        together = self._together(now)
        if self.settings.site is None and together is None:
            return None
        return self.site.plan(self.views(now), now.mono_ms, together).get(evse)

    def views(self, now: Stamp) -> list[View]:
        """All EVSEs as the sharing of the site sees them."""
        return [self._view(each, now) for each in self.connectors]

    def _view(self, evse: int, now: Stamp) -> View:
        connector = self.connectors[evse]
        state, wiring = connector.state, self.settings.wiring.get(evse, Wiring())
        wires = self._wires(evse)
        answers = state.reading is not None and not state.lost
        shown = self._shown.get(evse, Shown())
        used = wires if shown.pins is None else tuple(wires[pin] for pin in sorted(shown.pins))
        reading = state.reading if answers else None
        measured = placed(reading.current, wires) if reading is not None else NONE
        reserve = self._reserves.get(evse)
        return View(
            evse=evse,
            claims=answers and self._active(evse),
            busy=state.session is not None or not answers or state.released is not False,
            own=min(bound.limit for bound in self._bounds(evse, now)),
            lines=used,
            sure=shown.pins is not None,
            need=shown.need,
            parked=shown.parked,
            held=self._held(evse, used, measured, now),
            disobeys=reserve is not None and reserve.disobeyed(max(measured), now.mono_ms),
            measured=measured,
            power_w=(reading.power or 0) if reading is not None else 0,
            priority=wiring.priority,
            surplus=wiring.surplus,
        )

    def _held(self, evse: int, used: tuple[int, ...], measured: Lines, now: Stamp) -> Lines:
        """What the EVSE may be taking: its ceiling on the lines it uses, what flows elsewhere.

        An open contactor takes nothing, whatever limit is set.
        """
        state = self.connectors[evse].state
        answers = state.reading is not None and not state.lost
        if answers and not state.plugged:
            return measured
        if answers and state.released is False and not state.closed and not max(measured):
            return NONE
        return most(on(used, self._ceiling(evse, now)), measured)

    def _ceiling(self, evse: int, now: Stamp) -> int:
        """A board that nobody reaches falls back to its failsafe once its timeout is over."""
        state, known = self.connectors[evse].state, self._reserves.get(evse)
        rated = self.connectors[evse].info.max_current
        ceiling = rated if known is None else known.ceiling(now.mono_ms)
        if state.written is not None and known is not None:
            ceiling = max(ceiling, state.written, state.offer.limit if self._active(evse) else 0)
        heard = state.read_at.mono_ms if state.read_at else self._born_ms
        starved = now.mono_ms - (heard or 0) > self.settings.failsafe_ms + REACTION_MS
        silent = bool(state.lost) or state.reading is None
        return min(ceiling, self.settings.failsafe) if silent and starved else ceiling

    def floor(self) -> Lines:
        """What the boards give vehicles that were charging before this process started."""
        running = (
            evse
            for evse, connector in self.connectors.items()
            if connector.state.session is not None and not connector.state.session.young
        )
        return total(on(self._wires(evse), self.settings.failsafe) for evse in running)

    def _wires(self, evse: int) -> tuple[int, ...]:
        wiring = self.settings.wiring.get(evse, Wiring())
        return wired(wiring.rotation, self.connectors[evse].info.phases)

    def told(self, evse: int, limit: MilliAmperes, now: Stamp) -> None:
        """A board was told this limit, or may have been."""
        known = self._reserves.get(evse)
        if known is None:
            known = Reserve(limit=self.connectors[evse].info.max_current)
        self._reserves[evse] = known.told(limit, now.mono_ms)

    def telling(self, evse: int, limit: MilliAmperes, now: Stamp) -> None:
        """A board is about to be told: until that is certain, the higher limit counts."""
        known = self._reserves.get(evse)
        if known is None or limit > known.limit:
            self.told(evse, limit, now)

    def _observe(self, evse: int, now: Stamp) -> None:
        """Take note of what the vehicle shows, once per reading."""
        state = self.connectors[evse].state
        if self._born_ms is None:
            self._born_ms = now.mono_ms
        if state.reading is None or state.read_at is None or state.lost:
            return
        if self._seen_ms.get(evse) == state.read_at.mono_ms:
            return
        self._seen_ms[evse] = state.read_at.mono_ms
        known = self._reserves.get(evse)
        limit = known.limit if known is not None else PAUSE
        shown = self._shown.get(evse, Shown())
        self._shown[evse] = shown.read(state.reading, limit, state.read_at.mono_ms)

    # ------------------------------------------------------------------ cards and commands

    def present(
        self, token: IdToken, evse: int | None, now: Stamp, heard: Heard | None = None
    ) -> tuple[int, Event, str]:
        """A card was shown: the EVSE and event that follow, and what to tell the person.

        `heard` is what a backend just said of it. Raises RefusedError.
        """
        running = self.own_transaction(token, evse)
        if running is not None:
            stop = StopAsked(reason=StoppedReason.LOCAL, trigger=Trigger.STOP_AUTHORIZED)
            return running, stop, f"EVSE {running}: stopping"
        decision = self.authorizer.decide(token, now, heard)
        if not decision.allowed:
            raise RefusedError(f"id token {token.value} is refused: {decision.why}")
        target = self.target(evse)
        self._refuse_if_busy(target)
        self._refuse_if_reserved(target, token, heard.group if heard else None, now)
        waits = not self.connectors[target].state.plugged
        text = "accepted; plug in the vehicle" if waits else "accepted; starting"
        event = Authorized(id_token=token, trigger=Trigger.AUTHORIZED)
        return target, event, f"EVSE {target}: {text} ({decision.why})"

    def own_transaction(self, token: IdToken, evse: int | None) -> int | None:
        """The EVSE whose transaction this token may stop."""
        for number, connector in self.connectors.items():
            running = connector.state.session
            if running is None or evse not in {None, number}:
                continue
            if self.authorizer.may_stop(token, running.record.id_token):
                return number
        return None

    def target(self, evse: int | None) -> int:
        """The named EVSE, or the only one that can be meant. Raises RefusedError."""
        if evse is not None:
            self._refuse_if_unknown(evse)
            return evse
        free = [n for n, c in self.connectors.items() if c.state.session is None]
        plugged = [n for n in free if self.connectors[n].state.plugged]
        candidates = plugged or free
        if len(candidates) == 1:
            return candidates[0]
        if not candidates:
            raise RefusedError("every EVSE is in use by another id token; wait until one is free")
        listed = ", ".join(map(str, candidates))
        raise RefusedError(f"it is not clear which EVSE is meant; name one of {listed}")

    def _refuse_if_unknown(self, evse: int) -> None:
        if evse not in self.connectors:
            have = ", ".join(map(str, self.connectors))
            raise RefusedError(f"there is no EVSE {evse} here; this controller has {have}")

    def _refuse_if_busy(self, evse: int) -> None:
        state = self.connectors[evse].state
        if state.session is not None:
            raise RefusedError(f"EVSE {evse} has a transaction of another id token; stop it first")
        if not state.operative:
            raise RefusedError(f"EVSE {evse} is out of service; make it available first")
        if state.lost or state.fault:
            why = state.lost or state.fault
            raise RefusedError(f"EVSE {evse} is faulted: {why}; repair it first")

    def _refuse_if_reserved(self, evse: int, token: IdToken, group: str | None, now: Stamp) -> None:
        kept = self.reservations.get(evse)
        if kept is None or not kept.holds(now):
            return
        if not kept.admits(token, group or self.authorizer.group(token)):
            raise RefusedError(f"EVSE {evse} is reserved for another id token; use another EVSE")

    def remote_start(
        self, asked: RemoteStart, command: UUID | None, now: Stamp | None = None
    ) -> tuple[int, Event]:
        """The cloud has authorized; raises RefusedError when the EVSE cannot."""
        self._refuse_if_unknown(asked.evse)
        self._refuse_if_busy(asked.evse)
        if now is not None:
            self._refuse_if_reserved(asked.evse, asked.id_token, None, now)
        event = Authorized(id_token=asked.id_token, trigger=Trigger.REMOTE_START, command=command)
        return asked.evse, event

    def remote_stop(self, asked: RemoteStop, command: UUID | None) -> tuple[int, Event]:
        """Raises RefusedError when no such transaction is open."""
        for evse, connector in self.connectors.items():
            running = connector.state.session
            if running is not None and running.record.id == asked.transaction:
                event = StopAsked(
                    reason=StoppedReason.REMOTE, trigger=Trigger.REMOTE_STOP, command=command
                )
                return evse, event
        raise RefusedError(f"transaction {asked.transaction} is not open here; it may be over")

    def concerned(self, evse: int) -> list[int]:
        """The EVSEs that a number means (0: all); raises RefusedError for an unknown one."""
        if evse == SITE:
            return list(self.connectors)
        self._refuse_if_unknown(evse)
        return [evse]

    def welcomed(self, welcome: Welcome, ended_here: frozenset[UUID]) -> list[tuple[int, Event]]:
        """What the cloud's view asks of us; `ended_here`: those this journal knows to be over."""
        events: list[tuple[int, Event]] = []
        for evse, connector in self.connectors.items():
            running = connector.state.session
            if running is not None and running.record.id in welcome.ended_transactions:
                events.append((evse, CloudEnded(running.record.id)))
        events += [
            (known.evse, Adopt(known))
            for known in welcome.open_transactions
            if known.evse in self.connectors and known.transaction not in ended_here
        ]
        return events
