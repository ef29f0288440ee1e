"""Boards with MCUboot over SMP; smpclient is the host that takes the simulated one for real."""

import logging
from io import BytesIO
from pathlib import Path

import pytest
from rigs import HW_ID, SIZE, SmpRig
from smpclient.mcuboot import IMAGE_TLV, ImageInfo

from firmware_bridge.flashing import Flasher, Result
from firmware_bridge.journal import ImageStore, Journal, Phase
from firmware_bridge.loader import (
    FirmwareImage,
    LineError,
    LoaderSilentError,
    RefusedError,
    TransferError,
)
from firmware_bridge.mcuboot import said
from firmware_bridge.port import LineSettings
from firmware_bridge.simulator.faults import Faults
from firmware_bridge.simulator.lines import PtyLine
from firmware_bridge.simulator.smp import SmpBoard, make_signed
from firmware_bridge.smp import SmpLoader, serial_transport


def on_trial(rig: SmpRig, image: FirmwareImage) -> None:
    rig.loader.check(image)
    rig.loader.erase(image)
    rig.loader.write(image)
    rig.loader.verify(image)
    rig.loader.seal(image)
    rig.loader.boot()


def version(rig: SmpRig) -> str | None:
    seen = rig.loader.version()
    return None if seen is None else seen.version


def test_the_image_is_one_to_others_too(tmp_path: Path) -> None:
    octets = make_signed(SIZE, "1.2.3.7")
    file = tmp_path / "image.bin"
    file.write_bytes(octets)
    info = ImageInfo.load_file(str(file))
    assert said(octets).hash == info.get_tlv(IMAGE_TLV.SHA256).value
    assert said(octets).version == "1.2.3.7"
    assert BytesIO(octets).read(4) == b"\x3d\xb8\xf3\x96"


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda octets: octets[:20], "too short"),
        (lambda octets: b"\0" + octets[1:], "does not begin as an MCUboot image"),
        (lambda octets: octets[:900] + b"\0" + octets[901:], "the file is damaged"),
        (lambda octets: octets[:-40], "ends before its hash"),
    ],
)
def test_what_is_no_image_is_refused_before_anything_is_sent(spoil, why: str) -> None:
    rig = SmpRig()
    image = rig.image("1.1.0")
    spoiled = FirmwareImage(octets=spoil(image.octets), version="1.1.0")
    with pytest.raises(RefusedError, match=why):
        rig.loader.check(spoiled)
    assert rig.board.requests == 0


def test_an_image_of_another_version_than_it_was_sold_as_is_refused() -> None:
    rig = SmpRig()
    with pytest.raises(RefusedError, match=r"says that it is 9\.9\.9, and 1\.1\.0 was expected"):
        rig.loader.check(rig.image("1.1.0", says="9.9.9"))


def test_ota_f49_a_reply_lost_at_every_request_resumes() -> None:
    """Nothing that arrived is written twice, whatever reply was lost."""
    clean = SmpRig()
    on_trial(clean, clean.image("1.1.0"))
    clean.loader.confirm()
    pieces, requests = clean.board.uploads, clean.board.requests
    assert len(pieces) > 8
    for number in range(requests):
        for fault in ("lose_replies", "refuse"):
            rig = SmpRig()
            getattr(rig.faults, fault).add(number)
            on_trial(rig, rig.image("1.1.0"))
            rig.loader.confirm()
            assert version(rig) == "1.1.0", (fault, number)
            assert len(rig.board.uploads) <= len(pieces) + 1, (fault, number)
            assert rig.board.uploads == sorted(set(rig.board.uploads)), (fault, number)


def test_ota_f41_what_never_works_ends() -> None:
    rig = SmpRig()
    rig.faults.refuse |= set(range(6, 10_000))
    with pytest.raises(TransferError, match="failed 5 times"):
        on_trial(rig, rig.image("1.1.0"))
    assert rig.board.requests < 80


def test_ota_f42_the_board_is_cut_at_every_piece(tmp_path: Path) -> None:
    """The running image is never touched: the board charges on, and the upload begins again."""
    for piece in range(10):
        folder = tmp_path / str(piece)
        rig = SmpRig()
        rig.flasher(folder).install(rig.image("1.0.0"))
        rig.faults.cut_at_block = len(rig.board.uploads) + piece
        with pytest.raises((LoaderSilentError, TransferError)):
            rig.flasher(folder).install(rig.image("1.1.0"))
        rig.power_on()
        assert version(rig) == "1.0.0"
        outcome = rig.flasher(folder).install(rig.image("1.1.0"))
        assert (outcome.result, version(rig)) == (Result.INSTALLED, "1.1.0")


def test_ota_f43_what_arrived_spoiled_is_found_and_sent_again(tmp_path: Path) -> None:
    rig = SmpRig()
    rig.flasher(tmp_path).install(rig.image("1.0.0"))
    rig.faults.silent_writes = 1
    outcome = rig.flasher(tmp_path).install(rig.image("1.1.0"))
    assert (outcome.result, version(rig)) == (Result.INSTALLED, "1.1.0")


