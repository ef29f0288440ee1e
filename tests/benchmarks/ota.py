"""What an update costs: bytes on the line, and time in which nobody can begin to charge.

The image is the real one: everything that `karvon[edge]` needs, as it is installed here. A small
release changes a few of our own modules; five dependencies go back to the release before the one
that is installed, which pip fetches.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from figure import Figure
from packaging.requirements import Requirement

from edge_agent.updates import archive, launcher, packing
from edge_agent.updates.archive import CACHE, PACKAGES, Entry
from karvon.demo.process import ROOT

sys.path.insert(0, str(ROOT / "tests" / "edge_agent" / "worlds"))

OURS: Final = ("edge_agent", "karvon", "protocols")
CHANGED: Final = ("agent.py", "loop.py", "desk.py", "main.py", "updates/worker.py")
BUMPED: Final = ("cryptography", "textual", "msgspec", "pymodbus", "websockets")
ADDED: Final = """

def added_{number}(reading: int, limit: int) -> int:
    \"\"\"What a small change looks like: some lines more, and others moved by them.\"\"\"
    if reading > limit:
        return limit - {number}
    return max(reading, {number})
"""


async def measure(runs: int) -> list[Figure]:
    figures = _shares()
    pauses = [_pause() for _ in range(min(runs, 2))]
    figures.append(
        Figure(
            name="ota.pause_s", value=max(pauses), unit="s", at_most=20, detail={"of": len(pauses)}
        )
    )
    return figures


# --------------------------------------------------------------------------- bytes


def _shares() -> list[Figure]:
    needed = {name: dict(_files(name)) for name in sorted(_closure("karvon", {"edge"}))}
    ours = dict(_own())
    image = _image([ours, *needed.values()])
    began = time.perf_counter()
    whole = len(packing.compress(image))
    whole_s = time.perf_counter() - began
    began = time.perf_counter()
    small = len(packing.compress(_image([_changed(ours), *needed.values()]), image))
    detail: dict[str, float | int | str] = {
        "image_bytes": len(image),
        "whole_bytes": whole,
        "delta_bytes": small,
        "whole_s": round(whole_s, 1),
        "delta_s": round(time.perf_counter() - began, 1),
    }
    figures = [
        Figure(
            name="ota.small_release_share",
            value=small / whole,
            unit="ratio",
            at_most=0.01,
            detail=detail,
        )
    ]
    with tempfile.TemporaryDirectory() as folder:
        before = _before(Path(folder), needed)
    if before is None:
        sys.stderr.write("bench: ota.five_deps_share needs a package index; left out\n")
        return figures
    old, versions = before
    bumped = len(packing.compress(image, _image([ours, *old.values()])))
    share = Figure(
        name="ota.five_deps_share",
        value=bumped / whole,
        unit="ratio",
        at_most=0.35,
        detail={"whole_bytes": whole, "delta_bytes": bumped, "from": versions},
    )
    return [*figures, share]


def _closure(name: str, extras: set[str], seen: set[str] | None = None) -> set[str]:
    """The distributions that these need, themselves left out."""
    found = set() if seen is None else seen
    for text in importlib.metadata.requires(name) or ():
        wanted = Requirement(text)
        marks = [
            wanted.marker is None or wanted.marker.evaluate({"extra": e}) for e in {"", *extras}
        ]
        if any(marks) and wanted.name not in found:
            found.add(wanted.name)
            _closure(wanted.name, set(wanted.extras), found)
    return found


def _files(name: str) -> Iterator[tuple[str, bytes]]:
    for file in importlib.metadata.files(name) or ():
        path = Path(str(file.locate()))
        if ".." not in file.parts and CACHE not in file.parts and path.is_file():
            yield file.as_posix(), path.read_bytes()


def _own() -> Iterator[tuple[str, bytes]]:
    for package in OURS:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and CACHE not in path.parts:
                yield path.relative_to(ROOT).as_posix(), path.read_bytes()


def _changed(ours: dict[str, bytes]) -> dict[str, bytes]:
    """Five modules with lines in their middle and at their end, and another version."""
    changed = dict(ours)
    for number, name in enumerate(CHANGED):
        lines = ours[f"edge_agent/{name}"].decode().splitlines(keepends=True)
        middle = next(i for i, line in enumerate(lines) if i > len(lines) / 2 and line == "\n")
        lines.insert(middle, ADDED.format(number=number))
        changed[f"edge_agent/{name}"] = ("".join(lines) + ADDED.format(number=90 + number)).encode()
    version = ours["karvon/__init__.py"].replace(b"0.1.0", b"0.1.1")
    return changed | {"karvon/__init__.py": version}


def _image(parts: list[dict[str, bytes]]) -> bytes:
    files: dict[str, bytes] = {}
    for part in parts:
        files |= part
    return archive.pack(Entry(f"{PACKAGES}/{name}", content) for name, content in files.items())


def _before(
    folder: Path, needed: dict[str, dict[str, bytes]]
) -> tuple[dict[str, dict[str, bytes]], str] | None:
    """The tree with five distributions as they were one release before; None without an index."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    wanted = [f"{name}<{importlib.metadata.version(name)}" for name in BUMPED]
    if subprocess.run([*command, "-d", str(folder), *wanted], check=False).returncode:
        return None
    old, versions = dict(needed), []
    for wheel in sorted(folder.glob("*.whl")):
        name = re.sub(r"[-_.]+", "-", wheel.name.split("-")[0]).lower()
        with zipfile.ZipFile(wheel) as zipped:
            old[name] = {one: zipped.read(one) for one in zipped.namelist() if one[-1] != "/"}
        versions.append("-".join(wheel.name.split("-")[:2]))
    return old, ", ".join(versions)


# --------------------------------------------------------------------------- the pause


def _pause() -> float:
    """The real agent on a simulated charger goes from one version to the next."""
    from ota_real import RealController, real_image
    from ota_world import HARDWARE, World

    from protocols.release import Encoding, Kind, Release

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = World(folder)
        world.job()  # hands out the roots
        updates = f'hardware = "{HARDWARE}"\nimages_root = "{folder}/images.root.json"\n'
        controller = RealController(folder, updates)
        first = controller.install(real_image("1.0.0"))
        launcher.write(controller.root, launcher.Record(confirmed=first))
        release = Release(
            kind=Kind.AGENT,
            name="karvon-agent",
            version="1.1.0",
            release_counter=0,
            hw_ids=(HARDWARE,),
            raw_sha256="",
            raw_length=0,
            encoding=Encoding.ZSTD,
        )
        world.maker.workshop.add(real_image("1.1.0"), release)
        world.maker.publish(world.out)
        try:
            controller.start()
            controller.until(lambda: controller.evse() == "Available", "the first version")
            controller.ask(do="update", device=str(world.out))
            return controller.pause_s("1.1.0")
        finally:
            controller.end()
