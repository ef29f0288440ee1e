"""What a meter has signed comes through as it is, from its registers to what leaves the agent."""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.hardware.board import BoardRefusedError, BoardUnreachableError, MeterReading
from edge_agent.hardware.metered_board import Grade, MeteredBoard
from edge_agent.hardware.modbus_board import ModbusBoard, ModbusMeter
from edge_agent.hardware.modbus_port import ModbusLink
from edge_agent.hardware.registry import BoardConfig, find_profile, open_board, open_meter
from edge_agent.hardware.signatures import Signatures
from edge_agent.hardware.testing import FakePowerBoard
from edge_agent.uplink.ocpp.readings import signed_text
from karvon.simulator.charger import SimulatedCharger
from karvon.simulator.meter import SimulatedMeter
from karvon.simulator.running import Places, Running
from karvon.simulator.server import Device
from karvon.simulator.vehicle import Vehicle
from protocols.agent_link import (
    MAX_SIGNED_BYTES,
    SignedMoment,
    SignedValue,
    TransactionEvent,
    TransactionEventType,
)
from protocols.modbus.document import ProfileError
from protocols.modbus.loading import load_profile

ROOT = Path(__file__).parents[3]
OCMF: dict[str, str] = yaml.safe_load((ROOT / "tests/vectors/ocmf.yaml").read_text())
SIGNED = """
signed:
  encoding: OCMF
  begin: {address: 0x2000, registers: 500}
  end: {address: 0x2400, registers: 500}
  public_key: {address: 0x2800, registers: 100}
  wait_ms: 1000
"""
TEXTS = f"""
simulator:
  signed:
    begin: '{OCMF["begin"]}'
    end: '{OCMF["end"]}'
    public_key: '{OCMF["public_key"]}'
"""
METER = """
profile: signing_meter
kind: meter
maker: Example
models: [M3]
source: made for a test
status: manual
transports: {tcp: {port: 502, unit: 1}}
limits: {max_registers: 100}
registers:
  power: {address: 0, type: s32, unit: W}
  imported: {address: 2, type: u32, unit: Wh}
energy: {field: imported, kind: lifetime, billing_grade: true}
"""


LAID_OUT = """\
OCMF|{
\t"FV": "1.2", "GI": "KPB-F411", "GS": "AB123", "GV": "1.4.11", "PG": "T43",
\t"MV": "Example", "MM": "M3", "MS": "0815", "MF": "1.0", "CCV": "2.1",
\t"IS": true, "IL": "TRUSTED", "IF": ["RFID_NONE", "OCPP_AUTH_TLS"], "IT": "CENTRAL_1",
\t"ID": "04A2B3C4D5E6F7", "TT": "Tungi tarif · Ночной тариф",
\t"LC": {"LN": "kabel 5 m", "LI": 1, "LR": 2.5, "LU": "mOhm"},
\t"RD": [
\t\t{"TM": "2026-05-04T09:15:02,000+0500 S", "TX": "B", "RV": 5000.123, "RI": "1-b:1.8.0",
\t\t "RU": "kWh", "RT": "AC", "CL": 0.0, "EF": "", "ST": "G"},
\t\t{"TM": "2026-05-04T10:02:41,000+0500 S", "TX": "E", "RV": 5011.358, "CL": 0.01, "ST": "G"}
\t],
\t"U_free": "for the maker"
}|{
\t"SA": "ECDSA-brainpool256r1-SHA256", "SE": "base64", "SM": "application/x-der", "SD": "MEQCIA=="
}
"""
"""Begin and end in one dataset, laid out for people, with all that version 1.2 lets stand there."""


