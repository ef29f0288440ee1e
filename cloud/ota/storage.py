"""Where images lie: files named by their SHA-256, in one folder that every API process shares.

Or in an object store, and the folder of each process keeps what was asked for. An upload comes in
parts and is not to be seen before its digest proves right. What lies here was named by signed
metadata, or waits to be.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
from datetime import datetime
from pathlib import Path
from typing import Final

from cloud.ota.api import FileMisplaced, FileTooLarge, StorageFull
from cloud.ota.bucket import Bucket
from protocols.release import IMAGE_LIMIT

_CHUNK: Final = 1024 * 1024


class Files:
    """Images on disk. Every method raises StorageFull where the disk does."""

    def __init__(self, folder: Path, bucket: Bucket | None = None) -> None:
        self._bucket = bucket
        self._fetching: dict[str, asyncio.Lock] = {}
        self._whole = folder / "targets"
        self._coming = folder / "incoming"
        for part in (self._whole, self._coming):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def path(self, sha256: str) -> Path | None:
        """The whole file, fetched from the object store if need be; None: there is none."""
        file = self._whole / sha256
        if not file.is_file() and self._bucket is not None:
            lock = self._fetching.setdefault(sha256, asyncio.Lock())
            async with lock:
                if not file.is_file():
                    await asyncio.to_thread(self._fetch, self._bucket, sha256)
        return file if file.is_file() else None

    async def received(self, owner: int, sha256: str) -> int:
        """Bytes that are here of it."""
        return await asyncio.to_thread(self._received, owner, sha256)

    async def append(self, owner: int, sha256: str, offset: int, part: bytes) -> int:
        """The next part; returns how many bytes are here now.

        Raises FileMisplaced for a part that is not the next one, FileTooLarge.
        """
        return await asyncio.to_thread(self._append, owner, sha256, offset, part)

    async def finish(self, owner: int, sha256: str, length: int) -> bool:
        """Whether the file is here, whole and right; a wrong one is thrown away."""
        return await asyncio.to_thread(self._finish, owner, sha256, length)

    async def forget_abandoned(self, before: datetime) -> tuple[int, int]:
        """Remove what has come of uploads that got no part since; returns how many, and bytes."""
        return await asyncio.to_thread(self._forget_abandoned, before.timestamp())

    # ------------------------------------------------------------------ in a thread

    def _part(self, owner: int, sha256: str) -> Path:
        return self._coming / f"{owner}-{sha256}"

    def _received(self, owner: int, sha256: str) -> int:
        for file in (self._whole / sha256, self._part(owner, sha256)):
            if file.is_file():
                return file.stat().st_size
        return 0

    def _append(self, owner: int, sha256: str, offset: int, part: bytes) -> int:
        have = self._received(owner, sha256)
        whole = (self._whole / sha256).is_file()
        if offset + len(part) <= have:
            return have  # sent again; the digest tells in the end whether it was the same
        if offset != have or whole:
            raise FileMisplaced(
                f"the next part begins at {have}, this one at {offset}", received=have
            )
        if have + len(part) > IMAGE_LIMIT:
            raise FileTooLarge(f"a file may have {IMAGE_LIMIT} bytes", most=IMAGE_LIMIT)
        try:
            with self._part(owner, sha256).open("ab") as out:
                out.write(part)
        except OSError as error:
            self._cut(owner, sha256, have)
            raise _translated(error) from error
        return have + len(part)

    def _forget_abandoned(self, before: float) -> tuple[int, int]:
        count = size = 0
        for file in self._coming.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process was quicker
                told = file.stat()
                if told.st_mtime < before:
                    file.unlink()
                    count, size = count + 1, size + told.st_size
        return count, size

    def _cut(self, owner: int, sha256: str, length: int) -> None:
        """Leave no torn part behind."""
        file = self._part(owner, sha256)
        if file.is_file():
            os.truncate(file, length)

    def _finish(self, owner: int, sha256: str, length: int) -> bool:
        whole = self._whole / sha256
        part = self._part(owner, sha256)
        if not whole.is_file() and not part.is_file() and self._bucket is not None:
            self._fetch(self._bucket, sha256)
        if whole.is_file():
            return whole.stat().st_size == length
        if not part.is_file() or not self._is_right(part, sha256):
            return False
        if part.stat().st_size != length:
            return False
        if self._bucket is not None:
            self._bucket.put(sha256, part)
        part.rename(whole)
        _sync(self._whole)
        return True

    def _fetch(self, bucket: Bucket, sha256: str) -> None:
        """Bring it from the object store, if that has it whole."""
        aside = self._coming / f"fetched-{sha256}-{os.getpid()}"
        try:
            if bucket.get(sha256, aside) and self._is_right(aside, sha256):
                aside.rename(self._whole / sha256)
        finally:
            aside.unlink(missing_ok=True)

    def _is_right(self, file: Path, sha256: str) -> bool:
        """Whether it is what its name says, and on disk; a wrong one is thrown away."""
        digest = hashlib.sha256()
        with file.open("rb") as read:
            while chunk := read.read(_CHUNK):
                digest.update(chunk)
            if digest.hexdigest() == sha256:
                os.fsync(read.fileno())
                return True
        file.unlink()
        return False


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _translated(error: OSError) -> Exception:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StorageFull("there is no room left for images; free some, then send the part again")
    return StorageFull(f"images cannot be written: {error.strerror}")
