"""From wheels, firmware and settings to images: what is signed and what is sent."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath
from typing import Final

from edge_agent.updates import archive
from edge_agent.updates.archive import CACHE, MANIFEST, PACKAGES, Entry, ImageError
from edge_agent.updates.settings_image import read_files
from karvon.release.keys import ReleaseProblem

LIBRARIES: Final = ("purelib", "platlib")
NOT_INSTALLED: Final = ("scripts", "headers", "data")
"""Parts of a wheel that a slot has no use for: it starts its interpreter itself."""


def agent_image(wheels: Path, *, name: str, version: str, hw_id: str) -> bytes:
    """The image of a set of wheels, for one kind of controller. Raises ReleaseProblem.

    `hw_id` is `<system>-<machine>-<python>`, such as `linux-aarch64-cp311`: every wheel must fit.
    """
    _, _, python = hw_id.rpartition("-")
    found: dict[str, tuple[Path, Entry]] = {}
    files = sorted(wheels.glob("*.whl"))
    if not files:
        raise ReleaseProblem(f"{wheels}: no wheels there; fill it with: pip wheel -w {wheels} …")
    for wheel in files:
        for entry in _entries(wheel, hw_id):
            other = found.setdefault(entry.name, (wheel, entry))
            if other[1] != entry:
                raise ReleaseProblem(f"{wheel.name} and {other[0].name} both bring {entry.name}")
    manifest = {"name": name, "version": version, "python": python}
    content = json.dumps(manifest, sort_keys=True).encode()
    return archive.pack([Entry(MANIFEST, content), *(entry for _, entry in found.values())])


def _entries(wheel: Path, hw_id: str) -> Iterator[Entry]:
    """A wheel's files as they lie in site-packages, each proven by its RECORD."""
    try:
        with zipfile.ZipFile(wheel) as zipped:
            record = _record(zipped, wheel)
            _check_tags(zipped, wheel, hw_id)
            for info in zipped.infolist():
                if info.is_dir() or CACHE in info.filename:
                    continue
                content = zipped.read(info)
                said = record.get(info.filename, "")
                if said != _digest(content) and not info.filename.endswith("/RECORD"):
                    raise ReleaseProblem(f"{wheel.name}: {info.filename} is not what RECORD says")
                place = _place(info.filename)
                if place is not None:
                    executable = bool((info.external_attr >> 16) & 0o100)
                    yield Entry(f"{PACKAGES}/{place}", content, executable)
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise ReleaseProblem(f"{wheel}: not a wheel ({error})") from error


def _place(name: str) -> str | None:
    parts = PurePosixPath(name).parts
    if not parts[0].endswith(".data"):
        return name
    if parts[1] in NOT_INSTALLED:
        return None
    return str(PurePosixPath(*parts[2:])) if parts[1] in LIBRARIES else None


def _record(zipped: zipfile.ZipFile, wheel: Path) -> dict[str, str]:
    name = next((n for n in zipped.namelist() if n.endswith(".dist-info/RECORD")), None)
    if name is None:
        raise ReleaseProblem(f"{wheel}: not a wheel (it has no RECORD)")
    rows = csv.reader(io.StringIO(zipped.read(name).decode()))
    return {row[0]: row[1] for row in rows if len(row) > 1}


def _digest(content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
    return f"sha256={digest.decode()}"


def _check_tags(zipped: zipfile.ZipFile, wheel: Path, hw_id: str) -> None:
    """Raises ReleaseProblem for a wheel of another machine or interpreter."""
    name = next(n for n in zipped.namelist() if n.endswith(".dist-info/WHEEL"))
    tags = HeaderParser().parsestr(zipped.read(name).decode()).get_all("Tag") or []
    if not any(_fits(tag, hw_id) for tag in tags):
        raise ReleaseProblem(f"{wheel.name} is not for {hw_id}; get the wheel that is")


def _fits(tag: str, hw_id: str) -> bool:
    interpreter, abi, platform = tag.split("-", 2)
    _, machine, python = hw_id.rsplit("-", 2)
    number = int(python[3:])
    older = interpreter.startswith("cp3") and int(interpreter[3:] or 0) <= number
    runs = interpreter.startswith("py3") or interpreter == python or (abi == "abi3" and older)
    return runs and (platform == "any" or platform.endswith(f"_{machine}"))


def settings_image(folder: Path) -> bytes:
    """`settings.toml` and `profiles/*.yaml` of a folder, checked as stations check them.

    Raises ReleaseProblem.
    """
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    try:
        read_files(files)
    except ImageError as error:
        raise ReleaseProblem(f"{folder}: {error}") from error
    return archive.pack(Entry(name, content) for name, content in files.items())
