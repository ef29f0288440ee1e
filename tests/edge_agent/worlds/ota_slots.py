"""Small real slots, and a launcher that really starts them, again and again as systemd would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from edge_agent.updates import archive, launcher, slots
from edge_agent.updates.archive import Entry

LAUNCHER: Final = Path(launcher.__file__)
TELLS: Final = """
import json, os, sys
from karvon import VERSION
def tell(**more):
    with open(os.environ["TOLD"], "a") as out:
        out.write(json.dumps({"version": VERSION, "args": sys.argv[1:], "pid": os.getpid(),
                              "slot": os.environ.get("KARVON_SLOT"), **more}) + "\\n")
        out.flush()
"""
GOOD: Final = "if sys.argv[1:2] == ['selftest']: sys.exit(0)\ntell()\n"
CRASHES: Final = "if sys.argv[1:2] == ['selftest']: sys.exit(0)\ntell()\nsys.exit(9)\n"


def image(version: str, does: str = GOOD, **files: str) -> bytes:
    """An agent's image with a `karvon` that tells that it was started, and then does this."""
    manifest = {"name": "karvon-agent", "version": version, "python": slots.this_python()}
    texts = {
        "release.json": json.dumps(manifest),
        "site-packages/karvon/__init__.py": f"VERSION = {version!r}\n",
        "site-packages/karvon/__main__.py": TELLS + does,
    }
    texts |= {f"site-packages/{name}": text for name, text in files.items()}
    return archive.pack(Entry(name, text.encode()) for name, text in texts.items())


class Controller:
    """A folder with slots, and starts of the launcher in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "karvon"
        self.told = folder / "told"
        (self.folder / launcher.SLOTS).mkdir(parents=True)

    def install(self, version: str, does: str = GOOD, **files: str) -> str:
        """Make a slot; nothing starts it yet."""
        return slots.prepare(
            self.folder, image(version, does, **files), selftest=["selftest", "--version"]
        )

    def factory(self, version: str = "0.0.1", does: str = GOOD) -> None:
        name = self.install(version, does)
        (self.folder / launcher.SLOTS / name).rename(self.folder / launcher.FACTORY)

    def record(self, **fields: object) -> launcher.Record:
        return launcher.write(self.folder, launcher.Record(**fields))  # type: ignore[arg-type]

    @property
    def stands(self) -> launcher.Record:
        found = launcher.read(self.folder)
        assert found is not None
        return found

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-I", str(LAUNCHER), str(self.folder), *arguments]

    def start(self, *arguments: str) -> int:
        """One start, to its end; returns its exit code."""
        return subprocess.run(
            self.command(*arguments), env=self.environment, check=False, timeout=60
        ).returncode

    def popen(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command(*arguments), env=self.environment, stdin=subprocess.DEVNULL
        )

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "TOLD": str(self.told)}

    def heard(self) -> list[dict[str, object]]:
        lines = self.told.read_text().splitlines() if self.told.exists() else []
        return [json.loads(line) for line in lines]

    def versions(self) -> list[object]:
        return [one["version"] for one in self.heard()]
