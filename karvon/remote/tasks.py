"""More than lists: what stations are told to do, telemetry, events as they come, imports."""

from __future__ import annotations

import contextlib
import csv
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from karvon.remote.call import Call, Option, command, moment
from karvon.remote.client import FAILED, OUT_OF_REACH, USAGE, RemoteError, Sent, at
from karvon.remote.show import Column, plain
from karvon.remote.watching import live

FINAL: Final = frozenset({"executed", "rejected", "failed", "expired", "cancelled"})
POLL_S: Final = 0.5
CALL_S: Final = 25
"""For an answer to one request; the same is asked again under the same key."""
BUCKETS: Final = 1440
FIRST_PAUSE_S: Final = 1.0
AFTER_ALL: Final = "2999-01-01T00:00:00Z"
"""A list that begins then is empty; its cursor is where the log ends now."""
LONGEST_PAUSE_S: Final = 30.0
TELEMETRY: Final = (
    Column("at"),
    Column("evse"),
    Column("energy Wh", "energy_wh"),
    Column("power W", "power_w"),
    Column("max W", "power_max_w"),
    Column("L1 mA", "current_l1_ma"),
    Column("L2 mA", "current_l2_ma"),
    Column("L3 mA", "current_l3_ma"),
    Column("offered mA", "offered_ma"),
    Column("samples"),
)
IMPORTED: Final = (
    Column("line"),
    Column("key"),
    Column("outcome"),
    Column("reason"),
    Column("claim code", "claim.code"),
)


# --------------------------------------------------------------------------- telling stations


def _told(call: Call, station: str, what: str, body: Mapping[str, Any], *, wait: bool) -> None:
    """Give a command, and wait for what becomes of it."""
    path = at("/stations/{station}/commands/", station=station) + what
    given = call.cloud.ask("POST", path, body=body).json()
    if not wait:
        call.one(given)
        return
    with _spinner(call, f"{what} {station}: given, waiting for the station"):
        command_ = _result(call, str(given["command"]))
    if call.as_json:
        call.json(command_)
    reason = f": {command_['result']}" if command_["result"] else ""
    text = f"{station}: {what} {command_['status']}{reason}"
    if command_["status"] != "executed":
        raise RemoteError(FAILED, f"{text}{_advice(command_['status'])}")
    if not call.as_json:
        sys.stdout.write(f"{text}\n")


def _advice(status: str) -> str:
    return "; the station did not answer in time, look whether it is online" * (status == "expired")


def _result(call: Call, command_id: str) -> dict[str, Any]:
    while True:
        found: dict[str, Any] = call.cloud.get(at("/commands/{id}", id=command_id))
        if found["status"] in FINAL:
            return found
        time.sleep(POLL_S)


@contextlib.contextmanager
def _spinner(call: Call, text: str) -> Iterator[None]:
    if call.as_json or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


def _start(call: Call, *, station: str, evse: int, token: str, no_wait: bool) -> None:
    body = {"evse": evse, "id_token": {"value": token}}
    _told(call, station, "remote-start", body, wait=not no_wait)


def _stop(call: Call, *, station: str, transaction: str | None, no_wait: bool) -> None:
    found = transaction or _only_open(call, station)
    _told(call, station, "remote-stop", {"transaction": found}, wait=not no_wait)


def _only_open(call: Call, station: str) -> str:
    """The station's open transaction; raises RemoteError unless there is exactly one."""
    query = {"station": station, "state": "open"}
    found = [str(one["transaction"]) for one in call.cloud.items("/transactions", query, 2)]
    if not found:
        raise RemoteError(FAILED, f"no transaction is open at {station}: there is nothing to stop")
    if len(found) > 1:
        raise RemoteError(FAILED, f"several are open at {station}; name one with --transaction")
    return found[0]


def _limit(
    call: Call, *, station: str, milliamperes: str, evse: int, valid: str, no_wait: bool
) -> None:
    body: dict[str, Any] = {"evse": evse, "limit_ma": None}
    if milliamperes != "off":
        if not milliamperes.isdecimal():
            raise RemoteError(USAGE, f"{milliamperes!r}: give mA per phase, e.g. 16000, or off")
        body |= {"limit_ma": int(milliamperes), "valid_s": _seconds(valid)}
    _told(call, station, "set-limit", body, wait=not no_wait)


def _seconds(text: str) -> int:
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = text[:-1], text[-1:]
    if not number.isdecimal() or unit not in units:
        raise RemoteError(USAGE, f"{text!r} is no length of time; write 90s, 15m, 2h or 1d")
    return int(number) * units[unit]


def _availability(call: Call, *, station: str, state: str, evse: int, no_wait: bool) -> None:
    if state not in {"on", "off"}:
        raise RemoteError(USAGE, f"{state!r}: say on or off")
    body = {"evse": evse, "operative": state == "on"}
    _told(call, station, "set-availability", body, wait=not no_wait)


