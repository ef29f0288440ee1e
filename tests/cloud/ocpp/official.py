"""OCPP's official JSON schemas as judges, and what is wrong with a payload by their word."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import jsonschema
from jsonschema.exceptions import ValidationError
from ocpp_instances import TIME, Instances

from protocols.ocpp.actions import goes_down
from protocols.ocpp.schemas import codec
from protocols.ocpp.shapes import shapes
from protocols.ocpp.version import Version

Payload = dict[str, Any]
BOTH_WAYS: Final = "DataTransfer"
SENT: Final = "NotifyPeriodicEventStream"
"""A SEND of 2.1: nobody answers it."""
SOMEWHERE: Final = "https://files.example.com/karvon"
"""Where a station may be sent."""
LONGEST: Final = 500_000
"""Longer messages than the gateway takes end the connection, whatever is in them."""

_FORMAT, _PROPERTY = "FormatViolation", "PropertyConstraintViolation"
_OCCURRENCE, _TYPE = "OccurrenceConstraintViolation", "TypeConstraintViolation"
_CODES: Final = {
    "required": _OCCURRENCE,
    "minItems": _OCCURRENCE,
    "maxItems": _OCCURRENCE,
    "additionalProperties": _FORMAT,
    "type": _TYPE,
}
_OLD_NAMES: Final = {_FORMAT: "FormationViolation", _OCCURRENCE: "OccurenceConstraintViolation"}


def told(version: Version) -> list[str]:
    """The actions of a version that stations send."""
    return sorted(a for a in codec(version).actions if not goes_down(a) or a == BOTH_WAYS)


def asked(version: Version) -> list[str]:
    """The actions of a version that stations are sent."""
    return sorted(a for a in codec(version).actions if goes_down(a))


@dataclass(frozen=True)
class Fault:
    """A payload with one thing wrong."""

    name: str
    payload: Any
    codes: frozenset[str]
    """Of the CALLERROR that is due; several where the mistake can be seen in several ways."""
    field: str


class Official:
    """One message's schema."""

    def __init__(self, version: Version, text: str) -> None:
        self._version = version
        schema = json.loads(text)
        self._judge = jsonschema.validators.validator_for(schema)(schema)
        self.schema: dict[str, Any] = schema
        self._instances = Instances(schema)

    def check(self, payload: Any) -> None:
        """Raises ValidationError."""
        self._judge.validate(payload)

    @property
    def minimal(self) -> Payload:
        return dict(_addressed(self._instances.valid(full=False)))

    @property
    def full(self) -> Payload:
        return dict(_addressed(self._instances.valid(full=True)))

    @property
    def statuses(self) -> list[str]:
        """Those that an answer may have."""
        field = self.schema.get("properties", {}).get("status", {})
        named = str(field.get("$ref", "")).rpartition("/")[2]
        return list((self.schema["definitions"][named] if named else field).get("enum", ()))

    def mutants(self, *, full: bool) -> Iterator[tuple[str, Any]]:
        """In an order of their own, the same each time; something is missing in the first."""
        found = [*self._instances.mutants(full=full)]
        random.Random(len(found)).shuffle(found)
        first = next((n for n, one in enumerate(found) if one[0].startswith("missing")), 0)
        found.insert(0, found.pop(first))
        for name, one in found:
            if "many" not in name or len(json.dumps(one)) < LONGEST:
                yield name, _addressed(one)

    def valid(self, *, full: bool) -> Iterator[tuple[str, Payload]]:
        """Mutants that are as good as what they were made of."""
        for name, one in self.mutants(full=full):
            if self._judge.is_valid(one) and _times_are_good(self.schema, one):
                yield name, one

    def faults(self, *, full: bool) -> Iterator[Fault]:
        """Mutants that are objects and break the schema in one place."""
        for name, one in self.mutants(full=full):
            fault = self._fault(name, one) if isinstance(one, dict) else None
            if fault is not None:
                yield fault

    def _fault(self, name: str, one: Payload) -> Fault | None:
        errors = list(self._judge.iter_errors(one))
        found = [error for error in errors if error.validator == "type"] or errors
        if len(found) != 1 or len({tuple(error.absolute_path) for error in errors}) != 1:
            return None
        (error,) = found
        codes = {_CODES.get(str(error.validator), _PROPERTY)}
        to_be_list = error.validator == "type" and error.validator_value == "array"
        if to_be_list or isinstance(error.instance, list | dict):
            codes |= {_OCCURRENCE, _PROPERTY}  # one is taken for a list of one, then judged
        if error.instance is None:
            codes.add(_OCCURRENCE)  # null is taken for nothing
        if error.validator == "type" and error.validator_value == "string":
            codes.add(_PROPERTY)  # a number is taken for a text, then judged
        return Fault(
            name, one, frozenset(spelt(self._version, code) for code in codes), _field(error)
        )


def spelt(version: Version, code: str) -> str:
    """A CALLERROR's code as that version spells it."""
    return _OLD_NAMES.get(code, code) if version is Version.V16 else code


def not_an_object(version: Version) -> Fault:
    """What is wrong whatever the action."""
    return Fault("a text for a payload", "text", frozenset({spelt(version, _FORMAT)}), "")


@cache
def request(version: Version, action: str) -> Official:
    return Official(version, shapes(version).request_text(action))


@cache
def response(version: Version, action: str) -> Official:
    if action == SENT:
        return Official(version, '{"type": "object", "maxProperties": 0}')
    return Official(version, shapes(version).response_text(action))


def _field(error: ValidationError) -> str:
    """The name of the field that is wrong."""
    if error.validator == "required":
        return next(key for key in error.validator_value if key not in error.instance)
    if error.validator == "additionalProperties":
        return next(key for key in error.instance if key not in error.schema["properties"])
    return next(key for key in reversed(error.absolute_path) if isinstance(key, str))


def _times_are_good(schema: dict[str, Any], one: Any) -> bool:
    checker = jsonschema.FormatChecker(formats=())
    checker.checks("date-time")(lambda value: not isinstance(value, str) or value == TIME)
    judge = jsonschema.validators.validator_for(schema)
    return bool(judge(schema, format_checker=checker).is_valid(one))


def _addressed(value: Any) -> Any:
    """Where an instance names a place to fetch from or bring to, one that is allowed."""
    if isinstance(value, dict):
        return {
            key: SOMEWHERE if key in _PLACES and _is_made_up(below) else _addressed(below)
            for key, below in value.items()
        }
    return [_addressed(one) for one in value] if isinstance(value, list) else value


_PLACES: Final = frozenset({"location", "remoteLocation"})


def _is_made_up(value: Any) -> bool:
    return isinstance(value, str) and set(value) == {"é"}
