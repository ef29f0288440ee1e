"""Settings from afar: what may be said, what is kept, an agent that begins anew with them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import control, main
from edge_agent.config import Config, load, parse
from edge_agent.control import NotRunningError, Request
from edge_agent.remote import EVERY_S, NAME, TRIES, Given, Kept, RemoteSettings, overlaid
from edge_agent.rules import update
from edge_agent.rules.station import RefusedError
from karvon.simulator.serial_board import BoardAnswers, SimulatedSerialBoard
from karvon.simulator.server import PtyServer
from karvon.simulator.vehicle import Vehicle
from protocols.agent_link import Configure, SettingsState, SettingsUse
from protocols.agent_settings import SettingsError

TEXT = """
station = "TAS-1"
[journal]
folder = "journal"
telemetry_mib = 1
[[boards]]
name = "left"
kind = "serial_board"
cable_ma = 20000
link = {{ kind = "serial", device = "{line}", unit = 1, timeout_s = 1 }}
[site]
limit_ma = 32000
[authorization]
unknown = "allow"
[times]
poll_s = 0.1
lost_after_s = 2
raise_after_s = 0
"""
OWN = parse(TEXT.format(line="/dev/ttyUSB0"), "agent.toml")


def made(folder: Path, own: Config = OWN) -> RemoteSettings:
    return RemoteSettings(own, folder)


def kept(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / NAME).read_bytes()))


# --------------------------------------------------------------------------- what may be said


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ({"failsafe": {"timeout_s": 5}}, "unknown field `failsafe`"),
        ({"site": {"limit_ma": 40_000}}, "site.limit_ma: 40000 is more than the 32000"),
        ({"site": {"limit_ma": [32_000, 32_001, 1]}}, "can only be lowered"),
        ({"boards": {"left": {"cable_ma": 32_000}}}, "boards.left.cable_ma: 32000 is more"),
        ({"boards": {"right": {"priority": 1}}}, "there is no such board here, only left"),
        ({"boards": {"left": {"link": {}}}}, "boards"),
        ({"times": {"poll_s": 99}}, "times.poll_s"),
        ({"times": {"poll_s": 5}}, "more than twice times.poll_s"),
        ({"uplink": {"monthly_mib": 5}}, "uplink: this controller has no such part"),
        ({"authorization": {"unknown": "maybe"}}, "authorization.unknown"),
        ([], "object"),
    ],
)
def test_what_guards_people_cannot_be_set_from_afar(
    tmp_path: Path, document: Any, why: str
) -> None:
    remote = made(tmp_path)
    with pytest.raises(RefusedError, match=why.replace(".", r"\.").replace("[", r"\[")):
        remote.take(Configure(3, document))
    assert remote.use() == SettingsUse(0, 3, SettingsState.REFUSED, remote.use().reason)
    assert made(tmp_path).effective == OWN


@given(st.integers(0, 40_000), st.integers(0, 40_000), st.integers(0, 40_000))
def test_a_limit_is_never_above_the_files(one: int, two: int, three: int) -> None:
    document = {"site": {"limit_ma": [one, two, three]}}
    low = max(one, two, three) <= 32_000
    try:
        found = overlaid(OWN, document)
    except SettingsError:
        assert not low
    else:
        assert low
        assert found.site is not None
        assert found.site.lines == (one, two, three)


def test_what_is_not_said_stays_as_the_file_has_it() -> None:
    found = overlaid(OWN, {"times": {"event_s": 60}, "boards": {"left": {"priority": 7}}})
    assert (found.times.event_s, found.times.poll_s) == (60, 0.1)
    assert (found.boards[0].priority, found.boards[0].cable_ma) == (7, 20_000)
    assert overlaid(OWN, {}) == OWN


# --------------------------------------------------------------------------- what is kept


def test_an_older_word_changes_nothing(tmp_path: Path) -> None:
    remote = made(tmp_path)
    remote.take(Configure(5, {"times": {"event_s": 60}}))
    assert remote.take(Configure(5, {})) == "5 was told already"
    assert remote.take(Configure(4, {"times": {"event_s": 90}})) == "5 was told already"
    assert kept(tmp_path)["waiting"]["version"] == 5


def test_a_trial_that_dies_at_each_start_ends_in_what_was_before(tmp_path: Path) -> None:
    before, bad = Given(1, {"times": {"event_s": 60}}), Given(2, {"times": {"event_s": 90}})
    write(tmp_path, Kept(confirmed=before, trial=bad, tries=TRIES, told=2))
    for _ in range(TRIES):
        assert made(tmp_path).effective.times.event_s == 90
    last = made(tmp_path)
    assert last.effective.times.event_s == 60
    assert last.use().state is SettingsState.ROLLED_BACK
    assert "3 starts" in last.use().reason
    assert made(tmp_path).use() == last.use()


def write(folder: Path, what: Kept) -> None:
    (folder / NAME).write_bytes(msgspec.json.encode(what))


def test_every_cut_of_the_file_leaves_an_agent_that_starts(tmp_path: Path) -> None:
    remote = made(tmp_path)
    remote.take(Configure(1, {"times": {"event_s": 60}}))
    whole = (tmp_path / NAME).read_bytes()
    for length in range(len(whole)):
        (tmp_path / NAME).write_bytes(whole[:length])
        assert made(tmp_path).effective == OWN


def test_a_file_that_was_changed_under_it_holds_alone(tmp_path: Path) -> None:
    write(tmp_path, Kept(confirmed=Given(4, {"site": {"limit_ma": 30_000}}), told=4))
    smaller = overlaid(OWN, {"site": {"limit_ma": 16_000}})
    remote = made(tmp_path, smaller)
    assert remote.effective == smaller
    assert (remote.use().version, remote.use().state) == (0, SettingsState.REFUSED)
    assert made(tmp_path).use() == SettingsUse(4, 4, SettingsState.APPLIED)


# --------------------------------------------------------------------------- a whole agent


class Rig:
    """One board, and agents one after the other."""

    def __init__(self, folder: Path, board: BoardAnswers) -> None:
        self.folder, self.board = folder, board
        self.agent = self._run()

    def _run(self) -> asyncio.Task[None]:
        return asyncio.create_task(main.run(load(self.folder / "agent.toml")))

    async def stop(self) -> None:
        self.agent.cancel()
        await asyncio.gather(self.agent, return_exceptions=True)

    def start(self) -> None:
        self.agent = self._run()

    async def until(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        async with asyncio.timeout(150):
            while True:
                with contextlib.suppress(NotRunningError):  # it is just beginning anew
                    status = await control.ask(self.folder / "journal", Request(do="status"))
                    if holds(status):
                        return dict(status)
                await asyncio.sleep(0.05)  # polls the agent over its socket


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Rig]:
    clock = asyncio.get_running_loop().time
    board = BoardAnswers(SimulatedSerialBoard(address=1, now=clock()), clock)
    line = PtyServer(board, echo=False)
    await line.start(str(folder / "line"))
    (folder / "agent.toml").write_text(TEXT.format(line=folder / "line"))
    rig = Rig(folder, board)
    try:
        yield rig
    finally:
        await rig.stop()
        await line.close()


async def test_the_agent_begins_anew_with_them_and_confirms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update, "STEADY_MS", 500)
    (tmp_path / "journal").mkdir()
    document = {"boards": {"left": {"cable_ma": 16_000}}}
    write(tmp_path / "journal", Kept(waiting=Given(7, document), told=7))
    async with running(tmp_path) as rig:
        status = await rig.until(lambda s: s["settings"]["state"] == "applied")
        assert (status["settings"]["version"], status["settings"]["on_trial"]) == (7, False)
        assert status["limits"][0]["limit_ma"] == 16_000
    assert kept(tmp_path / "journal")["confirmed"]["version"] == 7


async def test_what_makes_the_agent_unwell_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update, "LATE_MS", 500)
    (tmp_path / "journal").mkdir()
    trial = Given(8, {"boards": {"left": {"cable_ma": 16_000}}})
    expects = {"boards": ["left", "another that answered before"], "cloud": False}
    write(tmp_path / "journal", Kept(trial=trial, tries=TRIES, told=8, expects=expects))
    async with running(tmp_path) as rig:
        status = await rig.until(lambda s: s["settings"]["state"] == "rolled_back")
        assert "another that answered before" in status["settings"]["reason"]
        back = await rig.until(lambda s: s["limits"] and s["limits"][0]["limit_ma"] == 20_000)
        assert back["settings"]["version"] == 0


async def test_a_session_goes_on_and_they_wait_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update, "STEADY_MS", 500)
    async with running(tmp_path) as rig:
        rig.board.board.plug(Vehicle(wants_wh=50_000))
        await rig.until(lambda s: bool(s["evses"]))
        await control.ask(tmp_path / "journal", Request(do="token", token="CARD", evse=1))
        await rig.until(charging)
        await rig.stop()
        given = Given(7, {"boards": {"left": {"cable_ma": 16_000}}})
        write(tmp_path / "journal", Kept(waiting=given, told=7, state=SettingsState.PENDING))
        rig.start()
        await rig.until(charging)
        await asyncio.sleep(2 * EVERY_S)  # it had time to do it all the same
        status = await rig.until(charging)
        assert status["settings"]["state"] == "pending"
        rig.board.board.unplug()
        await rig.until(lambda s: s["settings"]["state"] == "applied")


def charging(status: dict[str, Any]) -> bool:
    return any(one["transaction"] for one in status["evses"])
