"""The installer's guide shows what really happens: the pictures are of a real commissioning."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.commissioning.progress import STEPS
from edge_agent.commissioning.work import Options
from karvon.demo.steps import photograph


async def test_each_step_gets_a_picture_that_loads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answers = {"Main fuse": "63", "Register with": "alone"}
    options = Options(profiles=("abb_terra_ac",), charge=False, installer="A. Karimov")
    made = await photograph(tmp_path, options, answers)
    assert len(made) == len(STEPS)
    for picture in made:
        shown = picture.read_text()
        assert shown.startswith("<svg")
        assert "url(http" not in shown
        assert str(tmp_path) not in shown
