"""Bulk imports: CSV or JSON in, a verdict per row out; as a whole or not at all, or only tried.

A module names the model of a row and a key that makes rows distinct, and writes `apply`, which
enters the good rows within one unit of work and says what became of each.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Final, Generic, TypeVar, cast

from fastapi import Query, Request, Response
from psycopg import Rollback
from pydantic import BaseModel, Field, ValidationError

from cloud.kernel.database import Cursor, Database, TenantId
from cloud.kernel.errors import KarvonError, Kind
from cloud.kernel.lists import CSV, Format, from_cell, to_csv, wanted

R = TypeVar("R", bound=BaseModel)
MOST_ROWS: Final = 10_000
_TOLD: Final = 20
"""Reasons that a refusal spells out; the report has all of them."""


class ImportRefused(KarvonError):
    """Nothing was imported; `params.report` says why, row by row."""

    kind = Kind.INVALID
    code = "import.refused"


class ImportUnreadable(KarvonError):
    """It is not the CSV or JSON that an import takes."""

    kind = Kind.INVALID
    code = "import.unreadable"


class OnError(StrEnum):
    ABORT = "abort"
    SKIP = "skip"


class Outcome(StrEnum):
    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"
    FAILED = "failed"


@dataclass(frozen=True)
class Line(Generic[R]):
    """A row as it came: its line in the CSV (the header is 1), or its place in the JSON list."""

    line: int
    row: R


class RowReport(BaseModel):
    """What became of one row; a dry run says what would."""

    line: int = Field(description="in the CSV, header included; in JSON the row's place, from 1")
    key: str = Field(description="what the row is about, as far as it could be read")
    outcome: Outcome
    reason: str = ""


Told = TypeVar("Told", bound=RowReport)


class ImportReport(BaseModel, Generic[Told]):
    committed: bool = Field(description="false after a dry run: nothing was changed")
    created: int = 0
    updated: int = 0
    unchanged: int = 0
    failed: int = 0
    rows: list[Told]


Apply = Callable[[Cursor, Sequence[Line[R]]], Awaitable[Sequence[RowReport]]]


@dataclass
class Read(Generic[R]):
    """An import as it was read: rows that hold by themselves, and what is wrong with the others."""

    lines: list[Line[R]] = field(default_factory=list)
    failed: list[RowReport] = field(default_factory=list)


class Importing:
    """For `Depends()`: the query parameters of an import, its body, and how to answer."""

    def __init__(
        self,
        request: Request,
        dry_run: Annotated[
            bool, Query(description="say what would happen, change nothing")
        ] = False,
        on_error: Annotated[
            OnError, Query(description="abort: all rows or none; skip: take the good ones")
        ] = OnError.ABORT,
        format: Annotated[  # noqa: A002  # the query parameter's name
            Format | None, Query(description="of the report, instead of `Accept`")
        ] = None,
    ) -> None:
        self._request = request
        self._dry_run = dry_run
        self._on_error = on_error
        self._form = wanted(request, format)

    async def read(self, model: type[R], name: str, key: Callable[[R], str]) -> Read[R]:
        """The body's rows; `name` is the member that may hold them in JSON.

        Raises ImportUnreadable. `key` tells rows apart: a second one of the same fails.
        """
        body = await self._request.body()
        kind = self._request.headers.get("content-type", "").partition(";")[0].strip().lower()
        return distinct(read_rows(kind, body, model, name), key)

    async def run(
        self,
        database: Database,
        tenant: TenantId,
        read: Read[R],
        apply: Apply[R],
        told: type[Told],
    ) -> ImportReport[Told]:
        """Apply the good rows in one unit of work. Raises ImportRefused when one failed (abort).

        `told` is what is said of a row: RowReport, or a module's own kind of it.
        """
        async with database.unit(tenant) as cursor, cursor.connection.transaction():
            rows = [*read.failed, *await apply(cursor, read.lines)]
            report = _report(told, rows, dry_run=self._dry_run)
            if self._dry_run or (report.failed and self._on_error is OnError.ABORT):
                raise Rollback
        if report.failed and self._on_error is OnError.ABORT and not self._dry_run:
            raise _refusal(report)
        return report

    def answer(self, report: ImportReport[Told], told: type[Told]) -> ImportReport[Told]:
        """The report as JSON, or its rows as CSV."""
        if self._form is Format.CSV:
            sent = Response(to_csv(told, report.rows), media_type=CSV)
            return cast("ImportReport[Told]", sent)  # FastAPI sends a Response as it is
        return report


def _report(told: type[Told], found: Sequence[RowReport], *, dry_run: bool) -> ImportReport[Told]:
    ordered = sorted(found, key=lambda row: row.line)
    rows = [row if isinstance(row, told) else told(**row.model_dump()) for row in ordered]
    counts = {str(kind): sum(row.outcome is kind for row in rows) for kind in Outcome}
    return ImportReport[told](committed=not dry_run, rows=rows, **counts)  # type: ignore[valid-type]  # made at run time


def _refusal(report: ImportReport[Told]) -> ImportRefused:
    failed = [row for row in report.rows if row.outcome is Outcome.FAILED]
    told = "; ".join(f"line {row.line}: {row.reason}" for row in failed[:_TOLD])
    more = f"; and {len(failed) - _TOLD} more" if len(failed) > _TOLD else ""
    untouched = {"committed": False, "created": 0, "updated": 0, "unchanged": 0}
    return ImportRefused(
        f"{len(failed)} of {len(report.rows)} rows cannot be taken, so none was: {told}{more}."
        " Correct them, or take the others with on_error=skip",
        report={
            **untouched,
            "failed": len(failed),
            "rows": [row.model_dump(mode="json") for row in failed],
        },
    )


def distinct(read: Read[R], key: Callable[[R], str]) -> Read[R]:
    """Fail each row whose key came before."""
    first: dict[str, int] = {}
    kept = Read[R](failed=list(read.failed))
    for line in read.lines:
        name = key(line.row)
        if name in first:
            kept.failed.append(failure(line.line, name, f"is on line {first[name]} already"))
        else:
            first[name] = line.line
            kept.lines.append(line)
    return kept


def failure(line: int, key: str, reason: str) -> RowReport:
    return RowReport(line=line, key=key, outcome=Outcome.FAILED, reason=reason)


def import_body(model: type[BaseModel], name: str) -> dict[str, Any]:
    """For `openapi_extra=` of an import's route; the model is flat."""
    rows = {"type": "array", "items": model.model_json_schema(), "maxItems": MOST_ROWS}
    named = {
        "type": "object",
        "properties": {name: rows},
        "required": [name],
        "additionalProperties": False,
    }
    about = f"header of {', '.join(model.model_fields)}; separated by , or ;"
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"anyOf": [rows, named]}},
                CSV: {"schema": {"type": "string", "description": about}},
            },
        }
    }


