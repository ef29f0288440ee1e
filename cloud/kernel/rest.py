"""What the modules' `rest.py` build on: request bodies."""

from __future__ import annotations

import functools
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Self, get_args
from zoneinfo import available_timezones

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

LARGEST_ID: Final = 2**31 - 1


def _written_out(moment: Any) -> Any:
    """Refuse numbers, which would be read as seconds since 1970: the format is RFC 3339's."""
    if isinstance(moment, datetime) or (isinstance(moment, str) and _DATE.match(moment)):
        return moment
    raise ValueError("a time looks like 2030-01-01T00:00:00Z")


_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ]")
Instant = Annotated[AwareDatetime, BeforeValidator(_written_out)]
"""A time in a request."""


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("this lies outside the years 1 to 9999 in UTC") from None


Moment = Annotated[Instant, AfterValidator(_in_utc)]
"""A time that is stored: one that can be read back from any time zone."""


Flag = Annotated[bool, Field(strict=True)]
"""Yes or no in a JSON body: neither 0 nor "off" is a boolean."""


def _known_zone(name: str) -> str:
    if name not in _zones():
        raise ValueError("no time zone of the IANA list, such as Asia/Tashkent")
    return name


@functools.cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


Zone = Annotated[
    str,
    Field(max_length=60, description="IANA name", json_schema_extra={"format": "time-zone"}),
    AfterValidator(_known_zone),
]


_NO_NUL: Final = "^[^\\u0000]*$"
_STRICTER: Final = frozenset({"pattern", "format", "enum", "const"})


def example(**fields: Any) -> ConfigDict:
    """For `model_config` of a request's body: what OpenAPI shows of it."""
    return ConfigDict(json_schema_extra={"examples": [fields]})


class Body(BaseModel):
    """A request's body: unknown fields are refused, and texts that no database can hold."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, given: Any) -> Any:
        """JSON's `true` is not 1."""
        for name, field in cls.model_fields.items():
            value = given.get(name) if isinstance(given, dict) else None
            takes = {field.annotation, *_options(field)}
            if isinstance(value, bool) and takes.isdisjoint({bool, Any}):
                raise ValueError(f"{name} is neither true nor false")
        return given

    @model_validator(mode="after")
    def _storable(self) -> Self:
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, str) and not storable(value):
                raise ValueError(f"{name} holds a NUL or a lone surrogate, which is no text")
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core)
        for told in handler.resolve_ref_schema(schema).get("properties", {}).values():
            say_storable(told)
        return schema


def say_storable(schema: dict[str, Any]) -> None:
    """Have a JSON schema tell that its text holds no NUL, where nothing stricter is told."""
    for option in schema.get("anyOf", ()):
        say_storable(option)
    if schema.get("type") == "string" and _STRICTER.isdisjoint(schema):
        schema["pattern"] = _NO_NUL


def _options(field: FieldInfo) -> tuple[Any, ...]:
    return get_args(field.annotation)


def storable(text: str) -> bool:
    """Whether PostgreSQL can hold it: no NUL, valid Unicode."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False
