"""The steps of a commissioning on simulated devices, and what they leave behind."""

from __future__ import annotations

import asyncio
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_agent import control, main
from edge_agent.commissioning import progress
from edge_agent.commissioning.choosing import Use
from edge_agent.commissioning.dialog import CommissionError
from edge_agent.commissioning.leaving import Leave, decommission
from edge_agent.commissioning.progress import STEPS
from edge_agent.commissioning.running import commission
from edge_agent.config import load
from edge_agent.control import NotRunningError, Request
from edge_agent.hardware.metered_board import MeteredBoard
from edge_agent.wording import LANGUAGES
from karvon.simulator.charger import SimulatedCharger
from karvon.simulator.vehicle import Vehicle

Bench = Any  # the fixture's class lives in conftest, which cannot be imported
Named = Callable[..., str]


def watchdog(running: Any) -> tuple[int, int | None]:
    """What the simulated charger would do by itself: seconds, mA."""
    assert isinstance(running.device, SimulatedCharger)
    evse = running.device.evses[1]
    return evse.timeout_s, evse.fallback


def verdicts(work: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for check in work.progress.checks:
        found.setdefault(check.step, []).append(check.verdict)
    return found


async def test_a_charger_found_on_a_network_gets_failsafe_limits_sticker_and_report(
    bench: Bench,
) -> None:
    charger = await bench.device("abb_terra_ac")
    port = int(charger.addresses["tcp"].rpartition(":")[2])
    work = bench.work(
        hosts=("127.0.0.1",),
        tcp_port=port,
        profiles=("abb_terra_ac", "alfen_eve", "eastron_sdm630"),
        failsafe_timeout=45,
        failsafe_current="8",
        fuse="63/63/50",
        connector_max=("20",),
        rotation=("str",),
        alone=True,
    )
    assert await commission(work)
    assert set(work.progress.done) == set(STEPS)
    assert watchdog(charger) == (45, 8_000)
    config = load(bench.path)
    (board,) = config.boards
    assert (board.profile, board.cable_ma, board.phase_rotation) == ("abb_terra_ac", 20_000, "STR")
    assert config.site is not None
    assert config.site.lines == (63_000, 63_000, 50_000)
    assert (config.failsafe.timeout_s, config.failsafe.current_ma) == (45, 8_000)
    assert (board.link.host, board.link.port) == ("127.0.0.1", port)
    assert board.link.timeout_s is None
    reports = bench.folder / "commissioning"
    told = json.loads((reports / "report-TAS-1.json").read_text())
    assert (told["passed"], told["installer"]) == (True, "A. Karimov")
    assert told["devices"][0]["serial"] == "54220100262500a1"
    assert told["failsafe"] == [
        {"board": "abb_terra_ac", "has": True, "timeout_s": 45, "current_ma": 8_000}
    ]
    assert (reports / "sticker-TAS-1.svg").read_text().startswith("<?xml")
    assert (reports / "sticker-TAS-1.png").read_bytes().startswith(b"\x89PNG")
    assert charger.answers.gap_violations == 0


async def test_a_charger_on_a_serial_line_is_found_with_its_settings(bench: Bench) -> None:
    charger = await bench.device("abb_terra_ac", serial=True)
    line = charger.addresses["pty"]
    work = bench.work(
        ports=(line,), profiles=("abb_terra_ac", "eastron_sdm72dm"), fuse="63", alone=True
    )
    assert await commission(work)
    link = load(bench.path).boards[0].link
    assert (link.kind, link.device) == ("rtu", line)
    assert (link.baudrate, link.parity) == (19_200, "even")


async def test_nobody_guesses_between_devices_that_fit_alike(bench: Bench) -> None:
    meter = await bench.device("eastron_sdm630")
    port = int(meter.addresses["tcp"].rpartition(":")[2])
    alike = ("eastron_sdm630", "eastron_sdm72dm")
    work = bench.work(hosts=("127.0.0.1",), tcp_port=port, profiles=alike, fuse="63", alone=True)
    with pytest.raises(CommissionError, match="eastron_sdm72dm@tcp") as refused:
        await commission(work)
    assert refused.value.code == 2
    assert not bench.path.exists()


async def test_the_installer_is_asked_what_no_option_says(bench: Bench, use: Named) -> None:
    charger = await bench.device("abb_terra_ac")
    answers = (
        "soon",
        "30",
        "6",
        "3",
        "32",
        "16",
        "RST",
        "alone",
        "n",
        "https://x.example/{station}",
    )
    work = bench.work(yes=False, answers=answers, use=(use(charger),))
    assert await commission(work)
    assert watchdog(charger) == (30, 6_000)
    said = bench.said.getvalue()
    assert "'soon': 5 to 3600 seconds" in said
    assert "below 6 A no vehicle can charge" in said
    assert work.progress.sticker == "https://x.example/TAS-1"
    assert any("Main fuse" in question for question in bench.asked)


def test_a_device_is_named_with_its_options_and_evses() -> None:
    use = Use.of("left one=phoenix_ev_cc_eth+wallbe@tcp://192.0.2.10:503/255#2")
    assert (use.name, use.profile.profile) == ("left one", "phoenix_ev_cc_eth")
    assert (use.options, use.evses) == (("wallbe",), 2)
    assert (use.link.host, use.link.port, use.link.unit) == ("192.0.2.10", 503, 255)
    wrong = {
        "abb_terra_ac": "is not",
        "abb@tcp://192.0.2.10": "abb_",
        "abb_terra_ac+fast@tcp://192.0.2.10": "no option 'fast'",
        "abb_terra_ac@http://192.0.2.10": "no address",
    }
    for text, why in wrong.items():
        with pytest.raises(ValueError, match=why):
            Use.of(text)


async def test_a_charger_without_failsafe_is_told_loudly(bench: Bench, use: Named) -> None:
    charger = await bench.device("phoenix_charx")
    work = bench.work(use=(use(charger),), fuse="63", alone=True)
    assert await commission(work)
    assert "HAS NO FAILSAFE OF ITS OWN" in bench.said.getvalue()
    assert verdicts(work)["failsafe"] == ["warn"]


def metered(address: str) -> str:
    """A configuration in which a charger, not yet found, has a meter beside it."""
    host, _, port = address.rpartition(":")
    return f"""station = "TAS-1"
journal = {{ folder = "journal" }}
[[boards]]
name = "left"
profile = "abb_terra_ac"
evses = [1]
link = {{ host = "192.0.2.1" }}
meter = {{ profile = "eastron_sdm630", link = {{ host = "{host}", port = {port} }} }}
"""


async def test_a_charger_with_a_meter_beside_it_is_commissioned_and_left_as_itself(
    bench: Bench, use: Named
) -> None:
    """What has a failsafe is the charger; its meter stays where the configuration has it."""
    charger, meter = await bench.device("abb_terra_ac"), await bench.device("eastron_sdm630")
    had = watchdog(charger)
    port = int(meter.addresses["tcp"].rpartition(":")[2])
    bench.path.write_text(metered(meter.addresses["tcp"]))
    work = bench.work(use=(use(charger),), fuse="63", alone=True, failsafe_timeout=33)
    assert await commission(work)
    config = load(bench.path)
    (board,) = config.boards
    assert board.meter is not None
    assert (board.meter.profile, board.meter.link.port) == ("eastron_sdm630", port)
    (line,) = main.hardware(config).lines
    assert isinstance(line.board, MeteredBoard)
    assert watchdog(charger) == (33, 6_000)
    assert [one.what for one in work.progress.checks if one.step == "failsafe"] == ["left"]
    (before,) = work.progress.before
    assert before.address.startswith("tcp://127.0.0.1")
    checks = await decommission(leave(bench))
    assert all(check.verdict == "pass" for check in checks), checks
    assert watchdog(charger)[0] == had[0]


async def test_a_silent_meter_beside_a_charger_does_not_keep_its_failsafe_from_being_set(
    bench: Bench, use: Named
) -> None:
    charger, meter = await bench.device("abb_terra_ac"), await bench.device("eastron_sdm630")
    bench.path.write_text(metered(meter.addresses["tcp"]))
    await meter.close()
    work = bench.work(use=(use(charger),), fuse="63", alone=True, failsafe_timeout=33)
    assert await commission(work)
    assert verdicts(work)["failsafe"] == ["pass"]
    assert watchdog(charger) == (33, 6_000)


async def test_an_old_configuration_is_kept_and_what_it_said_besides_stays(
    bench: Bench, use: Named
) -> None:
    charger = await bench.device("abb_terra_ac")
    old = 'station = "TAS-1"\n[journal]\nfolder = "journal"\n[times]\nevent_s = 77\n'
    bench.path.write_text(old)
    work = bench.work(use=(use(charger),), fuse="63", alone=True)
    assert await commission(work)
    assert bench.path.with_name("agent.toml.bak").read_text() == old
    assert load(bench.path).times.event_s == 77
    again = bench.work(use=(use(charger),), fuse="32", alone=True)
    again.progress = again.progress.started_anew()
    assert await commission(again)
    assert bench.path.with_name("agent.toml.bak").read_text() == old
    assert load(bench.path).site.lines == (32_000,) * 3


async def test_a_configuration_that_the_loader_refuses_is_never_put_in_place(
    bench: Bench, use: Named
) -> None:
    charger = await bench.device("abb_terra_ac")
    wrong = 'station = "TAS-1"\nunknown = 1\n[journal]\nfolder = "journal"\n'
    bench.path.write_text(wrong)
    work = bench.work(use=(use(charger),), fuse="63", alone=True)
    with pytest.raises(Exception, match="unknown setting 'unknown'"):
        await commission(work)
    assert bench.path.read_text() == wrong
    assert sorted(path.name for path in bench.folder.glob("agent.toml*")) == [
        "agent.toml",
        "agent.toml.bak",
    ]


async def test_a_finished_step_is_not_done_again_and_a_failed_one_is(
    bench: Bench, use: Named
) -> None:
    charger = await bench.device("abb_terra_ac")
    options = {"use": (use(charger),), "fuse": "63", "ocpp_url": "ws://127.0.0.1:9/ocpp"}
    first = bench.work(**options)
    assert not await commission(first)
    assert verdicts(first)["registration"] == ["fail"]
    requests = charger.answers.requests
    again = bench.work(alone=True)
    assert await commission(again)
    assert charger.answers.requests == requests
    assert load(bench.path).uplink is None
    assert set(again.progress.done) == set(STEPS)


async def test_a_test_charge_shows_current_and_energy_and_ends_with_an_open_contactor(
    bench: Bench, use: Named
) -> None:
    charger = await bench.device("abb_terra_ac", speed=600)
    device = charger.device
    assert isinstance(device, SimulatedCharger)
    device.plug(Vehicle(wants_wh=None, max_current=16_000, phases=3, reaction_ms=0), 1)
    work = bench.work(use=(use(charger),), fuse="63", alone=True, charge=True, charge_s=2)
    assert await commission(work)
    charged = work.progress.charged
    assert charged is not None
    assert charged.highest_ma == (16_000, 16_000, 16_000)
    assert charged.energy_wh is not None
    assert charged.energy_wh > 0
    device.advance(charger.clock())
    assert not device.evses[1].released


async def test_without_a_vehicle_the_test_charge_fails_and_the_rest_goes_on(
    bench: Bench, use: Named
) -> None:
    charger = await bench.device("abb_terra_ac")
    work = bench.work(use=(use(charger),), fuse="63", alone=True, charge=True, wait_s=1)
    assert not await commission(work)
    assert verdicts(work)["charge"] == ["fail"]
    assert "charge" not in work.progress.done
    assert "label" in work.progress.done


@pytest.mark.parametrize("language", LANGUAGES)
async def test_the_report_is_in_the_installers_language(
    bench: Bench, use: Named, language: str
) -> None:
    charger = await bench.device("abb_terra_ac")
    work = bench.work(use=(use(charger),), fuse="63", alone=True, language=language)
    assert await commission(work)
    report = (bench.folder / "commissioning" / "report-TAS-1.md").read_text()
    assert work.dialog.text("report") in report
    assert "54220100262500a1" in report


def leave(bench: Bench, **more: Any) -> Leave:
    config = load(bench.path)
    settings = {"force": False, "wait_s": 0.0, **more}
    return Leave(path=bench.path, config=config, dialog=bench.work().dialog, **settings)


@pytest.mark.parametrize("profile", ["abb_terra_ac", "vestel_evc04", "delta_ac_max"])
async def test_decommissioning_gives_a_charger_back_what_it_had(
    bench: Bench, use: Named, profile: str
) -> None:
    charger = await bench.device(profile)
    had = watchdog(charger)
    work = bench.work(use=(use(charger),), fuse="63", alone=True, failsafe_timeout=33)
    assert await commission(work)
    assert watchdog(charger) == (33, 6_000)
    checks = await decommission(leave(bench))
    assert watchdog(charger)[0] == had[0]
    assert all(check.verdict == "pass" for check in checks), checks
    assert not bench.path.exists()
    assert progress.read(bench.journal) is None
    kept = bench.path.with_name("agent.toml.decommissioned")
    assert tomllib.loads(kept.read_text())["station"] == "TAS-1"


async def test_what_was_before_the_first_commissioning_outlives_a_restart(
    bench: Bench, use: Named
) -> None:
    charger = await bench.device("vestel_evc04")
    had = watchdog(charger)
    for seconds in (33, 44):
        work = bench.work(use=(use(charger),), fuse="63", alone=True, failsafe_timeout=seconds)
        work.progress = work.progress.started_anew()
        assert await commission(work)
        assert watchdog(charger)[0] == seconds
    await decommission(leave(bench))
    assert watchdog(charger) == had


async def test_a_charger_that_does_not_answer_keeps_the_keys_until_somebody_insists(
    bench: Bench, use: Named
) -> None:
    charger = await bench.device("abb_terra_ac")
    work = bench.work(use=(use(charger),), fuse="63", alone=True)
    assert await commission(work)
    secret = bench.folder / "credentials.json"
    secret.write_text('{"password": "s3cret"}')
    await charger.close()
    with pytest.raises(CommissionError, match="left"):
        await decommission(leave(bench))
    assert secret.exists()
    assert bench.path.exists()
    checks = await decommission(leave(bench, force=True))
    assert [check.verdict for check in checks].count("fail") == 1
    assert not secret.exists()


async def test_nobody_is_taken_out_of_service_while_somebody_charges(
    bench: Bench, use: Named
) -> None:
    """Said by the running agent, and by its journal once it has ended."""
    charger = await bench.device("abb_terra_ac")
    device = charger.device
    assert isinstance(device, SimulatedCharger)
    work = bench.work(use=(use(charger),), fuse="63", alone=True)
    assert await commission(work)
    times = "[times]\npoll_s = 0.1\ndeadline_s = 1\nlost_after_s = 0.5\n"
    allow = '[authorization]\nunknown = "allow"\n'
    bench.path.write_text(bench.path.read_text() + times + allow)
    agent = asyncio.create_task(main.run(load(bench.path)))
    try:
        await _until(bench, lambda status: bool(status["evses"]))
        device.plug(Vehicle(wants_wh=None, max_current=16_000, phases=3, reaction_ms=0), 1)
        await _until(bench, lambda status: status["evses"][0]["charging_state"] != "Idle")
        await control.ask(bench.journal, Request(do="token", token="CARD", evse=1))
        await _until(bench, lambda status: bool(status["evses"][0].get("transaction")))
        with pytest.raises(CommissionError, match="a transaction is open on EVSE 1"):
            await decommission(leave(bench))
    finally:
        agent.cancel()
        await asyncio.gather(agent, return_exceptions=True)
    with pytest.raises(CommissionError, match="a transaction is open on EVSE 1"):
        await decommission(leave(bench))
    assert bench.path.exists()
    checks = await decommission(leave(bench, force=True))
    assert any("have not reached the cloud" in check.text for check in checks)


async def _until(bench: Bench, holds: Callable[[dict[str, Any]], bool]) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                if holds(await control.ask(bench.journal, Request(do="status"))):
                    return
            except NotRunningError:
                pass  # the agent has not made its socket yet
            await asyncio.sleep(0.05)


def test_a_state_that_cannot_be_read_is_told_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / progress.NAME).write_text("{")
    with pytest.raises(progress.ProgressError, match="--restart"):
        progress.read(tmp_path)
