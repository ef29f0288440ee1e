"""Reads what a meter has signed, byte by byte, and understands nothing of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from edge_agent.hardware.board import BoardRefusedError
from edge_agent.hardware.modbus_device import ModbusDevice
from protocols.agent_link import MAX_SIGNED_BYTES, SignedMoment, SignedValue
from protocols.modbus.profile import Signed, SignedBlock

AGAIN_S: Final = 0.2


class Signatures:
    """The signed values of one device, by its EVSE numbers."""

    def __init__(
        self,
        device: ModbusDevice,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._device = device
        self._clock, self._sleep = clock, sleep
        self._earlier: dict[int, bytes] = {}
        """What the block of the end held before this transaction's end."""

    async def note(self, evse: int) -> None:
        """What is there now belongs to an earlier transaction."""
        signed = self._device.profile.signed
        if signed is not None:
            self._earlier[evse] = await self._octets(signed.end, evse)

    async def after(self, evse: int) -> tuple[SignedValue, ...]:
        """What was signed of the transaction that has ended; () where the device signs nothing.

        Raises BoardRefusedError when it has not signed in time, or more than anybody could carry.
        """
        signed = self._device.profile.signed
        if signed is None:
            return ()
        end = await self._fresh(signed, evse)
        begin = b"" if signed.begin is None else await self._octets(signed.begin, evse)
        key = b"" if signed.public_key is None else await self._octets(signed.public_key, evse)
        found = ((SignedMoment.BEGIN, begin), (SignedMoment.END, end))
        self._earlier[evse] = end
        return tuple(
            SignedValue(moment, signed.encoding, data, key) for moment, data in found if data
        )

    async def _fresh(self, signed: Signed, evse: int) -> bytes:
        """The end's block, once it holds something else than before."""
        deadline = self._clock() + signed.wait_ms / 1000
        while True:
            octets = await self._octets(signed.end, evse)
            if octets and octets != self._earlier.get(evse):
                return octets
            if self._clock() >= deadline:
                held = "the same as before" if octets else "nothing"
                raise BoardRefusedError(
                    f"{self._device.identity}: after {signed.wait_ms} ms {held} is signed"
                )
            await self._sleep(AGAIN_S)

    async def _octets(self, block: SignedBlock, evse: int) -> bytes:
        octets = await self._device.octets(block, evse)
        if len(octets) > MAX_SIGNED_BYTES:
            raise BoardRefusedError(
                f"{self._device.identity}: a signed value of {len(octets)} bytes; at most "
                f"{MAX_SIGNED_BYTES} are carried"
            )
        return octets
