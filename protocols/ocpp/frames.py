"""OCPP-J's messages as text, read whatever is wrong with them (1.6-J 4; 2.x Part 4, 4).

The ordinary CALL does not come here: `rpc` reads it in one step. This is for the rest.
"""

from __future__ import annotations

import re
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Raw, Struct

from protocols.ocpp.deviations import Deviation, quoted
from protocols.ocpp.version import Version

CALL, CALLRESULT, CALLERROR, CALLRESULTERROR, SEND = 2, 3, 4, 5, 6
LONGEST_ID: Final = 36
LONGEST_ID_TAKEN: Final = 128
LONGEST_ERROR_TEXT: Final = 255
NO_ID: Final = "-1"
"""Stands in a CALLERROR for an id that could not be read (2.x Part 4, 4.2.3)."""

MessageId: TypeAlias = str | int
"""A text; some stations send numbers, and expect the same number back."""

_TYPES: Final = {
    Version.V16: frozenset({CALL, CALLRESULT, CALLERROR}),
    Version.V201: frozenset({CALL, CALLRESULT, CALLERROR}),
    Version.V21: frozenset({CALL, CALLRESULT, CALLERROR, CALLRESULTERROR, SEND}),
}
_BEGINNING: Final = re.compile(
    rb'\s*\[\s*(?P<type>[2-6])\s*,\s*(?P<id>"(?:[^"\\]|\\.){0,128}"|-?\d{1,18})\s*[,\]]'
)
_NOTHING: Final = re.compile(rb'null|\[\s*\]|""')
_ZERO, _UNKNOWN, _BACKSLASH = rb"\u0000", rb"\ufffd", rb"\\"
_BRACE: Final = ord("{")
_EMPTY: Final = Raw(b"{}")
_PARTS: Final = msgspec.json.Decoder(list[Raw])


class Frame(Struct, frozen=True, gc=False):
    """A message of any type; what a type does not have is empty."""

    type: int
    id: MessageId
    name: str = ""
    """A CALL's or SEND's action, an error's code."""
    payload: Raw = _EMPTY
    """An object: of the action, or an error's details."""
    text: str = ""
    """An error's description."""
    deviations: tuple[Deviation, ...] = ()


class Fault(Struct, frozen=True, gc=False):
    """A message that cannot be understood."""

    code: str
    """For the CALLERROR; empty where none is due (1.6-J 4.1.3: unknown types are ignored)."""
    text: str
    id: MessageId | None = None
    type: int = CALL


def without_zeros(frame: str | bytes) -> bytes | None:
    """The message with U+FFFD for each zero in a text, which no column takes; None without any."""
    if not (b"\\" in frame if isinstance(frame, bytes) else "\\" in frame):
        return None  # as with nearly all: one character is found faster than six
    data = frame if isinstance(frame, bytes) else frame.encode(errors="surrogatepass")
    if _ZERO not in data:
        return None
    parts = data.split(_BACKSLASH)  # behind one of a text's own, u0000 is text too
    plain = _BACKSLASH.join([part.replace(_ZERO, _UNKNOWN) for part in parts])
    return None if plain == data else plain


def read(frame: str | bytes, version: Version) -> Frame | Fault:
    """The message in any text: never raises."""
    data, deviations = _cleaned(frame)
    try:
        parts = _PARTS.decode(data)
    except msgspec.ValidationError:
        return _fault(version, "RpcFrameworkError", "a message is a JSON array")
    except (ValueError, RecursionError) as error:
        return _not_json(data, version, error)
    return _read(parts, version, deviations)


def _cleaned(frame: str | bytes) -> tuple[bytes, list[Deviation]]:
    data = frame if isinstance(frame, bytes) else frame.encode(errors="surrogatepass")
    deviations = []
    if data.startswith(b"\xef\xbb\xbf"):
        data = data[3:]
        deviations.append(Deviation("byte_order_mark", "", "U+FEFF before the message"))
    if data.endswith(b"\0"):
        data = data.rstrip(b"\0")
        deviations.append(Deviation("trailing_bytes", "", "zero bytes behind the message"))
    try:
        data.decode()
    except UnicodeDecodeError as error:
        text = f"byte {data[error.start]:#04x} at {error.start}, taken as U+FFFD"
        deviations.append(Deviation("invalid_utf8", "", text))
        data = data.decode(errors="replace").encode()
    return data, deviations


def _not_json(data: bytes, version: Version, error: Exception) -> Fault:
    """Answers a CALL whose beginning can be read although the rest cannot."""
    found = _BEGINNING.match(data)
    deep = isinstance(error, RecursionError)
    text = "the JSON is nested too deeply" if deep else f"this is not JSON: {error}"
    if found is None:
        return _fault(version, "RpcFrameworkError", text)
    try:
        message_id = msgspec.json.decode(found["id"], type=MessageId)
    except ValueError:
        return _fault(version, "RpcFrameworkError", text)
    return _fault(version, "FormatViolation", text, message_id, int(found["type"]))


