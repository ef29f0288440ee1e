"""Several controllers behind one fuse: one leads, the others act on leases that expire.

The promise of the leader: what it has handed out and what may still be in use never exceeds the
site, whoever hears whom. Everything rests on durations of monotonic clocks:

- A lease runs from when the follower *sent* the report that the grant answers; the leader counts
  the grant from when it *issued* it, which is later. So the leader's account ends after the lease.
- After its lease a follower falls to its share at once, or stays at what was granted where that is
  less: the leader may have lent the rest to others. It takes its full share only when everything
  that was lent has surely come back (`rise_ms`).
- A follower that dies leaves its boards to their own failsafe, which takes some time (`dead_ms`).
  Its grants count so much longer.
- A leader that starts knows nothing. A member it has not heard counts for everything until all
  that an earlier life may have granted is over, and for its share from then on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import UUID

from edge_agent.rules.phases import NONE, Lines, everywhere, least, minus, most, on, plus, total
from edge_agent.rules.sharing import Claim, Turns, share
from edge_agent.rules.site import LINE, UNEVEN, LoadManager, Room, View
from protocols.site_link import Asked, Grant, Mark, Report

EVERYTHING: Final = everywhere(2**31)
DRIFT: Final = 100
"""Two monotonic clocks differ by less than one part in this many."""
KEPT: Final = 64
"""So many grants to one member are remembered; older ones have long expired."""


def surely(duration_ms: int) -> int:
    """So long by our clock, when it has surely been `duration_ms` by any."""
    return duration_ms + duration_ms // DRIFT + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRules:
    """What all controllers of a site have in common (ms)."""

    valid_ms: int = 10_000
    """A grant holds for so long."""
    dead_ms: int = 76_000
    """The boards' failsafe, the longest request to a board, and a vehicle's reaction."""

    @property
    def rise_ms(self) -> int:
        """Leases that others got meanwhile, and their boards' failsafe, with drift and a margin."""
        return surely(surely(2 * self.valid_ms + self.dead_ms))


# --------------------------------------------------------------------------- follower


@dataclass(frozen=True, slots=True)
class Lease:
    lines: Lines
    uneven: Lines | None
    until_ms: int
    why: str


class Follower:
    """One controller that acts on leases; `floor` is what its boards give running vehicles."""

    def __init__(
        self,
        station: str,
        boot: UUID,
        share: Lines,
        rules: LeaseRules,
        now_ms: int,
        floor: Lines = NONE,
    ) -> None:
        self.station, self.boot, self.share, self.rules = station, boot, share, rules
        self.lease: Lease | None = None
        self.leader = self.trouble = ""
        self.heard_ms: int | None = None
        self._heard: Mark | None = None
        self._former: set[UUID] = set()
        """Boots of the leader that are over."""
        self._number = 0
        self._sent: dict[int, int] = {}
        self._low = least(floor, share)
        self._low_until = now_ms + rules.valid_ms + rules.rise_ms

    def report(self, views: Sequence[View], site: LoadManager, now_ms: int) -> Report:
        """What to tell the leader now."""
        self._number += 1
        self._sent[self._number] = now_ms
        self._sent = {
            number: at for number, at in self._sent.items() if at > now_ms - self.rules.valid_ms
        }
        leased = self.lease.lines if self._leased(now_ms) and self.lease else NONE
        return Report(
            station=self.station,
            mark=Mark(self.boot, self._number),
            heard=self._heard,
            share_ma=self.share,
            own_ma=self.fallback(now_ms),
            leased_ma=leased,
            held_ma=total(view.held for view in views),
            ending_ma=total(view.held for view in views if not view.claims or view.disobeys),
            measured_ma=total(view.measured for view in views),
            idle=not any(view.busy for view in views),
            rise_ms=self.rules.rise_ms,
            dead_ms=self.rules.dead_ms,
            asked=tuple(_asked(view, site) for view in site.asking(views)),
        )

    def take(self, grant: Grant, now_ms: int) -> bool:
        """Act on a grant; False: it is old, or not for us."""
        sent = self._sent.get(grant.answers.number)
        if grant.answers.boot != self.boot or sent is None or grant.mark.boot in self._former:
            return False
        known = self._heard
        if known is not None and known.boot == grant.mark.boot:
            if grant.mark.number <= known.number:
                return False
        elif known is not None:
            self._former.add(known.boot)
        self._heard, self.leader, self.heard_ms = grant.mark, grant.leader, now_ms
        self.trouble = grant.why if grant.lines_ma is None and self.lease is None else ""
        until = sent + min(grant.valid_ms, self.rules.valid_ms)
        if grant.lines_ma is None or now_ms >= until:
            return True
        self.lease = Lease(grant.lines_ma, grant.uneven_ma, until, grant.why)
        self._low = least(grant.lines_ma, self.share)
        self._low_until = until + self.rules.rise_ms
        return True

    def _leased(self, now_ms: int) -> bool:
        return self.lease is not None and now_ms < self.lease.until_ms

    def fallback(self, now_ms: int) -> Lines:
        """What may be taken without a lease."""
        return self.share if now_ms >= self._low_until else self._low

    # -- Neighbours

    def room(self, whole: Room, _views: Sequence[View], _site: LoadManager, now_ms: int) -> Room:
        lease = self.lease
        if lease is not None and self._leased(now_ms):
            lines, uneven, why = lease.lines, lease.uneven, f"{self.leader} leads: {lease.why}"
        else:
            lines, uneven = self.fallback(now_ms), whole.uneven
            full = lines == self.share
            why = "the leader is silent: the safe share holds"
            why += "" if full else f" in {(self._low_until - now_ms) // 1000 + 1} s"
        return replace(
            whole,
            keep=least(whole.keep, lines),
            rise=least(whole.rise, lines),
            uneven=uneven,
            why=why,
        )

    def measured(self, _now_ms: int) -> Lines:
        return NONE

    def safe(self) -> Lines | None:
        return None

    def described(self, now_ms: int) -> dict[str, Any]:
        leased = self._leased(now_ms)
        return {
            "role": "follower",
            "leader": self.leader,
            "trouble": self.trouble,
            "leader_heard_ms": None if self.heard_ms is None else now_ms - self.heard_ms,
            "lease_ma": self.lease.lines if leased and self.lease else None,
            "lease_left_ms": self.lease.until_ms - now_ms if leased and self.lease else None,
            "safe_share_ma": self.share,
            "members": [],
        }