def is_genuine(data: bytes) -> bool:
    """Whether the signature of an OCMF dataset holds over its payload."""
    header, payload, signature = data.split(b"|")
    key = load_der_public_key(bytes.fromhex(OCMF["public_key"]))
    assert isinstance(key, ec.EllipticCurvePublicKey)
    try:
        signed = bytes.fromhex(json.loads(signature)["SD"])
        key.verify(signed, payload, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return header == b"OCMF"


def charger_profile(folder: Path) -> str:
    plain = (ROOT / "edge_agent/profiles/abb_terra_ac.yaml").read_text()
    plain = plain.replace("profile: abb_terra_ac", "profile: signing")
    simulated = TEXTS.replace("simulator:\n", "")
    text = plain.replace("simulator:\n", f"simulator:\n{simulated.lstrip(chr(10))}") + SIGNED
    (folder / "signing.yaml").write_text(text)
    return str(folder / "signing.yaml")


@asynccontextmanager
async def serving(device: Device) -> AsyncIterator[ModbusLink]:
    clock = asyncio.get_running_loop().time
    running = Running(device=device, places=Places(tcp="127.0.0.1:0"), clock=clock)
    await running.start()
    port = int(running.addresses["tcp"].rpartition(":")[2])
    try:
        yield ModbusLink(host="127.0.0.1", port=port, timeout_s=5)
    finally:
        await running.close()


def test_the_vector_is_signed_and_a_changed_octet_is_noticed() -> None:
    for name in ("begin", "end"):
        data = OCMF[name].encode()
        assert is_genuine(data)
        assert not is_genuine(data.replace(b"5000.123", b"5000.124"))


async def test_a_charger_tells_both_ends_of_its_transaction(tmp_path: Path) -> None:
    name = charger_profile(tmp_path)
    now = asyncio.get_running_loop().time()
    device = SimulatedCharger(find_profile(name), evses=1, unit=1, speed=1, now=now)
    async with serving(device) as link:
        board = open_board(BoardConfig(profile=name, link=link))
        assert isinstance(board, ModbusBoard)
        await board.open()
        device.plug(Vehicle())
        await board.release(1)
        await board.note_signed(1)
        with pytest.raises(BoardRefusedError, match="after 1000 ms nothing is signed"):
            await board.signed(1)
        await board.withhold(1)
        begin, end = await board.signed(1)
        assert (begin.moment, end.moment) == (SignedMoment.BEGIN, SignedMoment.END)
        assert begin.data.decode() == OCMF["begin"]
        assert end.data.decode() == OCMF["end"]
        assert is_genuine(begin.data)
        assert is_genuine(end.data)
        assert (end.encoding, end.public_key.decode()) == ("OCMF", OCMF["public_key"])
        with pytest.raises(BoardRefusedError, match="the same as before is signed"):
            await board.signed(1)
        await board.close()


def test_text_goes_as_it_is_and_its_octets_come_back_from_it() -> None:
    for text in (OCMF["begin"], OCMF["end"], LAID_OUT, LAID_OUT.replace("\n", "\r\n")):
        assert signed_text(text.encode()).encode() == text.encode()
    sent = json.loads(json.dumps({"value": signed_text(LAID_OUT.encode())}))
    assert sent["value"].encode() == LAID_OUT.encode(), "a frame of OCPP-J changes nothing"


@given(st.binary(min_size=1, max_size=200) | st.text(min_size=1, max_size=100).map(str.encode))
def test_whatever_a_meter_signs_its_octets_come_back(octets: bytes) -> None:
    told = signed_text(octets)
    sent = json.loads(json.dumps(told))
    assert octets in {sent.encode(), _unpacked(sent)}


def _unpacked(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except ValueError:
        return b""


async def test_what_is_laid_out_for_people_comes_through_octet_by_octet(tmp_path: Path) -> None:
    """White space, other scripts and the line's end at the end belong to what was signed."""
    simulated = {"simulator": {"signed": {"end": LAID_OUT}}}
    begin = "  begin: {address: 0x2000, registers: 500}\n"
    key = "  public_key: {address: 0x2800, registers: 100}\n"
    signed = SIGNED.replace(begin, "").replace(key, "").replace("registers: 500", "registers: 700")
    profile = METER + signed + yaml.safe_dump(simulated)
    (tmp_path / "meter.yaml").write_text(profile)
    name = str(tmp_path / "meter.yaml")
    loop = asyncio.get_running_loop()
    device = SimulatedMeter(find_profile(name), unit=1, speed=1, now=loop.time())
    async with serving(device) as link:
        meter = open_meter(BoardConfig(profile=name, link=link))
        assert isinstance(meter, ModbusMeter)
        await meter.open()
        (end,) = await Signatures(meter.device).after(1)
        assert end.data == LAID_OUT.encode()
        await meter.close()


async def test_a_meter_beside_a_board_signs_for_it(tmp_path: Path) -> None:
    (tmp_path / "meter.yaml").write_text(METER + SIGNED + TEXTS)
    name = str(tmp_path / "meter.yaml")
    loop = asyncio.get_running_loop()
    device = SimulatedMeter(find_profile(name), unit=1, speed=1, now=loop.time())
    async with serving(device) as link:
        meter = open_meter(BoardConfig(profile=name, link=link))
        assert isinstance(meter, ModbusMeter)
        board = MeteredBoard(
            FakePowerBoard(loop.time), meter, Grade(), patience_s=5, stale_after_s=30
        )
        await board.open()
        await board.read()
        signed = await board.signed(1)
        assert [is_genuine(one.data) for one in signed] == [True, True]
        await board.note_signed(1)
        with pytest.raises(BoardRefusedError, match="the same as before"):
            await board.signed(1)
        await board.close()


async def test_a_meter_that_signs_nothing_gives_nothing(tmp_path: Path) -> None:
    class Plain:
        identity = "plain"

        async def open(self) -> None: ...

        async def close(self) -> None: ...

        async def read(self) -> MeterReading:
            return MeterReading(taken_at=0)

    loop = asyncio.get_running_loop()
    fake = FakePowerBoard(loop.time)
    board = MeteredBoard(fake, Plain(), Grade(), patience_s=5, stale_after_s=30)
    await board.note_signed(1)
    assert await board.signed(1) == ()


class SigningBoard(FakePowerBoard):
    """A fake board whose meter signs; `failing` keeps it from answering."""

    failing: Exception | None = None
    noted = 0

    async def note_signed(self, evse: int) -> None:
        del evse
        self.noted += 1
        if self.failing:
            raise self.failing

    async def signed(self, evse: int) -> tuple[SignedValue, ...]:
        assert self.drawn_current(evse) == 0, "only what has ended is signed"
        if self.failing:
            raise self.failing
        return (SignedValue(SignedMoment.END, "OCMF", OCMF["end"].encode()),)


@pytest.mark.parametrize(
    "failing", [None, BoardUnreachableError("gone"), BoardRefusedError("not yet"), TimeoutError()]
)
async def test_the_end_carries_it_and_waits_for_nobody_for_ever(
    make_rig: Callable[..., Any], failing: Exception | None
) -> None:
    rig = make_rig()
    board = SigningBoard(rig.time)
    rig.boards = [board]
    rig.start()
    board.failing = failing
    await rig.charge(60)
    board.unplug()
    await rig.seconds(5)
    assert board.noted == 1
    (end,) = rig.events(TransactionEventType.ENDED)
    expected = () if failing else (OCMF["end"].encode(),)
    assert tuple(one.data for one in end.signatures) == expected
    assert all(not event.signatures for event in rig.events() if event is not end)
    kept = msgspec.json.decode(msgspec.json.encode(end), type=TransactionEvent)
    assert kept == end
    assert (b"signed" in msgspec.json.encode(end)) is not bool(failing)
    if not failing:
        assert b64decode(msgspec.to_builtins(end)["signed"][0]["data"]) == OCMF["end"].encode()


def test_what_is_too_much_is_refused_at_the_border() -> None:
    for size, fits in ((MAX_SIGNED_BYTES, True), (MAX_SIGNED_BYTES + 1, False), (0, False)):
        value = SignedValue(SignedMoment.END, "OCMF", b"x" * size)
        text = msgspec.json.encode(value)
        if fits:
            assert msgspec.json.decode(text, type=SignedValue) == value
        else:
            with pytest.raises(msgspec.ValidationError):
                msgspec.json.decode(text, type=SignedValue)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("0x2400, registers: 500", "0xFF00, registers: 500"), "beyond the last address"),
        (
            ("0x2800, registers: 100", "0x2800, function: 1, registers: 100"),
            "cannot be read by function 1",
        ),
        (("0x2800, registers: 100", "0x2800, registers: 9"), "'public_key' does not fit"),
        (("  begin: {address: 0x2000, registers: 500}\n", ""), "no block 'begin'"),
        (("wait_ms", "forbidden"), "forbidden"),
    ],
)
def test_a_block_that_cannot_be_read_is_a_mistake(change: tuple[str, str], reason: str) -> None:
    with pytest.raises(ProfileError, match=reason):
        load_profile((METER + SIGNED + TEXTS).replace(*change), "meter.yaml")


def test_a_forbidden_register_is_not_read_in_passing() -> None:
    rule = "forbidden: [{addresses: [0x2500, 0x2500], why: resets the meter}]\n"
    with pytest.raises(ProfileError, match="resets the meter"):
        load_profile(METER + rule + SIGNED + TEXTS, "meter.yaml")
