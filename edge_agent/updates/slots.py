"""Slots: whole environments side by side, each made once, at its place, and never changed.

`slots/<sha>` is made as `slots/.new` from nothing, compiled, tried, synced and only then renamed;
whatever a power cut leaves of it is wiped by the next attempt.
"""

from __future__ import annotations

import compileall
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Final

import msgspec

from edge_agent.updates import archive, launcher
from edge_agent.updates.archive import ImageError

NEW: Final = ".new"
CHECK_S: Final = 300
"""For trying a slot, on the slowest controller."""


class Manifest(msgspec.Struct, frozen=True):
    """`release.json`: what an image says of itself."""

    name: str
    version: str
    python: str
    """The interpreter it is for, as in wheel tags: cp311."""


def this_python() -> str:
    return f"cp{sys.version_info.major}{sys.version_info.minor}"


def base_interpreter() -> Path:
    """The system's own, behind whatever environment runs this."""
    return Path(getattr(sys, "_base_executable", sys.executable)).resolve()


def packages_of(slot: Path) -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return slot / "lib" / version / "site-packages"


def manifest_of(slot: Path) -> Manifest:
    """Raises OSError, ImageError."""
    return _manifest((slot / archive.MANIFEST).read_bytes())


def _manifest(content: bytes) -> Manifest:
    try:
        return msgspec.json.decode(content, type=Manifest)
    except msgspec.DecodeError as error:
        raise ImageError(f"{archive.MANIFEST}: {error}") from None


def image_of(folder: Path, slot: str) -> bytes:
    """The image a slot was made of; "" is the factory's. Raises OSError."""
    place = launcher.path_of(folder, slot)
    return archive.of_slot(place, packages_of(place))


def prepare(folder: Path, image: bytes, *, selftest: Sequence[str]) -> str:
    """Make a slot of an image, unless it is there; returns its name, the image's SHA-256.

    `selftest` are arguments for the new environment's `karvon`, which must end with 0. Raises
    ImageError when it does not, or the image is unfit; OSError when the disk refuses.
    """
    name = archive.sha256(image)
    place = folder / launcher.SLOTS / name
    if launcher.usable(folder, name):
        return name
    draft = place.with_name(NEW)
    wipe(draft)
    wipe(place)
    try:
        _fill(draft, image)
        _compile(draft, place)
        _run(draft, ["-B", "-m", "karvon", *selftest])
        finish(draft, place, name)
    except BaseException:
        wipe(draft)
        raise
    return name


def finish(draft: Path, place: Path, name: str) -> None:
    """All of it on disk, then its mark, then its name."""
    sync_tree(draft)
    (draft / launcher.COMPLETE).write_text(name, encoding="ascii")
    sync_file(draft / launcher.COMPLETE)
    launcher.sync_folder(draft)
    draft.rename(place)
    launcher.sync_folder(place.parent)


def _fill(draft: Path, image: bytes) -> None:
    packages = packages_of(draft)
    packages.mkdir(parents=True)
    manifest = None
    for info, content in archive.members(io.BytesIO(image)):
        whole = content.read()
        if info.name == archive.MANIFEST:
            manifest = _manifest(whole)
            target = draft / archive.MANIFEST
        else:
            target = packages / info.name.removeprefix(f"{archive.PACKAGES}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as out:
            out.write(whole)
        target.chmod(0o755 if info.mode & 0o100 else 0o644)
    if manifest is None:
        raise ImageError(f"the image has no {archive.MANIFEST}")
    if manifest.python != this_python():
        raise ImageError(f"the image is for {manifest.python}, and here is {this_python()}")
    _environment(draft)


def _environment(draft: Path) -> None:
    """What makes a folder an environment: no scripts, so it may be renamed."""
    python = base_interpreter()
    (draft / "bin").mkdir()
    (draft / "bin" / "python").symlink_to(python)
    config = f"home = {python.parent}\ninclude-system-site-packages = false\n"
    (draft / "pyvenv.cfg").write_text(config, encoding="utf-8")


def _compile(draft: Path, place: Path) -> None:
    """Bytecode that is held to its source by hash; a file that is no Python is left as it is."""
    compileall.compile_dir(
        draft / "lib",
        quiet=2,
        stripdir=str(draft),
        prependdir=str(place),
        invalidation_mode=PycInvalidationMode.CHECKED_HASH,
    )


def _run(draft: Path, arguments: Sequence[str]) -> None:
    command = [str(draft / "bin" / "python"), "-I", *arguments]
    try:
        ran = subprocess.run(
            command,
            cwd=draft,
            capture_output=True,
            timeout=CHECK_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise ImageError(f"the self-test did not end within {CHECK_S} s") from None
    if ran.returncode != 0:
        said = (ran.stderr or ran.stdout).decode(errors="replace").strip().splitlines()
        tail = said[-1] if said else "it said nothing"
        raise ImageError(f"the new environment failed its self-test: {tail}")


def sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Every file and folder below, on disk."""
    for place, _, files in os.walk(folder):
        for name in files:
            path = Path(place, name)
            if not path.is_symlink():
                sync_file(path)
        launcher.sync_folder(Path(place))


def wipe(place: Path) -> None:
    """Raises OSError."""
    if place.is_symlink() or place.exists():
        shutil.rmtree(place)


def collect(folder: Path, record: launcher.Record, running: str) -> list[str]:
    """Remove slots that nothing can need any more; returns their names.

    Both boot files may still be read after a power cut: what either names stays. Raises OSError
    when one that is there cannot be read, for it may name any of them; then nothing is removed.
    """
    needed = {record.confirmed, record.previous, record.trial, running}
    for name in launcher.FILES:
        try:
            other = launcher.unpack((folder / name).read_bytes())
        except FileNotFoundError:
            continue  # before the second writing there is one file
        if other is not None:
            needed |= {other.confirmed, other.previous, other.trial}
    gone = [name for name in launcher.slots(folder) if name not in needed]
    for name in gone:
        wipe(folder / launcher.SLOTS / name)
    wipe(folder / launcher.SLOTS / NEW)
    return gone
