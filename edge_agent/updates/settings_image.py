"""What a release of kind settings holds: settings for agents, and device profiles. Pure.

Its image is the tar of `settings.toml`, with the same tables as settings from afar
(`protocols.agent_settings`), and `profiles/NAME.yaml`, which stand in for the shipped profiles of
these names. Either may be missing.
"""

from __future__ import annotations

import io
import re
import tarfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from edge_agent.updates.archive import ImageError
from protocols.agent_settings import SettingsError, plain, settings_of
from protocols.modbus.document import ProfileError
from protocols.modbus.loading import load_profile

SETTINGS: Final = "settings.toml"
_PROFILE: Final = re.compile(r"profiles/([a-z0-9][a-z0-9_-]{0,63})\.yaml")
MOST_FILES: Final = 500
LARGEST_FILE: Final = 1024 * 1024


@dataclass(frozen=True)
class SettingsImage:
    """Checked: each profile is whole, and the document says only what may be said."""

    document: dict[str, Any] = field(default_factory=dict)
    profiles: Mapping[str, str] = field(default_factory=dict)
    """Name -> YAML."""


def read_image(image: bytes) -> SettingsImage:
    """Raises ImageError with file, line or field, and reason."""
    return read_files(dict(_files(image)))


def read_files(files: Mapping[str, bytes]) -> SettingsImage:
    """The same from the files by their names in the image. Raises ImageError."""
    document: dict[str, Any] = {}
    profiles: dict[str, str] = {}
    for name, content in sorted(files.items()):
        found = _PROFILE.fullmatch(name)
        if found is not None:
            profiles[found[1]] = _profile(name, found[1], _text(name, content))
        elif name == SETTINGS:
            document = _document(_text(name, content))
        else:
            raise ImageError(
                f"{name!r} has no place in a release of settings; it holds {SETTINGS} and"
                " profiles/NAME.yaml (small letters, digits, _ and -)"
            )
    if not document and not profiles:
        raise ImageError(f"nothing is set: neither {SETTINGS} with a setting, nor a profile")
    return SettingsImage(document, profiles)


def _files(image: bytes) -> Iterator[tuple[str, bytes]]:
    """No name is used before it was matched as a whole; so none leads out of its folder."""
    seen: set[str] = set()
    try:
        with tarfile.open(fileobj=io.BytesIO(image), mode="r:") as tar:
            for info in tar:
                content = tar.extractfile(info) if info.isreg() else None
                if content is None or info.name in seen or info.size > LARGEST_FILE:
                    raise ImageError(f"{info.name!r} is no plain file, comes twice or is too large")
                seen.add(info.name)
                if len(seen) > MOST_FILES:
                    raise ImageError(f"more than {MOST_FILES} files")
                yield info.name, content.read()
    except (tarfile.TarError, EOFError) as error:
        raise ImageError(f"not an image: {error}") from None


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ImageError(f"{name}: not UTF-8 ({error.reason})") from None


def _document(text: str) -> dict[str, Any]:
    try:
        return plain(settings_of(tomllib.loads(text)))
    except tomllib.TOMLDecodeError as error:
        raise ImageError(f"{SETTINGS}: not TOML: {error}") from None
    except SettingsError as error:
        raise ImageError(f"{SETTINGS}: {error}") from None


def _profile(file: str, name: str, text: str) -> str:
    try:
        profile = load_profile(text, file)
    except ProfileError as error:
        raise ImageError(str(error)) from None
    if profile.profile != name:
        raise ImageError(f"{file}: the profile in it is called {profile.profile}; name it so")
    return text


def over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two documents as one: what the upper one says counts, field by field."""
    result = dict(below)
    for name, value in above.items():
        under = result.get(name)
        both = isinstance(value, Mapping) and isinstance(under, Mapping)
        result[name] = over(under or {}, value) if both else value
    return result
