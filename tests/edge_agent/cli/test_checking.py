"""`karvon agent check`: what it warns of, beside what it finds wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edge_agent.cli.main import app

CONFIG = """
station = "TAS-1"
[journal]
folder = "journal"
telemetry_mib = 1
[[boards]]
name = "left"
profile = "abb_terra_ac"
link = { kind = "tcp", host = "127.0.0.1", port = 1, timeout_s = 0.2 }
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "agent.toml"


def call(*args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(args))
    return result.exit_code, result.stdout, result.stderr


def doubted(config: Path, change: tuple[str, str]) -> list[dict[str, Any]]:
    config.write_text(CONFIG.replace(*change))
    code, out, complaint = call("check", "--json", "--config", str(config))
    assert code in {0, 1}, complaint
    return [each for each in json.loads(out) if each["what"] == "board left"]


def test_check_warns_with_what_a_profile_leaves_open(config: Path) -> None:
    found = doubted(config, ('"abb_terra_ac"', '"keba_p40"'))
    unsure = [each["text"] for each in found if each["unsure"]]
    assert all(each["well"] for each in found if each["unsure"])
    assert any(text.startswith("setpoint.confirm_by_effect: ") for text in unsure)
    assert any("set times.deadline_s to 6" in text for text in unsure), "one poll takes 3 s"
    found = doubted(config, ('"abb_terra_ac"', '"evse_wb"'))
    assert any("is not from the maker's manual" in each["text"] for each in found)
    code, out, _ = call("check", "--config", str(config))
    assert code == 1, "the board does not answer"
    assert "\nunsure board left: it has no meter and no watchdog" in out
    (only,) = [each["text"] for each in doubted(config, ("TAS-1", "TAS-2")) if each["unsure"]]
    assert only.startswith("registers.error: "), "nothing is said that the profile does not say"


def test_check_refuses_an_option_that_the_profile_does_not_have(config: Path) -> None:
    option = ('"abb_terra_ac"', '"phoenix_ev_cc_eth"\noptions = ["walbe"]')
    (wrong, *_) = [each for each in doubted(config, option) if not each["well"]]
    assert wrong["text"] == "profile phoenix_ev_cc_eth has no option 'walbe'; it has wallbe"


def test_check_warns_of_a_name_that_goes_to_whichever_adapter_comes_first(config: Path) -> None:
    numbered = (
        'profile = "abb_terra_ac"\nlink = { kind = "tcp", host = "127.0.0.1", port = 1,',
        'kind = "serial_board"\nlink = { kind = "serial", device = "/dev/ttyUSB77",',
    )
    unsure, wrong = doubted(config, numbered)
    assert unsure["unsure"]
    assert "/dev/ttyUSB77 may be another adapter after a restart" in unsure["text"]
    assert "under /dev/serial/by-id" in unsure["text"]
    assert not wrong["well"]
    assert "cannot open /dev/ttyUSB77; is it plugged in?" in wrong["text"]


def test_check_looks_at_the_meter_beside_a_board(config: Path) -> None:
    meter = 'meter = { profile = "eastron_sdm230", link = { host = "127.0.0.1", port = 2 } }'
    config.write_text(CONFIG + meter)
    code, out, complaint = call("check", "--json", "--config", str(config))
    assert code == 1, complaint
    told = [each for each in json.loads(out) if each["what"] == "meter of board left"]
    assert "cannot open 127.0.0.1:2" in told[-1]["text"]


def test_read_asks_the_meter_beside_a_board_too(config: Path) -> None:
    meter = 'meter = { profile = "eastron_sdm230", link = { host = "127.0.0.1", port = 2 } }'
    config.write_text(CONFIG + meter)
    code, out, _ = call("read", "--json", "--config", str(config))
    assert code == 3, "nobody answers"
    assert {one["device"] for one in json.loads(out)} == {"left", "left meter"}
