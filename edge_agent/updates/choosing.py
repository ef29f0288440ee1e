"""What of the signed metadata is for this controller. Pure: metadata in, a choice or a refusal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edge_agent.updates.messages import Component
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

ORDER: Final = (Kind.AGENT, Kind.SETTINGS, Kind.BOARD)
"""Host first, board second: a newer agent speaks with older boards, not the other way."""


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
    takes: Sequence[Component]
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
    component: Component
    """What of this controller it is for."""

    @property
    def runs(self) -> bool:
        """It is what is there already."""
        return self.release.raw_sha256 == self.component.running


def directed(
    told: Mapping[str, Named], images: Callable[[str], Named | None], here: Here
) -> Iterator[Choice]:
    """What the director asks of this station, where the images repository agrees, in ORDER.

    Raises Refused at the first that is not for here: what comes before it can be installed.
    """
    for named in sorted(told.values(), key=_rank):
        choice = _directed(named, images, here)
        same = [other for other in told.values() if _component(other) == _component(named)]
        if len(same) > 1:
            component = choice.release.component
            raise Refused(f"the director names {component} twice; it must name it once")
        yield choice


def _rank(named: Named) -> int:
    kind = named.path.partition("/")[0]
    return ORDER.index(Kind(kind)) if kind in ORDER else len(ORDER)


def _component(named: Named) -> object:
    """What a target says it is of; what says nothing stands for itself."""
    custom = named.custom if isinstance(named.custom, dict) else {}
    return (custom.get("kind"), custom.get("name")) if "name" in custom else named.path


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
    release, component = _fitting(genuine, here)
    if here.now_ms >= request.expires_at:
        raise Refused(f"{named.path}: the request for it has expired; ask again")
    return Choice(genuine, release, request, component)


def newest(all_targets: Iterable[Named], here: Here) -> Iterator[Choice]:
    """Without a director: the newest whole image that fits of each component, in ORDER."""
    best: dict[str, Choice] = {}
    for named in all_targets:
        try:
            release, component = _fitting(named, here)
        except Refused:
            continue
        if release.encoding is Encoding.ZSTD_DELTA:
            continue
        known = best.get(release.component)
        if known is None or release.release_counter > known.release.release_counter:
            best[release.component] = Choice(named, release, None, component)
    yield from sorted(best.values(), key=lambda choice: _rank(choice.target))


def _fitting(named: Named, here: Here) -> tuple[Release, Component]:
    """Raises Refused."""
    try:
        release = release_of(named.path, named.custom)
    except ReleaseError as error:
        raise Disagreement(str(error)) from error
    component = _taken(named, release, here)
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
    return release, component


def _taken(named: Named, release: Release, here: Here) -> Component:
    """What of this controller the release is for. Raises Refused."""
    same = [one for one in here.takes if one.kind is release.kind]
    same = [one for one in same if one.name in {"", release.name}]
    if not same:
        raise Refused(
            f"{named.path}: nothing here takes {release.name}, a release of kind {release.kind}"
        )
    fitting = [one for one in same if set(one.hw_ids) & set(release.hw_ids)]
    if not fitting:
        listed = ", ".join(release.hw_ids)
        ours = ", ".join(hw_id for one in same for hw_id in one.hw_ids)
        raise Refused(f"{named.path}: it is for {listed}, and this is {ours}")
    spoken, needed = fitting[0].protocols, numbers(release.requires.board_protocol)
    if spoken and needed and needed[0] not in spoken:
        raise Refused(
            f"{named.path}: it speaks version {needed[0]} of the board's protocol, and this agent"
            f" {', '.join(map(str, spoken))}; update the agent first"
        )
    return fitting[0]


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
