"""Instances of a JSON schema: valid ones, and mutants with one thing wrong each."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

Schema = dict[str, Any]
Place = tuple[Any, ...]
TIME = "2026-03-14T09:26:53Z"


class Instances:
    """Of one schema file."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    def valid(self, *, full: bool) -> Any:
        return self._make(self._schema, full=full)

    def mutants(self, *, full: bool) -> Iterator[tuple[str, Any]]:
        """Names and instances: each differs from a valid one in one place and one way."""
        valid = self.valid(full=full)
        seen: set[int] = set()
        for place, schema in self._places(self._schema, valid, ()):
            if id(schema) in seen:
                continue  # a definition is tried where it occurs first
            seen.add(id(schema))
            for name, value in self._wrong(schema, _at(valid, place)):
                yield f"{name} at {'/'.join(map(str, place))}", _replaced(valid, place, value)

    def _resolve(self, schema: Schema) -> Schema:
        if "$ref" in schema:
            return self._schema["definitions"][schema["$ref"].rpartition("/")[2]]  # type: ignore[no-any-return]
        return schema

    def _make(self, schema: Schema, *, full: bool) -> Any:
        schema = self._resolve(schema)
        match schema.get("type"):
            case "object":
                return {
                    key: self._make(below, full=full)
                    for key, below in schema.get("properties", {}).items()
                    if full or key in schema.get("required", ())
                }
            case "array":
                count = max(schema.get("minItems", 0), 1 if full else 0)
                return [self._make(schema["items"], full=full) for _ in range(count)]
            case "string":
                return _text(schema)
            case "integer":
                return int(schema.get("minimum", schema.get("maximum", 7)))
            case "number":
                return float(schema.get("minimum", schema.get("maximum", 16.5)))
            case "boolean":
                return True
            case _:
                return {"anything": [1, None]}

    def _places(self, schema: Schema, value: Any, place: Place) -> Iterator[tuple[Place, Schema]]:
        schema = self._resolve(schema)
        yield place, schema
        if isinstance(value, dict):
            for key, below in schema.get("properties", {}).items():
                if key in value:
                    yield from self._places(below, value[key], (*place, key))
        if isinstance(value, list) and value:
            yield from self._places(schema["items"], value[0], (*place, 0))

    def _wrong(self, schema: Schema, value: Any) -> Iterator[tuple[str, Any]]:
        others: list[Any] = [None, "text", 5, 5.5, True, [], {}, [{}], 10**15]
        yield from (("type", other) for other in others)
        makers: dict[str, Callable[[Schema, Any], Iterator[tuple[str, Any]]]] = {
            "object": _wrong_objects,
            "array": _wrong_arrays,
            "string": _wrong_strings,
        }
        yield from makers.get(schema.get("type", ""), _wrong_numbers)(schema, value)


def _text(schema: Schema) -> str:
    if schema.get("format") == "date-time":
        return TIME
    return str(schema["enum"][0]) if "enum" in schema else "é" * min(schema.get("maxLength", 5), 9)


def _wrong_objects(schema: Schema, value: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "extra field", {**value, "extraField": 1}
    for key in value:
        name = "missing" if key in schema.get("required", ()) else "absent"
        yield f"{name} {key}", {k: v for k, v in value.items() if k != key}


def _wrong_arrays(schema: Schema, value: list[Any]) -> Iterator[tuple[str, Any]]:
    yield "empty", []
    if value:
        most = schema.get("maxItems", 3)
        yield "as many as may be", list(itertools.repeat(value[0], most))
        yield "too many", list(itertools.repeat(value[0], most + 1))


def _wrong_strings(schema: Schema, value: str) -> Iterator[tuple[str, Any]]:
    if "maxLength" in schema:
        yield "as long as may be", "€" * schema["maxLength"]
        yield "too long", "x" * (schema["maxLength"] + 1)
    for one in schema.get("enum", ()):
        yield "of the enumeration", one
        yield "case", one.swapcase()


def _wrong_numbers(schema: Schema, value: Any) -> Iterator[tuple[str, Any]]:
    number = int if schema.get("type") == "integer" else float  # the files write 0.0 for both
    if "minimum" in schema:
        yield "least", number(schema["minimum"])
        yield "too little", number(schema["minimum"]) - 1
    if "maximum" in schema:
        yield "most", number(schema["maximum"])
        yield "too much", number(schema["maximum"]) + 1
    if "multipleOf" in schema:
        yield "between steps", 16.55


def _at(value: Any, place: Place) -> Any:
    for key in place:
        value = value[key]
    return value


def _replaced(value: Any, place: Place, new: Any) -> Any:
    """A copy along the way to the place; the rest is shared."""
    if not place:
        return new
    whole = copy.copy(value)
    whole[place[0]] = _replaced(value[place[0]], place[1:], new)
    return whole
