"""YAML text to plain values that still know their lines.

Only what a profile needs: mappings, lists, plain scalars. YAML 1.1's surprises are left out:
`0100` is no octal 64, `12:30` no sexagesimal, `no` no boolean, and a key stands only once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Final

import yaml

Path = tuple[str | int, ...]
INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]*)|0x[0-9A-Fa-f]+")
DECIMAL: Final = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]+([eE][-+]?[0-9]+)?")
WORDS: Final = {"true": True, "false": False, "null": None, "~": None, "": None}


class ProfileError(Exception):
    """A profile is refused: `file`, `line` (from 1) and `reason` say where and why."""

    def __init__(self, file: str, line: int, reason: str) -> None:
        super().__init__(f"{file}:{line}: {reason}")
        self.file, self.line, self.reason = file, line, reason


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file: its plain values and the line of every path in it."""

    file: str
    value: Any
    lines: dict[Path, int] = field(default_factory=dict)

    def error(self, path: Path, reason: str) -> ProfileError:
        """The refusal at this path, or at the nearest place above it that stands in the file."""
        known = path
        while known and known not in self.lines:
            known = known[:-1]
        place = ".".join(str(part) for part in path)
        return ProfileError(self.file, self.lines[known], f"{place}: {reason}" if place else reason)


def parse(text: str, file: str) -> Document:
    """Raises ProfileError where the text is not YAML or uses what profiles do not."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise ProfileError(file, line, f"not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ProfileError(file, 1, f"not YAML: {error}") from error
    if root is None:
        raise ProfileError(file, 1, "the file is empty")
    lines: dict[Path, int] = {}
    return Document(file, _Reader(file, lines).value(root, ()), lines)


class _Reader:
    def __init__(self, file: str, lines: dict[Path, int]) -> None:
        self.file, self.lines = file, lines
        self.seen: set[int] = set()

    def value(self, node: yaml.Node, path: Path) -> Any:
        if id(node) in self.seen:
            raise self._error(node, "aliases (*name) are not part of the language")
        self.seen.add(id(node))
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(each, (*path, i)) for i, each in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        raise self._error(node, "neither mapping, list nor scalar")

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._error(key_node, "a key must be a plain word")
            key = str(key_node.value)
            if key in result:
                raise self._error(key_node, f"'{key}' stands here twice")
            self.lines[*path, key] = key_node.start_mark.line + 1
            result[key] = self.value(value_node, (*path, key))
        return result

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text = str(node.value)
        if node.style is not None:
            return text
        if text in WORDS:
            return WORDS[text]
        if INTEGER.fullmatch(text):
            return int(text, 0)
        return float(text) if DECIMAL.fullmatch(text) and isfinite(float(text)) else text

    def _error(self, node: yaml.Node, reason: str) -> ProfileError:
        return ProfileError(self.file, node.start_mark.line + 1, reason)
