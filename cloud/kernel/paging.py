"""Lists in pages: any of a list's orders, cut by the key of the last row seen (never by an offset).

A NULL counts as the smallest value, so a descending order is the exact reverse of the ascending
one, and one index serves both: `CREATE INDEX … (column, id)`, or `(column NULLS FIRST, id)` where
the column is nullable.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Generic, LiteralString, Self, TypeVar

import msgspec
from pydantic import BaseModel

from cloud.kernel.database import Cursor
from cloud.kernel.errors import BadCursor

Item = TypeVar("Item", bound=BaseModel)
Row = TypeVar("Row")
T = TypeVar("T")

MOST_ROWS: Final = 500
_INT8 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_MOMENT = Annotated[datetime, msgspec.Meta(tz=True)]


class Page(BaseModel, Generic[Item]):
    """One page of a list; pass `next` as `cursor` to get the following one, null ends it."""

    items: list[Item]
    next: str | None = None


# --------------------------------------------------------------------------- orders


@dataclass(frozen=True)
class Column:
    """What a list is sorted by: an SQL expression, and the type of its values for msgspec."""

    sql: LiteralString
    kind: Any = str
    nullable: bool = False


class Sorts:
    """The orders that a list offers; `tie` is a unique column that settles equal values."""

    def __init__(self, default: str, tie: Column, **columns: Column) -> None:
        self.default = default
        self.tie = tie
        self.columns = columns

    def names(self) -> list[str]:
        """What `sort` may be: each column's name, and with `-` before it for the reverse."""
        return [sign + name for name in self.columns for sign in ("", "-")]


@dataclass(frozen=True)
class Part:
    """The part of a list that a page shows: what a store needs to know."""

    sorts: Sorts
    sort: str
    limit: int
    after: tuple[Any, Any] | None = None

    @classmethod
    def behind(cls, cursor: str | None, sorts: Sorts, sort: str, limit: int) -> Self:
        """The page behind the cursor; raises BadCursor also for one of another order."""
        if not cursor:
            return cls(sorts, sort, limit)
        key = sorts.columns[sort.removeprefix("-")]
        kinds: Any = tuple.__class_getitem__((str, _bound(key.kind) | None, _bound(sorts.tie.kind)))
        told, value, tie = decode_cursor(cursor, kinds)
        if told != sort or (value is None and not key.nullable) or _unstorable(value, tie):
            raise BadCursor(
                f"this cursor is not one of ours, or of a list sorted otherwise than {sort};"
                " begin again without it"
            )
        return cls(sorts, sort, limit, (value, tie))


def _bound(kind: Any) -> Any:
    return {int: _INT8, datetime: _MOMENT}.get(kind, kind)


def _unstorable(*values: Any) -> bool:
    return any(isinstance(value, str) and "\0" in value for value in values)


@dataclass(frozen=True)
class Cut(Generic[Row]):
    """Rows of one page, and where the next one begins (None: there is none)."""

    rows: list[Row]
    next: str | None


class Where:
    """Conditions of a list; those without a value are left out, so that the plan fits the rest."""

    def __init__(self, sql: LiteralString = "true", **params: Any) -> None:
        self.sql: LiteralString = sql
        self.params: dict[str, Any] = params

    def add(self, condition: LiteralString, value: Any) -> Self:
        """`add("site_id = {}", site)`; the value is passed as a parameter, None adds nothing."""
        if value is not None:
            name = f"w{len(self.params)}"
            self.params[name] = value
            self.sql += " AND (" + condition.replace("{}", f"%({name})s") + ")"
        return self


async def select_page(
    cursor: Cursor,
    kind: type[Row],
    part: Part,
    columns: LiteralString,
    source: LiteralString,
    where: Where | None = None,
) -> Cut[Row]:
    """One page of `SELECT columns FROM source WHERE where`, as `kind`s."""
    where = where or Where()
    key, tie = part.sorts.columns[part.sort.removeprefix("-")], part.sorts.tie
    direction, nulls = ("DESC", "LAST") if part.sort.startswith("-") else ("ASC", "FIRST")
    where_nulls = f" NULLS {nulls}" if key.nullable else ""
    order = f"{key.sql} {direction}{where_nulls}, {tie.sql} {direction}"
    params: dict[str, Any] = {**where.params, "page_limit": part.limit + 1}
    if part.after is not None:
        params |= {"page_key": part.after[0], "page_tie": part.after[1]}
    sql: LiteralString = (
        f"SELECT {columns}, {key.sql} AS page_key, {tie.sql} AS page_tie FROM {source}"  # noqa: S608  # of literals only
        f" WHERE ({where.sql}) AND ({_behind(part, key, tie)})"
        f" ORDER BY {order} LIMIT %(page_limit)s"
    )
    await cursor.execute(sql, params)
    names = [column.name for column in cursor.description or ()][:-2]
    found = await cursor.fetchall()
    shown = found[: part.limit]
    more = len(found) > part.limit
    return Cut(
        [kind(**dict(zip(names, values[:-2], strict=True))) for values in shown],
        encode_cursor((part.sort, *shown[-1][-2:])) if more else None,
    )


def _behind(part: Part, key: Column, tie: Column) -> LiteralString:
    if part.after is None:
        return "true"
    descending, null = part.sort.startswith("-"), part.after[0] is None
    if null and descending:
        return f"{key.sql} IS NULL AND {tie.sql} < %(page_tie)s"
    if null:
        return f"{key.sql} IS NOT NULL OR {tie.sql} > %(page_tie)s"
    sign = "<" if descending else ">"
    behind = f"({key.sql}, {tie.sql}) {sign} (%(page_key)s, %(page_tie)s)"
    return f"{behind} OR {key.sql} IS NULL" if descending and key.nullable else behind


# --------------------------------------------------------------------------- cursors


def encode_cursor(key: Any) -> str:
    """Where a page ended, as opaque text; a key is one value or a tuple of values."""
    keys = key if isinstance(key, tuple | list) else (key,)
    return base64.urlsafe_b64encode(msgspec.json.encode(keys)).decode().rstrip("=")


def decode_cursor(cursor: str, keys: type[T]) -> T:
    """Read back what `encode_cursor` wrote as the tuple type `keys`; raises BadCursor."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        return msgspec.json.decode(raw, type=keys)
    except (binascii.Error, ValueError, msgspec.DecodeError):
        raise BadCursor("this cursor is not one of ours; begin again without it") from None