# --------------------------------------------------------------------------- OCPP


def _ocpp(
    call: Call, *, station: str, action: str, payload: str, file: Path | None, async_: bool
) -> None:
    """A call in the station's own words, and its answer."""
    prefer = "respond-async" if async_ else f"wait={CALL_S}"
    path = at("/stations/{station}/ocpp/{action}", station=station, action=action)
    body = _payload(payload, file)
    try:
        answer = call.cloud.ask("POST", path, body=body, headers={"Prefer": prefer}).json()
    except RemoteError as error:
        if error.problem.get("code") == "command.unanswered":
            raise RemoteError(FAILED, error.text, error.problem) from None
        raise
    if async_:
        call.one(answer)
        return
    if call.as_json:
        call.json(answer)
    if not answer["accepted"]:
        raise RemoteError(FAILED, f"{station}: {action} {answer['status']}: {answer['text']}")
    if not call.as_json:
        call.one(answer["response"] or {"status": answer["status"]})


def _payload(text: str, file: Path | None) -> dict[str, Any]:
    try:
        if file is not None:
            text = file.read_text(encoding="utf-8")
        payload = json.loads(text)
    except (OSError, ValueError) as error:
        raise RemoteError(USAGE, f"the payload cannot be read: {error}") from None
    if not isinstance(payload, dict):
        raise RemoteError(USAGE, 'the payload is a JSON object, e.g. \'{"type": "Soft"}\'')
    return payload


def _configure(
    call: Call,
    *,
    station: str,
    settings: list[str],
    component: str,
    evse: int | None,
    no_wait: bool,
) -> None:
    """Set variables, and wait until the station has taken them."""
    variables = []
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise RemoteError(USAGE, f"{setting!r}: write NAME=VALUE")
        variables.append({"component": component, "variable": name, "value": value, "evse": evse})
    path = at("/stations/{station}/variables", station=station)
    given = call.cloud.ask("PATCH", path, body={"variables": variables}).json()["commands"]
    if no_wait:
        call.one({"commands": given})
        return
    with _spinner(call, f"{station}: given, waiting for the station"):
        ended = [_result(call, str(one["command"])) for one in given]
    if call.as_json:
        call.json(ended)
    failed = [one for one in ended if one["status"] != "executed"]
    if failed:
        reasons = "; ".join(f"{one['status']} {one['result']}" for one in failed)
        raise RemoteError(FAILED, f"{station}: {reasons}{_advice(failed[0]['status'])}")
    if not call.as_json:
        sys.stdout.write(f"{station}: {', '.join(settings)} taken\n")


# --------------------------------------------------------------------------- telemetry


def _telemetry(
    call: Call, *, station: str, from_: str, to: str, every: str, evse: int | None, limit: int
) -> None:
    path = at("/stations/{station}/telemetry", station=station)
    query = {"from": moment(from_), "to": moment(to), "every": every, "evse": evse}
    items = list(call.cloud.items(path, query, limit))
    if call.as_csv:
        _write_csv(items)
        return
    note = f"more with --limit (now {limit})" if len(items) == limit else ""
    call.rows(TELEMETRY, items, note)


def _write_csv(items: list[dict[str, Any]]) -> None:
    if items:
        writer = csv.DictWriter(sys.stdout, list(items[0]))
        writer.writeheader()
        writer.writerows(items)


# --------------------------------------------------------------------------- following


def _follow(
    call: Call,
    *,
    station: str | None,
    kind: str | None,
    cursor: str | None,
    count: int | None,
) -> None:
    """Events as they happen, over every interruption, none left out."""
    query = {"station": station, "kind": kind}
    begin = cursor or call.cloud.get("/events", since=AFTER_ALL)["next"]
    for number, sent in enumerate(_over_interruptions(call, "/events/stream", query, begin), 1):
        event = json.loads(sent.data)
        if call.as_json:
            call.json({**event, "cursor": sent.id})
        else:
            subject = "" if event["subject"] == event["station"] else f" {event['subject']}"
            line = f"{plain(event['at'])}  {event['kind']:<28} {plain(event['station'])}{subject}"
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
        if number == count:
            return


def _over_interruptions(
    call: Call, path: str, query: Mapping[str, Any], last: str | None
) -> Iterator[Sent]:
    """The stream, taken up again where it broke off; a refusal ends it."""
    pause = FIRST_PAUSE_S
    while True:
        try:
            for sent in call.cloud.stream(path, query, last):
                pause, last = FIRST_PAUSE_S, sent.id or last
                yield sent
        except RemoteError as error:
            if error.code != OUT_OF_REACH:
                raise
            sys.stderr.write(f"karvon cloud: {error.text}; trying again in {pause:.0f} s\n")
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_S)


# --------------------------------------------------------------------------- what an import did


