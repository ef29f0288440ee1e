"""Answers from a file: the command line goes first, and what cannot be meant is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.commissioning.answering import completed
from edge_agent.commissioning.dialog import CommissionError
from edge_agent.commissioning.work import Options


def answers(folder: Path, text: str) -> Path:
    file = folder / "answers.toml"
    file.write_text(text)
    return file


def test_options_stand_there_by_the_names_of_the_command_line(tmp_path: Path) -> None:
    file = answers(
        tmp_path,
        """
        station = "TAS-1"
        use = ["left=abb_terra_ac@tcp://192.0.2.10:502/1"]
        host = "192.0.2.10"
        unit = [2, 3]
        fuse = "63/63/50"
        failsafe-timeout = 45
        charge_seconds = 5
        charge = false
        ocpp-password-file = "secret"
        reports = "/srv/reports"
        """,
    )
    assert completed(Options(), file) == Options(
        station="TAS-1",
        use=("left=abb_terra_ac@tcp://192.0.2.10:502/1",),
        hosts=("192.0.2.10",),
        units=(2, 3),
        fuse="63/63/50",
        failsafe_timeout=45,
        charge_s=5,
        charge=False,
        ocpp_password=tmp_path / "secret",
        reports=Path("/srv/reports"),
    )


def test_the_command_line_goes_first(tmp_path: Path) -> None:
    file = answers(tmp_path, 'fuse = "63"\ncode = "OLD"\n')
    taken = completed(Options(code="NEW", station="TAS-1"), file)
    assert taken == Options(code="NEW", station="TAS-1", fuse="63")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("fusee = '63'", "no such option: fusee"),
        ("fuse = 63", "Expected `str | null`, got `int` - at `$.fuse`"),
        ("fuse = [", "cannot be read"),
        ("reports = 5", "at `$.reports`"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(CommissionError) as refused:
        completed(Options(), answers(tmp_path, text))
    assert reason in str(refused.value)
    assert refused.value.code == 2


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommissionError, match=r"nowhere\.toml"):
        completed(Options(), tmp_path / "nowhere.toml")
