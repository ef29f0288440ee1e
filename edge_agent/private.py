"""Files with secrets: written whole or not at all, readable by their owner only."""

from __future__ import annotations

import os
from pathlib import Path


def write_private(path: Path, content: bytes) -> None:
    """Raises OSError; then the old file is still there."""
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    draft.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """A new name survives a power cut only once its folder is on disk, too."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def wipe(path: Path) -> bool:
    """Overwrite a secret with noise, then remove it; False where there was none. Raises OSError.

    On flash the old cells may live on until the controller of the card reuses them: what matters is
    revoked at the other end as well.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    with os.fdopen(handle, "wb") as out:
        out.write(os.urandom(os.fstat(handle).st_size))
        out.flush()
        os.fsync(out.fileno())
    path.unlink()
    sync_folder(path.parent)
    return True


def why_not_private(path: Path) -> str:
    """What is wrong with a file that holds a secret; empty when nothing is."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    if mode & 0o077:
        return f"others may read {path}; make it the agent's own: chmod 600 {path}"
    return ""
