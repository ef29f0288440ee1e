"""`karvon cloud`: commands over REST from the table of resources, and the server's own.

Exit codes: 0 done, 1 failed or refused, 2 wrong usage or configuration, 3 out of reach.
"""

from __future__ import annotations

import importlib
import json
import keyword
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup
from typer.main import get_command

from karvon.remote import settings, tariffs, tasks, updates
from karvon.remote.call import Call, Option, command, moment
from karvon.remote.client import USAGE, RemoteError, at
from karvon.remote.resources import (
    HELD,
    OF_CAMPAIGNS,
    PRICES,
    RESOURCES,
    Field,
    Resource,
    Verb,
)

HELP: Final = """The cloud: run it, keep it, and speak with one that runs.

Those that speak with a running cloud find it by --url (or KARVON_URL, default
http://127.0.0.1:8080) and need an API key in a file: --key-file (or KARVON_API_KEY_FILE).
Tables are for people; scripts take --json or --csv.

Exit codes: 0 done, 1 failed or refused, 2 wrong usage or configuration, 3 out of reach.
"""
SHOWN: Final = 50
TYPES: Final[Mapping[str, Any]] = {
    "text": str,
    "number": int,
    "decimal": float,
    "flag": bool,
    "moment": str,
    "secret": Path,
    "words": str,
    "numbers": str,
    "json": str,
}


class _Whole(TyperGroup):
    """Ours, and the server's commands, which are imported when one of them is wanted."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*_server().list_commands(ctx), *self.commands]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return self.commands.get(cmd_name) or _server().get_command(ctx, cmd_name)


def _server() -> Any:
    """By name, so that the layers stay apart: this half needs nothing of the server's."""
    return get_command(importlib.import_module("cloud.cli").app)