def test_ota_f43_what_always_arrives_spoiled_leaves_the_previous_image(tmp_path: Path) -> None:
    rig = SmpRig()
    rig.flasher(tmp_path).install(rig.image("1.0.0"))
    rig.faults.silent_writes = 10_000
    outcome = rig.flasher(tmp_path).install(rig.image("1.1.0"))
    assert (outcome.result, version(rig)) == (Result.PREVIOUS, "1.0.0")


def test_ota_f45_an_image_that_fails_its_self_test_goes_back_by_itself(tmp_path: Path) -> None:
    rig = SmpRig()
    rig.flasher(tmp_path).install(rig.image("1.0.0"))
    outcome = rig.flasher(tmp_path).install(rig.image("1.1.0", healthy=False))
    assert (outcome.result, version(rig)) == (Result.PREVIOUS, "1.0.0")
    assert "1.0.0 answers" in outcome.reason
    again = rig.flasher(tmp_path).install(rig.image("1.2.0"))
    assert (again.result, version(rig)) == (Result.INSTALLED, "1.2.0")


def test_ota_f50_an_image_that_nobody_confirms_reverts() -> None:
    rig = SmpRig()
    on_trial(rig, rig.image("1.1.0"))
    assert version(rig) == "1.1.0"
    rig.cut()
    rig.power_on()
    assert version(rig) == "0.1.0"
    on_trial(rig, rig.image("1.1.0"))
    rig.loader.confirm()
    rig.cut()
    rig.power_on()
    assert version(rig) == "1.1.0", "confirmed, it stays"


def test_ota_f50_a_swap_that_is_cut_goes_on(record_property) -> None:
    """At each sector of the swap to the trial, and of the swap back."""
    for sector in range(16):
        rig = SmpRig()
        rig.faults.cut_at_swap = sector
        on_trial(rig, rig.image("1.1.0"))
        assert version(rig) is None
        rig.power_on()
        assert version(rig) == "1.1.0", sector
        rig.faults.cut_at_swap = sector
        rig.board.power_on()
        assert version(rig) is None
        rig.power_on()
        assert version(rig) == "0.1.0", sector
    record_property("cuts in a swap", 32)


def test_ota_f50_a_host_killed_before_confirming_confirms_when_it_is_back(tmp_path: Path) -> None:
    rig = SmpRig()
    flasher = rig.flasher(tmp_path)
    flasher.install(rig.image("1.0.0"))

    def killed() -> None:
        raise KeyboardInterrupt

    rig.loader.confirm = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        flasher.install(rig.image("1.1.0"))
    entry = flasher.journal.load()
    assert entry is not None
    assert entry.phase is Phase.CONFIRM
    rig.connect()
    outcome = rig.flasher(tmp_path).recover()
    assert outcome is not None
    assert (outcome.result, version(rig)) == (Result.INSTALLED, "1.1.0")
    rig.cut()
    rig.power_on()
    assert version(rig) == "1.1.0"


def test_a_trial_of_another_image_is_ended_first() -> None:
    """Its second slot holds the way back, which an upload would destroy."""
    rig = SmpRig()
    on_trial(rig, rig.image("1.1.0"))
    on_trial(rig, rig.image("1.2.0"))
    assert version(rig) == "1.2.0"
    rig.cut()
    rig.power_on()
    assert version(rig) == "0.1.0"


def test_ota_f41_through_a_terminal_with_noise(tmp_path: Path, caplog) -> None:
    faults = Faults(lose_in={1400}, spoil_in={2600}, spoil_out={900})
    board = SmpBoard(faults=faults)
    board.load(make_signed(SIZE, "0.1.0"))
    image = SmpRig().image("1.1.0")
    with PtyLine(board) as line, caplog.at_level(logging.DEBUG):
        settings = LineSettings(device=line.path, parity="none")
        loader = SmpLoader(
            lambda: serial_transport(settings),
            line.path,
            hw_id=HW_ID,
            timeout_s=0.8,
            pause=lambda _: None,
        )
        flasher = Flasher(
            loader=loader, journal=Journal(tmp_path / "board.json"), images=ImageStore(tmp_path)
        )
        outcome = flasher.install(image)
        loader.close()
    assert (outcome.result, outcome.version) == (Result.INSTALLED, "1.1.0")
    assert board.running() == "1.1.0"
    assert not [one for one in caplog.records if one.name.startswith("smpclient")]


def test_nobody_answers_is_said_plainly() -> None:
    rig = SmpRig()
    rig.cut()
    assert not rig.loader.probe()
    with pytest.raises(LoaderSilentError, match="nobody answers to SMP"):
        rig.loader.enter()
    missing = LineSettings(device="/dev/ttyNONE")
    loader = SmpLoader(lambda: serial_transport(missing), missing.device)
    with pytest.raises(LineError, match="cannot open /dev/ttyNONE"):
        loader.identify()
    loader.close()
