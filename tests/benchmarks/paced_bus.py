"""Several chargers on one serial line that is as slow as its baud rate, in a process of its own.

python tests/benchmarks/paced_bus.py --pty PATH --control PATH --units 1,2,3 [--baud 19200]

A request is heard when its last bit would have come, and the answer arrives when its own would
have: eleven bits a byte, and the silence of 3.5 characters between frames. The control socket takes
what `karvon sim charger --control` takes, with the `unit` it is for, and tells what was asked when.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import termios
import time
import tty
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from edge_agent.hardware.registry import find_profile  # noqa: E402
from karvon.simulator import frames  # noqa: E402
from karvon.simulator.charger import SimulatedCharger  # noqa: E402
from karvon.simulator.control import Control, ControlServer  # noqa: E402
from karvon.simulator.server import Answers  # noqa: E402

BITS_A_BYTE = 11
SILENCE_CHARS = 3.5
TICK_S = 0.05


class PacedBus:
    """Speaks for every unit on the line; `asked` notes each whole request in its order."""

    def __init__(self, devices: dict[int, Answers], baud: int) -> None:
        self.devices = devices
        self.byte_s = BITS_A_BYTE / baud
        self.asked: list[tuple[float, int, int, int, int]] = []
        """(second, unit, function, address, count or value)."""
        self.collisions = 0
        """Requests that came while an answer was on the line."""
        self._buffer = bytearray()
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave, termios.TCSANOW)
        os.set_blocking(self._master, False)
        self._busy_until = 0.0

    def start(self, link: Path) -> None:
        link.unlink(missing_ok=True)
        link.symlink_to(os.ttyname(self._slave))
        asyncio.get_running_loop().add_reader(self._master, self._readable)

    def _readable(self) -> None:
        with contextlib.suppress(OSError):
            self._buffer += os.read(self._master, 1024)
        while (request := frames.take_rtu(self._buffer)) is not None:
            self._hear(*request)

    def _hear(self, unit: int, pdu: bytes) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self.collisions += now < self._busy_until
        address, count = int.from_bytes(pdu[1:3], "big"), int.from_bytes(pdu[3:5], "big")
        self.asked.append((time.monotonic(), unit, pdu[0], address, count))
        heard = now + (len(pdu) + 3 + SILENCE_CHARS) * self.byte_s
        loop.call_at(heard, self._answer, unit, pdu)

    def _answer(self, unit: int, pdu: bytes) -> None:
        device = self.devices.get(unit)
        answer = device.reply(unit, pdu) if device else None
        if device is None or answer is None:
            return
        frame = device.spoiled(frames.put_rtu(unit, answer))
        loop = asyncio.get_running_loop()
        self._busy_until = loop.time() + len(frame) * self.byte_s
        loop.call_at(self._busy_until, self._write, frame)

    def _write(self, frame: bytes) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._master, frame)


class BusControl:
    """The control of the unit that a command names; `asked` tells and forgets the requests."""

    def __init__(self, bus: PacedBus) -> None:
        self._bus = bus
        self._controls = {unit: Control(device) for unit, device in bus.devices.items()}

    def execute(self, command: dict[str, Any]) -> dict[str, Any]:
        if command.get("do") == "asked":
            told, self._bus.asked = self._bus.asked, []
            return {"ok": True, "asked": told, "collisions": self._bus.collisions}
        unit = int(command.pop("unit", min(self._controls)))
        return self._controls[unit].execute(command)


async def serve(args: argparse.Namespace) -> None:
    clock, profile = time.monotonic, find_profile(args.profile)
    units = [int(unit) for unit in args.units.split(",")]
    devices = {
        unit: Answers(SimulatedCharger(profile, evses=1, unit=unit, speed=1.0, now=clock()), clock)
        for unit in units
    }
    bus = PacedBus(devices, args.baud)
    bus.start(Path(args.pty))
    control = ControlServer(BusControl(bus))  # type: ignore[arg-type]  # it executes, too
    await control.start(args.control)
    sys.stdout.write(json.dumps({"pty": args.pty, "control": control.address}) + "\n")
    sys.stdout.flush()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    while not stop.is_set():
        for device in devices.values():
            device.device.advance(clock())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TICK_S):
                await stop.wait()
    await control.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pty", required=True)
    parser.add_argument("--control", required=True)
    parser.add_argument("--units", default="1,2,3")
    parser.add_argument("--profile", default="abb_terra_ac")
    parser.add_argument("--baud", type=int, default=19200)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
