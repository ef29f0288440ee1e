"""A release's files as one image: the same bytes for the same files, on every machine.

An agent's image is a tar of `release.json` and `site-packages/…`, in the order of their names,
without times and owners. So a slot's files give back the very image they came from, and a small
change of the files is a small change of the image.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Final

MANIFEST: Final = "release.json"
PACKAGES: Final = "site-packages"
CACHE: Final = "__pycache__"


class ImageError(Exception):
    """An image that is not what an image may be; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an image."""

    name: str
    content: bytes
    executable: bool = False


def pack(entries: Iterable[Entry]) -> bytes:
    """The image of these files."""
    return _packed(sorted(entries, key=lambda each: each.name.encode()))


def _packed(ordered: Iterable[Entry]) -> bytes:
    """One file at a time: a controller has memory for the image, and not for it twice."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for entry in ordered:
            info = tarfile.TarInfo(entry.name)
            info.size = len(entry.content)
            info.mode = 0o755 if entry.executable else 0o644
            tar.addfile(info, io.BytesIO(entry.content))
    return out.getvalue()


def members(image: IO[bytes]) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """The files of an image, each checked: a plain file, at a place that belongs to it.

    Raises ImageError.
    """
    try:
        with tarfile.open(fileobj=image, mode="r:") as tar:
            for info in tar:
                content = tar.extractfile(info) if info.isreg() else None
                if content is None or not _belongs(info.name):
                    raise ImageError(f"{info.name!r} has no place in an image")
                yield info, content
    except (tarfile.TarError, EOFError) as error:
        raise ImageError(f"not an image: {error}") from None


def _belongs(name: str) -> bool:
    parts = PurePosixPath(name).parts
    if "/".join(parts) != name or "\\" in name or {"..", CACHE} & set(parts):
        return False
    return name == MANIFEST or (len(parts) > 1 and parts[0] == PACKAGES)


def of_slot(slot: Path, packages: Path) -> bytes:
    """The image that a slot was made of. Raises OSError; bytecode is left out."""
    files = {MANIFEST: slot / MANIFEST}
    for path in packages.rglob("*"):
        if path.is_file() and CACHE not in path.parts:
            files[f"{PACKAGES}/{path.relative_to(packages).as_posix()}"] = path
    return _packed(_read(name, files[name]) for name in sorted(files, key=str.encode))


def _read(name: str, path: Path) -> Entry:
    executable = name != MANIFEST and bool(path.stat().st_mode & 0o100)
    return Entry(name, path.read_bytes(), executable)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
