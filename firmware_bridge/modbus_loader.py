"""Firmware over Modbus into our own loader, which keeps the board's unit address.

The session's number comes from the image, so that a host which was cut finds its session again and
goes on where the loader says; a loader that lost its power knows none, and gets everything anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from firmware_bridge.loader import (
    FirmwareImage,
    Identified,
    LoaderSilentError,
    RefusedError,
    Running,
    Told,
    TransferError,
    VerifyError,
    unheard,
)
from firmware_bridge.modbus_map import (
    BLOCK_AT,
    COMMAND,
    COMMAND_AT,
    IDENTITY_AT,
    IDENTITY_WORDS,
    STATUS,
    STATUS_AT,
    Command,
    Fault,
    Header,
    Identity,
    MapError,
    Mode,
    State,
    Status,
    block,
    pack_version,
)
from firmware_bridge.registers import (
    ModbusExceptionError,
    NoAnswerError,
    Registers,
    to_octets,
    to_words,
)

TRIES: Final = 5
ENTER_S: Final = 10.0
ERASE_S: Final = 40.0
ASK_EVERY_S: Final = 0.2
WHY: Final = {
    Fault.WRONG_HARDWARE: "the loader says that the image is for other hardware",
    Fault.TOO_LARGE: "the loader says that the image does not fit",
    Fault.FLASH: "the loader says that its flash cannot be written",
}
T = TypeVar("T")


class ModbusLoader:
    """Our loader behind a unit's registers."""

    def __init__(
        self, registers: Registers, *, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._registers = registers
        self._pause = pause
        self._identity: Identity | None = None

    def version(self) -> Running | None:
        identity = self._seen()
        if identity is None or identity.mode is not Mode.APPLICATION:
            return None
        return Running(
            version=identity.version,
            protocol=identity.protocol[0],
            hw_id=identity.hw_id,
            healthy=identity.healthy,
        )

    def probe(self) -> bool:
        identity = self._seen()
        return identity is not None and identity.mode is Mode.LOADER

    def enter(self) -> None:
        self._try_command(Command.ENTER)
        self._await(
            self.probe,
            ENTER_S,
            "the board does not come into its loader: it may be without power, have another unit "
            "address or speed, or no Modbus loader; check these and run the same command again",
        )

    def identify(self) -> Identified:
        identity = self._identity = self._surely("reading its identity", self._read_identity)
        return Identified(
            loader=f"Modbus loader {identity.loader}",
            hw_id=identity.hw_id,
            flash_bytes=identity.flash_bytes,
        )

    def check(self, image: FirmwareImage) -> None:
        identity = self._known()
        if not 0 < len(image.octets) <= identity.flash_bytes:
            raise RefusedError(
                f"{len(image.octets)} bytes do not fit the {identity.flash_bytes} bytes of this "
                "board; nothing was erased. Is it the right file?"
            )
        try:
            pack_version(image.version)
        except MapError as error:
            raise RefusedError(f"{error}, which this loader wants; nothing was erased") from error

    def blocks(self, image: FirmwareImage) -> int:
        return self._header(image).blocks

    def erase(self, image: FirmwareImage) -> None:
        """START: the loader takes the valid mark off, then erases. A session of it goes on."""
        if self._receives(image):
            return
        header = self._header(image).encode()
        try:
            self._surely(
                "starting the session",
                lambda: self._command(Command.START, _session(image), header),
            )
        except TransferError:
            status = self._status()
            if status.fault in WHY:
                raise RefusedError(f"{WHY[status.fault]}; it was not erased") from None
            raise
        self._await(
            lambda: self._receives(image), ERASE_S, "the loader does not come to an end of erasing"
        )

    def write(self, image: FirmwareImage, told: Told = unheard) -> None:
        """From where the loader says, to the end; after any doubt it is asked again where."""
        header, failures = self._header(image), 0
        size = header.block_bytes
        following = self._status().following
        while following < header.blocks:
            data = image.octets[following * size : (following + 1) * size].ljust(size, b"\xff")
            octets = block(following, _session(image), data)
            try:
                self._registers.write(BLOCK_AT, to_words(octets))
                following, failures = following + 1, 0
            except (NoAnswerError, ModbusExceptionError) as error:
                failures += 1
                if failures >= TRIES:
                    raise _given_up(f"writing block {following}", error) from error
                following = self._resumed(image)
            told(following)

    def verify(self, image: FirmwareImage, told: Told = unheard, *, sealed: bool = False) -> None:
        """Whether all of it arrived; that it is right the loader finds out before it seals.

        `sealed`: whether the SHA-256 that the board tells of what is installed is the image's.
        """
        total = self._header(image).blocks
        if sealed:
            self._compare(image)
            told(total)
            return
        status = self._status()
        if status.state is not State.RECEIVING or status.following != total:
            raise VerifyError(
                f"the loader has {status.following} of {total} blocks and is {status.state.name}"
            )
        told(total)

    def seal(self, image: FirmwareImage) -> None:
        """END: the loader compares the SHA-256 of its flash, and only then marks it valid."""
        try:
            self._surely("ending", lambda: self._command(Command.END, _session(image)))
        except TransferError:
            if self._status().fault is Fault.MISMATCH:
                raise VerifyError(
                    "the loader's flash has another SHA-256 than the image: a block was spoiled, "
                    "or the flash is worn out"
                ) from None
            raise
        self.verify(image, sealed=True)

    def boot(self) -> None:
        """The reply may be lost with the loader; whether it runs, the application says."""
        self._try_command(Command.BOOT)

    def confirm(self) -> None:
        """What is marked valid is started, now and always."""

    # -- requests -------------------------------------------------------------------------------

    def _compare(self, image: FirmwareImage) -> None:
        identity = self._surely("reading its identity", self._read_identity)
        ours = bytes.fromhex(image.sha256)[: len(identity.build)]
        if identity.build != ours:
            raise VerifyError(
                f"the board says that it holds {identity.version} with a SHA-256 that begins with "
                f"{identity.build.hex()}, and the image's begins with {ours.hex()}"
            )

    def _seen(self) -> Identity | None:
        for _ in range(2):
            try:
                return self._read_identity()
            except (NoAnswerError, ModbusExceptionError, MapError):
                continue
        return None

    def _read_identity(self) -> Identity:
        return Identity.decode(to_octets(self._registers.read(IDENTITY_AT, IDENTITY_WORDS)))

    def _status(self) -> Status:
        return self._surely(
            "asking how far it is",
            lambda: Status.decode(to_octets(self._registers.read(STATUS_AT, STATUS.size // 2))),
        )

    def _receives(self, image: FirmwareImage) -> bool:
        status = self._status()
        return status.state is State.RECEIVING and status.session == _session(image)

    def _resumed(self, image: FirmwareImage) -> int:
        if not self._receives(image):
            raise TransferError(
                "the loader lost the session: the board was without power for a moment"
            )
        return self._status().following

    def _command(self, command: Command, session: int = 0, header: bytes = b"") -> None:
        self._registers.write(COMMAND_AT, to_words(COMMAND.pack(command, session) + header))

    def _try_command(self, command: Command) -> None:
        for _ in range(2):
            try:
                self._command(command)
            except (NoAnswerError, ModbusExceptionError):
                continue
            else:
                return

    def _surely(self, what: str, ask: Callable[[], T]) -> T:
        """Again after each trouble: every request here may be repeated."""
        for _ in range(TRIES):
            try:
                return ask()
            except (NoAnswerError, ModbusExceptionError, MapError) as error:
                trouble = error
        if isinstance(trouble, NoAnswerError):
            raise LoaderSilentError(
                f"{what}: the board does not answer any more; is it still powered and connected? "
                "Run the same command again"
            ) from trouble
        raise _given_up(what, trouble) from trouble

    def _await(self, done: Callable[[], bool], patience_s: float, otherwise: str) -> None:
        for _ in range(round(patience_s / ASK_EVERY_S)):
            if done():
                return
            self._pause(ASK_EVERY_S)
        raise LoaderSilentError(otherwise)

    def _known(self) -> Identity:
        if self._identity is None:
            raise RefusedError("the board was not identified yet; nothing was erased")
        return self._identity

    def _header(self, image: FirmwareImage) -> Header:
        identity = self._known()
        return Header(
            hw_id=identity.hw_id,
            version=image.version,
            length=len(image.octets),
            block_bytes=identity.block_bytes,
            sha256=bytes.fromhex(image.sha256),
        )


def _session(image: FirmwareImage) -> int:
    return int(image.sha256[:8], 16) or 1


def _given_up(what: str, trouble: Exception) -> TransferError:
    why = str(trouble) or "no answer"
    return TransferError(
        f"{what} failed {TRIES} times, at last: {why}; check the cable, the termination and who "
        "else sends on this line, then run the same command again"
    )
