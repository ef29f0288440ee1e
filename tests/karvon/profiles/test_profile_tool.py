"""`karvon agent profile`, each command as people call it, on simulated devices over real lines."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from edge_agent.hardware.registry import find_profile, profile_names
from karvon.agent import app
from karvon.profiles.speaking import ToolError, device_link
from karvon.simulator.charger import SimulatedCharger
from karvon.simulator.meter import SimulatedMeter
from karvon.simulator.running import Places, Running
from karvon.simulator.vehicle import Vehicle
from protocols.modbus.profile import Profile

RUNNER = CliRunner()
PROFILES = Path(__file__).parents[3] / "edge_agent/profiles"


def call(*args: object) -> tuple[int, str, str]:
    result = RUNNER.invoke(app, ["profile", *map(str, args)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


async def called(*args: object) -> tuple[int, str, str]:
    """In a thread: the simulated device goes on beside it, however slow the machine is."""
    if "--device" in args and "--timeout" not in args:
        args = (*args, "--timeout", "5")
    return await asyncio.to_thread(call, *args)


@asynccontextmanager
async def device(
    profile: Profile, *, pty: str | None = None, options: frozenset[str] = frozenset()
) -> AsyncIterator[tuple[Running, str]]:
    clock = asyncio.get_running_loop().time
    known = profile.transports.rtu if pty else profile.transports.tcp
    unit = known.unit if known else 1
    made: SimulatedCharger | SimulatedMeter
    if profile.kind == "charger":
        made = SimulatedCharger(profile, evses=1, unit=unit, speed=1, now=clock(), options=options)
    else:
        made = SimulatedMeter(profile, unit=unit, speed=1, now=clock())
    running = Running(device=made, places=Places(pty=pty, tcp=None if pty else "127.0.0.1:0"))
    running.clock = clock
    await running.start()
    try:
        where = f"rtu://{pty}" if pty else f"tcp://{running.addresses['tcp']}/{unit}"
        yield running, where
    finally:
        await running.close()


def test_list_names_every_shipped_profile() -> None:
    code, out, _ = call("list", "--json")
    rows = json.loads(out)
    assert code == 0
    assert [row["profile"] for row in rows] == list(profile_names())
    wallbe = next(row for row in rows if row["profile"] == "phoenix_ev_cc_eth")
    assert (wallbe["options"], wallbe["status"]) == (["wallbe"], "integration")
    assert {each["about"] for each in wallbe["unsure"]} >= {"setpoint.write", "energy"}
    code, out, _ = call("list")
    assert code == 0
    assert all(name in out for name in profile_names())


def test_show_tells_requests_writes_and_doubts() -> None:
    code, out, _ = call("show", "mennekes_compact")
    assert code == 0
    assert "writes failsafe.fed_by.life: function 6, u16 = 0x55aa" in out
    assert "unsure, word_order: " in out
    assert "| 0x0302 | modbus_limit | 3 | f32 | A | poll |" in out
    code, out, _ = call("show", "mennekes_compact", "--json")
    shown = json.loads(out)
    assert (shown["setpoint"]["pause"]["value"], shown["setpoint"]["never"]) == (3, [0])
    assert {"function": 3, "address": 0x500, "count": 20} in shown["poll"]


@pytest.mark.parametrize("command", ["show", "test"])
def test_a_name_almost_right_is_told_the_right_one(command: str) -> None:
    code, _, complaint = call(command, "keba_p3")
    assert code == 2
    assert "no profile 'keba_p3'" in complaint
    assert "did you mean keba_p30?" in complaint


@pytest.mark.parametrize("kind", ["charger", "meter"])
def test_a_new_profile_is_right_and_can_be_tried_at_once(kind: str, tmp_path: Path) -> None:
    code, out, _ = call("new", tmp_path / "mine", "--kind", kind)
    path = tmp_path / "mine.yaml"
    assert code == 0
    assert str(path) in out
    assert find_profile(str(path)).kind == kind
    assert "#" in path.read_text(), "it explains itself"
    assert call("lint", path)[:2] == (0, f"{path}: ok\n")
    code, out, _ = call("test", path, "--json")
    steps = json.loads(out)["steps"]
    assert code == 0, steps
    assert all(step["well"] for step in steps)
    assert len(steps) == (13 if kind == "charger" else 3)


def test_a_new_profile_overwrites_nothing_and_may_start_from_another(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    code, out, _ = call("new", path, "--like", "keba_p40", "--json")
    assert (code, json.loads(out)) == (0, {"written": str(path), "profile": "mine"})
    before = path.read_text()
    assert find_profile(str(path)).profile == "mine"
    code, _, complaint = call("new", path)
    assert code == 2
    assert "is there already and stays as it is" in complaint
    assert path.read_text() == before
    assert "small letters" in call("new", tmp_path / "My-Charger.yaml")[2]
    assert "cannot be written" in call("new", tmp_path / "none" / "mine.yaml")[2]


def test_the_page_shows_what_the_tool_says(tmp_path: Path) -> None:
    page = (PROFILES.parents[1] / "docs/device-profiles.md").read_text()
    shown = page.split("$ karvon agent profile test ./webasto_next.yaml\n")[1].split("```")[0]
    path = tmp_path / "webasto_next.yaml"
    path.write_text((PROFILES / path.name).read_text())
    code, out, _ = call("test", path)
    assert (code, out) == (0, shown)


def test_the_pages_links_lead_somewhere() -> None:
    docs = PROFILES.parents[1] / "docs"
    found = re.findall(r"\]\(([^)#:]+)\)", (docs / "device-profiles.md").read_text())
    assert found
    for target in found:
        assert (docs / target).exists(), target


def test_help_loads_neither_drivers_nor_profiles() -> None:
    """What `--help` needs on a Pi: typer, and nothing that talks to devices."""
    told = subprocess.run(
        [sys.executable, "-c", "import sys, karvon.agent; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert not {"asyncio", "sqlite3", "textual", "cryptography"} & set(told)
    assert not {"pymodbus", "yaml", "aiomqtt", "edge_agent.main", "karvon.simulator"} & set(told)


def test_lint_tells_every_mistake_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "abb_terra_ac.yaml"
    text = (PROFILES / path.name).read_text()
    text = text.replace("bits: [8, 14]", "bits: [8, 34]")
    text = text.replace("range: [6, 32]", "range: [32, 6]")
    path.write_text(text)
    lines = text.splitlines()
    code, out, _ = call("lint", path, PROFILES / "keba_p30.yaml")
    assert code == 1
    first, second, *rest = out.splitlines()
    at = next(i for i, line in enumerate(lines, 1) if "charging_state: {" in line)
    assert first == f"{path}:{at}: registers.charging_state: bits 8..34 do not lie in a u32"
    at = next(i for i, line in enumerate(lines, 1) if "range: [32, 6]" in line)
    assert second == f"{path}:{at}: setpoint.range: 32 is above 6"
    assert rest == [f"{PROFILES / 'keba_p30.yaml'}: ok"]
    code, out, _ = call("lint", path, "--json")
    assert [each["line"] for each in json.loads(out)] == [int(first.split(":")[1]), at]


def test_lint_of_what_is_no_profile(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("profile: [\n")
    code, out, _ = call("lint", path)
    assert code == 1
    assert out.startswith(f"{path}:2: not YAML")
    code, _, complaint = call("lint", tmp_path / "none.yaml")
    assert code == 2
    assert "none.yaml: cannot be read" in complaint


def test_lint_asks_what_a_colleague_would_ask(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    text = (PROFILES / "evse_wb.yaml").read_text()
    path.write_text(text.split("unsure:")[0].replace("gap_ms: 100", "gap_ms: 5000"))
    code, out, _ = call("lint", path)
    assert code == 0
    asked = [line for line in out.splitlines() if "look again: " in line]
    for word in ("its name is evse_wb", "no simulator", "5.0 s of", "no failsafe", "no energy"):
        assert any(word in line for line in asked), word


def test_every_shipped_profile_is_beyond_such_questions() -> None:
    code, out, _ = call("lint", *PROFILES.glob("[a-z]*.yaml"), "--json")
    reasons = {(Path(each["file"]).stem, each["reason"].split(":")[0]) for each in json.loads(out)}
    nameless = ("carlo_gavazzi_em24", "carlo_gavazzi_em340", "schneider_iem3000", "webasto_next")
    assert code == 0
    assert reasons == {(name, "no identity") for name in nameless}, "no source tells of any"


def test_a_profile_that_does_not_charge_is_told_where_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "abb_terra_ac.yaml"
    text = (PROFILES / path.name).read_text()
    path.write_text(text.replace("charging_state: 4}, is: C}", "charging_state: 4}, is: B}"))
    code, out, _ = call("test", path)
    assert code == 1
    assert out.splitlines()[-1].startswith("WRONG  released at 16 A: the board says B, not C or D")
    path.write_text(text.split("simulator:")[0])
    code, _, complaint = call("test", path)
    assert code == 2
    assert "has no simulator block" in complaint


def test_an_option_is_tried_and_an_unknown_one_refused() -> None:
    assert call("test", "phoenix_ev_cc_eth", "--option", "wallbe")[0] == 0
    code, _, complaint = call("test", "phoenix_ev_cc_eth", "--option", "walbe")
    assert code == 2
    assert "has no option 'walbe'; it has wallbe" in complaint
    assert "it has none at all" in call("test", "keba_p30", "--option", "x")[2]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tcp://10.0.0.5/3", ("tcp", "10.0.0.5", 502, 3)),
        ("tcp://charger:1502", ("tcp", "charger", 1502, 1)),
        ("tcp://[fe80::1]:502/255", ("tcp", "fe80::1", 502, 255)),
        ("rtu:///dev/ttyUSB0?parity=E&unit=7", ("rtu", "/dev/ttyUSB0", "even", 7)),
        ("rtu:/dev/ttyS1", ("rtu", "/dev/ttyS1", "none", 1)),
        ("ascii:///dev/ttyUSB0?baudrate=38400", ("rtu", "/dev/ttyUSB0", "none", 1)),
    ],
)  # fmt: skip
def test_where_a_device_is(text: str, shown: tuple[Any, ...]) -> None:
    link = device_link(text)
    if link.kind == "tcp":
        assert (link.kind, link.host, link.port, link.unit) == shown
    else:
        assert (link.kind, link.device, link.parity, link.unit) == shown
        assert link.framing == text.partition(":")[0]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("10.0.0.5:502", "is no address of a device"),
        ("tcp://10.0.0.5/300", "unit '300' is not a number from 0 to 255"),
        ("tcp://10.0.0.5:port/1", "Port could not be cast"),
        ("rtu:///dev/ttyUSB0?speed=9600", "'speed' is no setting"),
        ("rtu:///dev/ttyUSB0?baudrate=fast", "invalid literal"),
        ("rtu:///dev/ttyUSB0?parity=x", "Invalid enum value 'x'"),
        ("rtu://ttyUSB0", "is no address of a device"),
    ],
)
def test_a_wrong_address_is_refused_with_how_to_write_it(text: str, why: str) -> None:
    with pytest.raises(ToolError, match=why) as caught:
        device_link(text)
    assert "write tcp://192.0.2.10:502/1 or rtu:///dev/" in str(caught.value)


async def test_a_live_device_shows_every_register_raw_and_decoded() -> None:
    async with device(find_profile("abb_terra_ac")) as (running, where):
        assert isinstance(running.device, SimulatedCharger)
        running.device.plug(Vehicle())
        code, out, _ = await called("test", "abb_terra_ac", "--device", where, "--json")
        report = json.loads(out)
        assert code == 0, report
        assert report["identity"] == "ABB 54220100262500a1 1.8.2"
        assert (report["state"], report["doubts"], report["refused"]) == ("B", [], "")
        rows = {row["name"]: row for row in report["registers"]}
        assert len(rows) == len(running.device.profile.registers)
        assert rows["voltage_l1"]["raw"] == "0000 08FC"
        assert (rows["voltage_l1"]["value"], rows["voltage_l1"]["unit"]) == (230_000, "mV")
        code, out, _ = await called("test", "abb_terra_ac", "--device", where)
        assert "IEC state: B" in out
        assert not running.device.evses[1].released, "nothing was written"


async def test_a_live_device_that_is_another_one_is_told_so() -> None:
    async with device(find_profile("webasto_next")) as (_, where):
        code, out, _ = await called("test", "vestel_evc04", "--device", where)
        assert code == 1
        assert "WRONG  " in out
        assert "does profile vestel_evc04 fit this device?" in out
    other = find_profile("phoenix_ev_cc_basic")
    assert other.simulator
    other.simulator.defaults["enable_mode"] = 1
    async with device(other) as (_, where):
        code, out, _ = await called("test", "phoenix_ev_cc_basic", "--device", where)
        assert code == 1
        assert "WRONG  " in out
        assert "set register 4000 to 3" in out
        assert "unsure, registers.iec_state: " in out
        assert "iec_state" in out, "what can be read is shown all the same"


async def test_a_device_that_is_not_there_is_exit_code_3() -> None:
    code, _, complaint = await called("test", "abb_terra_ac", "--device", "tcp://127.0.0.1:1/1")
    assert code == 3
    assert "check cabling, address, unit 1 and line" in complaint


async def test_a_meter_on_a_serial_line_shows_its_registers(tmp_path: Path) -> None:
    async with device(find_profile("eastron_sdm230"), pty=str(tmp_path / "line")) as (_, where):
        code, out, _ = await called("test", "eastron_sdm230", "--device", where, "--json")
        report = json.loads(out)
        assert (code, report["identity"]) == (0, "Eastron 20123456"), report["doubts"]
        assert report["state"] is None


async def test_a_scan_finds_what_is_there_between_what_is_not(tmp_path: Path) -> None:
    out = tmp_path / "scan.json"
    async with device(find_profile("webasto_next")) as (running, where):
        args = ("--device", where, "--functions", "3", "--ranges", "1000-1045", "--gap", "0")
        code, told, _ = await called("capture", "--out", out, *args, "--json")
        assert code == 0
        assert json.loads(told)["complete"]
        captured = json.loads(out.read_text())
        found = captured["words"]["3"]
        there = {span.address + i for span in running.device.bank._spans for i in range(span.count)}
        assert {int(address, 16) for address in found} == {a for a in there if 1000 <= a <= 1045}
        assert all("illegal address" in each for each in captured["refused"])
        assert (captured["unit"], captured["profile"]) == (255, None)


async def test_two_captures_tell_what_a_plug_changes(tmp_path: Path) -> None:
    one, two = tmp_path / "before.json", tmp_path / "after.json"
    async with device(find_profile("webasto_next")) as (running, where):
        assert isinstance(running.device, SimulatedCharger)
        args = ("--device", where, "--profile", "webasto_next", "--gap", "0")
        assert (await called("capture", "--out", one, *args))[0] == 0
        running.device.plug(Vehicle())
        assert (await called("capture", "--out", two, *args))[0] == 0
    code, out, _ = call("capture", "--diff", one, two, "--profile", "webasto_next", "--json")
    changes = {each["register"]: each for each in json.loads(out)}
    assert code == 1
    assert set(changes) == {"state", "cable"}
    assert (changes["state"]["before"], changes["state"]["after"]) == ("0000", "0001")
    assert (changes["cable"]["address"], changes["cable"]["after_decimal"]) == ("0x03ec", 3)
    assert "state" in call("capture", "--diff", one, two, "--profile", "webasto_next")[1]
    assert call("capture", "--diff", one, one)[:2] == (0, "nothing changed\n")


async def test_a_capture_never_touches_what_the_profile_forbids(tmp_path: Path) -> None:
    out = tmp_path / "scan.json"
    async with device(find_profile("bender_cc613")) as (running, where):
        asked: list[tuple[int, int]] = []
        read = running.device.read

        def remembered(span: Any, now: float) -> Any:
            asked.append((span.address, span.end))
            return read(span, now)

        running.device.read = remembered  # type: ignore[method-assign]  # what the device heard
        args = ("--functions", "3", "--ranges", "718-745", "--gap", "0", "--profile")
        code, _, _ = await called("capture", "--out", out, "--device", where, *args, "bender_cc613")
        assert code == 0
    assert asked
    for first, end in asked:
        assert not first <= 730 < end
        assert not (first <= 746 and end > 740)
    refused = json.loads(out.read_text())["refused"]
    assert any("forbidden by the profile" in each for each in refused)


async def test_golden_frames_are_what_went_over_the_line(tmp_path: Path) -> None:
    frames = tmp_path / "frames.yaml"
    async with device(find_profile("sunspec_meter")) as (_, where):
        args = ("--profile", "sunspec_meter", "--frames", frames, "--gap", "0")
        assert (await called("capture", "--device", where, *args))[0] == 0
    recorded = yaml.load(frames.read_text(), Loader=yaml.BaseLoader)
    requests = [bytes.fromhex(request) for request, _ in recorded["frames"]]
    assert bytes.fromhex("01 03 9c89 0034") in requests, "the model's place on this device"
    for request, reply in recorded["frames"]:
        asked, answered = bytes.fromhex(request), bytes.fromhex(reply)
        assert asked[:2] == answered[:2]
        assert answered[2] == len(answered) - 3 == 2 * int.from_bytes(asked[4:6])


async def test_a_function_that_a_device_does_not_know_is_asked_once(tmp_path: Path) -> None:
    out = tmp_path / "scan.json"
    async with device(find_profile("webasto_next")) as (running, where):
        args = ("--ranges", "1000-1100", "--functions", "1,4,3", "--gap", "0", "--chunk", "8")
        code, _, _ = await called("capture", "--out", out, "--device", where, *args)
        assert code == 0
        captured = json.loads(out.read_text())
        assert set(captured["words"]) == {"3"}
        unknown = [each for each in captured["refused"] if "illegal function" in each]
        assert [each[0] for each in unknown] == ["1", "4"]
        assert running.answers.requests > 20


async def test_a_device_that_falls_silent_ends_the_scan(tmp_path: Path) -> None:
    out = tmp_path / "scan.json"
    async with device(find_profile("webasto_next")) as (running, where):
        asked = 0
        reply = running.answers.reply

        def fewer(unit: int, pdu: bytes) -> bytes | None:
            nonlocal asked
            asked += 1
            return reply(unit, pdu) if asked <= 2 else None

        running.answers.reply = fewer  # type: ignore[method-assign]  # a device that dies
        args = ("--ranges", "1000-1200", "--functions", "3", "--gap", "0", "--chunk", "1")
        args += ("--timeout", "1")
        code, told, _ = await called("capture", "--out", out, "--device", where, *args)
        assert code == 3
        assert "ended early: 3 requests in a row had no answer" in told
    assert json.loads(out.read_text())["complete"] is False
    assert asked <= 6


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ("", "needs --device"),
        ("DEVICE", "say where to"),
        ("DEVICE --out x", "say what to read"),
        ("DEVICE --frames x", "name it with --profile"),
        ("DEVICE --out x --ranges 5-2", "'5-2' is not FIRST-LAST"),
        ("DEVICE --out x --ranges a", "'a' is no number"),
        ("DEVICE --out x --ranges 1 --functions 6", "only 1, 2, 3 and 4 read"),
    ],
)
def test_a_capture_that_makes_no_sense_is_refused(args: str, why: str) -> None:
    args = args.replace("DEVICE", "--device tcp://127.0.0.1:1/1")
    code, _, complaint = call("capture", *args.split())
    assert code == 2
    assert why in complaint


def test_a_diff_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}")
    code, _, complaint = call("capture", "--diff", path, path)
    assert code == 2
    assert "other.json is no capture" in complaint
    assert "none.json cannot be read" in call("capture", "--diff", tmp_path / "none.json", path)[2]
