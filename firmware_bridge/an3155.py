"""The host's side of AN3155, the loader in every STM32's ROM, without a line to speak on.

A command is a generator. It yields what it wants to ask, gets the octets that came (fewer than it
wanted: the rest did not come in time), and returns or raises Nacked or Lost.

Two things go wrong on real lines, and are told apart. A NACK ends a command; the loader waits for
the next one. After silence or an unknown octet nobody knows where the loader stands: it may wait
for the rest of a frame for ever. `resync` then fills that frame with FFh. It must be FFh and
nothing else: FF 00, which others send, is "erase everything" to a loader that waits for page
numbers, while no frame made of FFh alone erases anything, or programs a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import xor
from typing import Final, TypeVar

from firmware_bridge.loader import LoaderSilentError, TransferError, VerifyError

ACK: Final = b"\x79"
NACK: Final = b"\x1f"
BUSY: Final = b"\x76"
SYNC: Final = b"\x7f"
BLANK: Final = 0xFF

GET, GET_VERSION, GET_ID, READ, GO, WRITE, ERASE, EXTENDED_ERASE = (
    0x00,
    0x01,
    0x02,
    0x11,
    0x21,
    0x31,
    0x43,
    0x44,
)

BLOCK: Final = 256
"""The most octets that one Read or Write moves."""
ALIGNMENT: Final = 8
"""Some families program eight octets at once; what is written is filled up to that."""
LONGEST_FRAME: Final = BLOCK + 4
LONG_LIST: Final = 2 * 0x0900
LONGEST_LIST: Final = 2 * 0xFFF1
"""Octets of the page numbers after a count that lost an octet, and after any count."""
DEEP: Final = (LONG_LIST, 1, 1, LONGEST_LIST, 1, 1)
ORDINARY_S: Final = 1.0
SYNC_S: Final = 0.5
QUIET_S: Final = 0.08
ERASE_PAGE_S: Final = 4.0
"""The slowest: a 128 KiB sector of an F4."""
TRIES: Final = 5
BUSY_LIMIT: Final = 500

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ask:
    """Send this, then wait for so many octets. Patience (s) does not count the time on the line."""

    send: bytes
    want: int
    patience_s: float
    fresh: bool = False
    """What came unasked before is noise: throw it away."""


Talk = Generator[Ask, bytes, T]


class Trouble(Exception):
    """A command did not get through."""


class Nacked(Trouble):
    """The loader refused; it waits for a command."""


class Lost(Trouble):
    """Silence, or an octet that is no answer: nobody knows what the loader waits for."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What Get tells: the loader's version (31h is 3.1) and the commands it knows."""

    version: int
    commands: frozenset[int]


def checksum(octets: bytes) -> int:
    return reduce(xor, octets, 0)


def _acknowledged(ask: Ask) -> Talk[None]:
    """Ask, and wait through BUSY for the ACK."""
    reply = yield ask
    for _ in range(BUSY_LIMIT):
        if reply != BUSY:
            break
        reply = yield Ask(b"", 1, ask.patience_s)
    if reply == NACK:
        raise Nacked
    if reply != ACK:
        raise Lost


def _command(code: int) -> Talk[None]:
    yield from _acknowledged(Ask(bytes((code, code ^ 0xFF)), 1, ORDINARY_S, fresh=True))


def _part(octets: bytes, patience_s: float = ORDINARY_S) -> Talk[None]:
    """One checked part of a command: an address, a list, a block."""
    yield from _acknowledged(Ask(octets + bytes((checksum(octets),)), 1, patience_s))


def _exactly(count: int) -> Talk[bytes]:
    octets = yield Ask(b"", count, ORDINARY_S)
    if len(octets) != count:
        raise Lost
    return octets


def _counted() -> Talk[bytes]:
    """N, N + 1 octets, ACK."""
    count = (yield from _exactly(1))[0] + 1
    octets = yield from _exactly(count + 1)
    if octets[-1:] != ACK:
        raise Lost
    return octets[:-1]


def get() -> Talk[Abilities]:
    yield from _command(GET)
    octets = yield from _counted()
    return Abilities(octets[0], frozenset(octets[1:]))


def get_version() -> Talk[int]:
    yield from _command(GET_VERSION)
    octets = yield from _exactly(4)
    if octets[-1:] != ACK:
        raise Lost
    return octets[0]


def get_id() -> Talk[int]:
    yield from _command(GET_ID)
    octets = yield from _counted()
    if len(octets) != 2:
        raise Lost
    return int.from_bytes(octets, "big")


def read(address: int, count: int) -> Talk[bytes]:
    """Up to BLOCK octets; nothing protects them on their way but reading them twice."""
    yield from _command(READ)
    return (yield from _read_from(address, count))


def _read_from(address: int, count: int) -> Talk[bytes]:
    """The rest of Read, once the loader has agreed to it."""
    yield from _part(address.to_bytes(4, "big"))
    # The count's check is its complement, not its XOR, which would be itself.
    yield from _acknowledged(Ask(bytes((count - 1, (count - 1) ^ 0xFF)), 1, ORDINARY_S))
    return (yield from _exactly(count))


