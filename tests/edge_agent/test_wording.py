"""The technician's texts: the same in every language, and one for everything an agent can say."""

from __future__ import annotations

import ast
import string
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent import links
from edge_agent.links import LinkState
from edge_agent.wording import LANGUAGES, TEXTS, UnknownLanguageError, language_of, wording
from protocols.agent_link import ChargingState, ConnectorStatus

PACKAGE = Path(links.__file__).parent


def texts(table: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from texts(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def catalogue(language: str) -> dict[str, str]:
    return dict(texts(tomllib.loads((TEXTS / f"{language}.toml").read_text(encoding="utf-8"))))


def names_in(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def strings_of(module: str) -> set[str]:
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_every_shipped_file_is_a_language_and_every_language_a_file() -> None:
    assert {path.stem for path in TEXTS.glob("*.toml")} == set(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_is_missing_or_empty_or_takes_other_names(language: str) -> None:
    english, found = catalogue("en"), catalogue(language)
    assert found.keys() == english.keys()
    assert [key for key, text in found.items() if not text.strip()] == []
    assert {k: names_in(t) for k, t in found.items()} == {
        k: names_in(t) for k, t in english.items()
    }


@pytest.mark.parametrize("language", [each for each in LANGUAGES if each != "en"])
def test_a_translation_is_no_copy_of_the_english(language: str) -> None:
    english, found = catalogue("en"), catalogue(language)
    prose = [key for key, text in english.items() if len(text) > 20]
    assert [key for key in prose if found[key] == english[key]] == []


def test_every_code_of_a_link_has_its_texts_and_every_text_a_link() -> None:
    kinds = set(tomllib.loads((TEXTS / "en.toml").read_text())["kind"])
    spoken = strings_of("links.py") | strings_of("surroundings.py")
    said = {text for text in spoken if text.partition(".")[0] in kinds}
    said = {text for text in said if "." in text.strip(".") and " " not in text}
    built = {f"bus.{line}_{how}" for line in ("tcp", "rtu", "serial") for how in ("down", "silent")}
    built |= {"clock.synced", "clock.cloud", "clock.unset"}
    there = {key.rsplit(".", 1)[0] for key in catalogue("en") if key.partition(".")[0] in kinds}
    assert said | built == there


def test_what_is_not_well_says_why_and_what_to_do() -> None:
    english = catalogue("en")
    well = {key for key in english if key.endswith(".what")}
    fine = {
        "bus.ok",
        "board.ok",
        "meter.ok",
        "evse_meter.ok",
        "mqtt.ok",
        "ocpp.ok",
        "disk.ok",
        "journal.ok",
        "queue.ok",
    }
    fine |= {"clock.synced", "clock.cloud", "site.alone", "site.leader", "site.follower"}
    fine |= {"network.in_use", "network.standby", "network.metered"}
    for code in {key.removesuffix(".what") for key in well} - fine:
        assert f"{code}.why" in english
        assert f"{code}.todo" in english


@pytest.mark.parametrize(
    ("table", "values"),
    [("state", LinkState), ("status", ConnectorStatus), ("charging", ChargingState)],
)
def test_every_value_has_a_word(table: str, values: type[Any]) -> None:
    assert {f"{table}.{value}" for value in values} == {
        key for key in catalogue("en") if key.startswith(f"{table}.")
    }


def test_facts_are_filled_in_and_a_missing_one_is_no_error() -> None:
    words = wording("en")
    assert words.told("disk.ok", {"free_mib": 7, "total_mib": 9})[0] == "7 of 9 MiB free"
    assert words.told("disk.ok", {})[0] == "? of ? MiB free"
    assert words.told("ufo.landed", {}) == ("ufo.landed", "", "")
    assert words("limit", "moon") == "moon"


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (None, "never"),
        (0, "now"),
        (1999, "now"),
        (2000, "2 s ago"),
        (59_999, "59 s ago"),
        (60_000, "1 min ago"),
        (3_599_999, "59 min ago"),
        (7_200_000, "2 h ago"),
    ],
)
def test_an_age_is_told_in_words(milliseconds: int | None, text: str) -> None:
    assert wording("en").age(milliseconds) == text


@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({}, "en"),
        ({"LANG": "uz_UZ.UTF-8"}, "uz"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LANG": "ru_RU", "LC_ALL": "de_DE"}, "de"),
        ({"LANG": "fr_FR", "LC_MESSAGES": ""}, "en"),
    ],
)
def test_the_language_is_that_of_the_environment(
    environment: dict[str, str], language: str
) -> None:
    assert language_of(environment) == language


def test_an_unknown_language_names_those_there_are() -> None:
    with pytest.raises(UnknownLanguageError, match="'fr'; choose one of uz, ru, en, de"):
        wording("fr")


def test_no_text_of_the_screens_is_left_over() -> None:
    """A key that nobody shows any more is a translation that nobody can check."""
    used = set().union(
        *(strings_of(f"{name}.py") for name in ("shown", "page", "wording", "cli/viewing"))
    )
    there = {key.removeprefix("ui.") for key in catalogue("en") if key.startswith("ui.")}
    assert there - used == set()
