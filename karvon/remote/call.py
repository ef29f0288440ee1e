"""One command's way: its options, its cloud, and how its answer is written."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from karvon.remote.client import USAGE, Remote, RemoteError, Target
from karvon.remote.show import Column, details, table

_AGO: Final = re.compile(r"([1-9]\d{0,5})([smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True)
class Option:
    """A parameter of a command; `kind` may be Annotated with typer's own option already."""

    name: str
    kind: Any
    default: Any
    about: str = ""
    flag: str = ""
    argument: bool = False

    @property
    def parameter(self) -> inspect.Parameter:
        kind = self.kind
        if self.argument:
            kind = Annotated[kind, typer.Argument(help=self.about, show_default=False)]
        elif self.about:
            names = [self.flag] if self.flag and self.kind != (bool | None) else []
            kind = Annotated[kind, typer.Option(*names, help=self.about, show_default=False)]
        default = inspect.Parameter.empty if self.default is ... else self.default
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default
        )


COMMON: Final = (
    Option("url", str | None, None, "The cloud; default KARVON_URL or http://127.0.0.1:8080."),
    Option("key_file", Path | None, None, "File with an API key; default KARVON_API_KEY_FILE."),
    Option("as_json", bool, False, "JSON, for scripts.", flag="--json"),
)
CSV: Final = Option("as_csv", bool, False, "CSV, for spreadsheets.", flag="--csv")


class Call:
    """A command under way."""

    def __init__(self, cloud: Remote, *, as_json: bool, as_csv: bool) -> None:
        self.cloud = cloud
        self.as_json = as_json
        self.as_csv = as_csv

    def rows(
        self, columns: Sequence[Column], items: Sequence[Mapping[str, Any]], note: str = ""
    ) -> None:
        """A list: one JSON array, or a table."""
        if self.as_json:
            self.json(items)
        else:
            table(columns, items, note)

    def one(self, item: Any) -> None:
        """One thing: a JSON object, or all its fields."""
        if self.as_json:
            self.json(item)
        else:
            details(item)

    def done(self, text: str, **facts: Any) -> None:
        """Nothing to show but that it was done."""
        if self.as_json:
            self.json({"done": True, **facts})
        else:
            sys.stdout.write(f"{text}\n")

    def json(self, value: Any) -> None:
        sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
        sys.stdout.flush()


def command(
    branch: typer.Typer,
    name: str,
    run: Callable[..., None],
    about: str,
    options: Sequence[Option],
    *,
    csv_too: bool | None = None,
) -> None:
    """Add a command that calls `run(call, **options)`; what fails becomes one line."""
    offers_csv = name == "list" if csv_too is None else csv_too
    every = [*options, *COMMON, *([CSV] if offers_csv else [])]
    parameters = [option.parameter for option in every]

    def body(**given: Any) -> None:
        url, key_file = given.pop("url"), given.pop("key_file")
        forms = {"as_json": given.pop("as_json"), "as_csv": given.pop("as_csv", False)}
        try:
            _demand_one_form(**forms)
            with Remote(Target.of(url, key_file)) as cloud:
                run(Call(cloud, **forms), **given)
        except RemoteError as error:
            sys.stderr.write(f"karvon cloud: {' '.join(error.text.split())}\n")
            raise typer.Exit(error.code) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None

    body.__doc__ = about
    body.__annotations__ = {one.name: one.annotation for one in parameters}
    body.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
    branch.command(name)(body)


def _demand_one_form(*, as_json: bool, as_csv: bool) -> None:
    if as_json and as_csv:
        raise RemoteError(USAGE, "take --json or --csv, not both")


def moment(text: str) -> str:
    """A moment as the API takes it: ISO 8601 (local unless it says otherwise), or `2h` ago.

    Raises RemoteError.
    """
    ago = _AGO.fullmatch(text)
    if ago is not None:
        span = timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        return (datetime.now(UTC) - span).isoformat()
    if text == "now":
        return datetime.now(UTC).isoformat()
    try:
        return datetime.fromisoformat(text).astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        raise RemoteError(
            USAGE, f"{text!r} is no time; write 2026-11-21T08:00, or 2h for two hours ago"
        ) from None
