"""Rows as dataclasses: the columns of a query are the fields' names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, LiteralString, TypeVar

import msgspec

from cloud.kernel.cursor import PlainCursor as Cursor

T = TypeVar("T")
Params = Sequence[Any] | Mapping[str, Any]


async def rows(cursor: Cursor, kind: type[T], sql: LiteralString, params: Params = ()) -> list[T]:
    """Every row of the query as a `kind`."""
    await cursor.execute(sql, params)
    names = [column.name for column in cursor.description or ()]
    return [kind(**dict(zip(names, values, strict=True))) for values in await cursor.fetchall()]


async def row(cursor: Cursor, kind: type[T], sql: LiteralString, params: Params = ()) -> T | None:
    """The query's first row as a `kind`, or None."""
    found = await rows(cursor, kind, sql, params)
    return found[0] if found else None


def literal(values: Iterable[object]) -> str:
    """An array literal of numbers, UUIDs, or text that needs no escaping or brings its quotes.

    For long arrays on the commit path: psycopg writes a list element by element, which takes three
    times as long.
    """
    return "{" + ",".join(map(str, values)) + "}"


def jsonb(value: Any) -> str:
    """JSON text that jsonb takes: what came over a wire may hold a NUL in a text."""
    encoded = msgspec.json.encode(value)
    if rb"\u0000" in encoded:
        encoded = msgspec.json.encode(_without_nul(value))
    return encoded.decode()


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}")
    if isinstance(value, Mapping):
        return {_without_nul(key): _without_nul(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nul(below) for below in value]
    return value
