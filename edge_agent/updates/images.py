"""Images that are no agent's, whole and by their SHA-256, in `fw` beside the slots.

What is confirmed and what was before it stay: a board is brought back to it at any time.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

from edge_agent.updates.archive import ImageError, sha256
from firmware_bridge import whole_file

FOLDER: Final = "fw"
SUFFIX: Final = ".bin"


def path_of(root: Path, name: str) -> Path:
    return root / FOLDER / f"{name}{SUFFIX}"


def keep(root: Path, image: bytes) -> str:
    """On the disk when this returns its name, unless it was there. Raises OSError."""
    name = sha256(image)
    path = path_of(root, name)
    if usable(root, name):
        return name
    whole_file.write(path, image)
    return name


def load(root: Path, name: str) -> bytes:
    """Raises ImageError for one that is not there, or is not what its name says."""
    try:
        image = path_of(root, name).read_bytes()
    except OSError as error:
        raise ImageError(f"the image {name[:12]} cannot be read: {error.strerror}") from error
    if sha256(image) != name:
        raise ImageError(f"the image {name[:12]} on the disk is damaged")
    return image


def usable(root: Path, name: str) -> bool:
    try:
        load(root, name)
    except ImageError:
        return False
    return True


def collect(root: Path, needed: Collection[str]) -> None:
    """Remove all others. Raises OSError."""
    for path in (root / FOLDER).glob(f"*{SUFFIX}"):
        if path.stem not in needed:
            path.unlink(missing_ok=True)
