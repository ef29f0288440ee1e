"""The real agent updates itself while a session runs, and comes back from a bad version."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ota_real import RealController, real_image
from ota_server import Server
from ota_slots import image
from ota_world import HARDWARE, World

from edge_agent import remote
from edge_agent.hardware.registry import PROFILES
from edge_agent.updates import launcher
from edge_agent.updates.archive import Entry, pack, sha256
from protocols.agent_link import UpdateState
from protocols.release import Encoding, Kind, Release

BAD = """
if "run" in sys.argv:
    sys.exit("this version cannot run")
"""


class Rig:
    """Makers, a web server with both repositories, and a controller with the first version."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.server = Server(self.world.out)
        self.world.job()  # hands out the roots
        self.controller = RealController(
            folder,
            f'url = "{self.server.url}"\nhardware = "{HARDWARE}"\n'
            f'images_root = "{folder}/images.root.json"\n'
            f'director_root = "{folder}/director.root.json"\n',
        )
        self.first = self.controller.install(real_image("1.0.0"))
        launcher.write(self.controller.root, launcher.Record(confirmed=self.first))

    def release(self, version: str, image: bytes) -> str:
        """Published and asked for; returns its slot's name."""
        return self._release(version, image, Kind.AGENT, "karvon-agent")

    def settings(self, version: str, **files: str) -> str:
        """A release of settings, published and asked for; returns its name."""
        names = {"toml": "settings.toml", "profile": "profiles/abb_terra_ac.yaml"}
        entries = (Entry(names[name], text.encode()) for name, text in files.items())
        return self._release(version, pack(entries), Kind.SETTINGS, "settings")

    def _release(self, version: str, image: bytes, kind: Kind, name: str) -> str:
        release = Release(
            kind=kind,
            name=name,
            version=version,
            release_counter=0,
            hw_ids=(HARDWARE,),
            raw_sha256="",
            raw_length=0,
            encoding=Encoding.ZSTD,
        )
        (path,) = self.world.maker.workshop.add(image, release)
        self.world.maker.publish(self.world.out)
        self.world.ask(path)
        return sha256(image)

    def told(self) -> str:
        return self.controller.service.log.read_text()

    def end(self) -> None:
        self.controller.end()
        self.server.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    try:
        rig.controller.start()
        yield rig
    finally:
        rig.end()


@pytest.mark.system
def test_ota_f26_the_real_agent_updates_and_comes_back_from_a_bad_version(
    rig: Rig, kills: Any
) -> None:
    """A session runs while it is fetched; it waits; killed on trial, it proves itself."""
    controller = rig.controller
    controller.until(lambda: controller.evse() == "Available", "the first version")
    controller.board("plug", evse=1, wants_wh=50_000, max_current_ma=16_000)
    controller.until(lambda: controller.evse() == "Occupied", "the vehicle")
    controller.ask(do="token", token="CARD", evse=1)
    good = rig.release("1.1.0", real_image("1.1.0"))
    controller.ask(do="update")
    controller.until(lambda: "EVSE 1 in use" in rig.told(), "the session to be waited for")
    assert controller.version() == "1.0.0"
    controller.board("unplug", evse=1)
    controller.until(lambda: controller.version() == "1.1.0", "the new version")
    controller.service.kill()
    kills.count("update.trial")
    controller.until(lambda: controller.service.starts == 3, "its second try")
    controller.until(lambda: controller.version() == "1.1.0", "the new version once more")
    controller.until(
        lambda: (record := launcher.read(controller.root)) and record.confirmed == good,
        "its confirmation",
    )
    controller.until(lambda: f"1.1.0 {UpdateState.INSTALLED}" in rig.told(), "its being told")
    assert controller.evse() == "Available"
    bad = rig.release("1.2.0", image("1.2.0", BAD))
    starts = controller.service.starts
    controller.ask(do="update")
    controller.until(lambda: "rolled back" in rig.told(), "the way back")
    assert controller.service.starts == starts + launcher.TRIES + 1
    controller.until(lambda: controller.version() == "1.1.0", "the version before")
    record = launcher.read(controller.root)
    assert record is not None
    assert (record.confirmed, record.trial) == (good, "")
    assert launcher.usable(controller.root, bad)
    assert not controller.board("status")["violations"]


@pytest.mark.system
def test_settings_and_profiles_are_tried_and_one_that_kills_the_agent_is_put_back(
    rig: Rig, kills: Any, sample_size: Callable[[int, int], int]
) -> None:
    """Over HTTP, by the director's word, in a process that is really killed at each start."""
    if not sample_size(0, 1):
        pytest.skip("each of its trials takes its time: make torture")
    controller = rig.controller
    profile = (PROFILES / "abb_terra_ac.yaml").read_text()
    controller.until(lambda: controller.evse() == "Available", "the agent")
    first = rig.settings(
        "1.0.0",
        toml="[boards.board]\ncable_ma = 20000\n",
        profile=profile.replace("range: [6, 32]", "range: [6, 25]"),
    )
    controller.ask(do="update")
    controller.until(lambda: f"1.0.0 {UpdateState.INSTALLED}" in rig.told(), "the settings")
    controller.until(lambda: controller.evse() == "Available", "the agent with them")
    assert runs(controller) == (first, 20_000)
    starts = controller.service.starts
    assert starts == 1, "the agent began anew in its process"
    second = rig.settings("1.1.0", toml="[boards.board]\ncable_ma = 10000\n")
    controller.ask(do="update")
    for left in reversed(range(remote.TRIES)):
        controller.until(lambda n=left: on_trial(controller) == (second, n), "the next on trial")
        controller.service.kill()
        kills.count("settings.trial")
    controller.until(
        lambda: f"1.1.0 {UpdateState.INSTALL_VERIFICATION_FAILED} rolled back" in rig.told(),
        "the way back",
    )
    controller.until(lambda: runs(controller) == (first, 20_000), "what was before")
    assert controller.service.starts == starts + remote.TRIES
    controller.until(lambda: controller.evse() == "Available", "charging")
    assert not controller.board("status")["violations"]


def on_trial(controller: RealController) -> tuple[str, int] | None:
    """Which settings release, and how many starts it still has."""
    content = (controller.folder / "journal" / remote.NAME).read_bytes()
    kept = msgspec.json.decode(content, type=remote.Kept)
    return None if kept.trial is None else (kept.trial.image, kept.tries)


def runs(controller: RealController) -> tuple[str, int] | None:
    """Which settings release, and what the EVSE may draw."""
    status = controller.status()
    if status is None or not status["limits"]:
        return None
    return status["settings"]["release"], status["limits"][0]["limit_ma"]
