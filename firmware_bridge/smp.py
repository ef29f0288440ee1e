"""Boards with MCUboot, whose application takes images over SMP (mcumgr) on a serial line.

The image goes into the second slot beside the one that runs. MCUboot swaps them for a trial and
swaps back at the next reset, unless the new application is confirmed: so nothing here is ever half
written, and "seal" is the mark for the trial. MCUboot's own serial recovery writes into the first
slot with no way back, and is not used.

smpclient does the protocol. It repeats nothing, but an upload begun again goes on where it was.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar

from smp.image_management import ImageState
from smpclient import SMPClient
from smpclient.exceptions import SMPClientException, SMPUploadError
from smpclient.generics import success
from smpclient.requests.image_management import ImageStatesRead, ImageStatesWrite
from smpclient.requests.os_management import ResetWrite
from smpclient.transport import SMPTransport, SMPTransportDisconnected
from smpclient.transport.serial import SMPSerialTransport

from firmware_bridge.loader import (
    FirmwareImage,
    Identified,
    LineError,
    LoaderSilentError,
    RefusedError,
    Running,
    Told,
    TransferError,
    VerifyError,
    unheard,
)
from firmware_bridge.mcuboot import ImageError, Said, said
from firmware_bridge.port import LineSettings, is_pseudo

BLOCK: Final = 256
"""Only for counting: how much one request takes is agreed with the board."""
TRIES: Final = 5
CONNECT_S: Final = 0.3
RESET_S: Final = 1.0
"""What a board may take from the answer until it resets."""
REVERT_S: Final = 30.0
TROUBLES: Final = (TimeoutError, SMPClientException, ValueError)
T = TypeVar("T")


class Denied(Exception):
    """The board answered with an error."""


def serial_transport(settings: LineSettings) -> SMPTransport:
    parity = "N" if is_pseudo(settings.device) else settings.parity[0].upper()
    return SMPSerialTransport(baudrate=settings.baudrate, parity=parity, exclusive=True)


class SmpLoader:
    """SMP on one line. It does not tell the board's name: `hw_id` comes from the configuration."""

    def __init__(
        self,
        transport: Callable[[], SMPTransport],
        device: str,
        *,
        hw_id: str | None = None,
        timeout_s: float = 2.5,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        # Its errors carry the octets of the firmware, and each of its timeouts is ours to judge.
        logging.getLogger("smpclient").setLevel(logging.CRITICAL)
        self._transport, self._device = transport, device
        self._hw_id, self._timeout_s = hw_id, timeout_s
        self._pause = pause
        self._runner = asyncio.Runner()
        self._client: SMPClient | None = None

    def close(self) -> None:
        self._hang_up()
        self._runner.close()

    def version(self) -> Running | None:
        try:
            states = self._states(tries=2)
        except (LoaderSilentError, TransferError):
            return None
        active = next((state for state in states if state.active), None)
        # Marked for the trial: the reset has not come yet, and what answers is on its way out.
        if active is None or any(state.pending for state in states if not state.active):
            return None
        return Running(version=_plain(active.version), hw_id=self._hw_id)

    def probe(self) -> bool:
        """Its application is what takes images."""
        try:
            self._states(tries=2)
        except (LoaderSilentError, TransferError):
            return False
        return True

    def enter(self) -> None:
        raise LoaderSilentError(
            "nobody answers to SMP: is the board on, does its application have mcumgr on this "
            "port, and are speed and parity right? Then run the same command again"
        )

    def identify(self) -> Identified:
        self._states()
        return Identified(loader="MCUboot behind SMP", hw_id=self._hw_id)

    def check(self, image: FirmwareImage) -> None:
        found = _said(image)
        if found.version != image.version:
            raise RefusedError(
                f"the image says that it is {found.version}, and {image.version} was expected; "
                "nothing was sent. Is it the right file?"
            )

    def blocks(self, image: FirmwareImage) -> int:
        return -(-len(image.octets) // BLOCK)

    def erase(self, image: FirmwareImage) -> None:
        """Nothing but the second slot's image goes, when the upload begins.

        A trial that is still on is ended by a reset: its second slot holds the way back.
        """
        if self._holds(image, active=True) or not self._on_trial():
            return
        self._reset()
        for _ in range(round(REVERT_S / RESET_S)):
            self._pause(RESET_S)
            with suppress(LoaderSilentError, TransferError):
                if not self._on_trial():
                    return
        raise TransferError("a trial of another image is still on, and a reset did not end it")

    def write(self, image: FirmwareImage, told: Told = unheard) -> None:
        if self._holds(image, active=True) or self._holds(image, active=False):
            told(self.blocks(image))
            return
        furthest, failures = -1, 0
        while True:
            try:
                reached = self._run(self._upload(image, told))
            except (*TROUBLES, Denied) as error:
                self._hang_up()
                reached, why = self._reached, error
            # A board forgets the upload with its last piece: were that reply lost, all would begin
            # again.
            if reached >= len(image.octets) or self._holds(image, active=False):
                told(self.blocks(image))
                return
            failures = 0 if reached > furthest else failures + 1
            furthest = max(furthest, reached)
            if failures >= TRIES:
                raise self._given_up("uploading", why) from why

    def verify(self, image: FirmwareImage, told: Told = unheard, *, sealed: bool = False) -> None:
        """MCUboot's hash of what is in the slot, made on the board."""
        del sealed
        if not (self._holds(image, active=False) or self._holds(image, active=True)):
            raise VerifyError(
                "the board's second slot does not hold this image: it arrived spoiled, or the "
                "slot is too small"
            )
        told(self.blocks(image))

    def seal(self, image: FirmwareImage) -> None:
        if self._holds(image, active=True):
            return
        request = ImageStatesWrite(hash=_said(image).hash, confirm=False)
        states = self._surely("marking it for the trial", lambda: self._set(request))
        if not any(state.hash == request.hash and state.pending for state in states):
            raise TransferError("the board did not mark the image for its trial")

    def boot(self) -> None:
        """The reply may be lost with the reset; while the mark is there, it did not come."""
        for _ in range(TRIES):
            try:
                marked = any(state.pending for state in self._states())
            except (LoaderSilentError, TransferError):
                return
            if not marked:
                return
            self._reset()

    def confirm(self) -> None:
        """Until then the next reset brings the image before."""
        states = self._surely("confirming", lambda: self._set(ImageStatesWrite(confirm=True)))
        if not any(state.active and state.confirmed for state in states):
            raise TransferError("the board did not confirm the application that runs")

    # -- requests -------------------------------------------------------------------------------

    def _holds(self, image: FirmwareImage, *, active: bool) -> bool:
        name = _said(image).hash
        return any(state.hash == name and bool(state.active) is active for state in self._states())

    def _on_trial(self) -> bool:
        return any(state.active and not state.confirmed for state in self._states())

    def _states(self, tries: int = TRIES) -> list[ImageState]:
        return self._surely("asking for its images", self._list, tries)

    async def _list(self) -> list[ImageState]:
        response = await (await self._connected()).request(ImageStatesRead())
        if not success(response):
            raise Denied(str(response))
        return response.images

    async def _set(self, request: ImageStatesWrite) -> list[ImageState]:
        # The same request object would carry the same sequence number twice.
        fresh = ImageStatesWrite(hash=request.hash, confirm=request.confirm)
        response = await (await self._connected()).request(fresh)
        if not success(response):
            raise Denied(str(response))
        return response.images

    async def _upload(self, image: FirmwareImage, told: Told) -> int:
        self._reached = -1
        client = await self._connected()
        async for reached in client.upload(
            image.octets, first_timeout_s=40.0, subsequent_timeout_s=self._timeout_s
        ):
            self._reached = reached
            told(min(self.blocks(image), -(-reached // BLOCK)))
        return self._reached

    def _reset(self) -> None:
        async def reset() -> None:
            await (await self._connected()).request(ResetWrite())

        with suppress(*TROUBLES):
            self._run(reset())
        self._hang_up()
        self._pause(RESET_S)

    async def _connected(self) -> SMPClient:
        if self._client is None:
            client = SMPClient(self._transport(), self._device, timeout_s=self._timeout_s)
            try:
                await client.connect(CONNECT_S)
            except TimeoutError as error:
                raise LineError(
                    f"cannot open {self._device}; is it plugged in, the name right, and no other "
                    "program on it (the agent holds the lines of its boards)?"
                ) from error
            self._client = client
        return self._client

    def _hang_up(self) -> None:
        """A late answer must not be taken for the next one's."""
        client, self._client = self._client, None
        if client is not None:
            self._run(client.disconnect())

    def _surely(
        self, what: str, ask: Callable[[], Coroutine[Any, Any, T]], tries: int = TRIES
    ) -> T:
        """Again after each trouble: every request here may be repeated."""
        for _ in range(tries):
            try:
                return self._run(ask())
            except (*TROUBLES, Denied) as error:
                trouble = error
                self._hang_up()
        if isinstance(trouble, TimeoutError):
            raise LoaderSilentError(
                f"{what}: the board does not answer; is it on and connected? Run the same command "
                "again"
            ) from trouble
        raise self._given_up(what, trouble) from trouble

    def _given_up(self, what: str, trouble: Exception) -> TransferError:
        # What smpclient tells of a failure carries the octets that were sent.
        why = str(trouble) if isinstance(trouble, (Denied, SMPUploadError)) else "no fitting answer"
        return TransferError(
            f"{what} failed {TRIES} times, at last: {why[:200]}; check the line, then run the same "
            "command again"
        )

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return self._runner.run(work)
        except SMPTransportDisconnected as error:
            self._client = None
            raise LineError(
                f"{self._device} went away in the middle; plug the adapter in again and run the "
                "same command"
            ) from error


def _said(image: FirmwareImage) -> Said:
    try:
        return said(image.octets)
    except ImageError as error:
        raise RefusedError(
            f"this is no image for MCUboot: {error}; nothing was sent. Give the signed image"
        ) from error


def _plain(version: str) -> str:
    """Some servers tell the build number behind a fourth dot, also where it is 0."""
    return version.removesuffix(".0") if version.count(".") == 3 else version
