"""What a controller without an agent is installed from: one tar, and nothing else is needed there.

    images.root.json    the makers' first root, with which trust begins
    ota/                what was published, as a server or a stick shows it
    release.json, site-packages/    the newest agent unpacked, to run its own installation once

The files below `site-packages` are as trusted as whoever carries the bundle; what stays on the
controller is made by them from `ota/`, checked by the keys of that root.
"""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path
from typing import Final

from edge_agent.updates import archive
from karvon.release.checking import as_a_station
from karvon.release.keys import ReleaseProblem
from karvon.release.workshop import Workshop
from protocols.release import IMAGES_METADATA, Encoding, Kind, Release

ROOT: Final = "images.root.json"


def write(workshop: Workshop, hw_id: str, out: Path) -> Release:
    """Whole or not at all; returns the agent's release that is in it. Raises ReleaseProblem."""
    release = _newest(workshop, hw_id)
    raw = workshop.folder / "images" / release.raw_sha256
    draft = out.with_name(f".{out.name}.new")
    try:
        if archive.sha256_of(raw) != release.raw_sha256:
            raise ReleaseProblem(f"{raw}: it was changed; build the release anew")
        with tempfile.TemporaryDirectory() as name, tarfile.open(draft, "w") as tar:
            shown = Path(name)
            workshop.lay_out(shown)
            tar.add(shown / "ota", "ota")
            tar.add(shown / IMAGES_METADATA / "1.root.json", ROOT)
            with raw.open("rb") as image:
                for info, content in archive.members(image):
                    tar.addfile(info, content)
        draft.replace(out)
    except OSError as error:
        raise ReleaseProblem(f"{error.filename or out}: {error.strerror}") from error
    return release


def _newest(workshop: Workshop, hw_id: str) -> Release:
    """As a station of that kind would choose."""
    fitting = [
        release
        for _, release in as_a_station(workshop)
        if release.kind is Kind.AGENT
        and hw_id in release.hw_ids
        and release.encoding is not Encoding.ZSTD_DELTA
    ]
    if not fitting:
        raise ReleaseProblem(f"{workshop.folder}: no agent for {hw_id} is published; build it")
    return max(fitting, key=lambda release: release.release_counter)
