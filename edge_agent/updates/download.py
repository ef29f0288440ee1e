"""Downloads an image: resumed after every cut, slowed to a rate, proven before it gets its name.

`<name>.part` grows; `<name>.resume` says how much of it is surely on disk and of which file. Only
what has the length and hash that signed metadata demands is ever renamed.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from edge_agent.updates import launcher
from edge_agent.updates.fetching import Answer, RangeRefusedError, Source, SourceError
from edge_agent.updates.slots import sync_file

CHECKPOINT: Final = 1024 * 1024
"""Bytes between two checkpoints."""
TRIES: Final = 8
"""Without any progress between them."""
WRONG: Final = 2
"""Whole files that were not what they should be: then the source is not to be believed."""
FIRST_WAIT_S: Final = 2.0
LONGEST_WAIT_S: Final = 300.0
DRIP_S: Final = 60.0
DRIP_BYTES: Final = 4096
"""Less than so much within DRIP_S is no download."""
SPARE_BYTES: Final = 64 * 1024 * 1024
"""Left free on the disk: sessions are recorded there, too."""


class DownloadFailed(Exception):
    """It could not be fetched; the text says why, and what to do."""


class ImageRefused(Exception):
    """What was fetched is not what was signed; it is deleted."""


@dataclass(frozen=True)
class Wanted:
    """A target: where it lies, and what it must be."""

    path: str
    length: int
    sha256: str

    @property
    def location(self) -> str:
        """Its path in a repository with consistent snapshots."""
        folder, slash, name = self.path.rpartition("/")
        return f"{folder}{slash}{self.sha256}.{name}"


class Resume(msgspec.Struct, frozen=True):
    """What of a `.part` is surely on disk."""

    offset: int
    etag: str


class Bucket:
    """At most so many bytes a second; None: as fast as it goes."""

    def __init__(
        self,
        rate: int | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._free_at = clock()

    def take(self, count: int) -> None:
        """Wait until so many more bytes may pass."""
        if self._rate is None:
            return
        now = self._clock()
        self._free_at = max(self._free_at, now) + count / self._rate
        if self._free_at > now:
            self._sleep(self._free_at - now)


@dataclass(frozen=True)
class Pace:
    """Time and chance, for tests to take away."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    chance: Callable[[], float] = random.random
    tries: int = TRIES

    def wait_s(self, failures: int) -> float:
        """Doubling, with up to as much again by chance: a fleet does not come back as one."""
        longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (failures - 1))
        return longest * (0.5 + self.chance() / 2)


