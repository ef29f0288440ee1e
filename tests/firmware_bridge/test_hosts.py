"""Hosts that are not ours flash the simulated STM32 through a pseudo terminal; so does ours."""

import subprocess
from pathlib import Path

import pytest
import serial
from stm32loader.bootloader import Stm32Bootloader

from firmware_bridge.loader import FirmwareImage, LineError
from firmware_bridge.port import LineSettings, SerialLine
from firmware_bridge.simulator.faults import Faults
from firmware_bridge.simulator.flash import make_image
from firmware_bridge.simulator.lines import PtyLine
from firmware_bridge.simulator.stm32 import F4, FLASH_AT, Stm32
from firmware_bridge.stm32 import Stm32Loader

IMAGE = make_image(5000, "1.4.0")
F1 = (1024,) * 128
CHIPS = [
    pytest.param({"pid": 0x410, "pages": F1, "extended": False}, id="erase 43h"),
    pytest.param({"pid": 0x413, "pages": F4, "extended": True}, id="extended erase 44h"),
]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("busy", [0, 2])
def test_stm32flash_writes_verifies_and_starts(
    stm32flash: str, tmp_path: Path, chip: dict, busy: int
) -> None:
    file = tmp_path / "image.bin"
    file.write_bytes(IMAGE)
    # It waits half a second for an answer and no longer, which a busy machine may need.
    for _ in range(3):
        board = Stm32(**chip, faults=Faults(busy=busy))
        with PtyLine(board) as line:
            done = run(
                [stm32flash, "-m", "8n1", "-w", str(file), "-v", "-g", f"{FLASH_AT:#x}", line.path]
            )
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stdout + done.stderr
    running = board.running()
    assert running is not None
    assert running.version == "1.4.0"


def test_stm32flash_is_refused_under_readout_protection(stm32flash: str, tmp_path: Path) -> None:
    file = tmp_path / "image.bin"
    file.write_bytes(IMAGE)
    board = Stm32(protected=True)
    with PtyLine(board) as line:
        done = run([stm32flash, "-m", "8n1", "-w", str(file), "-v", line.path])
    assert done.returncode != 0
    assert board.programmed == []


@pytest.mark.parametrize("chip", CHIPS)
def test_stm32loader_as_a_library_writes_verifies_and_starts(chip: dict) -> None:
    board = Stm32(**chip)
    with PtyLine(board) as line, serial.Serial(line.path, 115200, timeout=5) as port:
        host = Stm32Bootloader(port, verbosity=0)
        host.write(0x7F)
        assert port.read(1) == b"\x79"
        host.get()
        assert host.get_id() == chip["pid"]
        if board.extended:
            host.extended_erase_memory([0])
        else:
            host.erase_memory(range(5))
        host.write_memory_data(FLASH_AT, IMAGE)
        assert bytes(host.read_memory_data(FLASH_AT, len(IMAGE))) == IMAGE
        host.go(FLASH_AT)
    running = board.running()
    assert running is not None
    assert running.version == "1.4.0"


@pytest.mark.parametrize("chip", CHIPS[:1])
def test_ours_through_the_same_terminal(chip: dict) -> None:
    board = Stm32(**chip, faults=Faults(lose_in={700}, spoil_out={60}))
    with PtyLine(board) as line:
        port = SerialLine(LineSettings(device=line.path))
        loader = Stm32Loader(port, enter=board.enter_loader, version=board.running)
        image = FirmwareImage(octets=IMAGE, version="1.4.0", chips=frozenset({chip["pid"]}))
        assert loader.probe()
        loader.identify()
        loader.check(image)
        loader.erase(image)
        loader.write(image)
        loader.verify(image)
        loader.seal(image)
        loader.boot()
        port.close()
        running = loader.version()
    assert running is not None
    assert running.version == "1.4.0"


def test_a_port_that_is_not_there_is_said_plainly() -> None:
    with pytest.raises(LineError, match=r"cannot open /dev/ttyNONE.*is it plugged in"):
        SerialLine(LineSettings(device="/dev/ttyNONE"))


def test_a_port_that_goes_away_is_said_plainly() -> None:
    board = Stm32()
    line = PtyLine(board)
    with line:
        port = SerialLine(LineSettings(device=line.path))
    with pytest.raises(LineError, match="went away in the middle"):
        port.read(1, 5.0)
    port.close()
