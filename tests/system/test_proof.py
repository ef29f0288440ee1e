"""docs/proof.md names tests that exist, and forgets no fault."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PAGE = (TESTS.parent / "docs" / "proof.md").read_text()
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")
FAULTS = [*(f"F{number}" for number in (*range(1, 17), 43, 44)), *map(str, range(1, 45))]


def test_every_test_that_the_page_names_exists() -> None:
    named = set(NAMED.findall(PAGE))
    assert len(named) > 60, "the table does not read"
    missing = {(file, name) for file, name in named if name not in _tests_in(TESTS / file)}
    assert not missing


def test_every_fault_has_a_row_with_a_test_or_a_reason() -> None:
    rows = dict(re.findall(r"^\| (F?\d+) (.+)$", PAGE, re.MULTILINE))
    assert list(rows) == FAULTS
    without = [number for number, row in rows.items() if not NAMED.search(row)]
    assert without == ["22", "42", "44"], "those say themselves why there is none"


def _tests_in(file: Path) -> set[str]:
    if not file.exists():
        return set()
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, kinds)}
