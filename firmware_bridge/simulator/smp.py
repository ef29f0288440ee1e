"""A board with MCUboot (swap by sectors, two slots) and an application with mcumgr over SMP.

Written from MCUboot's design and the SMP specification. CBOR comes from cbor2, as on a board it
would from a library.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import cbor2
from smpclient.transport import SMPTransport

from firmware_bridge.simulator.faults import Faults, Wire
from firmware_bridge.simulator.flash import look, make_image

MAGIC: Final = 0x96F3B83D
HEADER: Final = struct.Struct("<IIHHIIBBHI4x")
HEADER_BYTES: Final = 0x200
SECTOR: Final = 1024
START, ON = b"\x06\x09", b"\x04\x14"
LINE: Final = 127
BUFFER: Final = 384
OS, IMAGE = 0, 1
INVALID, NO_ENTRY, BAD_STATE, UNSUPPORTED = 3, 5, 6, 8
NO_SLOT, BAD_MAGIC, TOO_LARGE = 9, 23, 30


def make_mcuboot(version: str, payload: bytes) -> bytes:
    """A payload with header and hash, as imgtool makes one that is not signed."""
    numbers = [int(part) for part in version.split(".")]
    major, minor, revision, build = [*numbers, 0][:4]
    head = HEADER.pack(
        MAGIC, 0, HEADER_BYTES, 0, len(payload), 0, major, minor, revision, build
    ).ljust(HEADER_BYTES, b"\xff")
    digest = hashlib.sha256(head + payload).digest()
    return head + payload + struct.pack("<HHHH", 0x6907, 40, 0x10, 32) + digest


def make_signed(size: int, version: str, *, said: str | None = None, **settings: Any) -> bytes:
    """An application in an image; `said`: what its header says where that is something else."""
    return make_mcuboot(said or version, make_image(size, version, **settings))


@dataclass
class Slot:
    """What is in it, and the flags at its end."""

    octets: bytearray
    magic: bool = False
    image_ok: bool = False
    copy_done: bool = False

    def image(self) -> tuple[str, bytes, bytes] | None:
        """Version, hash and payload of what is whole."""
        if len(self.octets) < HEADER_BYTES:
            return None
        magic, _, header, protected, size, _, *version = HEADER.unpack_from(self.octets)
        end = header + size + protected
        if magic != MAGIC or end + 40 > len(self.octets):
            return None
        digest = bytes(self.octets[end + 8 : end + 40])
        if hashlib.sha256(self.octets[:end]).digest() != digest:
            return None
        return ".".join(map(str, version)), digest, bytes(self.octets[header : header + size])


@dataclass
class Mcuboot:
    """Two slots and the decision at each start; a swap that was cut goes on."""

    faults: Faults
    sectors: int = 16
    slots: list[Slot] = field(default_factory=list)
    swapping: str = ""
    swapped: int = 0
    starts: int = 0

    def __post_init__(self) -> None:
        self.slots = [Slot(bytearray(b"\xff" * self.sectors * SECTOR)) for _ in range(2)]

    def start(self) -> bool:
        """True when an application runs; False: there is none, or the power failed in the swap."""
        self.starts += 1
        self.swapping = self.swapping or self._decision()
        if self.swapping and not self._swap():
            return False
        return self.slots[0].image() is not None

    def _decision(self) -> str:
        first, second = self.slots
        if second.magic:
            if second.image() is None:
                self.erase(1)
                first.image_ok = True
                return ""
            return "perm" if second.image_ok else "test"
        return "revert" if first.magic and first.copy_done and not first.image_ok else ""

    def _swap(self) -> bool:
        first, second = self.slots
        while self.swapped < self.sectors:
            if self.faults.cut_at_swap == self.swapped:
                self.faults.cut_at_swap = None
                return False
            at = slice(self.swapped * SECTOR, (self.swapped + 1) * SECTOR)
            first.octets[at], second.octets[at] = second.octets[at], first.octets[at]
            self.swapped += 1
        first.magic = first.copy_done = True
        first.image_ok = self.swapping != "test"
        second.magic = second.image_ok = second.copy_done = False
        self.swapping, self.swapped = "", 0
        return True

    def erase(self, number: int) -> None:
        slot = self.slots[number]
        slot.octets[:] = b"\xff" * len(slot.octets)
        slot.magic = slot.image_ok = slot.copy_done = False


@dataclass
class Session:
    """An upload that is under way."""

    length: int
    sha: bytes
    at: int = 0


class SmpError(Exception):
    """Answered with this group and code."""

    def __init__(self, group: int, code: int) -> None:
        super().__init__(group, code)
        self.group, self.code = group, code


class SmpBoard:
    """The whole board. `feed` for a line; `answer` for one request without one."""

    def __init__(self, *, sectors: int = 16, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self.boot = Mcuboot(self.faults, sectors)
        self.on = self.alive = False
        self.requests = 0
        self.uploads: list[int] = []
        """Offsets of the pieces that were written."""
        self._session: Session | None = None
        self._heard = bytearray()
        self._packet = bytearray()
        self._in = Wire(self.faults.lose_in, self.faults.spoil_in)
        self._out = Wire(self.faults.lose_out, self.faults.spoil_out)
        self.power_on()

    def load(self, image: bytes) -> None:
        """What the factory did."""
        slot = self.boot.slots[0]
        slot.octets[: len(image)] = image
        slot.image_ok = True
        self.power_on()

    def power_on(self) -> None:
        self.on = True
        self._session = None
        self.alive = False
        for _ in range(3):
            if not self.boot.start():
                return
            found = self.boot.slots[0].image()
            seen = look(found[2]) if found else None
            if seen is not None and seen[3]:
                self.alive = True
                return
            # It fails its self-test: its watchdog resets it, and MCUboot decides again.

    def cut(self) -> None:
        self.on = self.alive = False
        self._heard.clear()
        self._packet.clear()

    def running(self) -> str | None:
        found = self.boot.slots[0].image() if self.alive else None
        return None if found is None else found[0].removesuffix(".0")

    # -- framing --------------------------------------------------------------------------------

    def feed(self, octets: bytes) -> bytes:
        self._heard += self._in.through(octets)
        answers = b""
        while (end := self._heard.find(b"\n")) >= 0:
            line = bytes(self._heard[:end])
            del self._heard[: end + 1]
            request = self._line(line)
            reply = None if request is None else self.answer(request)
            if reply is not None:
                answers += b"[00:00:01] <inf> app: a line of its log\r\n" + _framed(reply)
        return self._out.through(answers)

    def _line(self, line: bytes) -> bytes | None:
        """A whole request, if this line ends one."""
        marker, text = line[:2], line[2:]
        if marker == START:
            self._packet.clear()
        elif marker != ON:
            return None
        try:
            self._packet += base64.b64decode(text, validate=True)
        except binascii.Error:
            self._packet.clear()
            return None
        length = int.from_bytes(self._packet[:2], "big")
        if len(self._packet) < 2 + length or length < 2:
            return None
        body = bytes(self._packet[2 : 2 + length])
        self._packet.clear()
        return None if binascii.crc_hqx(body, 0) else body[:-2]

    # -- requests -------------------------------------------------------------------------------

    def answer(self, frame: bytes) -> bytes | None:
        """The reply; None: silence."""
        if not self.alive or len(frame) < 8:
            return None
        number = self.requests
        self.requests += 1
        op, flags, length, group, sequence, command = struct.unpack(">BBHHBB", frame[:8])
        modern = bool(op >> 3 & 3)
        if length != len(frame) - 8:
            return None
        try:
            asked = cbor2.loads(frame[8:]) if length else {}
            answer = self._carried_out(op & 7, group, command, asked, number)
        except SmpError as error:
            answer = {"err": {"group": error.group, "rc": error.code}}
            if not modern or error.group == OS:
                answer = {"rc": error.code}
        if number in self.faults.lose_replies or not self.on:
            return None
        body = cbor2.dumps(answer)
        return struct.pack(">BBHHBB", op | 1, flags, len(body), group, sequence, command) + body

    def _carried_out(
        self, op: int, group: int, command: int, asked: dict[str, Any], number: int
    ) -> dict[str, Any]:
        if number in self.faults.refuse:
            raise SmpError(OS, BAD_STATE)
        known: dict[tuple[int, int, int], Callable[[dict[str, Any]], dict[str, Any]]] = {
            (2, OS, 0): lambda said: {"r": said.get("d", "")},
            (2, OS, 5): self._reset,
            (0, OS, 6): lambda _: {"buf_size": BUFFER, "buf_count": 4},
            (0, IMAGE, 0): lambda _: self._states(),
            (2, IMAGE, 0): self._set,
            (2, IMAGE, 1): self._upload,
            (2, IMAGE, 5): self._erase,
        }
        if (op, group, command) not in known:
            raise SmpError(OS, UNSUPPORTED)
        return known[op, group, command](asked)

    def _reset(self, asked: dict[str, Any]) -> dict[str, Any]:
        del asked
        self.power_on()
        return {}

    def _states(self) -> dict[str, Any]:
        first, second = self.boot.slots
        found: list[dict[str, Any]] = []
        for number, slot in enumerate(self.boot.slots):
            image = slot.image()
            if image is None:
                continue
            confirmed = first.image_ok or not first.magic
            found.append(
                {
                    "slot": number,
                    "version": image[0],
                    "hash": image[1],
                    "bootable": True,
                    "pending": number == 1 and second.magic,
                    "confirmed": number == 0 and confirmed,
                    "active": number == 0,
                    "permanent": number == 1 and second.magic and second.image_ok,
                }
            )
        return {"images": found, "splitStatus": 0}

    def _set(self, asked: dict[str, Any]) -> dict[str, Any]:
        name, confirm = asked.get("hash"), bool(asked.get("confirm"))
        first, second = (slot.image() for slot in self.boot.slots)
        if name is None or (first and name == first[1]):
            if not confirm:
                raise SmpError(OS, INVALID if name is None else BAD_STATE)
            self.boot.slots[0].image_ok = True
        elif second and name == second[1]:
            self.boot.slots[1].magic = True
            self.boot.slots[1].image_ok = confirm
        else:
            raise SmpError(IMAGE, 3)
        return self._states()

    def _erase(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked.get("slot", 1) != 1 or self.boot.slots[1].magic or not self._confirmed():
            raise SmpError(IMAGE, NO_SLOT)
        self.boot.erase(1)
        return {}

    def _confirmed(self) -> bool:
        first = self.boot.slots[0]
        return first.image_ok or not first.magic

    def _upload(self, asked: dict[str, Any]) -> dict[str, Any]:
        at, data = asked.get("off"), asked.get("data")
        if not isinstance(at, int) or not isinstance(data, bytes):
            raise SmpError(OS, INVALID)
        if at == 0:
            self._begin(asked, data)
        session = self._session
        if session is None:
            raise SmpError(OS, BAD_STATE)
        if at == session.at:
            self._write(session, data)
        if session.at < session.length:
            return {"off": session.at}
        whole = hashlib.sha256(self.boot.slots[1].octets[: session.length]).digest()
        self._session = None
        return {"off": session.length, "match": whole == session.sha}

    def _begin(self, asked: dict[str, Any], data: bytes) -> None:
        length, sha = asked.get("len"), asked.get("sha", b"")
        if not isinstance(length, int) or len(data) < HEADER.size:
            raise SmpError(OS, INVALID)
        if self._session is not None and self._session.sha == sha and sha:
            return  # it goes on
        if not self._confirmed() or self.boot.slots[1].magic:
            raise SmpError(IMAGE, NO_SLOT)
        if length > len(self.boot.slots[1].octets) - SECTOR:
            raise SmpError(IMAGE, TOO_LARGE)
        if HEADER.unpack_from(data)[0] != MAGIC:
            raise SmpError(IMAGE, BAD_MAGIC)
        self.boot.erase(1)
        self._session = Session(length, sha)

    def _write(self, session: Session, data: bytes) -> None:
        if session.at + len(data) > session.length:
            raise SmpError(OS, INVALID)
        dies = self.faults.cut_at_block == len(self.uploads)
        self.uploads.append(session.at)
        if dies:
            data = data[: len(data) // 2]
        if self.faults.silent_writes > 0:
            self.faults.silent_writes -= 1
        else:
            self.boot.slots[1].octets[session.at : session.at + len(data)] = data
        session.at += len(data)
        if dies:
            self.cut()


class DirectTransport(SMPTransport):
    """smpclient's way to a board without line and time: what is silent times out at once."""

    def __init__(self, board: SmpBoard) -> None:
        self._board = board
        self._reply: bytes | None = None

    async def connect(self, address: str, timeout_s: float) -> None:
        """It always is."""

    async def disconnect(self) -> None:
        """It stays."""

    async def send(self, data: bytes) -> None:
        self._reply = self._board.answer(data)

    async def receive(self) -> bytes:
        if self._reply is None:
            raise TimeoutError
        return self._reply

    async def send_and_receive(self, data: bytes) -> bytes:
        await self.send(data)
        return await self.receive()

    @property
    def mtu(self) -> int:
        return BUFFER

    @property
    def max_unencoded_size(self) -> int:
        return BUFFER - 4


def _framed(frame: bytes) -> bytes:
    body = frame + binascii.crc_hqx(frame, 0).to_bytes(2, "big")
    text = base64.b64encode(len(body).to_bytes(2, "big") + body)
    room = LINE - 3 - (LINE - 3) % 4
    lines = [text[at : at + room] for at in range(0, len(text), room)]
    return b"".join(
        (START if number == 0 else ON) + line + b"\n" for number, line in enumerate(lines)
    )
