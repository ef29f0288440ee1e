"""Settings and profiles by signed releases, through a whole agent on a simulated charger."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import settings_steps
from hypothesis import given
from hypothesis import strategies as st
from ota_world import HARDWARE, World

from edge_agent import control, faultpoints, main
from edge_agent.config import load
from edge_agent.control import NotRunningError, Request
from edge_agent.hardware.registry import PROFILES, find_profile
from edge_agent.remote import FOLDER, NAME, TRIES, Given, Kept, RemoteSettings
from edge_agent.rules import update
from edge_agent.updates.archive import Entry, ImageError, pack, sha256
from edge_agent.updates.settings_image import over, read_image
from karvon.simulator.charger import SimulatedCharger
from karvon.simulator.server import Answers, TcpServer
from karvon.simulator.vehicle import Vehicle
from protocols.agent_link import Configure, SettingsState, SettingsUse
from protocols.release import Encoding, Kind

CONFIG = """
station = "UZ*KRV*E1"
[journal]
folder = "journal"
telemetry_mib = 1
[[boards]]
name = "left"
profile = "abb_terra_ac"
cable_ma = 32000
link = {{ kind = "tcp", host = "127.0.0.1", port = {port}, unit = 1 }}
[updates]
images_root = "images.root.json"
folder = "state"
hardware = "{hardware}"
[authorization]
unknown = "allow"
[times]
poll_s = 0.1
deadline_s = 4
lost_after_s = 2
raise_after_s = 0
"""
SHIPPED = (PROFILES / "abb_terra_ac.yaml").read_text()
PROFILE = "profiles/abb_terra_ac.yaml"
NEXT = SHIPPED.replace("max_current_ma: 32000", "max_current_ma: 25000").replace(
    "range: [6, 32]", "range: [6, 25]"
)
MUTE = SHIPPED.replace("0x4000", "0x3000").replace("0x4004", "0x3004")
"""It reads what the charger has not."""


def settings(**tables: Any) -> str:
    """As TOML."""
    lines = [f"[{name}]\n{field} = {value}" for name, (field, value) in tables.items()]
    return "\n".join(lines) + "\n"


def made(**files: str) -> bytes:
    """`toml` is settings.toml, `profile` the charger's."""
    names = {"toml": "settings.toml", "profile": PROFILE}
    return pack(Entry(names.get(name, name), text.encode()) for name, text in files.items())


# --------------------------------------------------------------------------- the image


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"toml": "[site]\nlimit_ma = -1\n"}, "settings.toml: site.limit_ma: Expected `int` >= 0"),
        ({"toml": "[uplink]\nurl = 'x'\n"}, "settings.toml: uplink: Object contains unknown field"),
        ({"toml": ""}, "nothing is set"),
        ({"profile": SHIPPED.replace("0x4008", "0x8", 1).replace("u32}", "u99}", 1)}, PROFILE),
        ({"profile": SHIPPED.replace("profile: abb_terra_ac", "profile: other")}, "called other"),
        ({"profiles/../../etc.yaml": SHIPPED}, "has no place"),
        ({"profiles/abb.exe": "MZ"}, "has no place"),
    ],
)
def test_an_image_is_refused_by_file_and_field(files: dict[str, str], why: str) -> None:
    with pytest.raises(ImageError) as caught:
        read_image(made(**files))
    assert why in str(caught.value)


@given(st.binary(max_size=2000))
def test_any_octets_are_an_image_or_are_refused(octets: bytes) -> None:
    with pytest.raises(ImageError):
        read_image(octets)


def test_each_cut_of_an_image_is_refused_or_the_whole() -> None:
    whole = made(toml=settings(times=("event_s", 60)))
    for length in range(0, len(whole), 7):
        try:
            assert read_image(whole[:length]).document == {"times": {"event_s": 60}}
        except ImageError:
            continue


