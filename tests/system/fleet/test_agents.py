"""The playbook of the agents, into a Debian root; then what it has installed charges a vehicle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from ota_world import Maker

from karvon.demo.lines import ask
from karvon.demo.process import wait_for
from karvon.release import building, bundling
from protocols.release import Encoding, Kind, Release

STATION = "TAS-0042"
CARD = "04A2B3C4D5E6F7"
UNIT = "karvon-agent.service"
RULES = ("60-karvon-serial.rules", "61-karvon-names.rules")
Fleet = Any  # the fixtures' classes live in conftest, which cannot be imported
Root = Any


@pytest.fixture
def bundles(fleet: Fleet, wheel: Path, tmp_path: Path) -> Path:
    """The folder of bundles, as the release makers hand it over."""
    wheels, maker = tmp_path / "wheels", Maker(tmp_path / "repo")
    shutil.copytree(fleet.wheels_edge, wheels)
    shutil.copy(wheel, wheels)
    release = Release(
        kind=Kind.AGENT,
        name="karvon-agent",
        version="0.1.0",
        release_counter=0,
        hw_ids=(fleet.hardware,),
        raw_sha256="",
        raw_length=0,
        encoding=Encoding.RAW,
    )
    image = building.agent_image(wheels, name=release.name, version="0.1.0", hw_id=fleet.hardware)
    maker.workshop.add(image, release)
    maker.publish(tmp_path / "shown")
    (tmp_path / "bundles").mkdir()
    bundle = tmp_path / "bundles" / f"{fleet.hardware}.tar"
    bundling.write(maker.workshop, fleet.hardware, bundle)
    return bundle.parent


def variables(bundles: Path, charger: Any) -> dict[str, Any]:
    return {
        "karvon_agent_station": STATION,
        "karvon_agent_bundles": str(bundles),
        "karvon_agent_settings": {
            "authorization": {"unknown": "allow"},
            "times": {"poll_s": 0.5},
        },
        "karvon_agent_serial_names": [{"name": "boards", "serial": "A10LXYZ"}],
        "karvon_agent_answers": {
            "use": [f"left=abb_terra_ac@tcp://127.0.0.1:{charger.port}/1"],
            "fuse": "63/63/50",
            "failsafe_timeout": 45,
            "alone": True,
            "charge": False,
            "installer": "Азиза Каримова",
        },
    }


def test_a_controller_is_installed_commissioned_and_charges(
    root: Root, bundles: Path, charger: Any
) -> None:
    given = variables(bundles, charger)
    first = root.play("agents.yml", "agents", **given)
    assert first.counts["changed"] > 10
    second = root.play("agents.yml", "agents", **given)
    assert (second.counts["changed"], second.changed) == (0, [])

    # what it left is as it should be
    assert root.there(f"/etc/systemd/system/multi-user.target.wants/{UNIT}").is_symlink()
    assert root.run("systemd-analyze", "verify", f"/etc/systemd/system/{UNIT}") == ""
    for rules in RULES:
        root.run("udevadm", "verify", f"/etc/udev/rules.d/{rules}")
    assert 'SYMLINK+="karvon/boards"' in root.there(f"/etc/udev/rules.d/{RULES[1]}").read_text()
    assert "dialout" in root.run("id", "-nG", "karvon")
    modes = root.run("stat", "-c", "%a %U", "/etc/karvon", "/etc/karvon/answers.toml")
    assert modes.split("\n")[:2] == ["750 karvon", "600 karvon"]
    assert not root.there("/var/lib/karvon/bundle").exists()
    assert root.run("karvon", "--version", user="karvon") == "karvon 0.1.0\n"
    report = json.loads(root.there(f"/etc/karvon/commissioning/report-{STATION}.json").read_text())
    assert (report["passed"], report["installer"]) == (True, "Азиза Каримова")
    assert report["failsafe"] == [
        {"board": "left", "has": True, "timeout_s": 45, "current_ma": 6_000}
    ]

    # the very command of the unit, as its user
    service = root.unit(UNIT).start(root.folder / "agent.log")
    try:
        service.wait("READY=1")
        service.wait("WATCHDOG=1")
        energy_wh = one_session(root, charger)
    finally:
        code = service.end()
    assert code == 0, service.log.read_text()[-3000:]
    (session,) = json.loads(root.run("karvon", "agent", "sessions", "--json", user="karvon"))
    assert session["energy_wh"] == energy_wh
    (truth,) = charger.do("status")["sessions"]
    assert 0 <= truth["energy_wh"] - energy_wh < 1
    assert root.there("/opt/karvon/current").readlink() == Path("factory")


def one_session(root: Root, charger: Any) -> int:
    """A vehicle comes, charges and goes; the energy that the agent has booked."""
    desk = root.there("/var/lib/karvon/journal/control.sock")
    wait_for(desk.exists, 60, "the agent's desk to open")

    def evse() -> dict[str, Any]:
        found: dict[str, Any] = ask(desk, {"do": "status"})["evses"][0]
        return found

    charger.do("plug", evse=1, wants_wh=15, max_current_ma=16_000)
    root.run("karvon", "agent", "token", CARD, user="karvon")
    wait_for(lambda: charger.do("status")["evses"][0]["full"], 60, "the vehicle to be full")
    charger.do("unplug", evse=1)
    wait_for(lambda: not evse().get("transaction"), 60, "the session to end")
    (one,) = json.loads(root.run("karvon", "agent", "sessions", "--json", user="karvon"))
    assert one["ended"], one
    return int(one["energy_wh"])
