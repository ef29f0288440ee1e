"""The real cloud in a process of its own, as an operator starts it, and stations that joined it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Joined:
    """What a claim gave a station."""

    station: str
    mqtt_url: str
    username: str
    password: str
    ca_pem: str


@dataclass(frozen=True)
class CloudProcess:
    url: str
    key: str
    pid: int

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def join(self, station: str) -> Joined:
        """Create a station and claim it."""
        code = self.call("POST", "/api/v1/stations", {"station": station})["claim"]["code"]
        claim = self.call("POST", "/api/v1/claims", {"station": station, "code": code})
        return Joined(**{name: claim[name] for name in Joined.__dataclass_fields__})


@contextmanager
def cloud_process() -> Iterator[CloudProcess]:
    """`karvon cloud serve` with everything embedded, in a fresh folder; ended and removed after."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        key_file = folder / "key"
        command = [sys.executable, "-m", "karvon", "cloud", "serve", "--json", "--http-port", "0"]
        command += ["--data-dir", str(folder / "data"), "--admin-key-file", str(key_file)]
        command += ["--registration", "known"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, (folder / "log").read_text()
            yield CloudProcess(json.loads(line)["ready"], key_file.read_text().strip(), process.pid)
        finally:
            process.terminate()
            process.communicate(timeout=30)