TREES = st.recursive(
    st.integers() | st.none(),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
TABLES = st.dictionaries(st.sampled_from("abc"), TREES, max_size=3)


@given(TABLES, TABLES)
def test_the_upper_document_counts_wherever_it_says_anything(
    below: dict[str, Any], above: dict[str, Any]
) -> None:
    both = over(below, above)
    assert over(both, above) == both
    assert set(both) == set(below) | set(above)
    for name, value in above.items():
        if not isinstance(value, dict):
            assert both[name] == value
    assert over(below, {}) == below
    assert over({}, above) == above


# --------------------------------------------------------------------------- what is kept


def kept(folder: Path) -> Kept:
    return msgspec.json.decode((folder / NAME).read_bytes(), type=Kept)


@pytest.fixture
def own(tmp_path: Path) -> Any:
    file = tmp_path / "agent.toml"
    file.write_text(CONFIG.format(port=1, hardware=HARDWARE))
    return load(file)


def confirmed(folder: Path, image: bytes, **more: Any) -> str:
    """A release that holds here; returns its name."""
    name = sha256(image)
    (folder / FOLDER).mkdir()
    (folder / FOLDER / f"{name}.tar").write_bytes(image)
    what = Kept(confirmed=Given(0, {}, name), **more)
    (folder / NAME).write_bytes(msgspec.json.encode(what))
    return name


def test_the_clouds_word_lies_over_the_release(tmp_path: Path, own: Any) -> None:
    image = made(toml="[times]\nevent_s = 60\ncheckpoint_s = 30\n", profile=NEXT)
    name = confirmed(tmp_path, image)
    remote = RemoteSettings(own, tmp_path)
    assert remote.effective.times.event_s == 60
    profile = find_profile(remote.effective.boards[0].profile)
    assert profile.evses.max_current_ma == 25_000
    remote.take(Configure(4, {"times": {"event_s": 90}}))
    waiting = kept(tmp_path).waiting
    assert waiting is not None
    (tmp_path / NAME).write_bytes(
        msgspec.json.encode(Kept(confirmed=msgspec.structs.replace(waiting, image=name)))
    )
    both = RemoteSettings(own, tmp_path).effective
    assert (both.times.event_s, both.times.checkpoint_s) == (90, 30)


def test_a_damaged_release_leaves_the_file_and_says_so(tmp_path: Path, own: Any) -> None:
    name = confirmed(tmp_path, made(toml=settings(times=("event_s", 60))))
    path = tmp_path / FOLDER / f"{name}.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    remote = RemoteSettings(own, tmp_path)
    assert remote.effective == own
    assert "damaged" in remote.use().reason
    assert remote.image == "", "so that it is installed again"


def test_a_release_that_dies_at_each_start_ends_in_what_was_before(
    tmp_path: Path, own: Any
) -> None:
    before = confirmed(tmp_path, made(toml=settings(times=("event_s", 60))), told=3)
    remote = RemoteSettings(own, tmp_path)
    image = made(toml=settings(times=("event_s", 90)))
    remote.with_image(image)
    remote.try_image(sha256(image), update.Expected())
    for _ in range(TRIES):
        again = RemoteSettings(own, tmp_path)
        assert (again.effective.times.event_s, again.image) == (90, "")
    last = RemoteSettings(own, tmp_path)
    assert (last.effective.times.event_s, last.image) == (60, before)
    assert "3 starts" in last.failed(sha256(image))
    assert (last.use().told, last.use().state) == (3, SettingsState.APPLIED), "the cloud's stand"
    last.told()
    assert not RemoteSettings(own, tmp_path).failed(sha256(image))
    last.collect()
    assert [path.stem for path in (tmp_path / FOLDER).iterdir()] == [before]


def test_what_the_cloud_says_during_a_trial_waits_for_its_end(tmp_path: Path, own: Any) -> None:
    confirmed(tmp_path, made(toml=settings(times=("event_s", 60))))
    remote = RemoteSettings(own, tmp_path)
    image = made(toml=settings(times=("event_s", 90)))
    remote.with_image(image)
    remote.try_image(sha256(image), update.Expected())
    trial = RemoteSettings(own, tmp_path)
    trial.take(Configure(8, {}))
    assert trial.use().state is SettingsState.PENDING
    assert kept(tmp_path).waiting == Given(8, {}, kept(tmp_path).image)


@pytest.mark.system
def test_a_kill_at_each_step_leaves_old_or_new(
    tmp_path: Path, own: Any, sample_size: Callable[[int, int], int], kills: Any
) -> None:
    """Before and after each write: nothing mixed runs, and the next start takes it up."""
    del own  # its file is there
    instants = (faultpoints.SETTINGS_STEP, faultpoints.SETTINGS_KEPT)
    cuts = [(instant, nth) for nth in range(1, settings_steps.KEPT + 1) for instant in instants]
    size = sample_size(5, len(cuts))
    for number in range(size):
        instant, nth = cuts[number * len(cuts) // size]
        folder = tmp_path / str(number)
        folder.mkdir()
        shutil.copy(tmp_path / "agent.toml", folder)
        command = [sys.executable, settings_steps.__file__, str(folder)]
        fault = {**os.environ, "KARVON_FAULT": f"{instant}:{nth}"}
        assert subprocess.run(command, env=fault, check=False).returncode == -signal.SIGKILL
        kills.count(instant)
        stages = (settings_steps.OWN, settings_steps.RELEASED, settings_steps.BOTH)
        seen = Path(shutil.copytree(folder, folder / "seen"))  # a look costs one of three starts
        assert settings_steps.runs(settings_steps.begun(seen)) in stages
        last = settings_steps.work(folder)
        assert settings_steps.runs(last) == settings_steps.BOTH
        assert last.use() == SettingsUse(7, 7, SettingsState.APPLIED)


# --------------------------------------------------------------------------- a whole agent


@dataclass
class Rig:
    folder: Path
    world: World
    charger: SimulatedCharger

    def release(self, version: str, **files: str) -> str:
        """On the stick; returns its image's name."""
        image = made(**files)
        self.world.maker.release(
            version, kind=Kind.SETTINGS, name="settings", encoding=Encoding.ZSTD, made=image
        )
        self.world.maker.publish(self.world.out)
        return sha256(image)

    async def until(self, holds: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        status: dict[str, Any] = {}
        try:
            async with asyncio.timeout(60):
                while True:
                    try:
                        status = await control.ask(self.folder / "journal", Request(do="status"))
                        if holds(status):
                            return status
                    except NotRunningError:
                        pass  # it is just beginning anew
                    await asyncio.sleep(0.02)  # polls the agent over its socket
        except TimeoutError:
            pytest.fail(f"never {what}: {json.dumps(status)}")

    async def ready(self) -> dict[str, Any]:
        return await self.until(
            lambda s: [one["status"] for one in s["evses"]] == ["Available"], "available"
        )

    async def update(self, state: str) -> dict[str, Any]:
        """From the stick, until it ends so."""
        device = str(self.world.out)
        await control.ask(self.folder / "journal", Request(do="update", device=device))
        return await self.until(
            lambda s: (s["updates"]["phase"], s["updates"]["last"]) == ("idle", state), state
        )


@pytest.fixture
async def rig(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(update, "STEADY_MS", 300)
    monkeypatch.setattr(update, "EXTEND_MS", 300)
    world.job()  # hands out the roots
    monkeypatch.setenv("KARVON_ROOT", str(world.controller.folder))
    clock = asyncio.get_running_loop().time
    device = SimulatedCharger(find_profile("abb_terra_ac"), evses=1, unit=1, speed=1, now=clock())
    server = TcpServer(Answers(device, clock))
    await server.start("127.0.0.1", 0)
    port = server.address.rpartition(":")[2]
    (world.folder / "agent.toml").write_text(CONFIG.format(port=port, hardware=HARDWARE))
    yield Rig(world.folder, world, device)
    await server.close()


@asynccontextmanager
async def agent(rig: Rig) -> AsyncIterator[None]:
    running = asyncio.create_task(main.run(load(rig.folder / "agent.toml")))
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def limit(status: dict[str, Any]) -> int | None:
    limits = status["limits"]
    return limits[0]["limit_ma"] if limits else None


async def test_a_release_is_tried_confirmed_and_stays(rig: Rig) -> None:
    async with agent(rig):
        await rig.ready()
        first = rig.release("1.0.0", toml=settings(**{"boards.left": ("cable_ma", 16_000)}))
        status = await rig.update("Installed")
        assert status["settings"]["release"] == status["updates"]["settings"]["release"] == first
        assert limit(await rig.ready()) == 16_000
        second = rig.release("1.1.0", profile=NEXT)
        status = await rig.update("Installed")
        assert status["settings"]["release"] == second
        assert limit(await rig.ready()) == 25_000, (
            "the profile's; nothing more is said of the cable"
        )
    async with agent(rig):
        assert (await rig.ready())["settings"]["release"] == second
        await rig.update("Installed")
    folder = rig.folder / "journal" / FOLDER
    assert {path.stem for path in folder.iterdir()} == {second}


async def test_one_that_silences_a_board_is_put_back_and_told(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update, "LATE_MS", 2_500)
    async with agent(rig):
        await rig.ready()
        good = rig.release("1.0.0", toml=settings(**{"boards.left": ("cable_ma", 16_000)}))
        await rig.update("Installed")
        await rig.ready()
        rig.release("1.1.0", profile=MUTE)
        status = await rig.update("InstallVerificationFailed")
        assert "silent, and they answered before: left" in status["updates"]["trouble"]
        assert status["settings"]["release"] == good
        assert limit(await rig.ready()) == 16_000


async def test_one_that_cannot_be_is_refused_with_its_field(rig: Rig) -> None:
    async with agent(rig):
        await rig.ready()
        rig.release("1.0.0", toml=settings(**{"boards.other": ("priority", 1)}))
        status = await rig.update("InstallationFailed")
        assert "boards.other: there is no such board here" in status["updates"]["trouble"]
        meter = (PROFILES / "eastron_sdm630.yaml").read_text()
        rig.release("1.1.0", profile=meter.replace("eastron_sdm630", "abb_terra_ac", 1))
        device = str(rig.world.out)
        await control.ask(rig.folder / "journal", Request(do="update", device=device))
        text = "profile 'abb_terra_ac.yaml' describes a meter, not a charger"
        status = await rig.until(lambda s: "describes a meter" in s["updates"]["trouble"], text)
        assert status["settings"]["release"] == ""
        await rig.ready()


async def test_ota_f26_killed_on_trial_it_goes_on_with_it(rig: Rig) -> None:
    async with agent(rig):
        await rig.ready()
    image = made(toml=settings(**{"boards.left": ("cable_ma", 16_000)}))
    rig.release("1.0.0", toml=settings(**{"boards.left": ("cable_ma", 16_000)}))
    async with agent(rig):
        await rig.ready()
        device = str(rig.world.out)
        await control.ask(rig.folder / "journal", Request(do="update", device=device))
        await rig.until(lambda s: s["settings"]["on_trial"], "on trial")
    assert kept(rig.folder / "journal").trial == Given(0, {}, sha256(image))
    async with agent(rig):
        await rig.until(lambda s: s["updates"]["last"] == "Installed", "installed")
        assert limit(await rig.ready()) == 16_000


async def test_it_waits_for_who_charges_and_those_who_come_on_trial_may(rig: Rig) -> None:
    async with agent(rig):
        await rig.ready()
        rig.charger.plug(Vehicle(wants_wh=50_000))
        await control.ask(rig.folder / "journal", Request(do="token", token="CARD", evse=1))
        await rig.until(lambda s: bool(s["evses"][0]["transaction"]), "a session")
        rig.release("1.0.0", toml=settings(**{"boards.left": ("cable_ma", 16_000)}))
        device = str(rig.world.out)
        await control.ask(rig.folder / "journal", Request(do="update", device=device))
        status = await rig.until(lambda s: s["updates"]["phase"] == "waiting", "waiting")
        assert status["settings"]["release"] == ""
        rig.charger.unplug()
        await rig.until(lambda s: s["updates"]["last"] == "Installed", "installed")
        assert limit(await rig.ready()) == 16_000


async def test_what_cuts_the_agent_from_a_cloud_that_was_there_is_put_back(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens at the broker's port; before the trial the cloud was reached."""
    monkeypatch.setattr(update, "LATE_MS", 1_500)
    file = rig.folder / "agent.toml"
    file.write_text(file.read_text() + '[uplink]\nurl = "mqtt://127.0.0.1:1"\n')
    (rig.folder / "credentials.json").write_text('{"password": "secret"}')
    image = made(toml=settings(times=("event_s", 60)))
    folder = rig.folder / "journal"
    folder.mkdir()
    before = confirmed(folder, made(toml=settings(times=("event_s", 90))))
    RemoteSettings(load(file), folder).with_image(image)
    trial = Given(0, {}, sha256(image))
    what = Kept(confirmed=Given(0, {}, before), trial=trial, tries=TRIES, expects={"cloud": True})
    (folder / NAME).write_bytes(msgspec.json.encode(what))
    async with agent(rig):
        await rig.until(lambda s: s["settings"]["on_trial"], "on trial")
        await rig.until(lambda s: s["settings"]["release"] == before, "put back")
        failed = kept(folder).failed
        assert failed is not None
        assert failed.reason == "the cloud is out of reach, and was not before"
        assert limit(await rig.ready()) == 32_000