# --------------------------------------------------------------------------- reading


def read_rows(kind: str, body: bytes, model: type[R], name: str) -> Read[R]:
    """Rows of a `text/csv` or `application/json` body. Raises ImportUnreadable."""
    if kind == CSV:
        raw = _csv_rows(body, model)
    elif kind in {"application/json", ""}:
        raw = _json_rows(body, name)
    else:
        raise ImportUnreadable(
            f"an import takes Content-Type text/csv or application/json, not {kind}"
        )
    if len(raw) > MOST_ROWS:
        raise ImportUnreadable(
            f"an import takes up to {MOST_ROWS} rows, this one has {len(raw)}; send it in parts"
        )
    read = Read[R]()
    for line, values in raw:
        _check(read, model, line, values)
    return read


def _check(read: Read[R], model: type[R], line: int, values: Any) -> None:
    try:
        read.lines.append(Line(line, model.model_validate(values)))
    except ValidationError as error:
        reasons = [
            f"{'.'.join(str(part) for part in one['loc']) or 'row'}: {one['msg']}"
            for one in error.errors(include_url=False, include_input=False)
        ]
        read.failed.append(failure(line, _named(values), "; ".join(reasons)))


def _named(values: Any) -> str:
    """The first value of a row that could not be read, so that people find it."""
    first = next(iter(values.values()), "") if isinstance(values, dict) else values
    text = first if isinstance(first, str) else json.dumps(first)
    return text.encode(errors="replace").decode()[:100]


def _json_rows(body: bytes, name: str) -> list[tuple[int, Any]]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ImportUnreadable(f"the body is no JSON: {error}") from None
    rows = content.get(name) if isinstance(content, dict) and set(content) == {name} else content
    if not isinstance(rows, list):
        raise ImportUnreadable(f'the body is a list of objects, or {{"{name}": [...]}}')
    return list(enumerate(rows, start=1))


def _csv_rows(body: bytes, model: type[BaseModel]) -> list[tuple[int, Any]]:
    """A header of field names, then rows; an empty cell is a field that is left out."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImportUnreadable(f"the CSV is not UTF-8 (byte {error.start})") from None
    head = text.partition("\n")[0]
    delimiter = ";" if head.count(";") > head.count(",") else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        _check_header(names, model)
        found: list[tuple[int, Any]] = []
        before = reader.line_num
        for cells in reader:
            if any(cells):
                found.append((before + 1, _fields(names, cells)))
            before = reader.line_num
    except csv.Error as error:
        raise ImportUnreadable(f"line {reader.line_num} is no CSV: {error}") from None
    return found


def _fields(names: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    row = {name: from_cell(cell) for name, cell in zip(names, cells, strict=False) if cell}
    if len(cells) > len(names):
        row[f"column {len(names) + 1}"] = cells[len(names)]
    return row


def _check_header(names: Sequence[str], model: type[BaseModel]) -> None:
    known = {field.alias or name: field.is_required() for name, field in model.model_fields.items()}
    wrong = [name for name in names if name not in known]
    missing = [name for name, needed in known.items() if needed and name not in names]
    if wrong or missing or len(set(names)) < len(names):
        raise ImportUnreadable(
            f"the first line names the columns, of {', '.join(known)};"
            f" unknown: {', '.join(wrong) or 'none'}; missing: {', '.join(missing) or 'none'};"
            " none may come twice"
        )
