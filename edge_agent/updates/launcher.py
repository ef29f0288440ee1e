"""Chooses the slot that starts, and becomes it. A copy of this file lies outside the slots.

It uses the standard library only and nothing of ours, so that no release can break it. The boot
record is the only truth about which slot is to start: two files, written in turns, each with a
counter and a checksum, so that a power cut at any byte leaves the one before. A trial's tries are
counted down, durably, before it starts: whatever it does then, it cannot start once too often.

    launcher.py FOLDER [ARGUMENTS]...

starts the chosen slot's `karvon` with these arguments. FOLDER holds `boot.a`, `boot.b`, `slots/`
and `factory/`; each slot is a whole environment, named by the SHA-256 of its image.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

FILES: Final = ("boot.a", "boot.b")
SLOTS: Final = "slots"
FACTORY: Final = "factory"
COMPLETE: Final = "complete"
"""The last file that is written into a slot."""
TRIES: Final = 3
CRASHES: Final = 5
"""Starts of a confirmed slot within one boot of the system, none of them healthy."""
UNUSABLE: Final = 70
"""Exit code when nothing can be started; the power boards' own failsafe holds then."""
_MAGIC: Final = b"KARVONBT"
_HEAD: Final = struct.Struct(">8sQI")
_CHECK: Final = struct.Struct(">I")
_LARGEST: Final = 64 * 1024


@dataclass(frozen=True)
class Failed:
    """A trial that was given up, for the agent that runs then to report."""

    slot: str
    why: str
    request: str = ""


@dataclass(frozen=True)
class Record:
    """Which slot starts."""

    confirmed: str = ""
    """The slot that has proven itself; empty: the factory's."""
    previous: str = ""
    trial: str = ""
    tries: int = 0
    """Starts that the trial has left."""
    request: str = ""
    """Whose trial it is."""
    expects: dict[str, Any] = field(default_factory=dict)
    """What was well before the trial, and shall be again."""
    failed: Failed | None = None
    crashes: int = 0
    boot: str = ""
    """The system's boot in which `crashes` were counted: power cuts are none."""
    counter: int = 0


@dataclass(frozen=True)
class Choice:
    """What to start, and the record that must be on disk before."""

    slot: str
    record: Record
    why: str


# --------------------------------------------------------------------------- the boot record


def pack(record: Record) -> bytes:
    """The record as one file's content."""
    body = json.dumps(asdict(record), sort_keys=True, separators=(",", ":")).encode()
    head = _HEAD.pack(_MAGIC, record.counter, len(body))
    return head + body + _CHECK.pack(zlib.crc32(head + body))


def unpack(content: bytes) -> Record | None:
    """None for anything that `pack` did not write whole."""
    if len(content) < _HEAD.size + _CHECK.size:
        return None
    magic, counter, size = _HEAD.unpack_from(content)
    if magic != _MAGIC or len(content) != _HEAD.size + size + _CHECK.size:
        return None
    (check,) = _CHECK.unpack_from(content, _HEAD.size + size)
    if check != zlib.crc32(content[: _HEAD.size + size]):
        return None
    try:
        plain = json.loads(content[_HEAD.size : _HEAD.size + size])
        known = {name: plain[name] for name in Record.__dataclass_fields__ if name in plain}
        failed = known.get("failed")
        known["failed"] = None if failed is None else Failed(**failed)
    except (ValueError, TypeError, AttributeError):
        return None
    return Record(**known | {"counter": counter})


def _read_file(path: Path) -> Record | None:
    try:
        with path.open("rb") as file:
            return unpack(file.read(_LARGEST))
    except OSError:
        return None


def read(folder: Path) -> Record | None:
    """The newer of the two that can be read; None when neither can."""
    found = [record for name in FILES if (record := _read_file(folder / name)) is not None]
    return max(found, key=lambda record: record.counter, default=None)


def write(folder: Path, record: Record) -> Record:
    """Durably, over the older of the two files; returns what now stands. Raises OSError."""
    stands = [_read_file(folder / name) for name in FILES]
    counters = [-1 if one is None else one.counter for one in stands]
    written = replace(record, counter=max(counters) + 1)
    target = folder / FILES[counters.index(min(counters))]
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        content = memoryview(pack(written))
        while content:
            content = content[os.write(handle, content) :]
        os.fsync(handle)
    finally:
        os.close(handle)
    sync_folder(folder)
    return written


