"""`karvon cloud …` against a real server process, as people and as scripts use it."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import Result
from typer.testing import CliRunner

from karvon.remote.cli import app
from karvon.remote.resources import HELD, RESOURCES

pytestmark = pytest.mark.system
Cloud = Callable[..., Result]
PAGE = Path(__file__).resolve().parents[3] / "docs" / "command-line.md"
TESTED = re.compile(r"<!-- tested -->\n```sh\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A cloud; gives the environment that leads to it."""
    folder = tmp_path_factory.mktemp("cloud")
    folder.chmod(0o755)
    command = [sys.executable, "-m", "karvon", "cloud", "serve", "--json", "--http-port", "0"]
    command += ["--data-dir", str(folder / "data"), "--admin-key-file", str(folder / "key")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, (folder / "log").read_text()
    yield {"KARVON_URL": json.loads(line)["ready"], "KARVON_API_KEY_FILE": str(folder / "key")}
    process.terminate()
    process.wait(30)
    process.stdout.close()


@pytest.fixture
def cloud(serving: dict[str, str]) -> Cloud:
    def run(*arguments: object, code: int = 0) -> Result:
        runner = CliRunner(env={**serving, "TZ": "UTC", "COLUMNS": "200"})
        result = runner.invoke(app, [str(one) for one in arguments])
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
def ask(cloud: Cloud) -> Callable[..., Any]:
    def run(*arguments: object) -> Any:
        return json.loads(cloud(*arguments, "--json").stdout)

    return run


def test_a_site_lives_its_life(cloud: Cloud, ask: Callable[..., Any]) -> None:
    made = ask("sites", "add", "Chorsu", "--latitude", 41.3, "--time-zone", "Asia/Tashkent")
    assert (made["name"], made["latitude"]) == ("Chorsu", 41.3)
    changed = ask("sites", "change", made["id"], "--address", "Toshkent")
    assert (changed["address"], changed["name"]) == ("Toshkent", "Chorsu")
    assert ask("sites", "change", made["id"], "--clear", "latitude")["latitude"] is None
    assert ask("sites", "show", made["id"]) == {**changed, "latitude": None}
    table = cloud("sites", "list", "--text", "chor").stdout
    assert "Asia/Tashkent" in table
    assert "1 shown" in table
    cloud("sites", "remove", made["id"], code=2)
    cloud("sites", "remove", made["id"], "--yes")
    gone = cloud("sites", "show", made["id"], code=1)
    assert len(gone.stderr.strip().splitlines()) == 1
    assert gone.stdout == ""


def test_lists_come_whole_in_parts_and_as_csv(cloud: Cloud, ask: Callable[..., Any]) -> None:
    for number in range(7):
        ask("stations", "add", f"L-{number}", "--name", f"line {number}")
    listed = ("stations", "list", "--text", "line", "--sort", "-station")
    names = [f"L-{number}" for number in reversed(range(7))]
    assert [one["station"] for one in ask(*listed)] == names
    assert [one["station"] for one in ask(*listed, "--limit", 3)] == names[:3]
    whole = cloud(*listed, "--all", "--csv").stdout
    assert [row["station"] for row in csv.DictReader(io.StringIO(whole))] == names
    assert "more with --all" not in cloud(*listed).stdout


def test_a_station_is_announced_shown_and_turned_away(
    cloud: Cloud, ask: Callable[..., Any]
) -> None:
    assert ask("stations", "add", "UZ*KRV+1")["claim"]["code"]
    assert ask("stations", "show", "UZ*KRV+1")["registration"] == "expected"
    shown = cloud("stations", "show", "UZ*KRV+1").stdout
    assert "station: UZ*KRV+1" in shown
    assert "(times in UTC)" in shown
    assert ask("stations", "claim-code", "UZ*KRV+1")["code"]
    cloud("stations", "approve", "L-99", code=1)


def test_many_are_imported_or_only_tried(
    cloud: Cloud, ask: Callable[..., Any], tmp_path: Path
) -> None:
    good, bad = tmp_path / "good.csv", tmp_path / "bad.json"
    good.write_text("value,label\n04A1,Aziza\n04A2,=1+1\n")
    tried = ask("tokens", "import", good, "--dry-run")
    assert (tried["committed"], tried["created"]) == (False, 2)
    assert "would be" in cloud("tokens", "import", good, "--dry-run").stdout
    assert ask("tokens", "import", good)["created"] == 2
    assert ask("tokens", "show", "04A2")["label"] == "=1+1"
    bad.write_text('{"id_tokens": [{"value": "04A3"}, {"value": ""}]}')
    refused = cloud("tokens", "import", bad, code=2)
    assert refused.stderr.startswith("karvon cloud: ")
    assert "04A3" not in cloud("tokens", "list").stdout
    half = cloud("tokens", "import", bad, "--skip-bad", code=1)
    assert "1 rows were not taken" in half.stderr
    assert "04A3" in cloud("tokens", "list").stdout
    cloud("tokens", "import", tmp_path / "x.txt", code=2)


def test_prices_are_set_kept_and_quoted(cloud: Cloud, ask: Callable[..., Any]) -> None:
    night = ask("tariffs", "add", "Night", "--currency", "EUR", "--per-kwh", "0.4875")["id"]
    fixed = ("--per-kwh", "0.5", "--no-tax-included", "--tax-percent", "19")
    assert ask("tariffs", "price", night, *fixed)["version"] == 2
    assert ask("tariffs", "change", night, "--name", "Nights")["versions"] == 2
    assert [one["per_kwh"] for one in ask("tariffs", "history", night)] == ["0.5", "0.4875"]
    assert "0.4875" in cloud("tariffs", "history", night).stdout
    quote = ask("tariffs", "quote", night, "--energy-wh", 10_000, "--version", 1)
    assert (quote["total"], quote["total_minor"]) == ("4.88", 488)
    assert ask("tariffs", "quote", night, "--energy-wh", 10_000)["total"] == "5.95"
    wrong = cloud("tariffs", "price", night, "--per-kwh", "0,5", code=2)
    assert len(wrong.stderr.strip().splitlines()) == 1
    held = ask("assignments", "add", night)
    assert (held["tariff"], held["station"]) == (night, None)
    assert "Nights" in cloud("assignments", "list").stdout
    ask("assignments", "remove", held["id"], "--yes")
    assert ask("assignments", "list", "--ended")[0]["id"] == held["id"]


def test_keys_and_users_are_made_without_secrets_on_the_line(
    cloud: Cloud, ask: Callable[..., Any], tmp_path: Path
) -> None:
    made = ask("keys", "add", "export", "--role", "viewer", "--expires-at", "2030-01-01")
    key = tmp_path / "key"
    key.write_text(made["key"])
    assert made["expires_at"] == "2030-01-01T00:00:00Z"
    refused = cloud("sites", "add", "No", "--key-file", key, code=1)
    assert "operator" in refused.stderr
    ask("keys", "remove", made["id"], "--yes")
    void = cloud("sites", "list", "--key-file", key, code=2)
    assert "--key-file" in void.stderr
    password = tmp_path / "password"
    password.write_text("a long pass phrase\n")
    user = ask("users", "add", "dilnoza", "--role", "operator", "--password-file", password)
    assert ask("users", "change", user["id"], "--disabled")["disabled_at"]
    nobody = cloud("users", "add", "x", "--role", "viewer", code=2)
    assert "--password-file" in nobody.stderr


def test_commands_wait_for_what_becomes_of_them(cloud: Cloud, ask: Callable[..., Any]) -> None:
    ask("stations", "add", "C-1")
    given = ask("limit", "C-1", 16000, "--for", "15m", "--no-wait")
    shown = ask("commands", "show", given["command"])
    assert shown["action"]["limit_ma"] == 16000
    assert shown["action"]["valid_ms"] == 900_000
    assert ask("availability", "C-1", "off", "--no-wait")["command"]
    for wrong in (("limit", "C-1", "much"), ("limit", "C-1", 6000, "--for", "long")):
        assert len(cloud(*wrong, code=2).stderr.strip().splitlines()) == 1
    cloud("availability", "C-1", "maybe", code=2)
    assert "nothing to stop" in cloud("stop", "C-1", code=1).stderr
    refused = cloud("start", "C-1", "--token", "nobody's", code=1)
    assert "nobody's" in refused.stderr


def test_telemetry_takes_times_as_people_write_them(cloud: Cloud, ask: Callable[..., Any]) -> None:
    ask("stations", "add", "T-1")
    span = ("--from", "2026-11-20T10:00", "--to", "2026-11-20T12:00")
    assert ask("telemetry", "T-1", *span, "--every", "15m") == []
    assert "0 shown" in cloud("telemetry", "T-1", "--from", "2d").stdout
    assert cloud("telemetry", "T-1", "--csv").stdout == ""
    assert "is no time" in cloud("telemetry", "T-1", "--from", "yesterday", code=2).stderr


def test_what_a_station_is_called_steers_no_terminal(cloud: Cloud, ask: Callable[..., Any]) -> None:
    ask("sites", "add", "evil\x1b[2J[red]", "--address", "[link=file:///]x[/link]")
    table = cloud("sites", "list", "--text", "evil").stdout
    assert "\x1b" not in table
    assert "[red]" in table


def test_the_table_offers_what_the_api_takes(serving: dict[str, str]) -> None:
    """Neither more, which would be refused, nor less, which nobody would find."""
    paths = httpx.get(f"{serving['KARVON_URL']}/openapi.json", timeout=60).json()
    for resource in RESOURCES:
        one = f"/api/v1{resource.path}/{{"
        listed = paths["paths"][f"/api/v1{resource.path}"]
        single = {
            verb: operation
            for path, operations in paths["paths"].items()
            if path.startswith(one) and path.count("/") == one.count("/")
            for verb, operation in operations.items()
        }
        assert {field.name for field in resource.filters} == _parameters(listed["get"])
        assert _sorts(paths, listed["get"]) == set(filter(None, resource.sort.split(", ")))
        if resource.name != "releases":  # they come from a folder: tests/karvon/remote/test_updates
            assert {field.name for field in resource.add} == _body(paths, listed)
        assert {field.name for field in resource.change} == _body(
            paths, {"post": single.get("patch")}
        )
        assert resource.show == ("get" in single), resource.name
        assert bool(resource.remove) == ("delete" in single), resource.name
        assert bool(resource.imports) == (f"/api/v1{resource.path}/import" in paths["paths"])
        for verb in resource.verbs:
            assert _is_there(paths["paths"], verb.path, verb.method.lower()), verb.path


def test_what_a_station_holds_is_listed_as_the_api_lists_it(
    serving: dict[str, str], cloud: Cloud, ask: Callable[..., Any]
) -> None:
    paths = httpx.get(f"{serving['KARVON_URL']}/openapi.json", timeout=60).json()
    ask("stations", "add", "H-1")
    for held in HELD:
        listed = paths["paths"][f"/api/v1{held.path}"]["get"]
        assert {field.name for field in held.filters} == _parameters(listed), held.name
        assert _sorts(paths, listed) == set(held.sort.split(", ")), held.name
        assert ask(held.name, "H-1") == []
        assert "0 shown" in cloud(held.name, "H-1").stdout
    assert cloud("variables", "H-1", "--csv").stdout.startswith("component,")
    assert "H-9" in cloud("notices", "H-9", code=1).stderr


def test_a_station_that_cannot_be_asked_says_why_in_a_line(
    cloud: Cloud, ask: Callable[..., Any], tmp_path: Path
) -> None:
    ask("stations", "add", "O-1")
    file = tmp_path / "payload.json"
    file.write_text('{"type": "Soft"}')
    away = cloud("ocpp", "O-1", "Reset", "--file", file, code=1).stderr
    assert "not connected yet" in away
    for wrong in (("ocpp", "O-1", "Reset", "["), ("ocpp", "O-1", "Reset", "[]")):
        assert len(cloud(*wrong, code=2).stderr.strip().splitlines()) == 1
    cloud("ocpp", "O-1", "Reset", "--file", tmp_path / "none", code=2)
    cloud("configure", "O-1", "HeartbeatInterval", code=2)
    given = ask("configure", "O-1", "HeartbeatInterval=60", "--no-wait")["commands"]
    shown = ask("commands", "show", given[0]["command"])
    assert (shown["status"], shown["link"]) == ("requested", "ocpp")


def _parameters(operation: dict[str, Any]) -> set[str]:
    named = {one["name"] for one in operation["parameters"] if one["in"] == "query"}
    return named - {"cursor", "limit", "format", "sort"}


def _sorts(paths: dict[str, Any], operation: dict[str, Any]) -> set[str]:
    (schema,) = [o["schema"] for o in operation["parameters"] if o["name"] == "sort"] or [{}]
    schema = _resolved(paths, schema)
    return {word for word in schema.get("enum", []) if not word.startswith("-")}


def _body(paths: dict[str, Any], operations: dict[str, Any]) -> set[str]:
    post = operations.get("post")
    if not post:
        return set()
    schema = post["requestBody"]["content"]["application/json"]["schema"]
    return set(_resolved(paths, schema)["properties"])


def _resolved(paths: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    return paths["components"]["schemas"][name] if name else schema


def _is_there(paths: dict[str, Any], template: str, method: str) -> bool:
    shape = re.sub(r"\{\w+\}", "{}", "/api/v1" + template)
    return any(
        re.sub(r"\{\w+\}", "{}", path) == shape and method in found for path, found in paths.items()
    )


def test_the_pages_lines_run_as_they_stand(cloud: Cloud) -> None:
    lines = [line for block in TESTED.findall(PAGE.read_text()) for line in block.splitlines()]
    assert len(lines) > 10
    for line in lines:
        words = shlex.split(line)
        assert words[:2] == ["karvon", "cloud"]
        if words[2] == "stations" and "--site" in words:
            site = json.loads(cloud("sites", "list", "--text", "Chorsu", "--json").stdout)
            words[words.index("--site") + 1] = str(site[0]["id"])
        cloud(*words[2:])


def test_the_page_lists_every_resource_and_what_it_can() -> None:
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", PAGE.read_text(), re.MULTILINE)
    told = {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}
    for resource in RESOURCES:
        can = (
            True,
            resource.show,
            resource.add,
            resource.change,
            resource.remove,
            resource.imports,
        )
        assert told[resource.name][:6] == ["x" if one else "" for one in can], resource.name
        for verb in resource.verbs:
            assert f"`{verb.name}`" in told[resource.name][6]
    assert set(told) == {resource.name for resource in RESOURCES}


def test_one_form_at_a_time_and_one_tree_of_commands(cloud: Cloud) -> None:
    cloud("sites", "list", "--json", "--csv", code=2)
    tree = cloud("--help").stdout
    for word in ("serve", "backup", "restore", "stations", "limit", "events"):
        assert word in tree
    assert "new-key" in tree


def test_a_cloud_that_is_away_is_one_line(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("kv_x")
    ran = subprocess.run(
        [sys.executable, "-m", "karvon", "cloud", "sites", "list", "--url", "http://127.0.0.1:9"],
        env={**os.environ, "KARVON_API_KEY_FILE": str(key)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 3
    assert len(ran.stderr.strip().splitlines()) == 1
    assert "--url" in ran.stderr