def _asked(view: View, site: LoadManager) -> Asked:
    claim = site.claim_of(view, crowded=True)
    uneven = any(name in claim.takes for name in UNEVEN)
    return Asked(view.evse, view.lines, claim.most, uneven, view.priority, view.parked)


# --------------------------------------------------------------------------- leader


@dataclass(frozen=True, slots=True)
class Issued:
    """A grant as its leader remembers it."""

    at_ms: int
    lines: Lines | None
    after_ms: int
    """The report that it answers was surely sent after this."""


@dataclass(slots=True)
class Member:
    """A follower as the leader knows it."""

    share: Lines
    report: Report | None = None
    heard_ms: int = 0
    issued: dict[int, Issued] = field(default_factory=dict)
    trouble: str = ""


class Leader:
    """Hands out the site; `members` are the followers' shares as configured here."""

    def __init__(
        self,
        station: str,
        boot: UUID,
        members: Mapping[str, Lines],
        own_share: Lines,
        rules: LeaseRules,
        now_ms: int,
        turn_ms: int = 900_000,
        floor: Lines = NONE,
    ) -> None:
        self.station, self.boot, self.rules, self.own_share = station, boot, rules, own_share
        self.members = {name: Member(lines) for name, lines in members.items()}
        self.floor = least(floor, own_share)
        self._began_ms = now_ms
        self._number = 0
        self._turns = Turns(turn_ms=turn_ms)

    # -- what others may be taking

    def outstanding(self, name: str, now_ms: int) -> Lines:
        """The most that a member may be taking now, or may come to take without us."""
        member = self.members[name]
        report = member.report
        if report is None:
            unknown = now_ms - self._began_ms < self._over_after(self.rules.dead_ms)
            return EVERYTHING if unknown else member.share
        used = NONE if self._lends(member, report, now_ms) else member.share
        over_after = self._over_after(report.dead_ms)
        if now_ms - member.heard_ms < over_after:
            used = most(used, most(report.held_ma, report.leased_ma))
        heard = report.heard.number if report.heard else 0
        for number, grant in member.issued.items():
            live = number >= heard and now_ms - grant.at_ms < over_after
            used = most(used, grant.lines) if live and grant.lines is not None else used
        return used

    def _over_after(self, dead_ms: int) -> int:
        return surely(self.rules.valid_ms + dead_ms)

    def _lends(self, member: Member, report: Report, now_ms: int) -> bool:
        """Whether it does nothing and keeps to what was granted until all of now is over."""
        granted = member.issued.get(report.heard.number) if report.heard else None
        if not report.idle or granted is None or granted.lines is None:
            return False
        longest = max(each.report.dead_ms for each in self.members.values() if each.report)
        longest = max(longest, self.rules.dead_ms)
        stays_ms = (self.rules.valid_ms + report.rise_ms) * (DRIFT - 1) // DRIFT
        rises = granted.after_ms + stays_ms
        return now_ms + self._over_after(longest) <= rises

    def _fresh(self, member: Member, now_ms: int) -> bool:
        return member.report is not None and now_ms - member.heard_ms < self.rules.valid_ms

    # -- what everybody shall have

    def _targets(
        self, whole: Room, views: Sequence[View], site: LoadManager, now_ms: int
    ) -> dict[str, tuple[Lines, Lines | None]]:
        """By station: lines, and what of them its uneven vehicles may take."""
        owners: dict[tuple[str, int], Asked] = {
            (self.station, view.evse): _asked(view, site) for view in site.asking(views)
        }
        kept = {self.station: _ending(views)}
        silent = NONE
        for name, member in self.members.items():
            if member.report is not None and self._fresh(member, now_ms):
                owners |= {(name, asked.evse): asked for asked in member.report.asked}
                kept[name] = member.report.ending_ma
            else:
                known = member.report is not None
                counts = self.outstanding(name, now_ms) if known else member.share
                silent = plus(silent, counts)
        left = minus(minus(whole.keep, silent), total(kept.values()))
        room, reserves = self._reserves(left, now_ms)
        if whole.uneven is not None:
            room |= dict(zip(UNEVEN, whole.uneven, strict=True))
        claims = self._turns.order([_claim(key, asked) for key, asked in owners.items()], now_ms)
        given = share(room, claims, reserves)
        self._turns.note(given, now_ms)
        return {
            name: _summed(name, owners, given, kept.get(name, NONE), whole)
            for name in (self.station, *self.members)
        }

    def _reserves(
        self, left: Lines, now_ms: int
    ) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
        """What is there for all, and by member the share that no other may count on.

        Where the house leaves less than all shares, everybody is lowered, and all is for all.
        """
        shares = {
            name: member.share
            for name, member in self.members.items()
            if member.report is not None
            and self._fresh(member, now_ms)
            and not self._lends(member, member.report, now_ms)
        }
        together = total(shares.values())
        tight = [own > one for own, one in zip(together, left, strict=True)]
        common = {
            name: one if scarce else one - own
            for name, one, own, scarce in zip(LINE, left, together, tight, strict=True)
        }
        reserves = {
            member: {
                name: 0 if scarce else one
                for name, one, scarce in zip(LINE, lines, tight, strict=True)
            }
            for member, lines in shares.items()
        }
        return common, reserves

    # -- the members

    def answer(
        self, report: Report, whole: Room, views: Sequence[View], site: LoadManager, now_ms: int
    ) -> Grant | None:
        """The grant that answers a report; None: it is not to be answered."""
        member = self.members.get(report.station)
        if member is None:
            return None
        if self._old(member, report):
            return None
        if not self._believe(member, report, now_ms):
            return self._issue(member, report, None, None, "asked to say it again", now_ms)
        targets = self._targets(whole, views, site, now_ms)
        lines, uneven = targets[report.station]
        others = total(
            self.outstanding(name, now_ms) for name in self.members if name != report.station
        )
        own = most(total(view.held for view in views), self._own_floor(now_ms))
        free = minus(whole.rise, plus(others, own))
        anyway = most(most(report.own_ma, report.leased_ma), self._latest(member, now_ms))
        granted = least(lines, most(free, anyway))
        return self._issue(member, report, granted, uneven, whole.why, now_ms)

    @staticmethod
    def _old(member: Member, report: Report) -> bool:
        """Said before, or overtaken by something newer."""
        known = member.report
        return (
            known is not None
            and known.mark.boot == report.mark.boot
            and report.mark.number <= known.mark.number
        )

    def _believe(self, member: Member, report: Report, now_ms: int) -> bool:
        """Only what was said after a grant of ours of late."""
        heard, known = report.heard, member.report
        if heard is None or heard.boot != self.boot or heard.number not in member.issued:
            return False
        if now_ms - member.issued[heard.number].at_ms > self.rules.valid_ms:
            return False
        if known is not None and known.heard is not None and heard.number < known.heard.number:
            return False
        differs = report.share_ma != member.share
        member.trouble = _differs(report, member) if differs else ""
        if differs:
            return False
        member.report, member.heard_ms = report, now_ms
        return True

    def _latest(self, member: Member, now_ms: int) -> Lines:
        """What the newest grant gave, which counts already."""
        if not member.issued:
            return NONE
        grant = member.issued[max(member.issued)]
        live = now_ms - grant.at_ms < self.rules.valid_ms
        return grant.lines if live and grant.lines is not None else NONE

    def _issue(
        self,
        member: Member,
        report: Report,
        lines: Lines | None,
        uneven: Lines | None,
        why: str,
        now_ms: int,
    ) -> Grant:
        self._number += 1
        heard = member.issued.get(report.heard.number) if report.heard else None
        after_ms = heard.at_ms if heard is not None else self._began_ms
        member.issued[self._number] = Issued(now_ms, lines, after_ms)
        for old in sorted(member.issued)[:-KEPT]:
            if now_ms - member.issued[old].at_ms > self._over_after(report.dead_ms):
                del member.issued[old]
        return Grant(
            leader=self.station,
            mark=Mark(self.boot, self._number),
            answers=report.mark,
            lines_ma=lines,
            uneven_ma=uneven,
            valid_ms=self.rules.valid_ms,
            why=member.trouble or why,
        )

    # -- Neighbours

    def room(self, whole: Room, views: Sequence[View], site: LoadManager, now_ms: int) -> Room:
        """Our own part: what we shall have, raised only into what the others have left."""
        lines, uneven = self._targets(whole, views, site, now_ms)[self.station]
        free = minus(whole.rise, total(self.outstanding(name, now_ms) for name in self.members))
        why = whole.why
        waits = [name for name, member in self.members.items() if not self._fresh(member, now_ms)]
        if waits:
            why += f"; silent: {', '.join(waits)}"
        rise = least(lines, most(free, self._own_floor(now_ms)))
        return replace(whole, keep=lines, rise=rise, uneven=uneven, why=why)

    def _own_floor(self, now_ms: int) -> Lines:
        """What our boards gave running vehicles when we started, as long as all else is unknown."""
        unsure = now_ms - self._began_ms < self._over_after(self.rules.dead_ms)
        return self.floor if unsure else NONE

    def measured(self, now_ms: int) -> Lines:
        """What the members' vehicles take, as far as they have told of late."""
        return total(
            member.report.measured_ma
            for member in self.members.values()
            if member.report is not None and self._fresh(member, now_ms)
        )

    def safe(self) -> Lines | None:
        """What is surely there for all when the meter is silent."""
        return plus(self.own_share, total(member.share for member in self.members.values()))

    def described(self, now_ms: int) -> dict[str, Any]:
        return {
            "role": "leader",
            "leader": self.station,
            "safe_share_ma": self.own_share,
            "members": [
                {
                    "station": name,
                    "heard_ms": now_ms - member.heard_ms if member.report else None,
                    "fresh": self._fresh(member, now_ms),
                    "granted_ma": self._latest(member, now_ms),
                    "measured_ma": member.report.measured_ma if member.report else None,
                    "counts_for_ma": (
                        self.outstanding(name, now_ms)
                        if self.outstanding(name, now_ms) != EVERYTHING
                        else None
                    ),
                    "safe_share_ma": member.share,
                    "trouble": member.trouble,
                }
                for name, member in self.members.items()
            ],
        }


def _differs(report: Report, member: Member) -> str:
    there, here = (f"{lines[0] / 1000:g} A" for lines in (report.share_ma, member.share))
    return f"{report.station} has a safe share of {there}, its leader knows {here}; make them equal"


def _ending(views: Sequence[View]) -> Lines:
    return total(view.held for view in views if not view.claims or view.disobeys)


def _claim(key: tuple[str, int], asked: Asked) -> Claim:
    takes = {LINE[line]: 1 for line in asked.lines}
    if asked.uneven:
        takes |= {UNEVEN[line]: 1 for line in asked.lines}
    return Claim(key=key, most=asked.most_ma, takes=takes, priority=asked.priority, pool=key[0])


def _summed(
    name: str,
    owners: Mapping[tuple[str, int], Asked],
    given: Mapping[Any, int],
    kept: Lines,
    whole: Room,
) -> tuple[Lines, Lines | None]:
    lines, uneven = kept, NONE
    for key, asked in owners.items():
        if key[0] != name:
            continue
        part = on(asked.lines, given[key])
        lines = plus(lines, part)
        uneven = plus(uneven, part) if asked.uneven else uneven
    return lines, uneven if whole.uneven is not None else None
