"""BOOT0 and reset by the modem lines of an adapter."""

import pytest

from firmware_bridge.loader import LoaderSilentError, RefusedError
from firmware_bridge.pins import BootPins, Modem, Wiring, WiringError
from firmware_bridge.port import LineSettings, SerialLine
from firmware_bridge.simulator.flash import make_image
from firmware_bridge.simulator.lines import DirectLine, PtyLine
from firmware_bridge.simulator.stm32 import Stm32
from firmware_bridge.stm32 import Stm32Loader

SMALL = (1024,) * 8


class Wired:
    """An adapter's lines on a board: levels are what its outputs have, low where a line is set."""

    def __init__(self, chip: Stm32, *, boot0: Modem, inverted: bool) -> None:
        self._chip, self._boot0, self._inverted = chip, boot0, inverted
        self._reset_high = True

    def set_modem(self, name: Modem, *, on: bool) -> None:
        high = on if self._inverted else not on
        if name == self._boot0:
            self._chip.boot0 = high
            return
        if not high:
            self._chip.cut()
        elif not self._reset_high:
            self._chip.power_on()
        self._reset_high = high


@pytest.mark.parametrize(
    ("text", "boot0", "inverted"), [("rts,dtr", "rts", False), ("!dtr, !rts", "dtr", True)]
)
def test_pins_bring_a_board_into_its_rom_and_start_it_again(
    text: str, boot0: Modem, inverted: bool
) -> None:
    chip = Stm32(pid=0x410, pages=SMALL, extended=False, boot0=False)
    chip.flash.octets[:3000] = make_image(3000, "1.0.0")
    chip.power_on()
    pins = BootPins(
        Wired(chip, boot0=boot0, inverted=inverted), Wiring.parse(text), pause=lambda _: None
    )
    loader = Stm32Loader(DirectLine(chip), pins=pins, version=chip.running, pause=lambda _: None)
    assert not loader.probe()
    loader.enter()
    assert loader.identify().chip == 0x410
    loader.boot()
    running = loader.version()
    assert running is not None
    assert running.version == "1.0.0"


def test_pins_that_do_not_help_say_so() -> None:
    chip = Stm32(pid=0x410, pages=SMALL)
    chip.power_on = chip.cut  # type: ignore[method-assign]  # it is broken
    chip.cut()
    pins = BootPins(
        Wired(chip, boot0="rts", inverted=False), Wiring.parse("rts,dtr"), pause=lambda _: None
    )
    with pytest.raises(LoaderSilentError):
        Stm32Loader(DirectLine(chip), pins=pins, pause=lambda _: None).enter()


@pytest.mark.parametrize("text", ["", "rts", "rts,rts", "rts,cts", "rts,dtr,rts", "!,dtr"])
def test_what_is_no_wiring_is_refused(text: str) -> None:
    with pytest.raises(WiringError, match=r"is no wiring|does not name one line"):
        Wiring.parse(text)


def test_a_port_without_modem_lines_says_what_to_do() -> None:
    wiring = Wiring.parse("rts,dtr")
    with PtyLine(Stm32()) as line:
        port = SerialLine(LineSettings(device=line.path), wiring)
        with pytest.raises(RefusedError, match=r"has no RTS to set .* leave out --pins"):
            BootPins(port, wiring).start(loader=True)
        port.close()
