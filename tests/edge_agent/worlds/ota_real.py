"""The real agent in real slots, with a service manager that starts it again and again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

from edge_agent.updates import archive, launcher, slots
from edge_agent.updates.archive import Entry
from karvon.demo.lines import ask
from karvon.demo.process import ROOT, Child, DemoError, free_port, wait_for

PACKAGES: Final = ("edge_agent", "firmware_bridge", "protocols", "karvon/profiles")
SINGLE: Final = ("__init__.py", "__main__.py", "agent.py", "cli.py")
CONFIG: Final = """\
station = "UZ*KRV*E1"
[journal]
folder = "journal"
[[boards]]
name = "board"
profile = "abb_terra_ac"
link = {{ kind = "tcp", host = "127.0.0.1", port = {port}, unit = 1 }}
[authorization]
unknown = "allow"
[times]
poll_s = 0.5
[updates]
{updates}
"""


def real_image(version: str, **instead: str) -> bytes:
    """This very agent as a release; what it needs is found where it runs now."""
    needed = Path(msgspec_folder()).parent
    manifest = {"name": "karvon-agent", "version": version, "python": slots.this_python()}
    info = f"Metadata-Version: 2.1\nName: karvon\nVersion: {version}\n"
    texts = {
        archive.MANIFEST: json.dumps(manifest).encode(),
        f"site-packages/karvon-{version}.dist-info/METADATA": info.encode(),
        "site-packages/needed.pth": f"{needed}\n".encode(),
    }
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and archive.CACHE not in path.parts:
                texts[f"site-packages/{path.relative_to(ROOT)}"] = path.read_bytes()
    for name in SINGLE:
        texts[f"site-packages/karvon/{name}"] = (ROOT / "karvon" / name).read_bytes()
    texts |= {f"site-packages/{name}": text.encode() for name, text in instead.items()}
    return archive.pack(Entry(name, text) for name, text in texts.items())


def msgspec_folder() -> str:
    import msgspec

    return os.path.dirname(msgspec.__file__)  # noqa: PTH120


class Service:
    """Starts the launcher whenever it has ended, as systemd does with Restart=always."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.log = folder / "agent.log"
        self.starts = 0
        self._command = [
            *(sys.executable, "-I", str(launcher.__file__), str(root)),
            *("agent", "run", "--config", str(folder / "agent.toml")),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        with self.log.open("ab") as log:
            while not self._ending.is_set():
                self.starts += 1
                self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
                self._process.wait()

    def kill(self) -> None:
        """As a watchdog does."""
        if self._process is not None:
            self._process.kill()

    def end(self) -> None:
        self._ending.set()
        while self._thread.is_alive():
            if self._process is not None:
                self._process.terminate()
            self._thread.join(0.5)


class RealController:
    """A simulated charger, and the real agent that runs it from a slot."""

    def __init__(self, folder: Path, updates: str) -> None:
        self.folder, self.root = folder / "agent", folder / "karvon"
        self.folder.mkdir()
        (self.root / launcher.SLOTS).mkdir(parents=True, exist_ok=True)
        modbus, self.control = free_port(), free_port()
        arguments = [
            *("sim", "charger", "--profile", "abb_terra_ac", "--json"),
            *("--tcp", f"127.0.0.1:{modbus}", "--control", f"127.0.0.1:{self.control}"),
        ]
        self.sim = Child("sim", arguments, self.folder)
        (self.folder / "agent.toml").write_text(CONFIG.format(port=modbus, updates=updates))
        self.service = Service(self.folder, self.root)

    def install(self, image: bytes) -> str:
        config = str(self.folder / "agent.toml")
        return slots.prepare(self.root, image, selftest=["agent", "selftest", "--config", config])

    def start(self) -> None:
        self.sim.start()
        self.sim.ready()
        self.service.start()

    def end(self) -> None:
        self.service.end()
        self.sim.stop()

    def ask(self, **question: Any) -> dict[str, Any]:
        return ask(self.folder / "journal" / "control.sock", question)

    def status(self) -> dict[str, Any] | None:
        """None while no agent answers."""
        try:
            return self.ask(do="status")
        except DemoError:
            return None

    def board(self, do: str, **arguments: Any) -> dict[str, Any]:
        return ask(self.control, {"do": do, **arguments})

    def version(self) -> str:
        status = self.status()
        return "" if status is None else str(status["status"]["agent_version"])

    def evse(self) -> str:
        status = self.status()
        return "" if status is None or not status["evses"] else str(status["evses"][0]["status"])

    def until(self, look: Any, what: str) -> None:
        try:
            wait_for(look, 120, what)
        except DemoError as error:
            raise DemoError(f"{error}\n{self.service.log.read_text()[-6000:]}") from None

    def pause_s(self, version: str) -> float:
        """Time from the last moment an EVSE was on offer to the first under the new version."""
        left, deadline = time.monotonic(), time.monotonic() + 120
        while time.monotonic() < deadline:
            offered = self.evse() == "Available"
            if offered and self.version() == version:
                return time.monotonic() - left
            if offered:
                left = time.monotonic()
            time.sleep(0.02)
        raise DemoError(f"{version} never came\n{self.service.log.read_text()[-6000:]}")
