"""OCPP's messages as types that parse and check in one step, made from the official schemas.

Attribute names are the wire's own, so nothing is ever renamed; an absent field is None and stays
absent when it is sent. Strict: what a station does beside the specification is `tolerance`'s.
Stricter than the schemas in four ways: a time must be one, with its zone (OCPP-J 1.6, 3.14 of the
specification; 2.0.1 Part 2, 2.1.4); `1.0` is no integer; a number has at most 64 bits; a limit is
judged in decimals, so that 16.1 is a multiple of 0.1. Of equal keys the last counts, as it does
for every reader of JSON here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from enum import Enum
from functools import cache
from types import GenericAlias
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from protocols.ocpp.deviations import quoted
from protocols.ocpp.shapes import Kind, Shape, Shapes, shapes
from protocols.ocpp.version import Version

T = TypeVar("T")

_INT64: Final = 2**63
KEPT_RAW: Final = frozenset(
    {
        "unit",
        "measurand",
        "phase",
        "context",
        "location",
        "format",
        "triggerReason",
        "chargingState",
    }
)
"""Enumerations whose unknown values a lenient reader keeps: they qualify, but do not decide."""
MAY_BE_EMPTY: Final = frozenset({"meterValue", "sampledValue"})
"""Lists of which a lenient reader takes nothing for what it is; an empty plan it refuses."""


class Wrong(Enum):
    """What can be wrong with a payload; each version spells the codes its own way."""

    FORMAT = "FormatViolation"
    PROPERTY = "PropertyConstraintViolation"
    OCCURRENCE = "OccurrenceConstraintViolation"
    TYPE = "TypeConstraintViolation"
    NOT_IMPLEMENTED = "NotImplemented"

    def code(self, version: Version) -> str:
        """The error code on the wire (OCPP-J 1.6 table 7, with its spelling; 2.0.1 table 6)."""
        return _CODES_16.get(self, self.value) if version is Version.V16 else self.value


_CODES_16: Final = {
    Wrong.FORMAT: "FormationViolation",
    Wrong.OCCURRENCE: "OccurenceConstraintViolation",
}


class SchemaError(ValueError):
    """A payload that its schema refuses: a CALLERROR's code, where, and what to do about it."""

    def __init__(self, code: str, path: str, text: str) -> None:
        super().__init__(f"{path}: {text}" if path else text)
        self.code, self.path, self.text = code, path, text


class Extension(dict[str, Any]):
    """An object that may carry fields of its own: customData, of which only vendorId is known."""

    known: type[Struct]

    @classmethod
    def read(cls, value: object) -> Extension:
        try:
            msgspec.convert(value, cls.known)
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from None  # msgspec then adds where the object stands
        return cls(value)  # type: ignore[call-overload,no-any-return]  # an object, checked above


class Types:
    """Types for shapes; `lenient` ones hold what a station meant although it breaks a limit."""

    def __init__(self, *, lenient: bool = False) -> None:
        self._lenient = lenient
        self._made: dict[Shape, type[Any]] = {}

    def of(self, shape: Shape) -> Any:
        """The struct of an object, or the type of a field."""
        made = self._made.get(shape)
        if made is None:
            made = self._made[shape] = _MAKERS[shape.kind](self, shape)
        return made

    def object(self, shape: Shape) -> type[Any]:
        # Without gc a reading of eight values costs a tenth less. Times as datetime, enumerations
        # as checked texts, frozen structs and bounds cost nothing that can be measured.
        required, optional = [], []
        for key, field in (shape.fields or {}).items():
            kind = self._field(key, field)
            if key in shape.required:
                required.append((key, kind))
            else:
                optional.append((key, kind, None))
        made = msgspec.defstruct(
            shape.name,
            [*required, *optional],
            frozen=True,
            kw_only=True,
            omit_defaults=True,
            forbid_unknown_fields=not shape.is_open,
            gc=False,
            namespace=_checks(shape),
            module=__name__,
        )
        if shape.is_open:
            return type(shape.name, (Extension,), {"known": made})
        return made

    def _field(self, key: str, shape: Shape) -> Any:
        if self._lenient and shape.enum and key in KEPT_RAW:
            return str
        if self._lenient and shape.item and key in MAY_BE_EMPTY:
            return GenericAlias(list, (self.of(shape.item),))
        return self.of(shape)

    def list(self, shape: Shape) -> Any:
        assert shape.item is not None
        least, most = _whole(shape.least), None if self._lenient else _whole(shape.most)
        made = GenericAlias(list, (self.of(shape.item),))
        return Annotated[made, Meta(min_length=least, max_length=most)]

    def text(self, shape: Shape) -> Any:
        if shape.enum:
            return Literal[shape.enum]
        if shape.most is None or self._lenient:
            return str
        return Annotated[str, Meta(max_length=int(shape.most))]

    def integer(self, shape: Shape) -> Any:
        least = -_INT64 if shape.least is None else int(shape.least)
        most = _INT64 - 1 if shape.most is None else int(shape.most)
        return Annotated[int, Meta(ge=least, le=most)]

    def number(self, shape: Shape) -> Any:
        if shape.least is None and shape.most is None:
            return float
        return Annotated[float, Meta(ge=shape.least, le=shape.most)]


