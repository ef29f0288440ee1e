"""Reads a profile; refuses a wrong one with file, line and reason."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from protocols.modbus.checks import problems
from protocols.modbus.document import Document, Path, ProfileError, parse
from protocols.modbus.profile import Profile

PATH_PART: Final = re.compile(r"\.([^.\[\]`]+)|\[(\d+|\.\.\.)\]")
AT_PATH: Final = re.compile(r"^(?P<reason>.*) - at `(?P<key>key in )?\$?(?P<path>.*?)`$", re.DOTALL)


def load_profile(text: str, file: str) -> Profile:
    """The profile in `text`; `file` is only named in errors.

    Raises ProfileError for the first thing wrong, by line.
    """
    profile, found = examined(text, file)
    if found:
        raise found[0]
    return profile


def examined(text: str, file: str) -> tuple[Profile, list[ProfileError]]:
    """The profile with all that is wrong with its meaning, by line.

    Raises ProfileError where it has not even the shape of a profile.
    """
    document = parse(text, file)
    profile = _convert(document)
    found = [document.error(path, reason) for path, reason in problems(profile)]
    return profile, sorted(found, key=lambda error: error.line)


def profile_schema() -> bytes:
    """The JSON schema for editors, as published in `protocols/device_profile.schema.json`."""
    schema = msgspec.json.schema(Profile)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Karvon device profile"
    return msgspec.json.format(msgspec.json.encode(schema, order="sorted"), indent=2) + b"\n"


def _convert(document: Document) -> Profile:
    try:
        return msgspec.convert(document.value, Profile)
    except msgspec.ValidationError as error:
        reason, path = _where(str(error), document.value)
        raise document.error(path, reason) from error


def _where(message: str, value: Any) -> tuple[str, Path]:
    found = AT_PATH.match(message)
    if found is None:
        return message, _unknown_key(message)
    template = _parts(found["path"])
    path = _pinpoint(template, value, message)
    return found["reason"], path + _unknown_key(found["reason"])


def _unknown_key(reason: str) -> Path:
    """An unknown field is on the line of the key itself."""
    found = re.search(r"contains unknown field `(.*)`", reason)
    return (found[1],) if found else ()


def _parts(path: str) -> Path:
    return tuple(
        name or (int(index) if index.isdigit() else "...")
        for name, index in PATH_PART.findall(path)
    )


def _pinpoint(template: Path, value: Any, message: str) -> Path:
    """Errors name no keys of open mappings ("[...]"): find the one that makes the error."""
    path: Path = ()
    for part in template:
        if part != "...":
            path = (*path, part)
            continue
        holder = _at(value, path)
        path = (*path, next(key for key in holder if _still_wrong(value, path, key, message)))
    return path


def _at(value: Any, path: Path) -> Any:
    for part in path:
        value = value[part]
    return value


def _still_wrong(value: Any, path: Path, key: str, message: str) -> bool:
    alone = _with(value, path, {key: _at(value, path)[key]})
    try:
        msgspec.convert(alone, Profile)
    except msgspec.ValidationError as error:
        return str(error) == message
    return False


def _with(value: Any, path: Path, put: Any) -> Any:
    if not path:
        return put
    if isinstance(value, list):
        return [_with(v, path[1:], put) if i == path[0] else v for i, v in enumerate(value)]
    return {k: _with(v, path[1:], put) if k == path[0] else v for k, v in value.items()}


__all__ = ["ProfileError", "examined", "load_profile", "profile_schema"]
