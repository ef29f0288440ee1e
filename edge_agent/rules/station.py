"""The controller as a whole: whose card starts or stops what, and who may take how much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
from edge_agent.rules.power_limit import (
    NOTHING,
    PAUSE,
    Bound,
    CommandLimit,
    Offer,
    Ramp,
    SiteLoad,
    SiteRules,
    fair_split,
    headroom,
    site_budget,
    smallest,
)
from edge_agent.rules.reservation import Reservation
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


class RefusedError(Exception):
    """What was asked cannot be done now; the text says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StationSettings:
    """What commissioning fixed for this controller."""

    site: SiteRules | None = None
    failsafe: MilliAmperes = IEC_MIN_CURRENT
    """What an expired command leaves, and what a board falls back to when nobody feeds it."""
    failsafe_ms: int = 60_000
    """The boards' own timeout until then."""
    cables: Mapping[int, MilliAmperes] = field(default_factory=dict)
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
        self.load: SiteLoad | None = None
        self.commands: dict[int, CommandLimit] = {}
        self.profiles = Profiles()
        """What an OCPP backend has set."""
        self.reservations: dict[int, Reservation] = {}
        """By EVSE."""
        self.confirmed: dict[int, MilliAmperes] = {}
        self._ramps: dict[int, Ramp] = {}

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
        if not self._active(evse):
            self._ramps.pop(evse, None)
            return NOTHING
        target = smallest(self._bounds(evse, now))
        ramp = self._ramps.get(evse, Ramp(hold_ms=self.settings.hold_ms))
        self._ramps[evse] = ramp.follow(target, now.mono_ms)
        return self._ramps[evse].offer

    def _active(self, evse: int) -> bool:
        running = self.connectors[evse].state.session
        return running is not None and running.stop is None

    def bounds(self, evse: int, now: Stamp) -> list[Bound]:
        """Every limit that would hold for this EVSE now, transaction or not."""
        return self._bounds(evse, now)

    def _bounds(self, evse: int, now: Stamp) -> list[Bound]:
        connector = self.connectors[evse]
        bounds = [Bound("board", connector.info.max_current)]
        if connector.state.lost or connector.state.reading is None:
            bounds.append(Bound("failsafe", PAUSE))
        if evse in self.settings.cables:
            bounds.append(Bound("cable", self.settings.cables[evse]))
        if evse in self.commands:
            bounds.append(self.commands[evse].bound(now.mono_ms, self.settings.failsafe))
        running = connector.state.session
        if self.profiles.held:
            bounds += self._profile_bounds(connector, now)
        cap = self.authorizer.cap(running.record.id_token) if running else None
        if cap is not None:
            bounds.append(Bound("authorization", cap))
        return bounds + self._site_bounds(evse, bounds, now)

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

    def _site_bounds(self, evse: int, own: list[Bound], now: Stamp) -> list[Bound]:
        """The site's share, as far as the other EVSEs have really given it up."""
        total = self._site_total(now)
        bounds = []
        if SITE in self.commands:
            bound = self.commands[SITE].bound(now.mono_ms, self.settings.failsafe)
            if bound.name == "failsafe":
                bounds.append(bound)
            elif total is None or bound.limit < total.limit:
                total = bound
        total = self._station_profile(total, evse, now)
        if total is None:
            return bounds
        most = {each: self.connectors[each].info.max_current for each in self._active_evses()}
        most[evse] = min(bound.limit for bound in own)
        share = fair_split(total.limit, most).get(evse, PAUSE)
        left = headroom(total.limit, evse, self._outstanding(now))
        return [*bounds, Bound(total.name, share), Bound(total.name, left)]

    def _station_profile(self, total: Bound | None, evse: int, now: Stamp) -> Bound | None:
        """The station's maximum of a backend bounds what the EVSEs share."""
        limit = None
        if self.profiles.held:
            phases = self.connectors[evse].info.phases
            limit = self.profiles.station_limit(now.wall_ms, phases)
        if limit is None or (total is not None and total.limit <= limit):
            return total
        return Bound("profile", limit)

    def _site_total(self, now: Stamp) -> Bound | None:
        site = self.settings.site
        if site is None:
            return None
        own = MilliAmperes(sum(self._drawn(evse) for evse in self.connectors))
        count = max(1, len(self._active_evses()))
        return Bound("site", site_budget(site, self.load, own, count, now.mono_ms))

    def _drawn(self, evse: int) -> int:
        reading = self.connectors[evse].state.reading
        return max((c or 0 for c in reading.current), default=0) if reading else 0

    def _active_evses(self) -> list[int]:
        """Longest running first."""
        active = [evse for evse in self.connectors if self._active(evse)]
        return sorted(active, key=self._started)

    def _started(self, evse: int) -> tuple[int, int]:
        running = self.connectors[evse].state.session
        return (running.record.started.wall_ms if running else 0, evse)

    def _outstanding(self, now: Stamp) -> dict[int, MilliAmperes]:
        """What each EVSE may be taking at most, as far as its board has confirmed."""
        return {evse: self._outstanding_of(evse, now) for evse in self.connectors}

    def _outstanding_of(self, evse: int, now: Stamp) -> MilliAmperes:
        """A board that nobody reaches falls back to its failsafe once its timeout is over."""
        state = self.connectors[evse].state
        confirmed = self.confirmed.get(evse)
        heard = state.read_at.mono_ms if state.read_at else None
        if confirmed is None:
            return self.settings.failsafe
        starved = heard is None or now.mono_ms - heard > self.settings.failsafe_ms
        return min(confirmed, self.settings.failsafe) if state.lost and starved else confirmed

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
