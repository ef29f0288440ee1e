"""The running agent: its tasks, who wakes whom, and what happens when one of them fails."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol

import msgspec

from edge_agent import faultpoints, links, pulse, surroundings
from edge_agent.control import Readings
from edge_agent.desk import Desk
from edge_agent.disk import Disk
from edge_agent.hardware.board import (
    BoardRefusedError,
    BoardUnreachableError,
    EvseInfo,
    EvseReading,
    Meter,
    PowerBoard,
)
from edge_agent.hardware.metered_board import MeteredBoard, board_itself
from edge_agent.journal import Journal, JournalError
from edge_agent.loop import Line, Loop
from edge_agent.pulse import Beat, Pulse, notify, waiting
from edge_agent.remote import RemoteSettings
from edge_agent.renewing import Renewing
from edge_agent.rules.actions import StopAsked
from edge_agent.rules.fuse import Strain
from edge_agent.rules.site import SiteLoad
from edge_agent.rules.station import SITE, RefusedError
from edge_agent.site_link import SiteLink
from edge_agent.traffic import TrafficKeeper
from protocols.agent_link import (
    Command,
    EvseDescription,
    LinkUse,
    NetworkUse,
    Sample,
    SettingsUse,
    StationStatus,
    StoppedReason,
    Trigger,
    UnknownCommand,
    Watch,
    Welcome,
)

log = logging.getLogger(__name__)
UPKEEP_S: Final = 60
STUCK_AFTER_S: Final = 60
LINK_WITHIN_S: Final = 300
"""Attempts to connect have their own deadlines, which may follow each other."""
LINKS: Final = frozenset({"uplink", "OCPP uplink", "site link", "commands"})
LONGEST_BACKOFF_S: Final = 60.0
MOST_HEARD: Final = 100
"""Commands that wait for a board; who sends more is kept waiting in turn."""
WATCHED_READINGS: Final = 100


class Uplink(Protocol):
    """The way to the cloud."""

    async def run(self) -> None: ...

    def wake(self) -> None: ...

    def watch(self, watch: Watch) -> None: ...


class LinkedUplink(Uplink, Protocol):
    """One that says itself how its link is."""

    link: str


class Updates(Protocol):
    """Who installs new versions of this agent."""

    async def run(self) -> None: ...

    def trouble(self) -> str: ...

    def described(self) -> dict[str, Any]: ...

    def from_folder(self, folder: str) -> str: ...

    def abort(self) -> str: ...

    def close(self) -> None: ...


class Inbox:
    """What the uplink hears, handled in its order beside the uplink's own work."""

    def __init__(self) -> None:
        self.link = links.NOT_YET
        self.up: bool | None = None
        self.changed_at: float | None = None
        """Of the running loop's clock; None before the first connection or failure."""
        self._queue: asyncio.Queue[Welcome | Command | UnknownCommand] = asyncio.Queue(MOST_HEARD)

    async def welcomed(self, welcome: Welcome) -> None:
        await self._queue.put(welcome)

    async def command(self, command: Command | UnknownCommand) -> None:
        await self._queue.put(command)

    def link_changed(self, up: bool, reason: str) -> None:
        if up is not self.up:
            self.changed_at = asyncio.get_running_loop().time()
        self.link, self.up = links.CONNECTED if up else reason, up
        log.info("uplink: %s", self.link)

    async def work(self, desk: Desk) -> None:
        """For ever: hand what was heard to the desk."""
        while True:
            with waiting():
                message = await self._queue.get()
            if isinstance(message, Welcome):
                await desk.welcomed(message)
            else:
                await desk.command(message)


