"""What each link says of itself, from what is known of it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from edge_agent import links
from edge_agent.disk import Disk, look
from edge_agent.hardware.line import LineHealth
from edge_agent.links import BoardSeen, DiskSeen, LinkState
from protocols.agent_link import ClockQuality

MIB = 1024 * 1024


class OnALine:
    """A device of which only the line is of interest."""

    def __init__(
        self,
        failures: dict[int, int],
        *,
        refused: bool = False,
        open_: bool = True,
        kind: str = "rtu",
    ) -> None:
        self.failures, self.refused, self.open, self.kind = failures, refused, open_, kind

    def line_health(self) -> LineHealth:
        return LineHealth(
            line="/dev/serial/by-id/usb",
            kind="tcp" if self.kind == "tcp" else "rtu",
            open=self.open,
            refused=self.refused,
            failures=self.failures,
            requests=10,
            missed=3,
            waiting=0,
            age_s=1.5,
        )


@pytest.mark.parametrize(
    ("device", "state", "code"),
    [
        (OnALine({1: 0, 2: 2}), LinkState.OK, "bus.ok"),
        (OnALine({}, open_=False), LinkState.WAITING, "bus.closed"),
        (OnALine({1: 3, 2: 0}), LinkState.TROUBLE, "bus.partly"),
        (OnALine({1: 3, 2: 9}), LinkState.TROUBLE, "bus.rtu_silent"),
        (OnALine({1: 3}, open_=False, kind="tcp"), LinkState.TROUBLE, "bus.tcp_silent"),
        (OnALine({1: 3}, refused=True), LinkState.TROUBLE, "bus.rtu_down"),
        (OnALine({1: 3}, refused=True, kind="tcp"), LinkState.TROUBLE, "bus.tcp_down"),
    ],
)
def test_a_line_says_who_is_lost(device: OnALine, state: LinkState, code: str) -> None:
    (link,) = links.buses([device, device, object()])
    assert (link.state, link.code, link.age_ms) == (state, code, 1500)
    if code == "bus.partly":
        assert link.facts["lost"] == "1"


@pytest.mark.parametrize(
    ("opened", "trouble", "lost", "stuck", "code"),
    [
        (True, "", False, False, "board.ok"),
        (False, "", False, False, "board.starting"),
        (True, "no answer", False, False, "board.late"),
        (True, "no answer", True, False, "board.silent"),
        (False, "no answer", True, False, "board.not_opened"),
        (True, "", False, True, "board.stuck"),
    ],
)
def test_a_board_says_what_keeps_it(
    opened: bool, trouble: str, lost: bool, stuck: bool, code: str
) -> None:
    seen = BoardSeen(
        name="left",
        identity="ABB",
        opened=opened,
        trouble=trouble,
        lost=lost,
        age_ms=7,
        stuck=stuck,
    )
    link = links.board(seen)
    assert (link.name, link.code, link.why) == ("left", code, trouble)
    assert (link.state is LinkState.OK) is (code == "board.ok")


def test_a_board_whose_line_is_lent_out_is_waited_for() -> None:
    seen = BoardSeen(
        name="left", identity="", opened=False, trouble="", lost=False, age_ms=7, away="flashing"
    )
    link = links.board(seen)
    assert (link.state, link.code, link.why) == (LinkState.WAITING, "board.away", "flashing")


@pytest.mark.parametrize(
    ("seen", "state", "code"),
    [
        (None, LinkState.WAITING, "disk.starting"),
        (DiskSeen(free_bytes=999 * MIB, total_bytes=999 * MIB), LinkState.OK, "disk.ok"),
        (DiskSeen(free_bytes=63 * MIB), LinkState.TROUBLE, "disk.low"),
        (DiskSeen(free_bytes=999 * MIB, free_files=0), LinkState.TROUBLE, "disk.low"),
        (DiskSeen(free_bytes=999 * MIB, read_only=True), LinkState.TROUBLE, "disk.read_only"),
        (DiskSeen(trouble="gone"), LinkState.TROUBLE, "disk.silent"),
    ],
)
def test_a_disk_says_what_it_lacks(seen: DiskSeen | None, state: LinkState, code: str) -> None:
    link = links.disk(Path("folder"), seen)
    assert (link.state, link.code) == (state, code)


def test_meter_cloud_clock_journal_and_queue_say_how_they_are() -> None:
    meter = {"identity": "SDM", "age_ms": None}
    assert links.meter(there=False, trouble="", **meter).code == "meter.none"  # type: ignore[arg-type]
    assert links.meter(there=True, trouble="", **meter).code == "meter.starting"  # type: ignore[arg-type]
    assert links.meter(there=True, trouble="no", **meter).code == "meter.silent"  # type: ignore[arg-type]
    assert links.meter(there=True, identity="", trouble="", age_ms=1).code == "meter.ok"
    for there, up, code in (
        (False, None, "mqtt.none"),
        (True, None, "mqtt.connecting"),
        (True, False, "mqtt.down"),
        (True, True, "mqtt.ok"),
    ):
        assert links.mqtt(there=there, up=up, reason="r", age_ms=1).code == code
    for reason, refused, code in (
        (links.NOT_YET, 0, "ocpp.connecting"),
        (links.CONNECTED, 0, "ocpp.ok"),
        (links.CONNECTED, 2, "ocpp.refused"),
        ("no route to host", 0, "ocpp.down"),
    ):
        assert links.ocpp(reason=reason, refused=refused).code == code
    assert links.clock(ClockQuality.UNSET).state is LinkState.WAITING
    assert links.clock(ClockQuality.SYNCED).state is LinkState.OK
    assert links.journal(failure="", reports=[], size_bytes=2048).facts == {"kib": 2}
    assert links.journal(failure="full", reports=["x"], size_bytes=0).code == "journal.failing"
    assert links.journal(failure="", reports=["x"], size_bytes=0).why == "x"
    assert links.queue(billing=0, telemetry=9).state is LinkState.OK
    assert links.queue(billing=1, telemetry=9).code == "queue.waiting"


def test_the_disk_is_seen_as_the_system_says(tmp_path: Path) -> None:
    seen = look(tmp_path)
    assert 0 < seen.free_bytes <= seen.total_bytes
    assert seen.trouble == ""
    assert "No such file" in look(tmp_path / "none").trouble


async def test_a_disk_that_hangs_keeps_one_thread_and_nobody_waiting(tmp_path: Path) -> None:
    free, asked = threading.Event(), []

    def hang(folder: Path) -> DiskSeen:
        asked.append(folder)
        free.wait(30)
        return DiskSeen(free_bytes=5)

    disk = Disk(tmp_path, look=hang, deadline_s=0.01)
    assert disk.seen is None
    await disk.look_once()
    await disk.look_once()
    assert disk.seen is not None
    assert "has not answered" in disk.seen.trouble
    assert len(asked) == 1
    free.set()
    async with asyncio.timeout(30):
        while disk.seen.trouble:
            await disk.look_once()
    assert disk.seen.free_bytes == 5
