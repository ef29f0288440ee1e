"""CSV as a spreadsheet, a script and our own import read it."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from starlette.requests import Request

from cloud.kernel.lists import Format, from_cell, to_csv, wanted


class Part(BaseModel):
    version: str
    ages: list[int]


class Whole(BaseModel):
    name: str
    count: int | None
    ready: bool
    part: Part | None
    boards: dict[str, str]


def test_nested_fields_have_columns_even_without_a_value() -> None:
    rows = [
        Whole(name="a", count=-1, ready=True, part=None, boards={}),
        Whole(
            name='b"\n',
            count=None,
            ready=False,
            part=Part(version="1", ages=[1, 2]),
            boards={"м": "x"},
        ),
    ]
    assert to_csv(Whole, rows) == (
        "name,count,ready,part.version,part.ages,boards\r\n"
        "a,-1,true,,,{}\r\n"
        '"b""\n",,false,1,"[1,2]","{""м"":""x""}"\r\n'
    )
    assert to_csv(Whole, []) == "name,count,ready,part.version,part.ages,boards\r\n"


@pytest.mark.parametrize("text", ["=1+1", "+7", "-2", "@SUM(A1)", "\t=1", "\r=1", "'=1"])
def test_a_formula_becomes_text(text: str) -> None:
    sheet = to_csv(Part, [Part(version=text, ages=[])])
    (_, (cell, _)) = csv.reader(io.StringIO(sheet, newline=""))
    assert cell == f"'{text}"


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_what_was_exported_is_imported_the_same(text: str) -> None:
    sheet = to_csv(Part, [Part(version=text, ages=[])])
    (_, (cell, _)) = csv.reader(io.StringIO(sheet, newline=""))
    assert from_cell(cell) == text
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))


@pytest.mark.parametrize(
    ("accept", "given_", "form"),
    [
        ("", None, Format.JSON),
        ("*/*", None, Format.JSON),
        ("text/csv", None, Format.CSV),
        ("application/json, text/csv;q=0.5", None, Format.JSON),
        ("application/json;q=0.1, text/csv; q=0.5", None, Format.CSV),
        ("text/csv;q=0", None, Format.JSON),
        ("text/csv;q=much", None, Format.JSON),
        ("text/csv", Format.JSON, Format.JSON),
        ("", Format.CSV, Format.CSV),
    ],
)
def test_what_is_wanted(accept: str, given_: Format | None, form: Format) -> None:
    scope = {"type": "http", "headers": [(b"accept", accept.encode())]}
    assert wanted(Request(scope), given_) is form