class Agent:
    """Everything that runs; `run` returns only by being cancelled."""

    def __init__(
        self,
        *,
        loop: Loop,
        desk: Desk,
        journal: Journal,
        inbox: Inbox,
        version: str,
        on_journal_error: str,
        meter: Meter | None = None,
        uplink: Uplink | None = None,
        site_link: SiteLink | None = None,
        traffic: TrafficKeeper | None = None,
    ) -> None:
        self.loop = loop
        self.desk = desk
        self.journal = journal
        self.inbox = inbox
        self.version = version
        self.meter = meter
        self.uplink = uplink
        self.site_link = site_link
        self.traffic = traffic
        if traffic is not None:
            traffic.changed = self.report
        self.ocpp: LinkedUplink | None = None
        self.renewing: Renewing | None = None
        self.updates: Updates | None = None
        self.no_updates = ""
        """Why there are none, though they are configured."""
        self.hardware: tuple[str, ...] = ()
        """Hardware ids of releases that fit here."""
        self.remote: RemoteSettings | None = None
        self.end: Callable[[], object] = lambda: None
        """Ends the agent; set by who runs it."""
        self._on_journal_error = on_journal_error
        self._meter_trouble = ""
        self._meter_heard_ms: int | None = None
        self._upkeep_trouble = ""
        self._settings_told: SettingsUse | None = None
        self._strain = Strain(loop.station.site.rules.limit)
        self._strained = ""
        self.disk = Disk(journal.folder)
        self.pulse = Pulse()

    def restart(self) -> None:
        """End, so that the service manager starts it anew."""
        self.end()

    async def run(self) -> None:
        """Until cancelled; then the last checkpoint is on disk and the boards are let go."""
        try:
            async with asyncio.TaskGroup() as group:
                for name, work in self._works().items():
                    within_s = LINK_WITHIN_S if name in LINKS else STUCK_AFTER_S
                    beat = self.pulse.of(name, within_s)
                    group.create_task(supervised(name, work, beat=beat), name=name)
        finally:
            if self.remote is None or not self.remote.reloads:
                notify("STOPPING=1")
            await self._close()

    def _works(self) -> dict[str, Callable[[], Coroutine[Any, Any, None]]]:
        """What runs side by side for as long as the agent does."""
        works: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            f"board {line.name}": self._polling(line) for line in self.loop.lines
        }
        works |= {
            "commands": lambda: self.inbox.work(self.desk),
            "upkeep": self._upkeep,
            "pulse": lambda: self.pulse.run(self._ready),
            "disk": self.disk.run,
        }
        if self.meter is not None:
            works["site meter"] = lambda: self._poll_meter(self.meter)
        if self.uplink is not None:
            works["uplink"] = self.uplink.run
        if self.site_link is not None:
            works["site link"] = self.site_link.run
        if self.traffic is not None:
            works["traffic"] = self.traffic.run
        if self.ocpp is not None:
            works["OCPP uplink"] = self.ocpp.run
        if self.renewing is not None:
            works["certificate"] = self.renewing.run
        if self.updates is not None:
            works["updates"] = self.updates.run
        remote = self.remote
        if remote is not None:
            works["settings"] = lambda: remote.run(
                self.loop, self.restart, self.reached, self.stuck
            )
        return works

    def _polling(self, line: Line) -> Callable[[], Coroutine[Any, Any, None]]:
        return lambda: self.loop.run_line(line)

    async def _close(self) -> None:
        self.loop.checkpoint()
        if self.updates is not None:
            self.updates.close()
        for line in self.loop.lines:
            # Its failsafe takes over, whether or not it hears that we go.
            with contextlib.suppress(BoardUnreachableError, TimeoutError):
                async with asyncio.timeout(1):
                    await line.board.close()
        if self.meter is not None:
            with contextlib.suppress(BoardUnreachableError, TimeoutError):
                async with asyncio.timeout(1):
                    await self.meter.close()

    # ------------------------------------------------------------------ the site's meter

    async def _poll_meter(self, meter: Meter | None) -> None:
        opened = False
        while meter is not None:
            pulse.beat()
            try:
                async with asyncio.timeout(self.loop.settings.deadline_s):
                    if not opened:
                        await meter.open()
                        opened = True
                    await self._take_site(meter)
            except (BoardUnreachableError, BoardRefusedError, TimeoutError) as error:
                if not self._meter_trouble:
                    log.warning("site meter: %s; the safe share holds", error)
                self._meter_trouble = str(error) or "no answer in time"
            await asyncio.sleep(self.loop.settings.poll_s)

    async def _take_site(self, meter: Meter) -> None:
        reading = await meter.read()
        if self._meter_trouble:
            log.warning("site meter answers again")
        self._meter_trouble = ""
        now = self.loop.clock.now()
        self._meter_heard_ms = now.mono_ms
        known = [current for current in reading.current if current is not None]
        if known:
            pins = [max(known) if current is None else current for current in reading.current]
            load = SiteLoad(
                current=(pins[0], pins[1], pins[2]), at_ms=now.mono_ms, power_w=reading.power
            )
            self.loop.station.site.load = load
            self._judge(load)
        sample = Sample(
            evse=SITE,
            at=now,
            energy_wh=reading.imported,
            power_w=reading.power,
            current_l1_ma=reading.current[0],
            current_l2_ma=reading.current[1],
            current_l3_ma=reading.current[2],
            voltage_l1_mv=reading.voltage[0],
            voltage_l2_mv=reading.voltage[1],
            voltage_l3_mv=reading.voltage[2],
        )
        self.loop.ledger.sample([sample])

    def _judge(self, load: SiteLoad) -> None:
        """Say so when the main fuse is asked for more than it bears."""
        lines = self._strain.take(load.current, load.at_ms)
        named = ", ".join(f"L{line + 1} at {load.current[line] / 1000:.1f} A" for line in lines)
        text = f"the main fuse is overloaded ({named}); switch something off" if lines else ""
        if bool(text) is not bool(self._strained):
            log.warning("site: %s", text or "the main fuse is within its rating again")
        self._strained = text

    # ------------------------------------------------------------------ upkeep

    async def _upkeep(self) -> None:
        """Each second the clock and the disk; each minute the journal's budget and our status."""
        second = 0
        while True:
            pulse.beat()
            faultpoints.reach(faultpoints.UPKEEP)
            await self.desk.corrected(self.loop.clock.observe())
            await self.desk.lock_out()
            if self.loop.ledger.retry_due and not self.loop.ledger.retry():
                await self._without_disk()
            if second % UPKEEP_S == 0:
                self._maintain()
            if second % UPKEEP_S == 0 or self._settings_changed():
                self.report()
            second += 1
            await asyncio.sleep(1)

    def _settings_changed(self) -> bool:
        """Whether something else is to be said of settings from afar than a second ago."""
        now = None if self.remote is None else self.remote.use()
        changed, self._settings_told = now != self._settings_told, now
        return changed

    def _maintain(self) -> None:
        try:
            self.journal.maintain(self.loop.clock.now().wall_ms)
            self._upkeep_trouble = ""
        except JournalError as error:
            log.warning("upkeep of the journal: %s", error)
            self._upkeep_trouble = str(error)

    async def _without_disk(self) -> None:
        """The policy for running transactions while the journal cannot be written."""
        if self._on_journal_error != "stop":
            return
        stop = StopAsked(reason=StoppedReason.OTHER, trigger=Trigger.ABNORMAL_CONDITION)
        for evse, connector in self.loop.station.connectors.items():
            if connector.state.session is not None:
                await self.loop.tell(evse, stop)

    def alarms(self) -> tuple[str, ...]:
        """What keeps the agent from its duty now, and what the journal had to set aside."""
        meter = f"site meter: {self._meter_trouble}" if self._meter_trouble else ""
        site = self.site_link.trouble() if self.site_link is not None else ""
        traffic = self.traffic.trouble() if self.traffic is not None else ""
        updates = self.updates.trouble() if self.updates is not None else self.no_updates
        ledger = self.loop.ledger.failure
        hung = ", ".join(self.pulse.overdue())
        stuck = f"hangs: {hung}; restart the agent if systemd does not" if hung else ""
        now = (
            ledger,
            self._upkeep_trouble,
            meter,
            self._strained,
            site,
            traffic,
            self._refused(),
            self.renewing.trouble if self.renewing is not None else "",
            updates,
            stuck,
        )
        locked = (
            f"EVSE {evse}: {connector.state.locked}"
            for evse, connector in self.loop.station.connectors.items()
            if connector.state.locked
        )
        return tuple(text for text in (*now, *locked, *self.journal.reports) if text)

    def _refused(self) -> str:
        if self.ocpp is None:
            return ""
        count = len(self.journal.refused)
        return f"the OCPP backend refused {count} facts; see karvon agent queue" if count else ""

    def retry_refused(self) -> str:
        """Offer the OCPP backend once more what it has refused. Raises RefusedError."""
        if self.ocpp is None:
            raise RefusedError("no OCPP backend is configured; see [uplink.ocpp]")
        try:
            count = self.journal.refused_again()
        except JournalError as error:
            raise RefusedError(str(error)) from error
        self.loop.wake()
        return f"{count} facts are offered to the OCPP backend once more"

    def reached(self) -> bool:
        """Whether every uplink is connected; so it is where there is none."""
        mqtt = self.uplink is None or self.inbox.up is True
        return mqtt and (self.ocpp is None or self.ocpp.link == links.CONNECTED)

    def update_from(self, folder: str) -> str:
        """Look for a new version there, or where the cloud shows them. Raises RefusedError."""
        if self.updates is None:
            raise RefusedError(
                "this agent takes no updates; configure [updates] and run it from a slot"
            )
        return self.updates.from_folder(folder)

    def abort_update(self) -> str:
        """End the update that is under way. Raises RefusedError."""
        if self.updates is None:
            raise RefusedError("this agent takes no updates")
        return self.updates.abort()

    def evses(self) -> tuple[EvseDescription, ...]:
        """What the hello says of the EVSEs."""
        return tuple(_described(each.info) for each in self.loop.station.connectors.values())

    def station_status(self) -> StationStatus:
        return StationStatus(
            at=self.loop.clock.now(),
            agent_version=self.version,
            boards={line.name: line.described for line in self.loop.lines},
            local_list_version=self.loop.station.authorizer.version,
            pending_billing=self.journal.pending_billing,
            pending_telemetry=self.journal.pending_telemetry,
            journal_bytes=self.journal.size_bytes,
            alarms=self.alarms(),
            network=self._network(),
            settings=msgspec.UNSET if self.remote is None else self.remote.use(),
            hardware=self.hardware or msgspec.UNSET,
        )

    def _network(self) -> NetworkUse | msgspec.UnsetType:
        told = self._traffic()
        if told is None:
            return msgspec.UNSET
        carried = {
            name: LinkUse(
                today_bytes=told["today_bytes"].get(name, 0),
                month_bytes=month,
                metered=name in told["metered"],
                trouble=told["troubles"].get(name, ""),
            )
            for name, month in told["month_bytes"].items()
            if month or name in told["order"] or name == told["in_use"]
        }
        return NetworkUse(
            in_use=told["in_use"],
            links=carried,
            monthly_budget_bytes=told["monthly_budget_bytes"],
            level=told["level"],
        )

    def report(self) -> None:
        self.loop.ledger.report(self.station_status())
        self.loop.wake()

    # ------------------------------------------------------------------ for the technician

    def status(self) -> dict[str, Any]:
        """What `karvon agent status` shows."""
        return {
            "running": True,
            "station": self.journal.station,
            "outbox": self.journal.outbox,
            "clock": self.loop.clock.now().quality,
            "uplink": self.inbox.link if self.uplink is not None else "not configured",
            "ocpp": self.ocpp.link if self.ocpp is not None else "not configured",
            "status": self.station_status(),
            "site": self._site(),
            "updates": self.updates.described() if self.updates is not None else None,
            "settings": self.remote.described() if self.remote is not None else None,
            "traffic": self._traffic(),
            "evses": [self.loop.told[evse] for evse in sorted(self.loop.told)],
            "links": self.linked(),
            "sessions": self._open_sessions(),
            "limits": self._limits(),
        }

    def _traffic(self) -> dict[str, Any] | None:
        return self.traffic.described() if self.traffic is not None else None

    def _site(self) -> dict[str, Any] | None:
        station, now = self.loop.station, self.loop.clock.now()
        if station.settings.site is None:
            return None
        described = station.site.described(station.views(now), now.mono_ms)
        link = self.site_link.described() if self.site_link is not None else {}
        return described | {"link": link}

    def linked(self) -> list[links.Link]:
        """Everything the agent depends on, and how it is now."""
        now, lines, stuck = self.loop.clock.now(), self.loop.lines, self.stuck()
        metered = {line.name: line.board for line in lines if isinstance(line.board, MeteredBoard)}
        devices: list[PowerBoard | Meter] = [board_itself(line.board) for line in lines]
        devices += [board.meter for board in metered.values()]
        devices += [self.meter] if self.meter else []
        alarms = (*self.journal.reports, self._upkeep_trouble)
        changed, heard = self.inbox.changed_at, self._meter_heard_ms
        since = None if changed is None else asyncio.get_running_loop().time() - changed
        return [
            *links.buses(devices),
            *(self._board(line, now.mono_ms, line.name in stuck) for line in lines),
            *(_meter_of(name, board) for name, board in metered.items()),
            links.meter(
                there=self.meter is not None,
                identity=self.meter.identity if self.meter else "",
                trouble=self._meter_trouble,
                age_ms=None if heard is None else now.mono_ms - heard,
            ),
            links.mqtt(
                there=self.uplink is not None,
                up=self.inbox.up,
                reason=self.inbox.link,
                age_ms=None if since is None else round(since * 1000),
            ),
            *([] if self.ocpp is None else [self._backend(self.ocpp)]),
            *surroundings.networks(self._traffic() if self.uplink or self.ocpp else None),
            *surroundings.sites(self._site()),
            links.clock(now.quality),
            links.disk(self.journal.folder, self.disk.seen),
            links.journal(
                failure=self.loop.ledger.failure,
                reports=[text for text in alarms if text],
                size_bytes=self.journal.size_bytes,
            ),
            links.queue(
                billing=self.journal.pending_billing, telemetry=self.journal.pending_telemetry
            ),
        ]

    def _backend(self, uplink: LinkedUplink) -> links.Link:
        return links.ocpp(reason=uplink.link, refused=len(self.journal.refused))

    def _board(self, line: Line, now_ms: int, stuck: bool) -> links.Link:
        connectors = self.loop.station.connectors
        seen = links.BoardSeen(
            name=line.name,
            identity=line.board.identity,
            opened=line.opened,
            trouble=line.trouble,
            lost=any(connectors[evse].state.lost for evse in line.numbers.values()),
            age_ms=None if line.heard_ms is None else now_ms - line.heard_ms,
            stuck=stuck,
            away=line.away,
        )
        return links.board(seen)

    def _open_sessions(self) -> list[dict[str, Any]]:
        """Open transactions as they are now, ahead of their last checkpoint."""
        now, found = self.loop.clock.now(), []
        for evse, connector in self.loop.station.connectors.items():
            state = connector.state
            if state.session is not None:
                record = state.session.measured(state.meter, now, state.charging)
                found.append({"evse": evse, "transaction": record})
        return found

    def _limits(self) -> list[dict[str, Any]]:
        """Every limit that holds for each EVSE now, the smallest first."""
        now, station = self.loop.clock.now(), self.loop.station
        return [
            {"evse": evse, "limit_ma": bound.limit, "set_by": bound.name}
            for evse in sorted(station.connectors)
            for bound in sorted(station.bounds(evse, now), key=lambda each: each.limit)
        ]

    def watch(self) -> tuple[Readings, Callable[[], None]]:
        """Every reading from now on; a watcher that is too slow misses some."""
        queue: Readings = asyncio.Queue(WATCHED_READINGS)

        def put(reading: EvseReading) -> None:
            with contextlib.suppress(asyncio.QueueFull):  # a watcher that is too slow misses some
                state = self.loop.station.connectors[reading.evse].state
                queue.put_nowait({"status": state.reported, "reading": plain(reading, state)})

        self.loop.watchers.add(put)
        return queue, lambda: self.loop.watchers.discard(put)

    # ------------------------------------------------------------------ whether all goes on

    def _ready(self) -> bool:
        """Every board was asked to be safe, whether or not it has answered."""
        return all(line.stepped_ms is not None for line in self.loop.lines)

    def stuck(self) -> list[str]:
        """Boards whose poll has not finished a step for too long."""
        now = self.loop.clock.now().mono_ms
        return [
            line.name
            for line in self.loop.lines
            if line.stepped_ms is not None and now - line.stepped_ms > STUCK_AFTER_S * 1000
        ]


