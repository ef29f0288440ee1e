"""The backup's file: an ordinary tar, written in one pass with bounded memory.

| member                        | holds                                                           |
|-------------------------------|-----------------------------------------------------------------|
| `karvon-backup.json`          | first: the format's version                                     |
| `files/<path>`                | a file of the data folder                                       |
| `data/<schema>.<table>/<n>.gz`| a piece of that table's COPY stream; one after the other, whole |
| `manifest.json`               | what there is, with rows and SHA-256                            |
| `manifest.sha256`             | last: a file without it was not finished                        |

So `tar xOf FILE --wildcards 'data/users.person/*' | gunzip` gives a table without Karvon.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import secrets
import tarfile
import zlib
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final, Literal, TypeVar

import msgspec

from cloud.kernel.errors import KarvonError, Kind

FORMAT: Final = 1
HEAD: Final = "karvon-backup.json"
MANIFEST: Final = "manifest.json"
SEAL: Final = "manifest.sha256"
PIECE: Final = 8 * 1024 * 1024
LARGEST_MEMBER: Final = 2 * PIECE
LEVEL: Final = 1
"""gzip's quickest: telemetry shrinks to a third; 6 takes five times as long for a sixth less."""

_Decoded = TypeVar("_Decoded")


class BadBackup(KarvonError):
    """The file is no backup, is damaged, or ends early."""

    kind = Kind.INVALID
    code = "backup.bad"


class Head(msgspec.Struct, frozen=True):
    """What a reader must know before anything else."""

    format: int


class Table(msgspec.Struct, frozen=True):
    """One table's stream; `partitions` (name, from, to) are PostgreSQL's, `days` of its chunks."""

    name: str
    columns: tuple[str, ...]
    encoding: Literal["binary", "text"]
    rows: int
    bytes: int
    sha256: str
    partitions: tuple[tuple[str, str, str], ...] = ()
    days: tuple[str, ...] = ()


class Sequence(msgspec.Struct, frozen=True):
    """`last` is None when it never gave a number."""

    name: str
    last: int | None


class Manifest(msgspec.Struct, frozen=True):
    """What the file holds; tables stand in an order that foreign keys allow."""

    taken_at: datetime
    heads: tuple[str, ...]
    tables: tuple[Table, ...]
    sequences: tuple[Sequence, ...]
    files: dict[str, str] = {}
    format: int = FORMAT

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables)