def write(address: int, octets: bytes) -> Talk[None]:
    """Up to BLOCK octets. An ACK does not prove it: a protected page acknowledges too."""
    yield from _command(WRITE)
    yield from _part(address.to_bytes(4, "big"))
    yield from _part(bytes((len(octets) - 1,)) + octets)


def erase(pages: Sequence[int], *, extended: bool) -> Talk[None]:
    """These pages, in this order. `extended`: the loader knows 44h and not 43h."""
    patience = ORDINARY_S + ERASE_PAGE_S * len(pages)
    if extended:
        yield from _command(EXTENDED_ERASE)
        numbers = (len(pages) - 1, *pages)
        yield from _part(b"".join(number.to_bytes(2, "big") for number in numbers), patience)
    else:
        yield from _command(ERASE)
        yield from _part(bytes((len(pages) - 1, *pages)), patience)


def go(address: int) -> Talk[None]:
    """Load the stack pointer from the address, jump to where the word after it says."""
    yield from _command(GO)
    yield from _part(address.to_bytes(4, "big"))


def sync() -> Talk[None]:
    """Make a loader fresh from reset measure the speed; one that has done so refuses the second.

    Raises LoaderSilentError.
    """
    for _ in range(3):
        reply = yield Ask(SYNC, 1, SYNC_S, fresh=True)
        if reply in {ACK, NACK}:
            yield Ask(b"", LONGEST_FRAME, QUIET_S)
            return
    yield from resync(deep=False)


def resync(*, deep: bool = True) -> Talk[None]:
    """Bring a loader that waits for the rest of a frame back to waiting for a command.

    `deep`: it was heard before, so that it is worth to fill also a list of pages whose length came
    spoiled. Raises LoaderSilentError.
    """
    for burst in (1, 1, LONGEST_FRAME, 1, 1, *(DEEP if deep else ())):
        reply = yield Ask(bytes((BLANK,)) * burst, 1, QUIET_S, fresh=True)
        reply += yield Ask(b"", 2 * LONGEST_FRAME, QUIET_S)
        # After one octet alone, an answer means that its frame was complete.
        if burst == 1 and reply:
            return
    reply = yield Ask(SYNC, 1, SYNC_S, fresh=True)
    if reply != ACK:
        raise LoaderSilentError(
            "no STM32 loader answers: the board may run its application, be without power, or the "
            "line has another speed or parity; set BOOT0, reset the board, and try again"
        )


def surely(what: str, command: Callable[[], Talk[T]]) -> Talk[T]:
    """The command, again after each trouble. Raises TransferError, LoaderSilentError."""
    for _ in range(TRIES):
        try:
            return (yield from command())
        except Trouble as error:
            trouble = error
        yield from resync()
    raise _given_up(what, trouble)


def agreed(what: str, command: Callable[[], Talk[T]]) -> Talk[T]:
    """What the command tells twice running: no check protects an answer on its way here.

    Raises TransferError, LoaderSilentError.
    """
    before = yield from surely(what, command)
    for _ in range(TRIES):
        now = yield from surely(what, command)
        if now == before:
            return now
        before = now
    raise TransferError(
        f"{what}: the loader tells something else each time; the line is noisy: check cable, "
        "ground and speed, then run the same command again"
    )


def differing(address: int, octets: bytes) -> Talk[bytes | None]:
    """What stands there instead, told twice alike; None: the same. Raises as `agreed` does."""
    what = f"reading {len(octets)} bytes at {address:#010x}"
    found = yield from surely(what, lambda: read(address, len(octets)))
    if found != octets:
        # Nothing protects an answer on its way here: a difference may be noise.
        found = yield from agreed(what, lambda: read(address, len(octets)))
    return None if found == octets else found


def protected(address: int) -> Talk[bool]:
    """Whether readout protection is set: then Read is always refused. Raises as `surely` does."""
    trouble: Trouble = Nacked()
    for _ in range(TRIES):
        try:
            yield from _command(READ)
        except Trouble as error:
            trouble = error
            if isinstance(error, Lost):
                yield from resync()
            continue
        try:
            yield from _read_from(address, 4)
        except Trouble:
            yield from resync()
        return False
    if isinstance(trouble, Nacked):
        return True
    raise _given_up("asking to read its flash", trouble)


def write_surely(address: int, octets: bytes) -> Talk[None]:
    """A block that is there in the end. After any doubt it is read first, never written blindly.

    Raises VerifyError when the flash holds something else that only erasing removes, TransferError,
    LoaderSilentError.
    """
    what = f"writing {len(octets)} bytes at {address:#010x}"
    for _ in range(TRIES):
        try:
            yield from write(address, octets)
        except Trouble as error:
            trouble = error
        else:
            return
        yield from resync()
        found = yield from agreed(what, lambda: read(address, len(octets)))
        if found == octets:
            return
        if found.strip(b"\xff"):
            raise VerifyError(
                f"{what} was interrupted, and the flash is neither blank nor right there; "
                "the page has to be erased again"
            )
    raise _given_up(what, trouble)


def _given_up(what: str, trouble: Trouble) -> TransferError:
    why = "the loader refused it" if isinstance(trouble, Nacked) else "the answer did not come"
    return TransferError(
        f"{what} failed {TRIES} times, at last because {why}; check the cable, the ground and the "
        "speed of the line, then run the same command again"
    )
