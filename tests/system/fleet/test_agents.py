"""The playbook of the agents, into a Debian root; then what it has installed charges a vehicle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
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
PATIENCE_S = 180
FAILSAFE_S = 60
"""What the charger had before anybody commissioned it."""
DESK = "/var/lib/karvon/journal/control.sock"
UNIT = "karvon-agent.service"
RULES = ("60-karvon-serial.rules", "61-karvon-names.rules")
Fleet = Any  # the fixtures' classes live in conftest, which cannot be imported
Root = Any


@pytest.fixture
def bundles(fleet: Fleet, wheel: Path, tmp_path: Path) -> Path:
    """The folder of bundles, as the release makers hand it over."""
    wheels, maker = tmp_path / "wheels", Maker(tmp_path / "repo")
    shutil.copytree(fleet.wheels, wheels)
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
    request: pytest.FixtureRequest, sample_size: Callable[[int, int], int]
) -> None:
    if not sample_size(0, 1):
        pytest.skip("an installation takes two cores for two minutes: make torture")
    root, bundles, charger = map(request.getfixturevalue, ("root", "bundles", "charger"))
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
        wait_for(root.there(DESK).exists, PATIENCE_S, "the agent's desk to open")
        energy_wh = one_session(root, charger)
        if sample_size(0, 1):
            refused_while_somebody_charges(root, charger, given)
    finally:
        code = service.end()
    assert code == 0, service.log.read_text()[-3000:]
    truth = charger.do("status")["sessions"][0]
    assert 0 <= truth["energy_wh"] - energy_wh < 1
    assert root.there("/opt/karvon/current").readlink() == Path("factory")
    leaves(root, charger, given, again=bool(sample_size(0, 1)))


def one_session(root: Root, charger: Any) -> int:
    """A vehicle comes, charges and goes; the energy that the agent has booked."""
    charger.do("plug", evse=1, wants_wh=15, max_current_ma=16_000)
    root.run("karvon", "agent", "token", CARD, user="karvon")
    wait_for(lambda: charger.do("status")["evses"][0]["full"], PATIENCE_S, "the vehicle to be full")
    goes(root, charger)
    (one,) = json.loads(root.run("karvon", "agent", "sessions", "--json", user="karvon"))
    assert one["ended"], one
    return int(one["energy_wh"])


def goes(root: Root, charger: Any) -> None:
    """The vehicle leaves, and its transaction is booked."""
    desk = root.there(DESK)
    charger.do("unplug", evse=1)
    wait_for(
        lambda: not ask(desk, {"do": "status"})["evses"][0].get("transaction"),
        PATIENCE_S,
        "the session to end",
    )


def refused_while_somebody_charges(root: Root, charger: Any, given: dict[str, Any]) -> None:
    """The agent goes on, and so does the vehicle."""
    charger.do("plug", evse=1, wants_wh=50_000, max_current_ma=16_000)
    root.run("karvon", "agent", "token", CARD, user="karvon")
    wait_for(lambda: charger.do("status")["evses"][0]["current_ma"], PATIENCE_S, "current to flow")
    named = ("--extra-vars", f"stations={STATION}", "--extra-vars", "karvon_agent_wait_min=0")
    played = root.play("decommission.yml", "agents", *named, code=2, **given)
    assert f"{STATION} stays in service: Wait until nobody charges" in played.text
    assert charger.do("status")["evses"][0]["current_ma"] > 0
    assert root.there("/etc/karvon/agent.toml").exists()
    goes(root, charger)


def leaves(root: Root, charger: Any, given: dict[str, Any], *, again: bool) -> None:
    """Only who is named; the charger is as it was, nothing is left that could start."""
    for stations, why in (("", "name the stations that leave"), ("TAS-1", "inventory is TAS-1")):
        named = ("--extra-vars", f"stations={stations}")
        assert why in root.play("decommission.yml", "agents", *named, code=2, **given).text
    named = ("--extra-vars", f"stations={STATION}")
    played = root.play("decommission.yml", "agents", *named, karvon_agent_purge=True, **given)
    assert "Put the failsafe back, retire the station, wipe the keys" in str(played.changed)
    assert charger.do("status")["evses"][0]["failsafe_s"] == FAILSAFE_S
    assert not list(root.there("/etc/systemd/system").glob(f"**/{UNIT}"))
    left = {path.name for path in root.there("/etc/karvon").iterdir()}
    assert {"agent.toml.decommissioned", "commissioning", "decommissioning.json"} <= left
    assert not left & {"agent.toml", "answers.toml", "credentials.json", "station.pem"}
    assert not root.there("/opt/karvon").exists()
    if again:
        second = root.play("decommission.yml", "agents", *named, karvon_agent_purge=True, **given)
        assert (second.counts["changed"], second.changed) == (0, [])
