"""What a software or firmware release says about itself, and where it lies on a server.

Two TUF repositories: *images* is signed offline by the release keys and says what is genuine;
*director* is signed online, one per station, and says who shall install what. A station installs
only what both name alike. Each target's `custom` field holds a `Release`; the director's holds a
`Request` beside it, under `request`.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

import msgspec

from protocols.agent_link import escape

IMAGES_METADATA: Final = "ota/images/metadata"
IMAGES_TARGETS: Final = "ota/images/targets"
ROOT_LIMIT: Final = 512 * 1024
"""Bytes of one metadata file that a client reads at most; larger ones are refused."""
METADATA_LIMIT: Final = 8 * 1024 * 1024
IMAGE_LIMIT: Final = 1024 * 1024 * 1024
"""Bytes of an image, packed or unpacked."""


class ReleaseError(ValueError):
    """A target that breaks the rules of releases; the text says which."""


class Kind(StrEnum):
    """What is released; also the delegated role that signs it, and the folder it lies in."""

    AGENT = "agent"
    """A controller's software: a whole environment."""
    BOARD = "board"
    """A power board's firmware."""
    SETTINGS = "settings"
    """Device profiles and configuration."""


class Encoding(StrEnum):
    """How a target's bytes become the image."""

    RAW = "raw"
    ZSTD = "zstd"
    ZSTD_DELTA = "zstd-delta"
    """Zstandard with the base image (`base_sha256`) as its prefix."""


class Requires(msgspec.Struct, frozen=True, omit_defaults=True):
    """What has to be there already; an empty string asks for nothing."""

    agent: str = ""
    """The least agent version."""
    board_protocol: str = ""
    """Major.minor that host and power board must share."""


class Release(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A target's `custom` in the images repository."""

    kind: Kind
    name: str
    """Of the component: `karvon-agent`, or a board's firmware."""
    version: str
    release_counter: int
    """Grows with each release of a component; a station never goes below the highest it had."""
    hw_ids: tuple[str, ...]
    raw_sha256: str
    """Of the image, unpacked: what is installed, whatever way it came."""
    raw_length: int
    """Bytes of the image, unpacked."""
    encoding: Encoding
    requires: Requires = Requires()
    base_sha256: str = ""
    """Of the image that a delta is applied to."""

    @property
    def component(self) -> str:
        return f"{self.kind}/{self.name}"


class Window(msgspec.Struct, frozen=True):
    """When an installation may begin: a span of wall time, Unix milliseconds UTC."""

    from_ms: int
    to_ms: int


class Request(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What the director asks of one station: `custom.request` of a director's target."""

    id: UUID
    station: str
    """Whom it is for: metadata of one station, shown to another, is refused."""
    expires_at: int
    """Unix milliseconds UTC; nothing begins after it."""
    window: Window | None = None
    """None: at any time."""
    force: bool = False
    """Do not wait for the window, nor until nobody charges; running transactions outlive it."""


class _Directed(msgspec.Struct, frozen=True):
    request: Request


_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


def release_of(path: str, custom: object) -> Release:
    """What a target says of itself, checked. Raises ReleaseError."""
    try:
        release = msgspec.convert(custom, Release)
    except msgspec.ValidationError as error:
        raise ReleaseError(f"{path}: not a release: {error}") from None
    problem = _problem(path, release)
    if problem:
        raise ReleaseError(f"{path}: {problem}")
    return release


def _problem(path: str, release: Release) -> str:
    if path.split("/", maxsplit=1)[0] != release.kind:
        return f"a release of kind {release.kind} lies below {release.kind}/"
    for name in (release.name, release.version, *release.hw_ids):
        if not _NAME.fullmatch(name):
            return f"{name!r} is no name: letters, digits and . _ + -, 64 at most"
    if not _SHA256.fullmatch(release.raw_sha256):
        return "raw_sha256 is not 64 lower-case hexadecimal digits"
    if bool(release.base_sha256) is not (release.encoding is Encoding.ZSTD_DELTA):
        return "base_sha256 belongs to deltas, and only to them"
    if release.base_sha256 and not _SHA256.fullmatch(release.base_sha256):
        return "base_sha256 is not 64 lower-case hexadecimal digits"
    if not 0 <= release.raw_length <= IMAGE_LIMIT:
        return f"raw_length is not within 0 to {IMAGE_LIMIT}"
    if release.release_counter < 1 or not release.hw_ids:
        return "a release has a counter from 1 on, and at least one hardware id"
    return ""


def request_of(path: str, custom: object) -> Request:
    """What a director asks with a target. Raises ReleaseError."""
    try:
        return msgspec.convert(custom, _Directed).request
    except msgspec.ValidationError as error:
        raise ReleaseError(f"{path}: the director's target carries no request: {error}") from None


def custom_of(release: Release, request: Request | None = None) -> dict[str, Any]:
    """The `custom` field as it stands in metadata."""
    custom: dict[str, Any] = _plain(release)
    return custom if request is None else custom | {"request": _plain(request)}


def _plain(struct: msgspec.Struct) -> Any:
    """As JSON gives it back: metadata is compared, and a tuple is no list."""
    return msgspec.json.decode(msgspec.json.encode(struct))


def without_request(custom: object) -> object:
    """A director's `custom` as the images repository must have it."""
    if not isinstance(custom, dict):
        return custom
    return {name: value for name, value in custom.items() if name != "request"}


def image_path(release: Release) -> str:
    """Where a release lies among the targets: one folder, named by what it is."""
    hardware = release.hw_ids[0]
    stem = f"{release.kind}/{release.name}-{release.version}-{hardware}"
    if release.encoding is Encoding.ZSTD_DELTA:
        return f"{stem}.from-{release.base_sha256[:16]}.delta"
    return f"{stem}.zst" if release.encoding is Encoding.ZSTD else f"{stem}.bin"


def director_metadata(station: str) -> str:
    """The folder of a station's director metadata below the cloud's address.

    The station's identity is escaped as in topics of the agent link.
    """
    return f"ota/director/{escape(station)}/metadata"
