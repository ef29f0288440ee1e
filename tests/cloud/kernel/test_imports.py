"""Bulk imports: what is read, what is told, what stays."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from pydantic import Field
from starlette.requests import Request
from starlette.types import Message

from cloud.kernel.database import Cursor, Database, TenantId
from cloud.kernel.imports import (
    Importing,
    ImportRefused,
    ImportUnreadable,
    Line,
    OnError,
    Outcome,
    RowReport,
    failure,
    read_rows,
)
from cloud.kernel.rest import Body


class Row(Body):
    name: str = Field(min_length=1, max_length=5)
    weight: int | None = None
    heavy: bool = False


def lines_of(text: str, kind: str = "text/csv") -> list[tuple[int, str, int | None]]:
    read = read_rows(kind, text.encode(), Row, "rows")
    assert read.failed == []
    return [(line.line, line.row.name, line.row.weight) for line in read.lines]


def test_csv_and_json_are_read_alike() -> None:
    assert lines_of('\ufeffname,weight\r\na,1\r\n\r\n"b\nc",\r\nd,2\r\n') == [
        (2, "a", 1), (4, "b\nc", None), (6, "d", 2),
    ]  # fmt: skip
    assert lines_of("weight;name\n1;a\n") == [(2, "a", 1)]
    rows = [{"name": "a", "weight": 1}, {"name": "b"}]
    for body in (rows, {"rows": rows}):
        assert lines_of(json.dumps(body), "application/json") == [(1, "a", 1), (2, "b", None)]
    assert lines_of("name\n'=x\n'x\n") == [(2, "=x", None), (3, "'x", None)]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/csv", b""),
        ("text/csv", b"weight\n1\n"),
        ("text/csv", b"name,colour\na,red\n"),
        ("text/csv", b"name,name\na,b\n"),
        ("text/csv", b"name\n\xff\n"),
        ("text/csv", b'name\n"a\n'),
        ("application/json", b"{"),
        ("application/json", b'{"others": []}'),
        ("application/json", b"[" * 100_000),
        ("application/json", b"3"),
        ("application/xml", b"<a/>"),
        ("text/csv", b"name\n" + b"a\n" * 10_001),
    ],
)
def test_what_is_no_import_is_refused_as_a_whole(kind: str, body: bytes) -> None:
    with pytest.raises(ImportUnreadable):
        read_rows(kind, body, Row, "rows")


def test_a_wrong_row_is_told_with_its_line_and_field() -> None:
    text = b"name,weight\na,heavy\nlonger than five,1\nok,2\na,b,c\n"
    read = read_rows("text/csv", text, Row, "rows")
    assert [line.row.name for line in read.lines] == ["ok"]
    assert [(row.line, row.key) for row in read.failed] == [
        (2, "a"), (3, "longer than five"), (5, "a"),
    ]  # fmt: skip
    assert "weight" in read.failed[0].reason
    assert "column 3" in read.failed[2].reason
    bad = b'[7, null, {"name": "a\\u0000"}, {"name": "\\ud800"}, {"name": "b", "x": 1}]'
    assert len(read_rows("application/json", bad, Row, "rows").failed) == 5


def importing(body: str, **options: object) -> Importing:
    async def receive() -> Message:
        return {"type": "http.request", "body": body.encode()}

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", b"text/csv")]}
    return Importing(Request(scope, receive), **options)  # type: ignore[arg-type]


TENANT = TenantId(1)


async def enter(cursor: Cursor, lines: Sequence[Line[Row]]) -> list[RowReport]:
    """Each name becomes a dead letter; `bad` cannot be entered."""
    told = []
    for line in lines:
        name = line.row.name
        if name == "bad":
            told.append(failure(line.line, name, "is bad"))
            continue
        await cursor.execute(
            "INSERT INTO kernel.dead_letter (tenant_id, topic, reason, payload)"
            " VALUES (1, %s, '', '')",
            (name,),
        )
        told.append(RowReport(line=line.line, key=name, outcome=Outcome.CREATED))
    return told


async def entered(database: Database) -> set[str]:
    async with database.unit(TENANT, read_only=True) as cursor:
        await cursor.execute("SELECT topic FROM kernel.dead_letter")
        return {name for (name,) in await cursor.fetchall()}


async def test_one_bad_row_keeps_all_out_unless_it_is_skipped(database: Database) -> None:
    body = "name\na\nbad\nb\na\n"
    abort = importing(body)
    read = await abort.read(Row, "rows", lambda row: row.name)
    with pytest.raises(ImportRefused) as refused:
        await abort.run(database, TENANT, read, enter, RowReport)
    report = refused.value.params["report"]
    assert [(row["line"], row["reason"]) for row in report["rows"]] == [
        (3, "is bad"), (5, "is on line 2 already"),
    ]  # fmt: skip
    assert "line 3: is bad" in refused.value.detail
    assert await entered(database) == set()
    skip = importing(body, on_error=OnError.SKIP)
    done = await skip.run(database, TENANT, read, enter, RowReport)
    assert (done.committed, done.created, done.failed) == (True, 2, 2)
    assert [row.line for row in done.rows] == [2, 3, 4, 5]
    assert await entered(database) == {"a", "b"}


async def test_a_dry_run_tells_everything_and_changes_nothing(database: Database) -> None:
    tried = importing("name\na\nbad\n", dry_run=True)
    read = await tried.read(Row, "rows", lambda row: row.name)
    report = await tried.run(database, TENANT, read, enter, RowReport)
    assert (report.committed, report.created, report.failed) == (False, 1, 1)
    assert await entered(database) == set()
