"""What of the signed metadata is for this controller. Pure: metadata in, a choice or a refusal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from protocols.release import (
    Encoding,
    Kind,
    Release,
    ReleaseError,
    Request,
    release_of,
    request_of,
    without_request,
)


class Refused(Exception):
    """Genuine perhaps, but not for this controller now; the text says why."""


class Disagreement(Refused):
    """Director and images do not say the same: somebody lies."""


@dataclass(frozen=True)
class Named:
    """A target as a repository's metadata names it."""

    path: str
    length: int
    sha256: str
    custom: Any


@dataclass(frozen=True)
class Here:
    """What decides whether a release is for this controller."""

    station: str
    hardware: str
    version: str
    now_ms: int
    counter: Callable[[str], int]
    """The highest release counter of a component so far."""


@dataclass(frozen=True)
class Choice:
    """What is to be installed."""

    target: Named
    release: Release
    request: Request | None


def directed(
    told: Mapping[str, Named], images: Callable[[str], Named | None], here: Here
) -> Choice | None:
    """What the director asks of this station, where the images repository agrees.

    None: nothing. Raises Refused.
    """
    choices = [_directed(named, images, here) for named in told.values()]
    components = [choice.release.component for choice in choices]
    for component in components:
        if components.count(component) > 1:
            raise Refused(f"the director names {component} twice; it must name it once")
    return choices[0] if choices else None


def _directed(named: Named, images: Callable[[str], Named | None], here: Here) -> Choice:
    try:
        request = request_of(named.path, named.custom)
    except ReleaseError as error:
        raise Disagreement(str(error)) from error
    if request.station != here.station:
        raise Disagreement(f"the director's metadata is of another station, {request.station}")
    genuine = images(named.path)
    if genuine is None:
        raise Disagreement(f"{named.path}: no release key has signed it")
    plain = Named(named.path, named.length, named.sha256, without_request(named.custom))
    if plain != genuine:
        raise Disagreement(f"{named.path}: the director and the release keys name different files")
    release = _fitting(genuine, here)
    if here.now_ms >= request.expires_at:
        raise Refused(f"{named.path}: the request for it has expired; ask again")
    return Choice(genuine, release, request)


def newest(all_targets: Iterable[Named], here: Here) -> Choice | None:
    """Without a director: the newest whole agent image that fits. None: nothing does."""
    best: Choice | None = None
    for named in all_targets:
        try:
            release = _fitting(named, here)
        except Refused:
            continue
        if release.encoding is Encoding.ZSTD_DELTA:
            continue
        if best is None or release.release_counter > best.release.release_counter:
            best = Choice(named, release, None)
    return best


def _fitting(named: Named, here: Here) -> Release:
    """Raises Refused."""
    try:
        release = release_of(named.path, named.custom)
    except ReleaseError as error:
        raise Disagreement(str(error)) from error
    if release.kind is not Kind.AGENT:
        raise Refused(f"{named.path}: nothing here installs a release of kind {release.kind}")
    if here.hardware not in release.hw_ids:
        listed = ", ".join(release.hw_ids)
        raise Refused(f"{named.path}: it is for {listed}, and this is {here.hardware}")
    floor = here.counter(release.component)
    if release.release_counter < floor:
        raise Refused(
            f"{named.path}: release counter {release.release_counter} is below {floor},"
            " which this controller has had"
        )
    if numbers(here.version) < numbers(release.requires.agent):
        raise Refused(
            f"{named.path}: it needs agent {release.requires.agent} first, and this is"
            f" {here.version}"
        )
    return release


def deltas(
    choice: Choice, all_targets: Iterable[Named], running: str
) -> list[tuple[Named, Release]]:
    """Ways from the running image to the chosen one, the smallest first."""
    found = []
    for named in all_targets:
        try:
            release = release_of(named.path, named.custom)
        except ReleaseError:
            continue
        same = release.raw_sha256 == choice.release.raw_sha256
        if same and release.base_sha256 == running and named.length < choice.target.length:
            found.append((named, release))
    return sorted(found, key=lambda each: each[0].length)


def numbers(version: str) -> tuple[int, ...]:
    """What of a version can be compared: 1.4.0 is (1, 4, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+", maxsplit=1)[0])[:3])
