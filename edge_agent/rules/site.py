"""What the EVSEs of a controller may take of their site: per line, shared, and never twice.

A plan is made anew whenever an EVSE is to be told its limit. It knows two rooms. Who has more
than his share of the *keep* room is lowered at once. Raised is only into what the *rise* room has
left after everything that others may still be taking (`reserve`). Both differ while a meter and
the boards' own readings, which are never of one moment, do not agree yet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from edge_agent.rules.phases import (
    NONE,
    Lines,
    everywhere,
    least,
    minus,
    plus,
    total,
)
from edge_agent.rules.phases import (
    most as most_of,
)
from edge_agent.rules.power_limit import Bound
from edge_agent.rules.sharing import Claim, Turns, share
from edge_agent.rules.surplus import Gate, SurplusRules
from protocols.quantities import IEC_MIN_CURRENT

VOLTS: Final = 230
BEFORE_MS: Final = 2000
AFTER_MS: Final = 1000
"""So far apart a board's reading and the meter's may be and still mean the same moment."""
LINE: Final = ("L1", "L2", "L3")
UNEVEN: Final = ("unbalance L1", "unbalance L2", "unbalance L3")
SUN: Final = "surplus"


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteLoad:
    """What the site meter says: each line's current, the power (negative: export), how fresh."""

    current: Lines
    at_ms: int
    power_w: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRules:
    """What the site allows to the EVSEs of this controller (mA per line)."""

    limit: Lines
    metered: bool = False
    """The limit is the whole site's fuse and a meter shows what others take of it."""
    safe_share: int = IEC_MIN_CURRENT
    """Each EVSE's share while the meter is silent."""
    stale_after_ms: int = 5000
    unbalance: int | None = None
    """The most that vehicles on one or two lines may take of a line together."""
    turn_ms: int = 900_000
    surplus: SurplusRules = field(default_factory=SurplusRules)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One EVSE as the plan needs it; currents in mA on the site's lines."""

    evse: int
    claims: bool
    """It has a transaction that goes on, and its board answers."""
    busy: bool = True
    """Something might flow if its board were left alone: a transaction, or a silent board."""
    own: int
    """What all its other limits leave it."""
    lines: tuple[int, ...]
    """That it may load, or certainly does."""
    sure: bool = False
    """The vehicle has shown on which lines it charges."""
    need: int | None = None
    parked: bool = False
    """It may charge and takes nothing: whoever waits comes first."""
    held: Lines = NONE
    """What it may be taking now."""
    disobeys: bool = False
    """It takes more than its limit although it had time to follow."""
    measured: Lines = NONE
    power_w: int = 0
    priority: int = 0
    surplus: bool = False


@dataclass(frozen=True, slots=True)
class Share:
    """At most `limit`; and not raised above `ceiling` before others have given way."""

    limit: int
    ceiling: int
    limited_by: str = "site"


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What there is for the EVSEs together; `why` in a technician's words."""

    keep: Lines
    rise: Lines
    uneven: Lines | None = None
    limited_by: str = "site"
    why: str = ""


class Neighbours(Protocol):
    """Other controllers behind the same fuse: what they leave to this one."""

    def room(self, whole: Room, views: Sequence[View], site: LoadManager, now_ms: int) -> Room:
        """The part of the whole room that is this controller's."""
        ...

    def measured(self, now_ms: int) -> Lines:
        """What the others' vehicles take, as far as it is known."""
        ...

    def safe(self) -> Lines | None:
        """What is there for all controllers while the meter is silent; None: as if alone."""
        ...

    def described(self, now_ms: int) -> dict[str, Any]: ...