app = typer.Typer(
    cls=_Whole,
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


# --------------------------------------------------------------------------- lists


def _list(resource: Resource) -> Callable[..., None]:
    def run(call: Call, **given: Any) -> None:
        everything, most = given.pop("all_"), given.pop("limit")
        query = {field.name: _value(field, given[_name(field)]) for field in resource.filters}
        query["sort"] = given.get("sort")
        wanted = None if everything else (most or SHOWN)
        path = at(resource.path, **given)
        if call.as_csv:
            for part in call.cloud.csv(path, query, wanted):
                sys.stdout.write(part)
            return
        items = list(call.cloud.items(path, query, wanted))
        more = len(items) == wanted and most is None
        note = f"more with --all or --limit (now {SHOWN})" if more else ""
        call.rows(resource.columns, items, note)

    return run


def _list_options(resource: Resource) -> list[Option]:
    options = [_option(field) for field in resource.filters]
    if resource.sort:
        about = f"By {resource.sort}; with - before it the other way round."
        options.append(Option("sort", str | None, None, about))
    options.append(Option("all_", bool, False, "Every one, page by page.", flag="--all"))
    limit = typer.Option(min=1, help=f"At most so many (default {SHOWN}).")
    return [*options, Option("limit", Annotated[int | None, limit], None)]


def _show(resource: Resource) -> Callable[..., None]:
    def run(call: Call, **given: Any) -> None:
        call.one(call.cloud.get(_one(resource, given)))

    return run


# --------------------------------------------------------------------------- changes


def _add(resource: Resource) -> Callable[..., None]:
    def run(call: Call, **given: Any) -> None:
        body = _body(resource.add, given)
        for field in resource.add:
            if field.kind == "secret" and field.name not in body:
                body[field.name] = _asked(field)
        call.one(call.cloud.ask("POST", resource.path, body=body).json())

    return run


def _change(resource: Resource) -> Callable[..., None]:
    def run(call: Call, **given: Any) -> None:
        body = _body(resource.change, given)
        for name in given["clear"] or ():
            if name not in {field.name for field in resource.change}:
                raise RemoteError(USAGE, f"--clear {name}: there is no such field to clear")
            body[name] = None
        if not body:
            raise RemoteError(USAGE, "nothing to change: give at least one option")
        call.one(call.cloud.ask("PATCH", _one(resource, given), body=body).json())

    return run


def _remove(resource: Resource) -> Callable[..., None]:
    def run(call: Call, **given: Any) -> None:
        what = given[resource.key]
        if not given["yes"]:
            if not sys.stdin.isatty():
                raise RemoteError(USAGE, f"say --yes to remove {what}")
            typer.confirm(f"Remove {what}? {resource.remove}", abort=True, err=True)
        call.cloud.ask("DELETE", _one(resource, given))
        call.done(f"removed {what}", removed=what)

    return run


def _verb(verb: Verb) -> Callable[..., None]:
    def run(call: Call, **given: Any) -> None:
        answer = call.cloud.ask(verb.method, at(verb.path, **given))
        if answer.content:
            call.one(answer.json())
        else:
            call.done(f"{verb.name}: done")

    return run


def _import(resource: Resource) -> Callable[..., None]:
    def run(call: Call, **given: Any) -> None:
        file: Path = given["file"]
        kind = {".csv": "text/csv", ".json": "application/json"}.get(file.suffix.lower())
        if kind is None:
            raise RemoteError(USAGE, f"{file}: the name must end in .csv or .json")
        query = {"dry_run": given["dry_run"], "on_error": "skip" if given["skip_bad"] else None}
        try:
            answer = call.cloud.ask(
                "POST",
                f"{resource.path}/import",
                query,
                content=file.read_bytes(),
                headers={"Content-Type": kind, "Accept": "application/json"},
            )
        except OSError as error:
            raise RemoteError(USAGE, f"{file} cannot be read: {error.strerror}") from None
        tasks.tell_import(call, answer.json())

    return run


def _one(resource: Resource, given: Mapping[str, Any]) -> str:
    return at(resource.path + "/{key}", key=given[resource.key])


def _body(fields: tuple[Field, ...], given: Mapping[str, Any]) -> dict[str, Any]:
    named = {field.name: _value(field, given[_name(field)]) for field in fields}
    return {name: value for name, value in named.items() if value is not None}


def _asked(field: Field) -> str:
    """A secret, typed twice; raises RemoteError when nobody is there to ask."""
    if not sys.stdin.isatty():
        raise RemoteError(USAGE, f"give the {field.name} in a file with --{field.name}-file")
    asked: str = typer.prompt(field.name, hide_input=True, confirmation_prompt=True, err=True)
    return asked


def _value(field: Field, value: Any) -> Any:
    if value is None:
        return None
    if field.kind == "moment":
        return moment(value)
    if field.kind == "secret":
        try:
            return Path(value).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise RemoteError(USAGE, f"{value} cannot be read: {error}") from None
    return _many(field, value)


def _many(field: Field, value: Any) -> Any:
    """Lists, which are written with commas, and JSON. Raises RemoteError."""
    try:
        if field.kind == "json":
            return json.loads(value)
        if field.kind == "numbers":
            return [int(one) for one in value.split(",") if one.strip()]
    except ValueError as error:
        raise RemoteError(USAGE, f"{value!r} is no {field.name}: {error}") from None
    if field.kind == "words":
        return [one.strip() for one in value.split(",") if one.strip()]
    return value


# --------------------------------------------------------------------------- the tree


def _option(field: Field) -> Option:
    flag = f"--{field.name.replace('_', '-')}"
    if field.kind == "secret":
        flag += "-file"
    return Option(_name(field), TYPES[field.kind] | None, None, field.about, flag=flag)


def _name(field: Field) -> str:
    """What Python lets a parameter be called."""
    return field.name + "_" * keyword.iskeyword(field.name)


def _prices(given: Mapping[str, Any]) -> dict[str, Any]:
    return _body(PRICES, given)


def _argument(name: str, about: str, kind: Any = str) -> Option:
    return Option(name, kind, ..., about, argument=True)


def _grow() -> None:
    for resource in RESOURCES:
        branch = typer.Typer(help=resource.about, no_args_is_help=True)
        key = _argument(resource.key, "Which one.")
        command(branch, "list", _list(resource), f"List {resource.name}.", _list_options(resource))
        if resource.show:
            command(branch, "show", _show(resource), "Show everything about one.", [key])
        if resource.add:
            first, *rest = resource.add
            argument = _argument(first.name, first.about, TYPES[first.kind])
            options = [argument, *map(_option, rest)]
            command(branch, "add", _add(resource), "Add one.", options)
        if resource.change:
            clear = Option("clear", list[str] | None, None, "Make this field empty.")
            options = [key, *map(_option, resource.change), clear]
            command(branch, "change", _change(resource), "Change what is named.", options)
        if resource.remove:
            yes = Option("yes", bool, False, "Without asking.", flag="--yes")
            about = f"Remove one. {resource.remove}"
            command(branch, "remove", _remove(resource), about, [key, yes])
        if resource.imports:
            _grow_import(branch, resource)
        for verb in resource.verbs:
            command(branch, verb.name, _verb(verb), verb.about, [key])
        _grow_more(branch, resource, key)
        app.add_typer(branch, name=resource.name)
    _grow_held()
    tasks.add_tasks(app)


def _grow_more(branch: typer.Typer, resource: Resource, key: Option) -> None:
    """What only this resource has."""
    if resource.name == "tariffs":
        tariffs.add_pricing(branch, key, [_option(field) for field in PRICES], _prices)
    if resource.name == "events":
        tasks.add_following(branch)
    if resource.name == "releases":
        updates.add_publishing(branch)
    if resource.name == "settings":
        settings.add_setting(branch)
    if resource.name == "campaigns":
        updates.add_history(branch, key)
        for below in OF_CAMPAIGNS:
            options = [key, *_list_options(below)]
            command(branch, below.name, _list(below), below.about, options, csv_too=True)


def _grow_held() -> None:
    """What stations hold: lists under a station's name."""
    for held in HELD:
        options = [tasks.STATION, *_list_options(held)]
        command(app, held.name, _list(held), held.about, options, csv_too=True)


def _grow_import(branch: typer.Typer, resource: Resource) -> None:
    file = Option("file", Path, ..., "A .csv with a header line, or a .json list.", argument=True)
    dry = Option("dry_run", bool, False, "Say what would happen, change nothing.", flag="--dry-run")
    skip = Option(
        "skip_bad", bool, False, "Take the good rows; without it, all or none.", flag="--skip-bad"
    )
    about = f"Add and change many {resource.imports} from a file."
    command(branch, "import", _import(resource), about, [file, dry, skip])


_grow()