class Download:
    """One image into one folder."""

    def __init__(
        self,
        source: Source,
        folder: Path,
        wanted: Wanted,
        *,
        bucket: Bucket | None = None,
        pace: Pace | None = None,
        spare_bytes: int = SPARE_BYTES,
    ) -> None:
        self.source = source
        self.wanted = wanted
        self.target = folder / wanted.sha256
        self.part = folder / f"{wanted.sha256}.part"
        self.resume = folder / f"{wanted.sha256}.resume"
        self._pace = pace or Pace()
        self._bucket = bucket or Bucket(None)
        self._spare = spare_bytes

    def run(self) -> Path:
        """The proven file. Raises DownloadFailed, ImageRefused."""
        try:
            return self._run()
        except OSError as error:
            self.discard()
            raise DownloadFailed(
                f"{self.part}: {error.strerror}; free space, or repair the disk"
            ) from error

    def _run(self) -> Path:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        if self.target.exists() and self._proven(self.target):
            return self.target
        self._room()
        failures, wrong, reached = 0, 0, self._resumed().offset
        while True:
            try:
                self._fetch()
                break
            except SourceError as error:
                last, gone = str(error), self._resumed().offset
            except ImageRefused:
                wrong += 1
                self.discard()
                if wrong >= WRONG:
                    raise
                last, gone = "what came was not what was signed", 0
            failures = 1 if gone > reached else failures + 1
            reached = max(reached, gone)
            if failures >= self._pace.tries:
                raise DownloadFailed(
                    f"{self.wanted.path}: given up after {failures} tries without progress;"
                    f" the last: {last}"
                )
            self._pace.sleep(self._pace.wait_s(failures))
        self.part.replace(self.target)
        self.resume.unlink(missing_ok=True)
        launcher.sync_folder(self.target.parent)
        return self.target

    def _room(self) -> None:
        free = shutil.disk_usage(self.target.parent).free
        there = self.part.stat().st_size if self.part.exists() else 0
        needed = self.wanted.length - there + self._spare
        if free < needed:
            raise DownloadFailed(
                f"{self.target.parent}: {free >> 20} MiB are free, and {needed >> 20} MiB are"
                " needed; free space"
            )

    def _resumed(self) -> Resume:
        """How far the last attempt surely came."""
        try:
            known = msgspec.json.decode(self.resume.read_bytes(), type=Resume)
            size = self.part.stat().st_size
        except (OSError, msgspec.DecodeError):
            return Resume(0, "")
        return Resume(max(0, min(size, known.offset, self.wanted.length)), known.etag)

    def _fetch(self) -> None:
        """From where the last attempt came to, to the end. Raises SourceError, ImageRefused."""
        known = self._resumed()
        if known.offset < self.wanted.length:
            try:
                with self.source.get(self.wanted.location, known.offset, known.etag) as answer:
                    self._take(answer, known)
            except RangeRefusedError:
                self.discard()
                raise
        if not self._proven(self.part):
            raise ImageRefused(
                f"{self.wanted.path}: it is not the file that was signed; it was deleted"
            )

    def _take(self, answer: Answer, known: Resume) -> None:
        if answer.start and known.etag and answer.etag != known.etag:
            self.discard()
            raise SourceError("the file changed on the server meanwhile")
        rest = self.wanted.length - answer.start
        if answer.length is not None and answer.length != rest:
            if answer.start:
                self.discard()
            raise SourceError(f"it offers {answer.length} bytes where {rest} are signed")
        mode = "r+b" if self.part.exists() else "w+b"
        with self.part.open(mode) as out:
            out.truncate(answer.start)
            out.seek(answer.start)
            self._write(out.fileno(), answer)

    def _write(self, out: int, answer: Answer) -> None:
        offset = kept = answer.start
        window_began, window_bytes = self._pace.clock(), 0
        try:
            for piece in answer.chunks:
                if offset + len(piece) > self.wanted.length:
                    raise SourceError("it sends more than was signed")
                _write_all(out, piece)
                offset += len(piece)
                window_bytes += len(piece)
                self._bucket.take(len(piece))
                now = self._pace.clock()
                if now - window_began > DRIP_S:
                    if window_bytes < DRIP_BYTES:
                        raise SourceError(f"only {window_bytes} bytes in {DRIP_S:g} s")
                    window_began, window_bytes = now, 0
                if offset - kept >= CHECKPOINT:
                    kept = self._checkpoint(out, offset, answer.etag)
        finally:
            if offset > kept:
                self._checkpoint(out, offset, answer.etag)
        if offset < self.wanted.length:
            raise SourceError(f"cut after {offset} of {self.wanted.length} bytes")

    def _checkpoint(self, out: int, offset: int, etag: str) -> int:
        """First the bytes, then the word that they are there."""
        os.fsync(out)
        draft = self.resume.with_suffix(".new")
        draft.write_bytes(msgspec.json.encode(Resume(offset, etag)))
        sync_file(draft)
        draft.replace(self.resume)
        launcher.sync_folder(self.resume.parent)
        return offset

    def _proven(self, path: Path) -> bool:
        if path.stat().st_size != self.wanted.length:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == self.wanted.sha256

    def discard(self) -> None:
        """Forget what was fetched so far."""
        for path in (self.part, self.resume, self.resume.with_suffix(".new")):
            path.unlink(missing_ok=True)


def _write_all(out: int, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(out, rest) :]
