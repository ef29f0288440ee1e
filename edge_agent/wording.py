"""What the technician reads, in the technician's language: texts are data, in `texts/*.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

TEXTS: Final = Path(__file__).parent / "texts"
DEFAULT: Final = "en"
LANGUAGES: Final = ("uz", "ru", "en", "de")
MINUTE_MS, HOUR_MS = 60_000, 3_600_000
NOW_MS: Final = 2000
"""What was heard within two polls counts as now."""


class UnknownLanguageError(Exception):
    """There are no texts in this language; the message says which there are."""


class Wording:
    """The texts of one language."""

    def __init__(self, language: str, tables: Mapping[str, Mapping[str, Any]]) -> None:
        self.language = language
        self._tables = tables

    def __call__(self, table: str, key: str, **names: object) -> str:
        """A text of a table. What a newer agent says and this catalogue lacks is shown as it is."""
        text = self._tables.get(table, {}).get(key)
        return text.format(**names) if isinstance(text, str) else key

    def told(self, code: str, facts: Mapping[str, object]) -> tuple[str, str, str]:
        """What happened, why, what to do, for a link's code; why and what to do may be ""."""
        kind, _, name = code.partition(".")
        texts = self._tables.get(kind, {}).get(name, {})
        known = _Named(facts)
        what, why, todo = (
            str(texts.get(key, "")).format_map(known) for key in ("what", "why", "todo")
        )
        return what or code, why, todo

    def age(self, milliseconds: int | None) -> str:
        """How long ago, in words."""
        if milliseconds is None:
            return self("ui", "never")
        if milliseconds < NOW_MS:
            return self("ui", "now")
        if milliseconds < MINUTE_MS:
            return self("ui", "seconds", n=milliseconds // 1000)
        if milliseconds < HOUR_MS:
            return self("ui", "minutes", n=milliseconds // MINUTE_MS)
        return self("ui", "hours", n=milliseconds // HOUR_MS)


class _Named(dict[str, object]):
    """A fact that the agent does not tell leaves a gap, not an error."""

    def __missing__(self, name: str) -> str:
        return "?"


@cache
def wording(language: str) -> Wording:
    """Raises UnknownLanguageError."""
    if language not in LANGUAGES:
        have = ", ".join(LANGUAGES)
        raise UnknownLanguageError(f"there are no texts in '{language}'; choose one of {have}")
    text = (TEXTS / f"{language}.toml").read_text(encoding="utf-8")
    return Wording(language, tomllib.loads(text))


def language_of(environment: Mapping[str, str]) -> str:
    """The language that POSIX's variables ask for; English where there are no texts in it."""
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if environment.get(name):
            wanted = environment[name][:2].lower()
            return wanted if wanted in LANGUAGES else DEFAULT
    return DEFAULT