class Writer:
    """`with Writer.to(path) as writer`: the file gets its name only when it is whole."""

    def __init__(self, file: BinaryIO, piece: int = PIECE) -> None:
        self._tar = tarfile.TarFile(fileobj=file, mode="w", format=tarfile.PAX_FORMAT)
        self._piece = piece
        self._files: dict[str, str] = {}
        self._add(HEAD, msgspec.json.encode(Head(FORMAT)))

    @classmethod
    @contextlib.contextmanager
    def to(cls, path: Path) -> Iterator[Writer]:
        """Mode 600; on any failure nothing is left. Raises OSError."""
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield cls(file)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
            _sync_folder(path.parent)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise

    def file(self, name: str, content: bytes) -> None:
        self._add(f"files/{name}", content)
        self._files[name] = hashlib.sha256(content).hexdigest()

    def table(self, name: str) -> TableWriter:
        return TableWriter(name, self._add, self._piece)

    def seal(self, manifest: Manifest) -> Manifest:
        """Write the last members; nothing may follow. Returns what was written."""
        manifest = msgspec.structs.replace(manifest, files=self._files)
        text = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
        self._add(MANIFEST, text)
        self._add(SEAL, f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n".encode())
        self._tar.close()
        return manifest

    def _add(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(content), 0o600
        self._tar.addfile(member, io.BytesIO(content))


class TableWriter:
    """Takes a COPY stream in blocks of any size and writes it in compressed pieces."""

    def __init__(self, name: str, add: Callable[[str, bytes], None], piece: int) -> None:
        self.bytes = 0
        self._piece = piece
        self._name = name
        self._add = add
        self._hash = hashlib.sha256()
        self._waiting = bytearray()
        self._pieces = 0

    def write(self, block: bytes | bytearray | memoryview) -> None:
        self._waiting += block
        while len(self._waiting) >= self._piece:
            self._flush()

    def close(self) -> str:
        """Write the rest; returns the stream's SHA-256."""
        if self._waiting:
            self._flush()
        return self._hash.hexdigest()

    def _flush(self) -> None:
        piece = bytes(self._waiting[: self._piece])
        del self._waiting[: self._piece]
        self._hash.update(piece)
        self.bytes += len(piece)
        self._pieces += 1
        packed = gzip.compress(piece, LEVEL, mtime=0)
        self._add(f"data/{self._name}/{self._pieces:06}.gz", packed)


class Reader:
    """`with Reader.of(path) as reader`: an archive whose manifest is there and fits its seal."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._name = name
        with self._readable():
            self._tar = tarfile.TarFile(fileobj=file, mode="r")
            self._members = {member.name: member for member in self._tar}
        self._check_format()
        self.manifest = self._manifest()
        self._pieces = _pieces(self._members)

    @classmethod
    @contextlib.contextmanager
    def of(cls, path: Path) -> Iterator[Reader]:
        """Raises BadBackup, OSError."""
        with path.open("rb") as file:
            yield cls(file, path.name)

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Path below the data folder and content of each file. Raises BadBackup."""
        for name, digest in self.manifest.files.items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise self._bad(f"it holds a file outside of its folder, {name!r}")
            content = self._read(f"files/{name}")
            if hashlib.sha256(content).hexdigest() != digest:
                raise self._bad(f"{name} is not what was put in")
            yield name, content

    def blocks(self, table: Table) -> Iterator[bytes]:
        """The table's COPY stream; raises BadBackup at its end when it is not what was put in."""
        digest, size = hashlib.sha256(), 0
        for piece in self._pieces.get(table.name, ()):
            block = self._unpacked(piece)
            digest.update(block)
            size += len(block)
            yield block
        if (size, digest.hexdigest()) != (table.bytes, table.sha256):
            raise self._bad(f"the table {table.name} is not what was put in")

    def _check_format(self) -> None:
        if HEAD not in self._members:
            raise BadBackup(
                f"{self._name} is no backup of Karvon: it has no {HEAD}; choose another file"
            )
        head = self._decoded(HEAD, self._read(HEAD), Head)
        if head.format > FORMAT:
            raise BadBackup(
                f"{self._name} has format {head.format}, this Karvon reads up to {FORMAT}; "
                "restore it with the Karvon that made it, or a newer one"
            )

    def _manifest(self) -> Manifest:
        if SEAL not in self._members or MANIFEST not in self._members:
            raise self._bad("it ends early, as if the disk was full or a copy was cut off")
        text = self._read(MANIFEST)
        if self._read(SEAL)[:64] != hashlib.sha256(text).hexdigest().encode():
            raise self._bad("its list of contents is not what was put in")
        return self._decoded(MANIFEST, text, Manifest)

    def _decoded(self, name: str, text: bytes, kind: type[_Decoded]) -> _Decoded:
        try:
            return msgspec.json.decode(text, type=kind)
        except msgspec.DecodeError as error:
            raise self._bad(f"{name} cannot be read ({error})") from None

    def _unpacked(self, name: str) -> bytes:
        with self._readable():
            unpacker = zlib.decompressobj(wbits=31)
            block = unpacker.decompress(self._read(name), LARGEST_MEMBER)
            if not unpacker.eof:
                raise self._bad(f"{name} is cut off or too large")
        return block

    def _read(self, name: str) -> bytes:
        member = self._members.get(name)
        if member is None or not member.isreg() or member.size > LARGEST_MEMBER:
            raise self._bad(f"{name} is missing or too large")
        with self._readable():
            content = self._tar.extractfile(member)
            assert content is not None
            return content.read()

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (tarfile.TarError, zlib.error, EOFError) as error:
            raise self._bad(f"it cannot be read ({error})") from None

    def _bad(self, why: str) -> BadBackup:
        return BadBackup(f"{self._name} is damaged: {why}; use another backup")


def verify(path: Path, told: Callable[[str], None] = lambda _: None) -> Manifest:
    """Read everything and compare it with the manifest. Raises BadBackup, OSError."""
    with Reader.of(path) as reader:
        for name, _ in reader.files():
            told(name)
        for table in reader.manifest.tables:
            for _ in reader.blocks(table):
                told(table.name)
        return reader.manifest


def _pieces(members: dict[str, tarfile.TarInfo]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in sorted(members):
        if name.startswith("data/"):
            found.setdefault(name.split("/")[1], []).append(name)
    return found


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