def _meter_of(name: str, board: MeteredBoard) -> links.Link:
    age_s = board.meter_age_s
    return links.evse_meter(
        name=name,
        identity=board.meter.identity,
        trouble=board.meter_trouble,
        age_ms=None if age_s is None else round(age_s * 1000),
    )


def _described(info: EvseInfo) -> EvseDescription:
    return EvseDescription(
        evse=info.evse,
        phases=info.phases,
        max_ma=info.max_current,
        energy_step_wh=info.energy_step,
        billing_grade=info.billing_grade,
    )


def plain(reading: EvseReading, state: Any) -> dict[str, Any]:
    """A reading as a technician watches it."""
    running = state.session
    return {
        "evse": reading.evse,
        "state": reading.state,
        "current_ma": reading.current,
        "voltage_mv": reading.voltage,
        "power_w": reading.power,
        "register_wh": reading.energy,
        "meter_wh": state.meter.register.meter_wh,
        "transaction_wh": running.energy(state.meter) if running else None,
        "offered_ma": state.written,
        "suspect": sorted(reading.suspect),
    }


async def supervised(
    name: str,
    work: Callable[[], Coroutine[Any, Any, None]],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    beat: Beat | None = None,
) -> None:
    """Keep a task alive: what it died of is logged, and it starts again, later each time."""
    pulse.adopt(beat)
    clock = asyncio.get_running_loop().time
    pause = 1.0
    while True:
        began = clock()
        try:
            await work()
            log.error("task %s ended by itself; it is started again", name)
        except Exception:
            log.exception("task %s failed; it is started again in %g s", name, pause)
        if clock() - began > 10 * LONGEST_BACKOFF_S:
            pause = 1.0
        pulse.beat(pause)
        await sleep(pause)
        pause = min(2 * pause, LONGEST_BACKOFF_S)
