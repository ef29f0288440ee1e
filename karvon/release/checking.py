"""The published state, walked as a station walks it: with the updater that stations use."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from tuf.api.exceptions import DownloadError, RepositoryError
from tuf.ngclient import Updater

from edge_agent.updates.fetching import FolderFetcher
from karvon.release.keys import ReleaseProblem
from karvon.release.workshop import Workshop
from protocols.release import IMAGES_METADATA, IMAGES_TARGETS, Release, ReleaseError, release_of

BASE = "folder:"


def as_a_station(workshop: Workshop) -> Iterator[tuple[str, Release]]:
    """Every target that a station which knows only the first root can trust now.

    Raises ReleaseProblem with the first that it cannot.
    """
    if workshop.published("timestamp") is None:
        return
    first = workshop.folder / "metadata" / "1.root.json"
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        workshop.lay_out(place / "shown")
        updater = Updater(
            str(place),
            f"{BASE}{IMAGES_METADATA}",
            target_dir=str(place),
            target_base_url=f"{BASE}{IMAGES_TARGETS}",
            fetcher=FolderFetcher(place / "shown", BASE),
            bootstrap=first.read_bytes(),
        )
        for path, expected in workshop.releases():
            try:
                info = updater.get_targetinfo(path)
                found = None if info is None else release_of(path, info.custom)
                if info is not None:
                    updater.download_target(info)
            except (RepositoryError, DownloadError, ReleaseError) as error:
                raise ReleaseProblem(f"{path}: a station refuses it: {error}") from error
            if found != expected:
                raise ReleaseProblem(f"{path}: not published yet, or changed; publish it")
            yield path, expected
