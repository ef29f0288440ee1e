"""Firmware over Modbus: our own loader and ABB's registers, with and without a line."""

import zlib
from pathlib import Path

import pytest
from rigs import HW_ID, ModbusRig, QuickTimes

from firmware_bridge.flashing import Flasher, Result
from firmware_bridge.journal import ImageStore, Journal
from firmware_bridge.loader import (
    FirmwareImage,
    LineError,
    LoaderSilentError,
    RefusedError,
    TransferError,
    VerifyError,
)
from firmware_bridge.modbus_loader import ModbusLoader
from firmware_bridge.modbus_map import (
    BLOCK_AT,
    COMMAND_AT,
    IDENTITY_AT,
    IDENTITY_WORDS,
    STATUS_AT,
    Header,
    Identity,
    MapError,
    block,
    crc16,
)
from firmware_bridge.port import LineSettings
from firmware_bridge.registers import ModbusExceptionError, PymodbusRegisters, to_octets, to_words
from firmware_bridge.simulator.faults import Faults
from firmware_bridge.simulator.flash import make_image
from firmware_bridge.simulator.lines import PtyLine
from firmware_bridge.simulator.modbus import BLOCK_BYTES, DirectRegisters, ModbusBoard, TerraAc
from firmware_bridge.terra_ac import HW_ID as TERRA
from firmware_bridge.terra_ac import TerraAcLoader


def put(rig: ModbusRig, image: FirmwareImage) -> None:
    rig.loader.identify()
    rig.loader.check(image)
    rig.loader.erase(image)
    rig.loader.write(image)
    rig.loader.verify(image)
    rig.loader.seal(image)
    rig.loader.boot()


def test_the_checksum_is_the_published_one() -> None:
    assert crc16(b"123456789") == 0x31C3


def test_ota_f41_a_reply_lost_or_a_refusal_at_every_request() -> None:
    clean = ModbusRig()
    put(clean, clean.image("1.1.0"))
    for number in range(clean.board.requests):
        for fault in ("lose_replies", "refuse"):
            rig = ModbusRig()
            getattr(rig.faults, fault).add(number)
            put(rig, rig.image("1.1.0"))
            running = rig.loader.version()
            assert running is not None, (fault, number)
            assert running.version == "1.1.0"
            assert len(rig.board.programmed) == 14, "no block was programmed twice"


def test_ota_f41_what_never_works_ends() -> None:
    rig = ModbusRig()
    image = rig.image("1.1.0")
    rig.loader.identify()
    rig.loader.erase(image)
    rig.faults.refuse |= set(range(rig.board.requests + 4, 10_000))
    with pytest.raises(TransferError, match="failed 5 times"):
        rig.loader.write(image)
    assert rig.board.requests < 40