_MAKERS: Final[dict[Kind, Callable[[Types, Shape], Any]]] = {
    Kind.OBJECT: Types.object,
    Kind.LIST: Types.list,
    Kind.TEXT: Types.text,
    Kind.TIME: lambda _types, _shape: Annotated[datetime, Meta(tz=True)],
    Kind.INTEGER: Types.integer,
    Kind.NUMBER: Types.number,
    Kind.BOOLEAN: lambda _types, _shape: bool,
    Kind.ANY: lambda _types, _shape: Any,
}


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)


def _checks(shape: Shape) -> dict[str, Any]:
    """What msgspec cannot say: 0.1 is no binary fraction, so multiples of it are judged here."""
    steps = [(key, field.step) for key, field in (shape.fields or {}).items() if field.step]
    if not steps:
        return {}

    def check(message: Struct) -> None:
        for key, step in steps:
            value = getattr(message, key)
            count = 0.0 if value is None else value / step
            if not math.isfinite(count) or abs(count - round(count)) > 1e-6:
                raise ValueError(f"`{key}` {value} is not a multiple of {step}")

    return {"__post_init__": check}


def _hook(kind: type[Any], value: object) -> Any:
    return kind.read(value)


class Codec:
    """The messages of one version. A type is made when it is first needed, in about 0.2 ms."""

    def __init__(self, version: Version) -> None:
        self.version = version
        self.shapes: Shapes = shapes(version)
        self.actions: frozenset[str] = self.shapes.requests
        self._types = {False: Types(), True: Types(lenient=True)}
        self._requests: dict[str, msgspec.json.Decoder[Any]] = {}
        self._responses: dict[str, msgspec.json.Decoder[Any]] = {}
        self.encode: Callable[[Struct], bytes] = msgspec.json.Encoder().encode

    def decode_request(self, action: str, raw: bytes | Raw) -> Any:
        """The request, typed. Raises SchemaError."""
        try:
            return self._requests[action].decode(raw)
        except KeyError:
            decoder = msgspec.json.Decoder(self.request_type(action), dec_hook=_hook)
            self._requests[action] = decoder
            return self.decode_request(action, raw)
        except (ValueError, RecursionError) as error:
            raise self.refusal(error) from None

    def decode_response(self, action: str, raw: bytes | Raw) -> Any:
        """The response, typed. Raises SchemaError."""
        try:
            return self._responses[action].decode(raw)
        except KeyError:
            decoder = msgspec.json.Decoder(self.response_type(action), dec_hook=_hook)
            self._responses[action] = decoder
            return self.decode_response(action, raw)
        except (ValueError, RecursionError) as error:
            raise self.refusal(error) from None

    def request_type(self, action: str, *, lenient: bool = False) -> type[Struct]:
        """Raises SchemaError for an action that this version does not have."""
        return self._types[lenient].of(self.request_shape(action))  # type: ignore[no-any-return]

    def response_type(self, action: str, *, lenient: bool = False) -> type[Struct]:
        """Raises SchemaError for an action that this version does not have, or not answer."""
        return self._types[lenient].of(self.response_shape(action))  # type: ignore[no-any-return]

    def type_of(self, shape: Shape) -> Any:
        """The lenient type of one node."""
        return self._types[True].of(shape)

    def list_of(self, shape: Shape) -> Any:
        """The strict type of a list of such nodes, however many."""
        return GenericAlias(list, (self._types[False].of(shape),))

    def request_shape(self, action: str) -> Shape:
        """Raises SchemaError for an action that this version does not have."""
        return self._shape(self.shapes.request, action)

    def response_shape(self, action: str) -> Shape:
        """Raises SchemaError for an action that this version does not have, or not answer."""
        return self._shape(self.shapes.response, action)

    def make_request(self, action: str, fields: Mapping[str, Any]) -> Any:
        """A request from plain data, to be sent. Raises SchemaError."""
        return self.convert(_to_send(fields), self.request_type(action))

    def make_response(self, action: str, fields: Mapping[str, Any]) -> Any:
        """A response from plain data, to be sent. Raises SchemaError."""
        return self.convert(_to_send(fields), self.response_type(action))

    def convert(self, plain: object, kind: type[T]) -> T:
        """Plain data as one of this codec's types. Raises SchemaError."""
        try:
            return msgspec.convert(plain, kind, dec_hook=_hook)
        except (ValueError, RecursionError) as error:
            raise self.refusal(error) from None

    def refusal(self, error: Exception) -> SchemaError:
        """What a CALLERROR says of an error of msgspec's."""
        if not isinstance(error, msgspec.ValidationError):
            return SchemaError(Wrong.FORMAT.code(self.version), "", _not_json(error))
        wrong, path, text = _explained(str(error))
        return SchemaError(wrong.code(self.version), path, text)

    def _shape(self, find: Callable[[str], Shape], action: str) -> Shape:
        try:
            return find(action)
        except KeyError:
            text = f"{self.version} has no action {quoted(action)}, or none with such a message"
            raise SchemaError(Wrong.NOT_IMPLEMENTED.code(self.version), "", text) from None


