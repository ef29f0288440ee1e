"""What the official JSON schemas demand, reduced to the little that they use.

The schemas (Draft 4 and 6) come in the installed `ocpp` package, which is found but never imported:
importing it would bring asyncio and more. Of 387 files all keywords that constrain are read here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from protocols.ocpp.version import Version

_FOLDERS: Final = {Version.V16: "v16", Version.V201: "v201", Version.V21: "v21"}
_CONSTRAINING: Final = frozenset(
    {
        "type",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "enum",
        "format",
        "maxLength",
        "minItems",
        "maxItems",
        "minimum",
        "maximum",
        "multipleOf",
        "$ref",
    }
)
_SAYING: Final = frozenset(
    {
        "$schema",
        "$id",
        "title",
        "comment",
        "description",
        "default",
        "javaType",
        "definitions",
        "additionalItems",  # constrains tuples only, and there are none
    }
)


class SchemasMissing(RuntimeError):
    """The schemas are not where the `ocpp` package keeps them, or use what is not read here."""


class Kind(Enum):
    """What a value is; `ANY` is DataTransfer's data."""

    OBJECT = "object"
    LIST = "array"
    TEXT = "string"
    TIME = "date-time"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    ANY = "any"


@dataclass(frozen=True, eq=False)
class Shape:
    """One node of a schema, references resolved; equal nodes of one version are one object."""

    kind: Kind
    name: str = ""
    """An object's name, for the type that is made of it."""
    fields: Mapping[str, Shape] | None = None
    required: frozenset[str] = frozenset()
    is_open: bool = False
    """May have fields of its own: CustomDataType (2.0.1 Part 4, 9)."""
    item: Shape | None = None
    enum: tuple[str, ...] = ()
    least: int | float | None = None
    """Of a number, or of a list's length."""
    most: int | float | None = None
    """Of a number, or of a text's or list's length."""
    step: float | None = None


class Shapes:
    """The messages of one version, read when they are asked for."""

    def __init__(self, version: Version) -> None:
        self._files = _files(version)
        self._messages: dict[str, Shape] = {}
        self._known: dict[str, Shape] = {}
        responses = {n.removesuffix("Response") for n in self._files if n.endswith("Response")}
        requests = {n.removesuffix("Request") for n in self._files if not n.endswith("Response")}
        self.requests: frozenset[str] = frozenset(requests)
        self.responses: frozenset[str] = frozenset(responses)

    def request(self, action: str) -> Shape:
        """Raises KeyError for an action that has no such message."""
        return self._read(self._request_file(action), action)

    def response(self, action: str) -> Shape:
        """Raises KeyError for an action that has no such message."""
        name = f"{action}Response"
        return self._read(name, name)

    def request_text(self, action: str) -> str:
        """The official JSON schema. Raises KeyError."""
        return self._files[self._request_file(action)].read_text("utf-8-sig")

    def response_text(self, action: str) -> str:
        """The official JSON schema. Raises KeyError."""
        return self._files[f"{action}Response"].read_text("utf-8-sig")

    def _request_file(self, action: str) -> str:
        if action not in self.requests:
            raise KeyError(action)
        return action if action in self._files else f"{action}Request"

    def _read(self, file: str, name: str) -> Shape:
        read = self._messages.get(file)
        if read is None:
            schema = json.loads(self._files[file].read_text("utf-8-sig"))
            read = self._shape(schema, schema.get("definitions", {}), name)
            self._messages[file] = read
        return read

    def _shape(self, node: dict[str, Any], known: dict[str, Any], name: str) -> Shape:
        if "$ref" in node:
            name = node["$ref"].rpartition("/")[2]
            return self._shape(known[name], known, name)
        if strange := node.keys() - _CONSTRAINING - _SAYING:
            raise SchemasMissing(f"the schema of {name} uses {', '.join(sorted(strange))}")
        if node.get("type") == "object":
            return self._object(node, known, name)
        return self._shared(self._leaf_or_list(node, known, name))

    def _object(self, node: dict[str, Any], known: dict[str, Any], name: str) -> Shape:
        fields = {
            key: self._shape(below, known, f"{name}_{key}")
            for key, below in node.get("properties", {}).items()
        }
        return self._shared(
            Shape(
                Kind.OBJECT,
                name=name,
                fields=fields,
                required=frozenset(node.get("required", ())),
                is_open=node.get("additionalProperties", True) is not False,
            )
        )

    def _leaf_or_list(self, node: dict[str, Any], known: dict[str, Any], name: str) -> Shape:
        kind = Kind(node.get("type", "any"))
        if kind is Kind.LIST:
            item = self._shape(node["items"], known, name)
            return Shape(kind, item=item, least=node.get("minItems"), most=node.get("maxItems"))
        if node.get("format") == "date-time":
            return Shape(Kind.TIME)
        return Shape(
            kind,
            enum=tuple(node.get("enum", ())),
            least=node.get("minimum"),
            most=node.get("maxLength", node.get("maximum")),
            step=node.get("multipleOf"),
        )

    def _shared(self, shape: Shape) -> Shape:
        """Every 2.x file repeats the definitions it needs: one type for all that are alike."""
        below = [(key, id(field)) for key, field in (shape.fields or {}).items()]
        key = repr(
            (
                shape.kind,
                shape.name,
                below,
                sorted(shape.required),
                shape.is_open,
                id(shape.item),
                shape.enum,
                shape.least,
                shape.most,
                shape.step,
            )
        )
        return self._known.setdefault(key, shape)


@cache
def shapes(version: Version) -> Shapes:
    return Shapes(version)


def _files(version: Version) -> dict[str, Path]:
    spec = find_spec("ocpp")
    if spec is None or not spec.submodule_search_locations:
        raise SchemasMissing("the package `ocpp` is not installed; it carries OCPP's schemas")
    folder = Path(spec.submodule_search_locations[0], _FOLDERS[version], "schemas")
    found = {file.stem: file for file in folder.glob("*.json")}
    if not found:
        raise SchemasMissing(f"no schemas in {folder}: another release of the package `ocpp`?")
    return found