def tell_import(call: Call, report: dict[str, Any]) -> None:
    """The verdict per row; raises RemoteError when one failed."""
    if call.as_json:
        call.json(report)
    else:
        told = [row for row in report["rows"] if row["outcome"] != "unchanged"]
        counts = ", ".join(
            f"{report[word]} {word}" for word in ("created", "updated", "unchanged", "failed")
        )
        head = "" if report["committed"] else "nothing was changed; it would be: "
        call.rows(IMPORTED, told, head + counts)
    if report["failed"]:
        raise RemoteError(FAILED, f"{report['failed']} rows were not taken; see their reasons")


# --------------------------------------------------------------------------- the tree


STATION: Final = Option("station", str, ..., "Which station.", argument=True)
WHEN: Final = "A time like 2026-11-21T08:00, or 2h for two hours ago."
NO_WAIT: Final = Option(
    "no_wait", bool, False, "Do not wait for what becomes of it.", flag="--no-wait"
)
WHICH_EVSE: Final = Option(
    "evse", Annotated[int, typer.Option(help="Which EVSE; 0 means all of them.")], 0
)


def add_tasks(app: typer.Typer) -> None:
    """The commands that stand beside the resources."""
    command(
        app,
        "start",
        _start,
        "Start a transaction at a station, and wait until it said what became of it.",
        [
            STATION,
            Option("evse", Annotated[int, typer.Option(min=1, help="Which EVSE.")], 1),
            Option("token", Annotated[str, typer.Option(help="For this id token.")], ...),
            NO_WAIT,
        ],
    )
    command(
        app,
        "stop",
        _stop,
        "Stop a transaction: the one that is open at the station, or the named one.",
        [STATION, Option("transaction", str | None, None, "Which one, if several."), NO_WAIT],
    )
    command(
        app,
        "limit",
        _limit,
        "Limit a station's current for a while; when it ends, the failsafe current holds.",
        [
            STATION,
            Option("milliamperes", str, ..., "mA per phase, or off to lift it.", argument=True),
            WHICH_EVSE,
            Option(
                "valid",
                Annotated[str, typer.Option("--for", help="How long: 90s, 15m, 2h, 1d.")],
                "1h",
            ),
            NO_WAIT,
        ],
    )
    command(
        app,
        "availability",
        _availability,
        "Take a station, or one EVSE, out of service or back into it.",
        [
            STATION,
            Option("state", str, ..., "on or off.", argument=True),
            WHICH_EVSE,
            NO_WAIT,
        ],
    )
    command(
        app,
        "ocpp",
        _ocpp,
        "Ask a station anything that its OCPP version knows, and show what it answered.",
        [
            STATION,
            Option("action", str, ..., "In the version's own words, e.g. Reset.", argument=True),
            Option("payload", str, "{}", "JSON.", argument=True),
            Option("file", Path | None, None, "The payload, instead of writing it out."),
            Option("async_", bool, False, "Do not wait for the answer.", flag="--async"),
        ],
    )
    command(
        app,
        "configure",
        _configure,
        "Set a station's variables, or OCPP 1.6's keys.",
        [
            STATION,
            Option("settings", list[str], ..., "NAME=VALUE …", argument=True),
            Option("component", Annotated[str, typer.Option(help="Whose.")], "ChargingStation"),
            Option("evse", int | None, None, "Of this EVSE."),
            NO_WAIT,
        ],
    )
    command(
        app,
        "telemetry",
        _telemetry,
        "What a station measured, in equal buckets of time.",
        [
            STATION,
            Option("from_", Annotated[str, typer.Option("--from", help=WHEN)], "1h"),
            Option("to", Annotated[str, typer.Option(help=WHEN)], "now"),
            Option("every", Annotated[str, typer.Option(help="1s, 15m, 1h …")], "1m"),
            Option("evse", int | None, None, "Only this one; 0 is the site's meter."),
            Option(
                "limit",
                Annotated[int, typer.Option(min=1, help="At most so many buckets.")],
                BUCKETS,
            ),
        ],
        csv_too=True,
    )

    command(
        app,
        "live",
        live,
        "Watch a station: its states as they change, and a sample every second.",
        [
            STATION,
            Option(
                "minutes",
                Annotated[int, typer.Option(min=1, max=15, help="For how long.")],
                5,
            ),
        ],
    )


def add_following(branch: typer.Typer) -> None:
    """`events follow`."""
    command(
        branch,
        "follow",
        _follow,
        "Write events as they happen, until Ctrl-C; over every interruption, none left out.",
        [
            Option("station", str | None, None, "Of this station."),
            Option("kind", str | None, None, "Whose kind begins so, e.g. transaction."),
            Option("cursor", str | None, None, "Go on behind this one (`cursor` in --json)."),
            Option("count", int | None, None, "Stop after so many."),
        ],
    )
