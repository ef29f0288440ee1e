"""Counts what the controller's network interfaces carry, and thins telemetry by it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from edge_agent.clock import Clock
from edge_agent.pulse import beat
from edge_agent.rules.traffic import LEVELS, Level, Traffic, TrafficRules, day_of, level_of
from protocols.agent_link import ClockQuality

log = logging.getLogger(__name__)
NAME: Final = "traffic.json"
LOOK_S: Final = 10.0
SAVE_EVERY: Final = 60
"""Looks between two writings: what a power cut loses of the count are ten minutes."""
UP: Final = 0x1
MIB: Final = 1024 * 1024


class Kept(msgspec.Struct, frozen=True):
    """What outlives a restart."""

    boot: str
    days: dict[str, dict[str, int]]
    counters: dict[str, int]
    undated: dict[str, int]


class System:
    """Linux' own account of its interfaces; a test gives another folder."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc

    def counters(self) -> dict[str, int]:
        """Bytes received and sent by interface since the controller was switched on."""
        found = {}
        for line in self._lines("net/dev")[2:]:
            name, _, numbers = line.partition(":")
            values = numbers.split()
            if name.strip() != "lo" and len(values) > 8:
                found[name.strip()] = int(values[0]) + int(values[8])
        return found

    def in_use(self) -> str | None:
        """The interface of the default route, IPv4 before IPv6; None: there is none."""
        routes = []
        for line in self._lines("net/route")[1:]:
            parts = line.split()
            if len(parts) > 7 and parts[1] == parts[7] == "00000000" and int(parts[3], 16) & UP:
                routes.append((0, int(parts[6]), parts[0]))
        for line in self._lines("net/ipv6_route"):
            parts = line.split()
            default = len(parts) > 9 and parts[0] == "0" * 32 and parts[1] == "00"
            if default and parts[9] != "lo" and int(parts[8], 16) & UP:
                routes.append((1, int(parts[5], 16), parts[9]))
        return min(routes)[2] if routes else None

    def boot(self) -> str:
        return "".join(self._lines("sys/kernel/random/boot_id"))

    def _lines(self, name: str) -> list[str]:
        try:
            return (self._proc / name).read_text(encoding="ascii").splitlines()
        except OSError:
            return []


class Chooser(Protocol):
    """Who picks the link that an uplink goes over."""

    @property
    def in_use(self) -> str | None: ...

    def troubles(self) -> Mapping[str, str]: ...


class TrafficKeeper:
    """Looks every ten seconds, and tells each uplink how far its telemetry is thinned."""

    def __init__(
        self, rules: TrafficRules, folder: Path, clock: Clock, system: System | None = None
    ) -> None:
        self.rules = rules
        self.level = LEVELS[0]
        self.thinners: list[Callable[[Level], None]] = []
        """Told at each look."""
        self.changed: Callable[[], None] = lambda: None
        """Told when another link carries, or telemetry is thinned otherwise."""
        self.traffic = Traffic()
        self._used: str | None = None
        self.choosers: Sequence[Chooser] = ()
        """Who picks the network link of an uplink; none: the system's default route does."""
        self._file = folder / NAME
        self._clock = clock
        self._system = system or System()
        self._load()

    def _load(self) -> None:
        try:
            kept = msgspec.json.decode(self._file.read_bytes(), type=Kept)
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            log.warning("traffic: %s cannot be read (%s); counting begins anew", self._file, error)
            return
        self.traffic = Traffic(kept.days, kept.counters, kept.undated)
        if kept.boot != self._system.boot():
            self.traffic.restarted()

    async def run(self) -> None:
        looks = 0
        try:
            while True:
                beat()
                self.look()
                if looks % SAVE_EVERY == 0:
                    await asyncio.to_thread(self.save)  # a dying card may take its time
                looks += 1
                await asyncio.sleep(LOOK_S)
        finally:
            self.save()

    def look(self) -> None:
        """Count, and thin as the month demands."""
        wall_ms = self._wall_ms()
        self.traffic.observe(self._system.counters(), wall_ms)
        level, used_before = LEVELS[0], self._used
        self._used = self.in_use()
        if wall_ms is not None and self._used in self.rules.metered:
            used = self.traffic.month(self.rules.metered, wall_ms)
            level = level_of(used, self.rules.monthly, wall_ms)
        if level is not self.level:
            log.warning("traffic: %s", level.text)
        changed = level is not self.level or self._used != used_before
        self.level = level
        for thin in self.thinners:
            thin(level)
        if changed:
            self.changed()

    def in_use(self) -> str | None:
        """The link of the first uplink that is connected, or that of the default route."""
        chosen = (one.in_use for one in self.choosers)
        return next((link for link in chosen if link is not None), self._system.in_use())

    def _troubles(self) -> dict[str, str]:
        """Link -> why it does not serve."""
        return {link: why for one in self.choosers for link, why in one.troubles().items()}

    def _wall_ms(self) -> int | None:
        now = self._clock.now()
        return None if now.quality is ClockQuality.UNSET else now.wall_ms

    def save(self) -> None:
        """A disk that refuses costs the count of these minutes, nothing else."""
        traffic = self.traffic
        kept = Kept(self._system.boot(), traffic.days, traffic.counters, traffic.undated)
        beside = self._file.with_suffix(".new")
        try:
            beside.write_bytes(msgspec.json.encode(kept))
            beside.replace(self._file)
        except OSError as error:
            log.warning("traffic: %s cannot be written (%s)", self._file, error)

    def trouble(self) -> str:
        return f"traffic: {self.level.text}" if self.level.number > 1 else ""

    def described(self) -> dict[str, Any]:
        """For the technician: bytes by link, today and this month."""
        now_ms = self._wall_ms()
        links = sorted(self.traffic.counters)
        today = self.traffic.days.get(day_of(now_ms), {}) if now_ms is not None else {}
        return {
            "in_use": self.in_use(),
            "troubles": self._troubles(),
            "order": list(self.rules.order),
            "metered": sorted(self.rules.metered),
            "monthly_budget_bytes": self.rules.monthly,
            "month_bytes": {link: self.traffic.month(frozenset({link}), now_ms) for link in links}
            if now_ms is not None
            else {},
            "today_bytes": {link: today.get(link, 0) for link in links},
            "days": dict(sorted(self.traffic.days.items())[-7:]),
            "level": self.level.number,
            "text": self.level.text,
        }
