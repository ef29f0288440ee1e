"""The documentation says what is so: its commands run, its tables are the code's."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
from pydantic_core import PydanticUndefined
from typer.main import get_command

from cloud.kernel.config import CloudConfig
from edge_agent.config import Config, parse
from karvon.agent import app as agent_app
from karvon.demo.network import Network
from karvon.release.cli import app as release_app

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
TESTED: Final = re.compile(r"<!-- tested -->\n```sh\n(.*?)```", re.DOTALL)
NOT_SETTINGS: Final = {"base"}


def _page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def _between(page: str, mark: str) -> str:
    return page.split(f"<!-- {mark} -->\n")[1].split(f"<!-- /{mark} -->", maxsplit=1)[0]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    folder = tmp_path_factory.mktemp("docs")
    folder.chmod(0o755)
    with Network(folder) as running:
        running.start_cloud()
        yield running


def _run(network: Network, blocks: list[str], folder: Path) -> str:
    """What the blocks print, run by one shell."""
    if shutil.which("curl") is None:
        pytest.skip("NOT RUN: curl is not installed")
    ran = subprocess.run(
        ["sh", "-eu"],
        input="\n".join(blocks),
        env={**os.environ, "URL": network.rest.base, "KEY": str(network.rest.key)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=folder,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def _answers(printed: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


@pytest.mark.system
def test_the_operators_commands_do_what_the_page_says(network: Network, tmp_path: Path) -> None:
    blocks = TESTED.findall(_page("operations.md"))
    assert len(blocks) >= 8
    printed = _run(network, blocks, tmp_path)
    answers = _answers(printed)
    assert answers[0]["role"] == "admin"
    assert [one["created"] for one in answers if "committed" in one] == [2]
    assert sum("status_url" in answer for answer in answers) == 5
    refused = [answer["code"] for answer in answers if answer.get("type") == "about:blank"]
    assert refused == ["station.not_found"]
    assert "karvon_link_refused_total" in printed


@pytest.mark.system
def test_the_integrators_lines_do_what_the_page_says(network: Network, tmp_path: Path) -> None:
    blocks = TESTED.findall(_page("api.md"))
    assert len(blocks) >= 11
    printed = _run(network, blocks, tmp_path)
    everything = _answers(printed)
    assert everything[0]["role"] == "admin"
    once, twice = (one for one in everything if one.get("station") == "SAM-0002")
    assert once == twice
    tried, repeated, tokens_tried, tokens = (one for one in everything if "committed" in one)
    assert (tokens_tried["committed"], tokens_tried["created"]) == (False, 1)
    assert [row["outcome"] for row in tokens["rows"]] == ["updated", "created"]
    assert {one["language"] for one in everything if "language" in one} == {"ru"}
    assert (tried["committed"], tried["created"], tried["updated"]) == (False, 2, 1)
    assert (repeated["committed"], repeated["unchanged"]) == (True, 2)
    refused = [one["code"] for one in everything if one.get("type") == "about:blank"]
    assert refused == ["etag.stale"]
    told = [one["status"] for one in everything if "requested_at" in one]
    assert told == ["requested", "cancelled"]
    assert "retry: 2000" in printed
    header = "station,name,site,registration,"
    assert len([line for line in printed.splitlines() if line.startswith(header)]) == 2


def _default(value: Any) -> str:
    return "" if value in {None, "", PydanticUndefined} else f"`{value}`"


def settings_table() -> str:
    """The cloud's settings as the operators' page shows them."""
    rows = [
        f"| `KARVON_{name.upper()}` | {_default(field.default)} | {field.description or ''} |\n"
        for name, field in CloudConfig.model_fields.items()
    ]
    return "| variable | default | meaning |\n|---|---|---|\n" + "".join(rows)


def test_the_page_shows_the_clouds_settings() -> None:
    assert _between(_page("operations.md"), "settings") == settings_table()
    assert all(field.description for field in CloudConfig.model_fields.values())


def _paths(kind: Any, above: str = "") -> Iterator[str]:
    """Every setting of the agent's file as `table.name`."""
    for name, hint in get_type_hints(kind).items():
        inner = _struct(hint)
        if inner is not None:
            yield from _paths(inner, f"{above}{name}.")
        elif above + name not in NOT_SETTINGS:
            yield above + name


def _struct(hint: Any) -> Any:
    if get_origin(hint) in {Union, UnionType, tuple}:
        return next((found for arg in get_args(hint) if (found := _struct(arg))), None)
    return hint if isinstance(hint, type) and issubclass(hint, msgspec.Struct) else None


def test_the_technicians_page_explains_every_setting_and_command() -> None:
    page = _page("agent.md")
    explained = set(re.findall(r"^\| `([a-z_.]+)` \|", _between(page, "settings"), re.MULTILINE))
    meters = ("site.meter.", "boards.meter.")
    assert explained == {path for path in _paths(Config) if not path.startswith(meters)}
    shown = re.findall(r"^### `karvon agent ([a-z]+)`", page, re.MULTILINE)
    assert set(shown) == set(get_command(agent_app).commands)  # type: ignore[attr-defined]  # a group


def test_the_pages_configurations_are_valid() -> None:
    files = re.findall(r"```toml\n(.*?)```", _page("agent.md"), re.DOTALL)
    assert files
    for text in files:
        assert parse(text, "agent.md").boards


@pytest.mark.parametrize(
    "name",
    [
        "operations.md",
        "agent.md",
        "api.md",
        "load-management.md",
        "ocpp-commands.md",
        "commissioning.md",
        "serial-board.md",
        "releases.md",
        "fleet.md",
    ],
)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", _page(name)):
        assert (DOCS / target).exists(), target


def test_the_release_makers_page_names_commands_that_there_are() -> None:
    page = _page("releases.md")
    groups = get_command(release_app).commands  # type: ignore[attr-defined]  # a group
    named = re.findall(r"^karvon release (\w+) (\w+)", page, re.MULTILINE)
    assert {first for first, _ in named} == {"keys", "build", "sign", "publish", "verify", "bundle"}
    for first, second in named:
        assert second in getattr(groups[first], "commands", {second})
    assert {"renew", "withdraw"} <= set(groups)
