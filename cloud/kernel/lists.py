"""What every list under /api/v1 takes and gives: pages, orders, CSV."""

from __future__ import annotations

import csv
import inspect
import io
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from enum import StrEnum
from types import UnionType
from typing import Annotated, Any, Final, TypeVar, Union, cast, get_args, get_origin

from fastapi import Query, Request, Response
from pydantic import BaseModel

from cloud.kernel.paging import MOST_ROWS, Cut, Page, Part, Sorts

Item = TypeVar("Item", bound=BaseModel)
Row = TypeVar("Row")

CSV: Final = "text/csv"
LIST_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "content": {CSV: {"schema": {"type": "string"}}},
        "headers": {
            "Link": {
                "description": 'the next page, as `<…>; rel="next"`; absent on the last one',
                "schema": {"type": "string"},
            }
        },
    }
}
"""For `responses=` of a list's route."""
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "'")


class Format(StrEnum):
    JSON = "json"
    CSV = "csv"


def wanted(request: Request, given: Format | None) -> Format:
    """JSON or CSV: what `format` says, else what `Accept` prefers."""
    if given is not None:
        return given
    weights = {CSV: 0.0, "application/json": 0.0}
    for entry in request.headers.get("accept", "").split(","):
        kind, *parameters = (part.strip() for part in entry.split(";"))
        for known in weights:
            if kind == known:
                weights[known] = _weight(parameters)
    return Format.CSV if weights[CSV] > weights["application/json"] else Format.JSON


def _weight(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


class Listing:
    """The part of the list that is asked for, and how to answer with it."""

    def __init__(self, request: Request, response: Response, part: Part, form: Format) -> None:
        self.part = part
        self._request = request
        self._response = response
        self._form = form

    def answer(self, cut: Cut[Row], kind: type[Item], view: Callable[[Row], Item]) -> Page[Item]:
        """The rows as a Page of `kind`, or the same as CSV; both name the next page in `Link`."""
        items = [view(row) for row in cut.rows]
        headers = {} if cut.next is None else {"Link": next_link(self._request, cut.next)}
        if self._form is Format.CSV:
            sent = Response(to_csv(kind, items), media_type=CSV, headers=headers)
            return cast("Page[Item]", sent)  # FastAPI sends a Response as it is
        self._response.headers.update(headers)
        return Page(items=items, next=cut.next)


def next_link(request: Request, cursor: str) -> str:
    """The `Link` header's value for the page behind the cursor."""
    url = request.url.include_query_params(cursor=cursor)
    return f'<{url.path}?{url.query}>; rel="next"'


def listing(sorts: Sorts) -> Callable[..., Awaitable[Listing]]:
    """For `Depends`: the query parameters cursor, limit, sort and format of a list.

    `listing: Annotated[Listing, Depends(listing(store.SITES))]` gives the store its `Part` and the
    caller the page. A cursor of another order is refused with 422.
    """
    names = sorts.names()
    orders: Any = StrEnum("Sort", {name: name for name in names})  # type: ignore[misc]  # made at run time

    async def read(
        request: Request,
        response: Response,
        cursor: str | None,
        limit: int,
        sort: str,
        format: Format | None,  # noqa: A002  # the query parameter's name
    ) -> Listing:
        part = Part.behind(cursor, sorts, str(sort), limit)
        return Listing(request, response, part, wanted(request, format))

    about = "what to sort by; `-` before it reverses; a value that is not there counts as smallest"
    offered: dict[str, tuple[Any, Any]] = {
        "request": (Request, inspect.Parameter.empty),
        "response": (Response, inspect.Parameter.empty),
        "cursor": (
            Annotated[str | None, Query(max_length=1000, description="`next` of the page before")],
            None,
        ),
        "limit": (Annotated[int, Query(ge=1, le=MOST_ROWS)], 50),
        "sort": (Annotated[orders, Query(description=about)], orders(sorts.default)),
        "format": (Annotated[Format | None, Query(description="instead of `Accept`")], None),
    }
    read.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what FastAPI reads
        [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default
            )
            for name, (kind, default) in offered.items()
        ]
    )
    return read


# --------------------------------------------------------------------------- CSV


def to_csv(kind: type[BaseModel], items: Sequence[BaseModel]) -> str:
    """RFC 4180 with a header row; nested fields are `agent.version`, lists JSON in one cell.

    A text that a spreadsheet would take for a formula begins with `'` (and so does one that begins
    with `'`); an import takes it off again.
    """
    columns = list(_columns(kind))
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(".".join(column) for column in columns)
    for item in items:
        values = item.model_dump(mode="json")
        writer.writerow([_cell(values, column) for column in columns])
    return out.getvalue()


def _columns(kind: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in kind.model_fields.items():
        nested = _nested(field.annotation)
        if nested is None:
            yield (*above, name)
        else:
            yield from _columns(nested, (*above, name))


def _nested(annotation: Any) -> type[BaseModel] | None:
    """The model behind `M` or `M | None`."""
    if get_origin(annotation) in {Union, UnionType}:
        models = [found for arg in get_args(annotation) if (found := _nested(arg))]
        return models[0] if len(models) == 1 else None
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_model else None


def _cell(values: Any, column: tuple[str, ...]) -> Any:
    for name in column:
        values = values.get(name) if isinstance(values, dict) else None
    if isinstance(values, bool):
        return "true" if values else "false"
    if isinstance(values, list | dict):
        return json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    if isinstance(values, str) and values.startswith(_FORMULA):
        return f"'{values}"
    return values


def from_cell(text: str) -> str:
    """A cell of an import without the `'` that `to_csv` set."""
    return text[1:] if len(text) > 1 and text[0] == "'" and text[1] in _FORMULA else text
