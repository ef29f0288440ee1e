"""The host's side of AN3155 against a strict chip, octet by octet and without time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridge import an3155
from firmware_bridge.chips import CHIPS
from firmware_bridge.loader import (
    BridgeError,
    FirmwareImage,
    LoaderSilentError,
    ProtectedError,
    RefusedError,
    TransferError,
    VerifyError,
)
from firmware_bridge.port import hold
from firmware_bridge.simulator.faults import Faults
from firmware_bridge.simulator.flash import make_image
from firmware_bridge.simulator.lines import DirectLine
from firmware_bridge.simulator.stm32 import FLASH_AT, RAM_AT, Stm32
from firmware_bridge.stm32 import Stm32Loader

SMALL = (1024,) * 8


def image_of(octets: bytes, address: int = FLASH_AT) -> FirmwareImage:
    return FirmwareImage(octets=octets, version="1.2.3", chips=frozenset({0x410}), address=address)


def small_chip(**settings) -> Stm32:
    return Stm32(pid=0x410, pages=SMALL, extended=False, **settings)


def loader_of(chip: Stm32) -> Stm32Loader:
    return Stm32Loader(DirectLine(chip), enter=chip.enter_loader, pause=lambda _: None)


def put(loader: Stm32Loader, image: FirmwareImage) -> None:
    assert loader.probe()
    loader.identify()
    loader.check(image)
    loader.erase(image)
    loader.write(image)
    loader.verify(image)
    loader.seal(image)
    loader.verify(image, sealed=True)


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("busy", [0, 3])
def test_an_image_is_put_there_and_nothing_else_is_touched(extended: bool, busy: int) -> None:
    chip = Stm32(pid=0x410, pages=SMALL, extended=extended, faults=Faults(busy=busy))
    chip.flash.octets[3 * 1024 :] = b"\x11" * (5 * 1024)
    octets = make_image(2500, "1.2.3")
    put(loader_of(chip), image_of(octets))
    assert chip.flash.octets[:2500] == octets
    assert chip.flash.octets[2504 : 3 * 1024] == b"\xff" * (3 * 1024 - 2504)
    assert chip.flash.octets[3 * 1024 :] == b"\x11" * (5 * 1024)
    assert chip.erased == [0, 1, 2], "what makes it start goes first"
    assert chip.programmed[-1] == FLASH_AT, "and comes last"


def test_it_goes_behind_a_loader_of_its_own() -> None:
    chip = small_chip()
    chip.flash.octets[:2048] = b"\x22" * 2048
    octets = make_image(1500, "1.2.3")
    put(loader_of(chip), image_of(octets, FLASH_AT + 2048))
    assert chip.flash.octets[:2048] == b"\x22" * 2048
    assert chip.erased == [2, 3]
    assert chip.programmed[-1] == FLASH_AT + 2048


def test_the_application_runs_after_boot() -> None:
    chip = small_chip()
    loader = loader_of(chip)
    put(loader, image_of(make_image(2500, "1.2.3", hw_id="KPB-22")))
    loader.boot()
    running = chip.running()
    assert running is not None
    assert (running.version, running.hw_id) == ("1.2.3", "KPB-22")
    assert not loader.probe()
    loader.enter()
    assert loader.probe()


def test_ota_f41_an_octet_lost_or_spoiled_anywhere(sample_size, record_property) -> None:
    """Each octet of a whole flashing, both ways; it always ends right, and touches nothing else."""
    octets = make_image(1300, "1.2.3")
    image = image_of(octets)
    clean = small_chip()
    put(loader_of(clean), image)
    inward, outward = clean._in.position, clean._out.position
    tried = 0
    step = max(1, (inward + outward) * 2 // sample_size(400, 10_000))
    for fault, positions in (
        ("lose_in", range(0, inward, step)),
        ("spoil_in", range(0, inward, step)),
        ("lose_out", range(0, outward, step)),
        ("spoil_out", range(0, outward, step)),
    ):
        for position in positions:
            chip = small_chip(faults=Faults(**{fault: {position}}))
            chip.flash.octets[2048:] = b"\x11" * (6 * 1024)
            put_stubbornly(chip, image)
            assert chip.flash.octets[:1300] == octets, (fault, position)
            assert chip.flash.octets[2048:] == b"\x11" * (6 * 1024), (fault, position)
            tried += 1
    assert tried >= 390
    record_property("octets lost or spoiled", tried)


SPOTS = st.sets(st.integers(0, 6000), max_size=12)


@given(
    lose_in=SPOTS,
    spoil_in=SPOTS,
    lose_out=SPOTS,
    spoil_out=SPOTS,
    refuse=st.sets(st.integers(0, 60), max_size=4),
    extended=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_ota_f41_whatever_the_noise_nothing_wrong_is_taken_for_right(
    lose_in: set[int],
    spoil_in: set[int],
    lose_out: set[int],
    spoil_out: set[int],
    refuse: set[int],
    extended: bool,
) -> None:
    """It ends, with the image or an error; what is beside the image is never touched."""
    octets = make_image(1300, "1.2.3")
    faults = Faults(
        lose_in=lose_in,
        spoil_in=spoil_in,
        lose_out=lose_out,
        spoil_out=spoil_out,
        refuse=refuse,
    )
    chip = Stm32(pid=0x410, pages=SMALL, extended=extended, faults=faults)
    chip.flash.octets[2048:] = b"\x11" * (6 * 1024)
    loader = loader_of(chip)
    try:
        if not loader.probe():
            return
        loader.identify()
        loader.check(image_of(octets))
        loader.erase(image_of(octets))
        loader.write(image_of(octets))
        loader.verify(image_of(octets))
        loader.seal(image_of(octets))
        loader.verify(image_of(octets), sealed=True)
    except BridgeError:
        assert faults != Faults(), "without noise it works"
    else:
        assert chip.flash.octets[:1300] == octets
    finally:
        assert chip.flash.octets[2048:] == b"\x11" * (6 * 1024)


def put_stubbornly(chip: Stm32, image: FirmwareImage) -> None:
    """As the plan does: a page that is neither blank nor right is erased again."""
    try:
        put(loader_of(chip), image)
    except VerifyError:
        put(loader_of(chip), image)


def test_ota_f41_a_refusal_at_every_request_is_asked_again() -> None:
    octets = make_image(1300, "1.2.3")
    clean = small_chip()
    put(loader_of(clean), image_of(octets))
    for number in range(len(clean.commands)):
        chip = small_chip(faults=Faults(refuse={number}))
        put(loader_of(chip), image_of(octets))
        assert chip.flash.octets[:1300] == octets, number


def test_ota_f41_what_never_works_ends() -> None:
    chip = small_chip(faults=Faults(refuse=set(range(12, 1000))))
    with pytest.raises(TransferError, match="failed 5 times"):
        put(loader_of(chip), image_of(make_image(1300, "1.2.3")))
    assert len(chip.commands) < 200


@given(open_frame=st.binary(max_size=300), protected=st.booleans(), extended=st.booleans())
@settings(max_examples=200, deadline=None)
def test_whatever_the_loader_waits_for_it_hears_again(
    open_frame: bytes, protected: bool, extended: bool
) -> None:
    chip = Stm32(pid=0x410, pages=SMALL, extended=extended, protected=protected)
    line = DirectLine(chip)
    line.write(b"\x7f" + open_frame)
    erased = list(chip.erased)
    hold(an3155.resync(), line)
    assert chip.erased == erased, "the way back must not erase"
    assert hold(an3155.get_id(), line) == 0x410


@pytest.mark.parametrize("extended", [False, True])
def test_ota_f41_no_cut_frame_erases_what_was_not_asked(extended: bool) -> None:
    """Every frame of an erase, cut at every octet and filled up on the way back."""
    frames = (
        b"\x44\xbb" + b"\x00\x01\x00\x01\x00\x02" + b"\x02"
        if extended
        else b"\x43\xbc" + b"\x01\x01\x02" + b"\x02"
    )
    for cut in range(len(frames)):
        chip = Stm32(pid=0x410, pages=SMALL, extended=extended)
        line = DirectLine(chip)
        line.write(b"\x7f" + frames[:cut])
        hold(an3155.resync(), line)
        assert chip.erased == []


def test_nobody_answers() -> None:
    chip = small_chip()
    chip.cut()
    loader = loader_of(chip)
    assert not loader.probe()
    with pytest.raises(LoaderSilentError, match="no STM32 loader answers"):
        loader.enter()


def test_ota_f40_a_chip_that_is_not_known_is_refused_before_erasing() -> None:
    chip = Stm32(pid=0x7FF, pages=SMALL, extended=False)
    loader = loader_of(chip)
    assert loader.probe()
    assert loader.identify().chip == 0x7FF
    with pytest.raises(RefusedError, match="not in our table"):
        loader.check(image_of(b"\0" * 512))
    assert chip.erased == []


def test_what_does_not_fit_is_refused_before_erasing() -> None:
    chip = small_chip()
    loader = loader_of(chip)
    assert loader.probe()
    loader.identify()
    for octets, address in (
        (b"", FLASH_AT),
        (b"\0" * (128 * 1024 + 1), FLASH_AT),
        (b"\0" * 16, RAM_AT),
        (b"\0" * 16, FLASH_AT - 16),
        (b"\0" * 16, FLASH_AT + 4),
        (b"\0" * 16, FLASH_AT + 512),
    ):
        with pytest.raises(RefusedError, match="nothing was erased"):
            loader.check(image_of(octets, address))
    assert chip.erased == []


@pytest.mark.parametrize("extended", [False, True])
def test_ota_f44_readout_protection_is_reported_and_never_taken_off(extended: bool) -> None:
    chip = Stm32(pid=0x410, pages=SMALL, extended=extended, protected=True)
    chip.flash.octets[:16] = b"\x33" * 16
    loader = loader_of(chip)
    assert loader.probe()
    with pytest.raises(ProtectedError, match="readout protection is set"):
        loader.identify()
    assert chip.protected
    assert 0x92 not in chip.commands
    assert chip.flash.octets[:16] == b"\x33" * 16


def test_ota_f43_a_write_that_was_only_acknowledged_is_found() -> None:
    chip = small_chip(faults=Faults(silent_writes=1))
    with pytest.raises(VerifyError, match="write-protected, or the flash is worn out"):
        put(loader_of(chip), image_of(make_image(2500, "1.2.3")))
    assert chip.flash.octets[:4] == b"\xff" * 4, "it must not be startable"


def test_the_geometry_of_a_sectored_chip() -> None:
    f4 = CHIPS[0x413]
    assert f4.flash_bytes == 1024 * 1024
    assert f4.touched(FLASH_AT, 320 * 1024) == (0, 1, 2, 3, 4, 5, 6)
    assert f4.touched(FLASH_AT + 0x2_0000, 1) == (5,)
    assert CHIPS[0x419].flash_bytes == 2 * 1024 * 1024
    assert CHIPS[0x433].pages == tuple(1024 * k for k in (16, 16, 16, 16, 64, 128, 128, 128))
    assert CHIPS[0x410].touched(FLASH_AT + 1000, 100) == (0, 1)


def test_the_simulator_programs_only_what_is_erased() -> None:
    chip = small_chip()
    line = DirectLine(chip)
    hold(an3155.sync(), line)
    hold(an3155.write(FLASH_AT, b"\x0f" * 8), line)
    with pytest.raises(an3155.Nacked):
        hold(an3155.write(FLASH_AT, b"\xf0" * 8), line)
    for address, octets in ((FLASH_AT + 2, b"\0" * 4), (FLASH_AT + 64, b"\0" * 5)):
        with pytest.raises(an3155.Nacked):
            hold(an3155.write(address, octets), line)
    with pytest.raises(an3155.Nacked):
        hold(an3155.erase([0], extended=True), line)
