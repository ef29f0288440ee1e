"""Answers that stand in a file: for controllers that are put into service by the dozen."""

from __future__ import annotations

import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from edge_agent.commissioning.dialog import CommissionError
from edge_agent.commissioning.work import Options

NAMES: Final = {
    "ports": "port",
    "hosts": "host",
    "units": "unit",
    "profiles": "profile",
    "charge_s": "charge_seconds",
    "wait_s": "wait",
    "ocpp_password": "ocpp_password_file",
}
"""What options are called on the command line, where that differs."""


def completed(options: Options, file: Path) -> Options:
    """With the file's answers where the command line gave none. Raises CommissionError."""
    answers, usual, chosen = _read(file), Options(), {}
    for field in fields(Options):
        value = answers.pop(NAMES.get(field.name, field.name), None)
        plain = getattr(usual, field.name)
        if value is None or getattr(options, field.name) != plain:
            continue
        chosen[field.name] = [value] if plain == () and not isinstance(value, list) else value
    if answers:
        raise CommissionError(f"{file}: no such option: {', '.join(sorted(answers))}", 2)

    def path(kind: type, text: object) -> Any:
        if kind is not Path or not isinstance(text, str):
            raise TypeError
        return file.parent / text

    try:
        taken = msgspec.convert(chosen, Options, dec_hook=path)
    except msgspec.ValidationError as error:
        raise CommissionError(f"{file}: {error}", 2) from None
    return replace(options, **{name: getattr(taken, name) for name in chosen})


def _read(file: Path) -> dict[str, Any]:
    """By their names as the command line has them, with - or _. Raises CommissionError."""
    try:
        plain = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CommissionError(f"{file}: cannot be read ({error})", 2) from error
    return {name.replace("-", "_"): value for name, value in plain.items()}