class LoadManager:
    """Plans for all EVSEs of one controller."""

    def __init__(self, rules: SiteRules) -> None:
        self.rules = rules
        self.load: SiteLoad | None = None
        self.neighbours: Neighbours | None = None
        self.shown: Room | None = None
        """The room of the latest plan, for people."""
        self._turns = Turns(turn_ms=rules.turn_ms)
        self._own: deque[tuple[int, Lines]] = deque()
        self._gates: dict[int, Gate] = {}

    def plan(
        self, views: Sequence[View], now_ms: int, together: Bound | None = None
    ) -> dict[int, Share]:
        """Every EVSE's share; `together` is a limit for all of this controller from elsewhere."""
        room = self.whole(views, now_ms)
        if self.neighbours is not None:
            room = self.neighbours.room(room, views, self, now_ms)
        if together is not None and together.limit < max(room.keep):
            cap = everywhere(together.limit)
            room = Room(
                keep=least(room.keep, cap),
                rise=least(room.rise, cap),
                uneven=room.uneven,
                limited_by=together.name,
                why=f"a limit for the station by {together.name}",
            )
        self.shown = room
        return self._shares(room, views, now_ms)

    def described(self, views: Sequence[View], now_ms: int) -> dict[str, Any]:
        """The site as a technician sees it: what there is, what is measured, why."""
        fresh = self.load is not None and now_ms - self.load.at_ms <= self.rules.stale_after_ms
        shown = self.shown
        return {
            "limit_ma": self.rules.limit,
            "measured_ma": self.load.current if self.load is not None else None,
            "measured_age_ms": now_ms - self.load.at_ms if self.load is not None else None,
            "measured_fresh": fresh,
            "own_ma": total(view.measured for view in views),
            "held_ma": total(view.held for view in views),
            "room_ma": shown.keep if shown is not None else None,
            "why": shown.why if shown is not None else "nobody charges",
            "neighbours": self.neighbours.described(now_ms) if self.neighbours else None,
        }

    # ------------------------------------------------------------------ how much there is

    def whole(self, views: Sequence[View], now_ms: int) -> Room:
        """What there is for all EVSEs behind the fuse, those of other controllers too."""
        own = total(view.measured for view in views)
        if self.neighbours is not None:
            own = plus(own, self.neighbours.measured(now_ms))
        self._own.append((now_ms, own))
        while self._own[0][0] < now_ms - self.rules.stale_after_ms - BEFORE_MS:
            self._own.popleft()
        return self._room(views, now_ms)

    def _room(self, views: Sequence[View], now_ms: int) -> Room:
        rules = self.rules
        uneven = None if rules.unbalance is None else everywhere(rules.unbalance)
        if not rules.metered:
            return Room(keep=rules.limit, rise=rules.limit, uneven=uneven, why="no site meter")
        if self.load is None or now_ms - self.load.at_ms > rules.stale_after_ms:
            safe = least(rules.limit, self._safe(views))
            why = "the site meter is silent: the safe share holds"
            return Room(keep=safe, rise=safe, uneven=uneven, why=why)
        fewest, most_own = self._own_beside(self.load.at_ms)
        keep = minus(rules.limit, minus(self.load.current, most_own))
        rise = minus(rules.limit, minus(self.load.current, fewest))
        why = "the fuse, less what others take by the site meter"
        return Room(keep=keep, rise=rise, uneven=uneven, why=why)

    def _safe(self, views: Sequence[View]) -> Lines:
        shares = self.neighbours.safe() if self.neighbours is not None else None
        if shares is not None:
            return shares
        claiming = sum(view.claims for view in views)
        return everywhere(self.rules.safe_share * max(1, claiming))

    def _own_beside(self, at_ms: int) -> tuple[Lines, Lines]:
        """The least and the most that was measured of us around the meter's moment."""
        near = [
            own for when, own in self._own if at_ms - BEFORE_MS <= when <= at_ms + AFTER_MS
        ] or [self._own[-1][1]]
        low = high = near[0]
        for own in near:
            low, high = least(low, own), most_of(high, own)
        return low, high

    # ------------------------------------------------------------------ who gets it

    def _shares(self, room: Room, views: Sequence[View], now_ms: int) -> dict[int, Share]:
        asking = [view for view in views if view.claims and not view.disobeys]
        crowded = len(asking) > 1
        by_key: dict[Hashable, View] = {view.evse: view for view in asking}
        bare = [self.claim_of(view, crowded=crowded) for view in asking]
        ordered = self._turns.order(bare, now_ms)
        open_gates, sun = self._gate([by_key[claim.key] for claim in ordered], now_ms)
        claims = [claim for claim in ordered if open_gates[claim.key]]
        given = share(self._resources(room, views, sun), claims)
        self._turns.note(given, now_ms)
        held = total(view.held for view in views)
        shares = {
            view.evse: self._share_of(view, given.get(view.evse, 0), open_gates, room, held)
            for view in asking
        }
        rest = [view for view in views if view.claims and view.disobeys]
        return shares | {view.evse: Share(IEC_MIN_CURRENT, IEC_MIN_CURRENT) for view in rest}

    def asking(self, views: Sequence[View]) -> list[View]:
        """The EVSEs that want a part of the fuse now."""
        closed = {evse for evse, gate in self._gates.items() if not gate.on}
        return [
            view
            for view in views
            if view.claims and not view.disobeys and not (view.surplus and view.evse in closed)
        ]

    def claim_of(self, view: View, *, crowded: bool) -> Claim:
        """Where others want more, a vehicle that cannot use its share leaves the rest to them."""
        need = view.need if crowded and view.need is not None else view.own
        takes = {LINE[line]: 1 for line in view.lines}
        if len(view.lines) < len(LINE) or not view.sure:
            takes |= {UNEVEN[line]: 1 for line in view.lines}
        if view.surplus:
            takes[SUN] = len(view.lines)
        return Claim(
            key=view.evse,
            most=min(view.own, need),
            takes=takes,
            priority=view.priority,
            parked=view.parked,
        )

    def _resources(self, room: Room, views: Sequence[View], sun: int) -> dict[str, int]:
        """What is left for claims when those who make none, or disobey, have what they take."""
        stuck = (view.held for view in views if view.disobeys or not view.claims)
        left = minus(room.keep, total(stuck))
        resources = dict(zip(LINE, left, strict=True)) | {SUN: sun}
        if room.uneven is not None:
            resources |= dict(zip(UNEVEN, room.uneven, strict=True))
        return resources

    def _share_of(
        self,
        view: View,
        limit: int,
        open_gates: Mapping[Hashable, bool],
        room: Room,
        held: Lines,
    ) -> Share:
        """Raised only into what the others, with all that is held, leave of the rise room."""
        ceiling = min(room.rise[line] - held[line] + view.held[line] for line in view.lines)
        ceiling = max(0, ceiling)
        if view.surplus and (not open_gates[view.evse] or limit < ceiling):
            return Share(limit, min(limit, ceiling), "surplus")
        return Share(limit, min(limit, ceiling), room.limited_by)

    # ------------------------------------------------------------------ the sun

    def _gate(self, ordered: Sequence[View], now_ms: int) -> tuple[dict[Hashable, bool], int]:
        """Which EVSEs may charge, and the surplus as mA times lines."""
        open_gates: dict[Hashable, bool] = {view.evse: True for view in ordered}
        solar = [view for view in ordered if view.surplus]
        surplus = self._surplus_w(solar, now_ms)
        left, floor = surplus, 0
        for view in solar:
            least_w = IEC_MIN_CURRENT * VOLTS * len(view.lines) // 1000
            gate = self._gates.get(view.evse, Gate())
            gate = gate.follow(left, least_w, self.rules.surplus, now_ms)
            self._gates[view.evse], open_gates[view.evse] = gate, gate.on
            if gate.on:
                left, floor = left - least_w, floor + least_w
        for gone in self._gates.keys() - {view.evse for view in solar}:
            del self._gates[gone]
        return open_gates, max(surplus, floor) * 1000 // VOLTS

    def _surplus_w(self, solar: Sequence[View], now_ms: int) -> int:
        """What the sun leaves over when nobody charged on it; without a fresh meter nothing."""
        load = self.load
        if load is None or load.power_w is None:
            return 0
        if now_ms - load.at_ms > self.rules.stale_after_ms:
            return 0
        return sum(view.power_w for view in solar) - load.power_w
