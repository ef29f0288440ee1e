"""Receive liberally: what a station meant, where there is no doubt, and in what it deviates.

The strict reader comes first and is all that a good message costs. Only what it refuses is walked
along its schema, and every value that breaks it is repaired in a named way or left for the refusal.
Never made up: energy, ids, tokens, states. What we send ourselves goes through the strict types.
"""

from __future__ import annotations

import re
from datetime import datetime, tzinfo
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw, Struct

from protocols.ocpp.deviations import DEVIATIONS, Deviation, quoted
from protocols.ocpp.meanings import (
    INTEGER,
    NEUTRAL,
    NUMBER,
    TELLING,
    TIMES_OF_RECEIPT,
    TRUTHS,
    WHOLE_WATT_HOURS,
    bare,
    meant,
    written,
)
from protocols.ocpp.schemas import (
    KEPT_RAW,
    MAY_BE_EMPTY,
    Codec,
    SchemaError,
)
from protocols.ocpp.shapes import Kind, Shape
from protocols.ocpp.timestamps import read_time

__all__ = ["DEVIATIONS", "Deviation", "read_request", "read_response", "resolve_action"]

T = TypeVar("T")

_MOST_DEVIATIONS: Final = 32
_MOST_REPAIRS: Final = 2000
"""A message that needs more is no slip of its maker's, and must not hold up others."""


def read_request(
    codec: Codec,
    action: str,
    raw: bytes | Raw,
    *,
    now: datetime | None = None,
    zone: tzinfo | None = None,
) -> tuple[Any, tuple[Deviation, ...]]:
    """The request and how it deviates; `now` stands for missing times, `zone` for missing zones.

    Raises SchemaError where it can neither be read nor repaired.
    """
    try:
        return codec.decode_request(action, raw), ()
    except SchemaError as refusal:
        name, misspelt = resolve_action(codec, action)
        if name not in codec.actions:
            raise
        found = [misspelt] if misspelt else []
        repair = _Repair(codec, now if name in TELLING else None, zone, found, refusal)
        kind = codec.request_type(name, lenient=True)
        return repair.read(raw, codec.request_shape(name), kind)


def read_response(
    codec: Codec,
    action: str,
    raw: bytes | Raw,
    *,
    zone: tzinfo | None = None,
) -> tuple[Any, tuple[Deviation, ...]]:
    """The response and how it deviates; as `read_request`."""
    try:
        return codec.decode_response(action, raw), ()
    except SchemaError as refusal:
        kind = codec.response_type(action, lenient=True)
        repair = _Repair(codec, None, zone, [], refusal)
        return repair.read(raw, codec.response_shape(action), kind)


def resolve_action(codec: Codec, action: str) -> tuple[str, Deviation | None]:
    """The action that is meant; unchanged where none is known."""
    if action in codec.actions:
        return action, None
    plain = re.sub(r"(request|req)\Z", "", bare(action))
    for name in codec.actions:
        if name.lower() == plain:
            return name, Deviation("action_case", "", f"{quoted(action)} taken as {name}")
    return action, None