def _read(parts: list[Raw], version: Version, deviations: list[Deviation]) -> Frame | Fault:
    kind = _plain(parts[0]) if parts else None
    message_id = _message_id(parts, deviations)
    if not isinstance(kind, int) or isinstance(kind, bool) or kind not in _TYPES[version]:
        text = f"{version} has no message type {quoted(str(kind)[:20])}"
        return _fault(version, "MessageTypeNotSupported", text, message_id, CALL)
    if message_id is None:
        text = "the message id must be a text of at most 36 characters"
        return _fault(version, "RpcFrameworkError", text, None, kind)
    if kind in {CALL, SEND}:
        return _request(kind, message_id, parts, version, deviations)
    if kind == CALLRESULT:
        return _result(message_id, parts, version, deviations)
    return _error(kind, message_id, parts, deviations)


def _message_id(parts: list[Raw], deviations: list[Deviation]) -> MessageId | None:
    found = _plain(parts[1]) if len(parts) > 1 else None
    if isinstance(found, str) and len(found) <= LONGEST_ID_TAKEN:
        if len(found) > LONGEST_ID:
            text = f"{len(found)} characters"
            deviations.append(Deviation("long_message_id", "", text))
        return found
    if isinstance(found, int) and not isinstance(found, bool) and abs(found) < 10**18:
        deviations.append(Deviation("numeric_message_id", "", str(found)))
        return found
    return None


def _request(
    kind: int,
    message_id: MessageId,
    parts: list[Raw],
    version: Version,
    deviations: list[Deviation],
) -> Frame | Fault:
    action = _plain(parts[2]) if len(parts) > 2 else None
    if not isinstance(action, str):
        text = "the third element of a request must be the name of its action"
        return _fault(version, "RpcFrameworkError", text, message_id, kind)
    if len(parts) > 4:
        text = f"a request has four elements, not {len(parts)}"
        return _fault(version, "RpcFrameworkError", text, message_id, kind)
    payload = _object(parts[3:], deviations)
    if payload is None:
        text = "the payload must be a JSON object"
        return _fault(version, "FormatViolation", text, message_id, kind)
    return Frame(kind, message_id, action, payload, deviations=tuple(deviations))


def _result(
    message_id: MessageId, parts: list[Raw], version: Version, deviations: list[Deviation]
) -> Frame | Fault:
    if len(parts) > 3:
        deviations.append(Deviation("surplus_elements", "", f"{len(parts)} elements, not 3"))
    payload = _object(parts[2:3], deviations)
    if payload is None:
        text = "the payload of an answer must be a JSON object"
        return _fault(version, "FormatViolation", text, message_id, CALLRESULT)
    return Frame(CALLRESULT, message_id, payload=payload, deviations=tuple(deviations))


def _error(
    kind: int, message_id: MessageId, parts: list[Raw], deviations: list[Deviation]
) -> Frame:
    """An error answer ends a call however little of it can be read."""
    code, text = (_plain(part) for part in [*parts[2:4], Raw(b"null"), Raw(b"null")][:2])
    details = parts[4] if len(parts) > 4 and _is_object(parts[4]) else _EMPTY
    if not isinstance(code, str) or not isinstance(text, str) or len(parts) != 5:
        deviations.append(Deviation("missing_error_text", "", f"{len(parts)} elements"))
    return Frame(
        kind,
        message_id,
        name=code if isinstance(code, str) and code else "GenericError",
        payload=details,
        text="" if text is None else str(text),
        deviations=tuple(deviations),
    )


def _is_object(part: Raw) -> bool:
    return memoryview(part)[0] == _BRACE


def _object(parts: list[Raw], deviations: list[Deviation]) -> Raw | None:
    if not parts:
        deviations.append(Deviation("missing_payload", "", "taken as {}"))
        return _EMPTY
    if _is_object(parts[0]):
        return parts[0]
    if _NOTHING.fullmatch(memoryview(parts[0])):
        deviations.append(Deviation("payload_not_object", "", "null or empty, taken as {}"))
        return _EMPTY
    return None


def _plain(part: Raw) -> Any:
    """A scalar; None for what is none, or cannot be read."""
    try:
        return msgspec.json.decode(part, type=str | int | float | bool | None)
    except (ValueError, RecursionError):
        return None


_CODES_16: Final = {
    "FormatViolation": "FormationViolation",
    "RpcFrameworkError": "ProtocolError",
    "MessageTypeNotSupported": "",
}


def _fault(
    version: Version, code: str, text: str, message_id: MessageId | None = None, kind: int = CALL
) -> Fault:
    if version is Version.V16:
        code = _CODES_16[code] if message_id is not None else ""
    elif message_id is None:
        code = code if code == "MessageTypeNotSupported" else "RpcFrameworkError"
    return Fault(code, text, message_id, kind)


# --------------------------------------------------------------------------- writing


def call(message_id: MessageId, action: str, payload: bytes) -> bytes:
    return b'[2,%b,"%b",%b]' % (_json(message_id), action.encode(), payload)


def send(message_id: MessageId, action: str, payload: bytes) -> bytes:
    return b'[6,%b,"%b",%b]' % (_json(message_id), action.encode(), payload)


def result(message_id: MessageId, payload: bytes) -> bytes:
    return b"[3,%b,%b]" % (_json(message_id), payload)


def error(
    kind: int, message_id: MessageId, code: str, text: str, details: dict[str, Any] | None = None
) -> bytes:
    """CALLERROR or CALLRESULTERROR."""
    return _json([kind, message_id, code, text[:LONGEST_ERROR_TEXT], details or {}])


_json: Final = msgspec.json.Encoder().encode