@cache
def codec(version: Version) -> Codec:
    return Codec(version)


def _to_send(value: Any) -> Any:
    """Times in whole seconds.

    Three decimals are allowed (2.0.1 Part 2, 2.1.4), few stations read
    them, and msgspec writes six or none.
    """
    if isinstance(value, datetime):
        return value.replace(microsecond=0)
    if isinstance(value, Mapping):
        return {key: _to_send(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_to_send(below) for below in value]
    return value


# --------------------------------------------------------------------------- what is wrong

_PLACE: Final = " - at `$"
_KINDS: Final[tuple[tuple[re.Pattern[str], Wrong, str], ...]] = tuple(
    (re.compile(pattern, re.DOTALL), wrong, text)
    for pattern, wrong, text in (
        (r"Object missing required field `(.*)`", Wrong.OCCURRENCE, "{0} is required"),
        (r"Object contains unknown field `(.*)`", Wrong.FORMAT, "there is no field {0}"),
        (r"Expected `array` of length (.*)", Wrong.OCCURRENCE, "the number of items must be {0}"),
        (r"Expected `str` of length (.*)", Wrong.PROPERTY, "its number of characters must be {0}"),
        (r"Expected `object`, got `(.*)`", Wrong.TYPE, "an object is due, not {0}"),
        (r"Expected `datetime` with .*", Wrong.PROPERTY, "a time needs its zone: Z or +hh:mm"),
        (r"Invalid RFC3339 .*", Wrong.PROPERTY, "a time is written 2026-01-31T12:00:00Z"),
        (r"Invalid enum value (.*)", Wrong.PROPERTY, "{0} is not among the values it may have"),
        (r"Expected `([a-z| ]*)`, got `(.*)`", Wrong.TYPE, "{0} is due, not {1}"),
        (r"Expected `(?:int|float)` (.*)", Wrong.PROPERTY, "it must be {0}"),
        (r"(.*)", Wrong.PROPERTY, "{0}"),
    )
)


def _explained(message: str) -> tuple[Wrong, str, str]:
    """A ValidationError's kind, path and text; the path is a JSON pointer."""
    what, path = _apart(message)
    what, inner = _apart(what)  # an extension's error names the way within it first
    path += inner
    for pattern, wrong, text in _KINDS:
        if match := pattern.fullmatch(what):
            groups = [quoted(group) for group in match.groups()]
            kind = Wrong.FORMAT if wrong is Wrong.TYPE and not path else wrong
            return kind, pointer(path), text.format(*groups)
    raise AssertionError(message)  # the last pattern matches everything


def _apart(message: str) -> tuple[str, str]:
    what, found, path = message.rpartition(_PLACE)
    return (what, path[:-1]) if found and message.endswith("`") else (message, "")


def pointer(path: str) -> str:
    """A JSON pointer (RFC 6901): `.meterValue[0].timestamp` is /meterValue/0/timestamp."""
    return re.sub(r"\[(\d+|\.\.\.)\]", r"/\1", path).replace(".", "/")


def _not_json(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "the JSON is nested too deeply"
    if isinstance(error, UnicodeError):
        return "the text is not UTF-8"
    return f"this is not JSON: {quoted(str(error))}"