class _Repair:
    """One message's repairs."""

    def __init__(
        self,
        codec: Codec,
        now: datetime | None,
        zone: tzinfo | None,
        found: list[Deviation],
        refusal: SchemaError,
    ) -> None:
        self._codec, self._now, self._zone = codec, now, zone
        self._refusal = refusal
        self._repairs = 0
        self._found = {(one.name, one.path): one for one in found}

    def read(
        self, raw: bytes | Raw, shape: Shape, kind: type[Struct]
    ) -> tuple[Any, tuple[Deviation, ...]]:
        """Walk, convert, tell. Raises SchemaError."""
        plain = self._plain(bytes(raw))
        repaired = self._value(shape, plain, "", "")
        message = self._codec.convert(repaired, kind)
        if not self._found:
            raise self._refusal  # a repair without a name would hide what stations do
        return message, tuple(self._found.values())

    def _plain(self, raw: bytes) -> Any:
        try:
            return msgspec.json.decode(raw)
        except UnicodeDecodeError:
            self._tell("invalid_utf8", "", "bytes that are no text, taken as U+FFFD")
            return self._plain(raw.decode(errors="replace").encode())
        except (ValueError, RecursionError) as error:
            raise self._codec.refusal(error) from None

    def _tell(self, name: str, path: str, text: str) -> None:
        """Tell each deviation once per field, however often it occurs in lists."""
        self._repairs += 1
        if self._repairs > _MOST_REPAIRS:
            raise self._refusal
        if len(self._found) < _MOST_DEVIATIONS:
            key = name, re.sub(r"/\d+", "", path)
            self._found.setdefault(key, Deviation(name, path, text))

    # ----- by kind

    def _value(self, shape: Shape, value: Any, path: str, key: str) -> Any:
        """A value as its shape wants it, or unchanged where only a refusal is left."""
        match shape.kind:
            case Kind.OBJECT:
                return self._object(shape, value, path)
            case Kind.LIST:
                return self._list(shape, value, path, key)
            case Kind.TIME:
                return self._time(value, path, key)
            case Kind.TEXT:
                return self._text(shape, value, path, key)
            case Kind.INTEGER:
                return self._integer(value, path, key)
            case Kind.NUMBER:
                return self._number(value, path)
            case Kind.BOOLEAN:
                return self._boolean(value, path)
            case Kind.ANY:
                return value

    def _object(self, shape: Shape, value: Any, path: str) -> Any:
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
            self._tell("list_for_object", path, "taken for its only item")
            value = value[0]
        if not isinstance(value, dict) or shape.fields is None:
            return value
        repaired: dict[str, Any] = {}
        for sent, item in value.items():
            key = self._key(shape, sent, value, repaired, path)
            if key is not None:
                self._put(shape, key, item, f"{path}/{key}", repaired)
        for key in shape.required - repaired.keys():
            self._fill(shape, key, f"{path}/{key}", repaired)
        return repaired

    def _key(
        self,
        shape: Shape,
        sent: str,
        value: dict[str, Any],
        repaired: dict[str, Any],
        path: str,
    ) -> str | None:
        """The field that is meant; None for one that is to be dropped."""
        assert shape.fields is not None
        if sent in shape.fields:
            return sent
        plain = bare(sent)
        for key in shape.fields:
            if key.lower() == plain and key not in value and key not in repaired:
                self._tell("field_case", f"{path}/{key}", f"written {quoted(sent)}")
                return key
        if shape.is_open:
            return sent
        self._tell("unknown_field", f"{path}/{quoted(sent)[:50]}", "dropped")
        return None

    def _put(self, shape: Shape, key: str, item: Any, path: str, repaired: dict[str, Any]) -> None:
        assert shape.fields is not None
        field = shape.fields.get(key)
        if field is None or field.kind is Kind.ANY:
            repaired[key] = item
            return
        is_optional = key not in shape.required
        if item is None or (is_optional and _stands_for_none(field, item)):
            if is_optional:
                self._tell(_none_as(field, item), path, "taken as absent")
            return
        taken = self._value(field, item, path, key)
        if is_optional and taken == [] and field.least:
            self._tell("empty_list", path, "taken as absent")
        else:
            repaired[key] = taken

    def _fill(self, shape: Shape, key: str, path: str, repaired: dict[str, Any]) -> None:
        """A required field that is not there."""
        assert shape.fields is not None
        field = shape.fields[key]
        if field.kind is Kind.TIME and key in TIMES_OF_RECEIPT and self._now is not None:
            self._tell("missing_timestamp", path, "the time of receipt is taken")
            repaired[key] = self._now
        elif field.kind is Kind.LIST and key in MAY_BE_EMPTY:
            self._tell("empty_list", path, "missing")
            repaired[key] = []
        elif key in NEUTRAL:
            self._tell("missing_field", path, f"{NEUTRAL[key] or 'nothing'} is taken")
            repaired[key] = self._value(field, NEUTRAL[key], path, key)

    def _list(self, shape: Shape, value: Any, path: str, key: str) -> Any:
        assert shape.item is not None
        if not isinstance(value, list):
            if (shape.item.kind is Kind.OBJECT) is not isinstance(value, dict):
                return value
            self._tell("object_for_list", path, "taken as a list of one")
            value = [value]
        items = value if self._is_good(shape.item, value) else self._items(shape, value, path, key)
        if key == "sampledValue" and items is not value:
            items = self._readable(shape.item, items, path)
        if shape.most is not None and len(items) > shape.most:
            self._tell("too_many_items", path, f"{len(items)}, at most {shape.most} are due")
        if not items and key in MAY_BE_EMPTY:
            self._tell("empty_list", path, "taken as it is")
        return items

    def _items(self, shape: Shape, value: list[Any], path: str, key: str) -> list[Any]:
        assert shape.item is not None
        return [
            self._value(shape.item, item, f"{path}/{number}", key)
            for number, item in enumerate(value)
            if not self._is_null(item, f"{path}/{number}")
        ]

    def _is_good(self, shape: Shape, items: list[Any]) -> bool:
        """Long lists are mostly good, and walking them costs twenty times as much as looking."""
        try:
            self._codec.convert(items, self._codec.list_of(shape))
        except SchemaError:
            return False
        return True

    def _is_null(self, item: Any, path: str) -> bool:
        if item is None:
            self._tell("null_in_list", path, "dropped")
        return item is None

    def _readable(self, shape: Shape, items: list[Any], path: str) -> list[Any]:
        """One reading that is none must not cost the others."""
        kept = []
        for number, item in enumerate(items):
            try:
                self._codec.convert(item, self._codec.type_of(shape))
            except SchemaError as error:
                self._tell("sample_dropped", f"{path}/{number}", str(error))
            else:
                kept.append(item)
        return kept

    def _text(self, shape: Shape, value: Any, path: str, key: str) -> Any:
        if isinstance(value, int | float):
            self._tell("number_for_text", path, f"{type(value).__name__} taken as text")
            value = written(value)
        elif key == "data" and isinstance(value, dict | list):
            self._tell("object_for_text", path, "kept as JSON")
            value = msgspec.json.encode(value).decode()
        if not isinstance(value, str):
            return value
        if shape.enum:
            return self._enum(shape, value, path, key)
        if shape.most is not None and len(value) > shape.most:
            text = f"{len(value)} characters, at most {shape.most} are due"
            self._tell("text_too_long", path, text)
        return value

    def _enum(self, shape: Shape, value: str, path: str, key: str) -> Any:
        if value in shape.enum:
            return value
        name, taken = meant(value, key, shape.enum)
        if not name and key in KEPT_RAW:
            name = "unknown_qualifier"
        if name:
            self._tell(name, path, f"{quoted(value)} taken as {quoted(taken)}")
        return taken

    def _time(self, value: Any, path: str, key: str) -> Any:
        read = read_time(value, self._zone)
        if read is not None:
            moment, name = read
            if name:
                self._tell(name, path, f"{_shown(value)} taken as {moment.isoformat()}")
            return moment
        if key not in TIMES_OF_RECEIPT or self._now is None:
            return value
        self._tell("unreadable_timestamp", path, f"{_shown(value)}: time of receipt taken")
        return self._now

    def _integer(self, value: Any, path: str, key: str) -> Any:
        if isinstance(value, str):
            if not INTEGER.fullmatch(value.strip()):
                return value
            self._tell("text_for_number", path, f"{quoted(value)} taken as a number")
            return int(value.strip().partition(".")[0])
        if isinstance(value, float) and value.is_integer():
            self._tell("decimal_for_integer", path, f"{value} taken as {int(value)}")
            return int(value)
        if isinstance(value, float) and key in WHOLE_WATT_HOURS:
            self._tell("fraction_rounded", path, f"{value} taken as {round(value)}")
            return round(value)
        return value

    def _number(self, value: Any, path: str) -> Any:
        if not isinstance(value, str) or not NUMBER.fullmatch(value.strip()):
            return value
        self._tell("text_for_number", path, f"{quoted(value)} taken as a number")
        return float(value.strip())

    def _boolean(self, value: Any, path: str) -> Any:
        truth = TRUTHS.get(str(value).strip().lower()) if isinstance(value, str | int) else None
        if truth is None or value is truth:
            return value
        self._tell("value_for_boolean", path, f"{_shown(value)} taken as {truth}")
        return truth


def _stands_for_none(shape: Shape, item: Any) -> bool:
    """An empty text says something only where texts are free."""
    is_free = shape.kind is Kind.TEXT and not shape.enum
    return isinstance(item, str) and not is_free and not item.strip()


def _none_as(shape: Shape, item: Any) -> str:
    if item is None:
        return "null_for_absent"
    return "empty_timestamp" if shape.kind is Kind.TIME else "empty_text"


def _shown(value: Any) -> str:
    """A scalar; of what is nested only what it is."""
    return quoted(str(value)) if isinstance(value, str | int | float) else type(value).__name__
