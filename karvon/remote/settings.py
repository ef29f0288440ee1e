"""More of `karvon cloud settings`: what one agent shall run on, and setting it for many."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from karvon.remote.call import Call, Option, command
from karvon.remote.client import USAGE, RemoteError, at
from karvon.remote.tasks import STATION


def add_setting(branch: typer.Typer) -> None:
    """`settings show` and `settings set`."""
    about = "What a station's agent shall run on, and what it says that it does."
    command(branch, "show", _show, about, [STATION])
    file = Option(
        "file", Path, ..., "The document: TOML as in the agent's file, or JSON.", argument=True
    )
    site = Annotated[int | None, typer.Option("--site", help="All stations of this site.")]
    stations = Annotated[list[str] | None, typer.Option("--station", help="This one; repeatable.")]
    about = "Replace the settings from afar of some stations, all of them or none."
    options = [file, Option("stations", stations, None), Option("site", site, None)]
    command(branch, "set", _set, about, options)


def _show(call: Call, *, station: str) -> None:
    call.one(call.cloud.get(at("/stations/{station}/settings", station=station)))


def _set(call: Call, *, file: Path, stations: list[str] | None, site: int | None) -> None:
    if not stations and site is None:
        raise RemoteError(USAGE, "for whom? Name stations with --station, or a site with --site")
    body = {"document": _document(file), "stations": stations or [], "site": site}
    answer = call.cloud.ask("PUT", "/settings", body=body).json()
    if call.as_json:
        call.json(answer)
        return
    for one in answer["items"]:
        call.done(f"{one['station']}: version {one['desired']['version']} is sent")


def _document(file: Path) -> dict[str, Any]:
    """Raises RemoteError."""
    try:
        text = file.read_text(encoding="utf-8")
        found = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise RemoteError(USAGE, f"{file} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise RemoteError(USAGE, f"{file}: an object of settings is wanted")
    return found