def sync_folder(folder: Path) -> None:
    """Make created and renamed names survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --------------------------------------------------------------------------- choosing


def choose(
    record: Record | None, usable: Callable[[str], bool], others: list[str], boot: str
) -> Choice:
    """Which slot is to start now. `others`: slots that the record may not know, usable or not.

    A trial while it has tries; else what is confirmed, then what was before it, then the factory's
    (named ""), then anything that can start at all.
    """
    if record is None:
        known = Record(boot=boot)
        slot = next((one for one in ("", *others) if usable(one)), "")
        return Choice(slot, known, "no boot record can be read")
    if record.trial:
        if record.tries > 0 and usable(record.trial):
            left = record.tries - 1
            return Choice(record.trial, replace(record, tries=left), f"trial, {left} tries left")
        why = "it did not confirm itself" if usable(record.trial) else "its slot cannot be started"
        failed = Failed(record.trial, why, record.request)
        record = replace(
            record, trial="", tries=0, request="", expects={}, failed=failed, crashes=0
        )
    crashes = record.crashes + 1 if record.boot == boot else 1
    record = replace(record, crashes=crashes, boot=boot)
    wanted = [record.confirmed, record.previous or record.confirmed, ""]
    wanted = wanted[min((crashes - 1) // CRASHES, 2) :]
    for slot in (*wanted, "", record.confirmed, record.previous, *others):
        if usable(slot):
            why = "confirmed" if slot == record.confirmed else "what should start cannot"
            return Choice(slot, record, why)
    return Choice("", record, "no slot can be started")


def path_of(folder: Path, slot: str) -> Path:
    return folder / SLOTS / slot if slot else folder / FACTORY


def usable(folder: Path, slot: str) -> bool:
    """Whether it was finished, and its interpreter is there."""
    place = path_of(folder, slot)
    return (place / COMPLETE).is_file() and os.access(place / "bin" / "python", os.X_OK)


def slots(folder: Path) -> list[str]:
    """All that lie there, finished or not."""
    try:
        names = [place.name for place in (folder / SLOTS).iterdir()]
    except OSError:
        return []
    return sorted(name for name in names if not name.startswith("."))


def boot_id() -> str:
    """Of the running system; changes with every boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


# --------------------------------------------------------------------------- starting


def settle(folder: Path, wanted: Choice) -> Choice:
    """Write what has to be known before the start; a trial that cannot be counted is none."""
    try:
        return replace(wanted, record=write(folder, wanted.record))
    except OSError as error:
        _say(f"the boot record cannot be written ({error})")
    if not wanted.record.trial or wanted.slot != wanted.record.trial:
        return wanted
    without = replace(wanted.record, trial="", tries=0)
    return choose(without, lambda slot: usable(folder, slot), slots(folder), boot_id())


def point(folder: Path, slot: str) -> None:
    """`current`, for people: nothing is ever started through it."""
    draft, link = folder / ".current", folder / "current"
    try:
        draft.unlink(missing_ok=True)
        draft.symlink_to(path_of(Path(), slot))
        draft.replace(link)
    except OSError as error:
        _say(f"{link} was not renewed ({error})")


def _say(text: str) -> None:
    sys.stderr.write(f"launcher: {text}\n")
    sys.stderr.flush()


def main(argv: list[str]) -> int:
    """Become the chosen slot; returns an exit code only when nothing can be started."""
    if not argv:
        _say("usage: launcher.py FOLDER [ARGUMENTS]...")
        return 2
    folder = Path(argv[0]).absolute()
    record = read(folder)
    wanted = choose(record, lambda slot: usable(folder, slot), slots(folder), boot_id())
    wanted = settle(folder, wanted)
    place = path_of(folder, wanted.slot)
    if not usable(folder, wanted.slot):
        _say(f"{folder}: no slot can be started; install one: karvon agent update --first")
        return UNUSABLE
    point(folder, wanted.slot)
    _say(f"{place}: {wanted.why}")
    python = str(place / "bin" / "python")
    os.environ["KARVON_ROOT"], os.environ["KARVON_SLOT"] = str(folder), wanted.slot
    try:
        os.execv(python, [python, "-I", "-B", "-m", "karvon", *argv[1:]])  # noqa: S606
    except OSError as error:
        _say(f"{python}: {error}")
        return UNUSABLE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
