"""One simulated board of each kind with its loader, without time, for the tests of the port."""

from __future__ import annotations

from pathlib import Path

from firmware_bridge.flashing import Flasher
from firmware_bridge.journal import ImageStore, Journal
from firmware_bridge.loader import FirmwareImage, Loader
from firmware_bridge.modbus_loader import ModbusLoader
from firmware_bridge.simulator.faults import Faults
from firmware_bridge.simulator.flash import make_image
from firmware_bridge.simulator.lines import DirectLine
from firmware_bridge.simulator.modbus import DirectRegisters, ModbusBoard
from firmware_bridge.simulator.smp import DirectTransport, SmpBoard, make_signed
from firmware_bridge.simulator.stm32 import FLASH_AT, Stm32
from firmware_bridge.smp import SmpLoader
from firmware_bridge.stm32 import Stm32Loader

HW_ID = "KPB-22"
SIZE = 3000
OPEN: list[SmpLoader] = []
"""Each has an event loop, which the fixture `closed` closes."""


class QuickTimes:
    """Sleeping is over at once."""

    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.at += seconds


class Rig:
    """A board, how to reach it, and images for it."""

    loader: Loader
    faults: Faults

    def image(self, version: str, **said) -> FirmwareImage:
        raise NotImplementedError

    def cut(self) -> None:
        raise NotImplementedError

    def power_on(self) -> None:
        raise NotImplementedError

    def flasher(self, folder: Path, **settings) -> Flasher:
        return Flasher(
            loader=self.loader,
            journal=Journal(folder / "board.json"),
            images=ImageStore(folder / "images"),
            times=QuickTimes(),
            **settings,
        )


class Stm32Rig(Rig):
    """No BOOT0 wired: only an erased first block keeps it in its ROM after a cut."""

    def __init__(self, **settings) -> None:
        self.faults = Faults()
        self.chip = Stm32(
            pid=0x410,
            pages=(1024,) * 8,
            extended=False,
            boot0=False,
            faults=self.faults,
            **settings,
        )
        self.connect()

    def connect(self) -> None:
        self.loader = Stm32Loader(
            DirectLine(self.chip),
            enter=self.chip.enter_loader,
            version=self.chip.running,
            pause=lambda _: None,
        )

    def image(self, version: str, *, hw_id: str = HW_ID, size: int = SIZE, **said) -> FirmwareImage:
        return FirmwareImage(
            octets=make_image(size, said.pop("says", version), hw_id=hw_id, **said),
            version=version,
            hw_ids=frozenset({hw_id}),
            chips=frozenset({0x410}),
            address=FLASH_AT,
        )

    def cut(self) -> None:
        self.chip.cut()

    def power_on(self) -> None:
        self.faults.cut_at_block = self.faults.cut_at_erase = None
        self.chip.power_on()

    def erased(self) -> int:
        return len(self.chip.erased)

    def loader_blocks(self, image: FirmwareImage) -> int:
        return self.loader.blocks(image)


class ModbusRig(Rig):
    """Our loader behind registers."""

    def __init__(self, **settings) -> None:
        self.faults = Faults()
        self.board = ModbusBoard(faults=self.faults, **settings)
        self.connect()

    def connect(self) -> None:
        self.loader = ModbusLoader(DirectRegisters(self.board), pause=lambda _: None)

    def image(self, version: str, *, hw_id: str = HW_ID, size: int = SIZE, **said) -> FirmwareImage:
        return FirmwareImage(
            octets=make_image(size, said.pop("says", version), hw_id=hw_id, **said),
            version=version,
            hw_ids=frozenset({hw_id}),
        )

    def cut(self) -> None:
        self.board.cut()

    def power_on(self) -> None:
        self.faults.cut_at_block = self.faults.cut_at_erase = None
        self.board.power_on()

    def erased(self) -> int:
        return len(self.board.erased)

    def loader_blocks(self, image: FirmwareImage) -> int:
        self.loader.identify()
        return self.loader.blocks(image)


class SmpRig(Rig):
    """MCUboot, with an application from the factory: only an application takes images."""

    def __init__(self, **settings) -> None:
        self.faults = Faults()
        self.board = SmpBoard(faults=self.faults, **settings)
        self.board.load(make_signed(SIZE, "0.1.0"))
        self.connect()

    def connect(self) -> None:
        self.loader = loader = SmpLoader(
            lambda: DirectTransport(self.board), "none", hw_id=HW_ID, pause=lambda _: None
        )
        OPEN.append(loader)

    def image(self, version: str, *, hw_id: str = HW_ID, size: int = SIZE, **said) -> FirmwareImage:
        return FirmwareImage(
            octets=make_signed(size, said.pop("says", version), hw_id=hw_id, **said),
            version=version,
            hw_ids=frozenset({hw_id}),
        )

    def cut(self) -> None:
        self.board.cut()

    def power_on(self) -> None:
        self.faults.cut_at_block = self.faults.cut_at_swap = None
        self.board.power_on()

    def erased(self) -> int:
        return len(self.board.uploads)

    def loader_blocks(self, image: FirmwareImage) -> int:
        return self.loader.blocks(image)