def test_ota_f42_a_cut_host_goes_on_where_the_loader_stands() -> None:
    """And a loader that was cut gets everything anew: its session was in its memory."""
    rig = ModbusRig()
    image = rig.image("1.1.0")
    rig.loader.identify()
    rig.loader.erase(image)

    def killed(done: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rig.loader.write(image, killed)
    erased = rig.erased()
    rig.connect()
    put(rig, image)
    assert rig.erased() == erased
    assert rig.board.programmed == list(range(14))


def test_ota_f42_cut_at_every_block_and_page(tmp_path: Path) -> None:
    for fault, count in (("cut_at_block", 14), ("cut_at_erase", 3)):
        for at in range(count):
            folder = tmp_path / f"{fault}{at}"
            rig = ModbusRig()
            rig.flasher(folder, hw_id=HW_ID).install(rig.image("1.0.0"))
            done = rig.board.programmed if fault == "cut_at_block" else rig.board.erased
            setattr(rig.faults, fault, len(done) + at + (fault == "cut_at_erase"))
            with pytest.raises(LoaderSilentError):
                rig.flasher(folder).install(rig.image("1.1.0"))
            rig.power_on()
            assert rig.loader.version() is None, "half an image never starts"
            assert rig.loader.probe()
            outcome = rig.flasher(folder).recover()
            assert outcome is not None
            assert (outcome.result, outcome.version) == (Result.INSTALLED, "1.1.0")


def test_ota_f43_a_block_that_was_not_programmed_is_found_before_it_starts(tmp_path: Path) -> None:
    rig = ModbusRig()
    rig.flasher(tmp_path).install(rig.image("1.0.0"))
    rig.faults.silent_writes = 3 * 14
    outcome = rig.flasher(tmp_path).install(rig.image("1.1.0"))
    assert (outcome.result, outcome.version) == (Result.PREVIOUS, "1.0.0")
    assert "another SHA-256 than the image" in outcome.reason


def test_ota_f43_the_loader_itself_refuses_a_mismatch() -> None:
    rig = ModbusRig()
    image = rig.image("1.1.0")
    rig.faults.silent_writes = 1
    with pytest.raises(VerifyError):
        put(rig, image)
    rig.board.power_on()
    assert rig.loader.version() is None


def test_the_loader_takes_a_block_twice_and_never_out_of_order() -> None:
    rig = ModbusRig()
    image = rig.image("1.1.0")
    rig.loader.identify()
    rig.loader.erase(image)
    registers = DirectRegisters(rig.board)
    session = int(image.sha256[:8], 16)
    parts = [image.octets[at : at + BLOCK_BYTES] for at in range(0, 672, BLOCK_BYTES)]
    registers.write(BLOCK_AT, to_words(block(0, session, parts[0])))
    registers.write(BLOCK_AT, to_words(block(0, session, parts[0])))
    refused = [
        block(2, session, parts[2]),
        block(1, session + 1, parts[1]),
        block(1, session, parts[1])[:-1] + b"\0",
        block(1, session, parts[1][:-2]),
    ]
    for octets in refused:
        with pytest.raises(ModbusExceptionError, match="exception 4"):
            registers.write(BLOCK_AT, to_words(octets))
    registers.write(BLOCK_AT, to_words(block(1, session, parts[1])))
    assert rig.board.programmed == [0, 1]


def test_start_is_refused_for_other_hardware_and_too_large_an_image() -> None:
    rig = ModbusRig()
    registers = DirectRegisters(rig.board)
    for hw_id, length in (("KPB-44", 1000), (HW_ID, 1 << 20)):
        header = Header(
            hw_id=hw_id, version="1.0.0", length=length, block_bytes=BLOCK_BYTES, sha256=bytes(32)
        )
        with pytest.raises(ModbusExceptionError):
            registers.write(COMMAND_AT, to_words(b"\0\1\0\0\0\7" + header.encode()))
    assert rig.erased() == 0
    rig.loader.identify()
    with pytest.raises(RefusedError, match="do not fit the 16384 bytes"):
        rig.loader.check(rig.image("1.0.0", size=20_000))
    with pytest.raises(RefusedError, match="no version such as"):
        rig.loader.check(rig.image("next"))


def test_an_identity_is_read_back_and_a_spoiled_one_is_none() -> None:
    board = ModbusBoard()
    octets = to_octets(board.read(IDENTITY_AT, IDENTITY_WORDS))
    assert Identity.decode(octets).encode() == octets
    for at in range(len(octets)):
        with pytest.raises(MapError):
            Identity.decode(octets[:at] + bytes((octets[at] ^ 1,)) + octets[at + 1 :])


def test_the_status_is_the_loaders_alone() -> None:
    rig = ModbusRig()
    put(rig, rig.image("1.1.0"))
    with pytest.raises(ModbusExceptionError):
        DirectRegisters(rig.board).read(STATUS_AT, 8)


def test_ota_f41_through_a_terminal_with_noise(tmp_path: Path) -> None:
    """pymodbus is the host: it takes the simulated unit's framing for a device's."""
    board = ModbusBoard(faults=Faults(lose_in={900}, spoil_in={1500}, spoil_out={300, 400}))
    with PtyLine(board) as line:
        registers = PymodbusRegisters(LineSettings(device=line.path), 1, timeout_s=0.8)
        flasher = Flasher(
            loader=ModbusLoader(registers),
            journal=Journal(tmp_path / "board.json"),
            images=ImageStore(tmp_path),
        )
        outcome = flasher.install(ModbusRig().image("1.1.0"))
        registers.close()
    assert (outcome.result, outcome.version) == (Result.INSTALLED, "1.1.0")


def test_a_line_that_is_not_there_is_said_plainly() -> None:
    with pytest.raises(LineError, match="cannot open /dev/ttyNONE"):
        PymodbusRegisters(LineSettings(device="/dev/ttyNONE"), 1)
    with pytest.raises(LineError, match=r"cannot open 127\.0\.0\.1:1"):
        PymodbusRegisters(("127.0.0.1", 1), 1, timeout_s=0.2)


# -- ABB Terra AC ----------------------------------------------------------------------------------


def terra_image(version: str = "1.8.21") -> FirmwareImage:
    octets = make_image(3000, version, hw_id=TERRA)
    return FirmwareImage(octets=octets, version=version, hw_ids=frozenset({TERRA}))


def terra_flasher(charger: TerraAc, folder: Path, checksum: str | None) -> Flasher:
    return Flasher(
        loader=TerraAcLoader(DirectRegisters(charger), checksum=checksum),
        journal=Journal(folder / "board.json"),
        images=ImageStore(folder),
        times=QuickTimes(),
    )


def test_terra_ac_is_locked_until_its_checksum_is_named(tmp_path: Path) -> None:
    charger = TerraAc()
    flasher = terra_flasher(charger, tmp_path, None)
    seen = flasher.loader.version()
    assert seen is not None
    assert (seen.version, seen.hw_id) == ("1.8.0", TERRA)
    with pytest.raises(RefusedError, match=r"is locked.*--terra-ac-checksum \(crc32 or sum\)"):
        flasher.install(terra_image())
    assert charger.written == []


@pytest.mark.parametrize("checksum", ["crc32", "sum"])
def test_terra_ac_takes_an_image_whose_chunks_are_summed_up_rightly(
    tmp_path: Path, checksum: str
) -> None:
    way = zlib.crc32 if checksum == "crc32" else sum
    charger = TerraAc(checksum=way, faults=Faults(lose_replies={9, 15}, refuse={12}))
    outcome = terra_flasher(charger, tmp_path, checksum).install(terra_image())
    assert (outcome.result, charger.version) == (Result.INSTALLED, (1, 8, 21))


def test_terra_ac_that_sums_up_otherwise_keeps_what_it_has(tmp_path: Path) -> None:
    charger = TerraAc(checksum=sum)
    outcome = terra_flasher(charger, tmp_path, "crc32").install(terra_image())
    assert (outcome.result, charger.version) == (Result.FAULTED, (1, 8, 0))
    assert "keeps what it has" in outcome.reason


def test_terra_ac_that_keeps_its_version_was_not_updated(tmp_path: Path) -> None:
    """The charger refused the signature and says nothing: only its version tells."""
    charger = TerraAc()
    spoiled = terra_image().octets[:-1] + b"\0"
    image = FirmwareImage(octets=spoiled, version="1.8.21", hw_ids=frozenset({TERRA}))
    outcome = terra_flasher(charger, tmp_path, "crc32").install(image)
    assert outcome.result is Result.FAULTED
    assert "1.8.0 answers" in outcome.reason
