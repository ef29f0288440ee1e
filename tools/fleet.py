"""What the fleet's playbooks are tried with: Ansible, a Debian root, wheels for that root.

`fleet.py [EXTRA]...` makes them ready (idempotent, in the folder that the checkouts of one user
share), with the wheels of these extras, and prints where they are, as JSON. Where they cannot be
had it ends with 3 and says why.

Ansible has an environment of its own: nobody who works on Karvon without it has to install it.
Of the collections only what connects to a root that does not run is taken.
"""

from __future__ import annotations

import configparser
import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from services import CACHE, PROJECT, LeftOutError, ensure_root, run, say

FLEET = CACHE / "fleet"
ANSIBLE = ["ansible-core>=2.19", "ansible-lint>=26"]
CONNECTION = "ansible_collections/community/general/"
THERE = ["python3", "systemd", "udev"]
"""What a Debian has before Ansible comes."""
FETCHED = ["ca-certificates", "nginx", "openssl", "python3-apt", "python3-venv"]
"""What the playbooks install: at hand, not installed."""
MONTH_S = 30 * 86_400
INSIDE = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
PIP = (sys.executable, "-m", "pip")


def made(name: str, recipe: object, make: Callable[[Path], None]) -> Path:
    """The folder that this recipe makes: checkouts with other recipes have their own."""
    text = json.dumps(recipe)
    place = FLEET / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    mark = place / "made-by.json"
    if not mark.exists():
        say(f"making {place}")
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        make(place)
        forget_old(name)
    mark.write_text(text)
    return place


def forget_old(name: str) -> None:
    """What no checkout has asked for in a month."""
    for mark in FLEET.glob(f"{name}-????????/made-by.json"):
        if mark.stat().st_mtime < time.time() - MONTH_S:
            shutil.rmtree(mark.parent, ignore_errors=True)


def make_ansible(place: Path) -> None:
    run(sys.executable, "-m", "venv", str(place / "venv"))
    run(str(place / "venv" / "bin" / "python"), "-m", "pip", "install", "-qq", *ANSIBLE)
    run(*PIP, "download", "-qq", "--no-deps", "-d", str(place), "ansible")
    (wheel,) = place.glob("ansible-*.whl")
    with zipfile.ZipFile(wheel) as zipped:
        names = [name for name in zipped.namelist() if name.startswith(CONNECTION)]
        zipped.extractall(place / "collections", names)
    wheel.unlink()


def make_base(place: Path) -> None:
    """Trixie as a controller or server has it, and what the playbooks will want in apt's cache."""
    trixie = ensure_root()
    run("cp", "-a", "--reflink=auto", *map(str, kept(trixie)), str(place))
    (place / "srv").mkdir()
    for name in ("proc", "sys"):
        (place / name).mkdir(exist_ok=True)
    inside = ("chroot", str(place), "apt-get", "-qq", "-y", "--no-install-recommends")
    run(*inside, "update", env=INSIDE)
    run(*inside, "install", *THERE, env=INSIDE)
    run(*inside, "install", "--download-only", *FETCHED, env=INSIDE)


def kept(root: Path) -> list[Path]:
    """All but other checkouts' data."""
    return [path for path in root.iterdir() if path.name not in {"srv", "proc", "sys"}]


def make_wheels(extras: tuple[str, ...], python: str) -> Callable[[Path], None]:
    machine = platform.machine()
    tags = [f"manylinux_2_{minor}_{machine}" for minor in (17, 28, 34)]
    wanted = (
        *("--only-binary=:all:", "--implementation", "cp", "--python-version", python),
        *(word for abi in (f"cp{python.replace('.', '')}", "abi3") for word in ("--abi", abi)),
        *(word for tag in [*tags, f"manylinux2014_{machine}"] for word in ("--platform", tag)),
    )

    def make(place: Path) -> None:
        run(*PIP, "download", "-qq", "-d", str(place), *wanted, *requirements(extras))

    return make


def requirements(extras: tuple[str, ...]) -> list[str]:
    """What karvon needs with these extras, as setup.cfg says it."""
    setup = configparser.ConfigParser()
    setup.read(PROJECT / "setup.cfg")
    lines = [setup["options"]["install_requires"]]
    lines += [setup["options.extras_require"][extra] for extra in extras]
    return sorted({line.strip() for part in lines for line in part.splitlines() if line.strip()})


def ready(extras: tuple[str, ...]) -> dict[str, str]:
    """Raises LeftOutError."""
    if os.geteuid() != 0:
        raise LeftOutError("a Debian root can only be entered by root")
    FLEET.mkdir(parents=True, exist_ok=True)
    with (FLEET / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ansible = made("ansible", [ANSIBLE, sys.version], make_ansible)
        source = hashlib.sha256((ensure_root() / "karvon-stamp.json").read_bytes()).hexdigest()
        base = made("base", [source, THERE, FETCHED], make_base)
        version = run("chroot", str(base), "python3", "--version", env=INSIDE).split()[1]
        python = version.rpartition(".")[0]
        recipe = [python, platform.machine(), requirements(extras)]
        wheels = made("wheels", recipe, make_wheels(extras, python))
    return {
        "programs": str(ansible / "venv" / "bin"),
        "collections": str(ansible / "collections"),
        "base": str(base),
        "hardware": f"linux-{platform.machine()}-cp{python.replace('.', '')}",
        "wheels": str(wheels),
    }


def main() -> int:
    try:
        where = ready(tuple(sys.argv[1:]))
    except LeftOutError as reason:
        say(f"LEFT OUT: {reason}")
        return 3
    sys.stdout.write(json.dumps(where) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
