"""A status as rows of text in the technician's language, for whatever shows them.

Takes what the control socket answers (plain JSON values), so that it works beside any agent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from edge_agent.wording import Wording

Told = Mapping[str, Any]
LINKS = ("link", "name", "state", "age", "what")
EVSES = ("evse", "state", "charging", "offered", "limits", "session", "error")
REGISTERS = ("name", "address", "raw", "value", "unit", "note")
SESSIONS = ("number", "evse", "start", "duration", "id_token", "energy", "end", "in_cloud")


class Row(NamedTuple):
    """One line of a table; `state` is that of a link, for its colour."""

    cells: tuple[str, ...]
    state: str = "ok"
    why: str = ""
    todo: str = ""


def heads(words: Wording, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(words("ui", name) for name in names)


def headline(status: Told, words: Wording) -> str:
    title = words("ui", "title", station=status["station"])
    return f"{title}, {words('ui', 'running', version=status['status']['agent_version'])}"


def links(status: Told, words: Wording) -> list[Row]:
    """What stands between the agent and its duty; the driver's own words follow the reason."""
    rows = []
    for link in status["links"]:
        what, why, todo = words.told(link["code"], link["facts"])
        age = "" if link["age_ms"] is None else words.age(link["age_ms"])
        kind, state = words("kind", link["kind"]), words("state", link["state"])
        said = f" ({link['why']})" if link["why"] else ""
        rows.append(Row((kind, link["name"], state, age, what), link["state"], why + said, todo))
    return rows


def evses(status: Told, words: Wording) -> list[Row]:
    """Each EVSE with every limit that holds for it, the smallest first."""
    return [_evse(each, status, words) for each in status["evses"]]


def _evse(each: Told, status: Told, words: Wording) -> Row:
    number = each["evse"]
    limits = [
        f"{amperes(one['limit_ma'])} {words('limit', one['set_by'])}"
        for one in status["limits"]
        if one["evse"] == number
    ]
    sessions = [
        f"{token_of(one['transaction'])} {kwh(one['transaction']['energy_wh'])}".strip()
        for one in status["sessions"]
        if one["evse"] == number
    ]
    cells = (
        str(number),
        words("status", each["status"]),
        words("charging", each["charging_state"]),
        amperes(each.get("offered_ma")),
        ", ".join(limits),
        ", ".join(sessions),
        each.get("error", ""),
    )
    return Row(cells, "trouble" if each["status"] == "Faulted" else "ok")


def registers(dumps: Sequence[Told]) -> list[Row]:
    return [
        Row(
            tuple("" if one[name] is None else str(one[name]) for name in REGISTERS),
            "ok" if one["raw"] else "trouble",
        )
        for one in dumps
    ]


def sessions(records: Sequence[Told], words: Wording) -> list[Row]:
    """As the journal has them, newest first."""
    return [
        Row(
            (
                str(one["number"]),
                str(one["evse"]),
                moment(one["started"]),
                duration(one["duration_ms"]),
                one["id_token"] or "",
                kwh(one["energy_wh"]),
                one["reason"] if one["ended"] else words("ui", "open"),
                words("ui", "yes" if one["synced"] else "no"),
            )
        )
        for one in records
    ]


def log_line(line: Told) -> str:
    at = datetime.fromtimestamp(line["at_ms"] / 1000, UTC)
    return f"{at:%H:%M:%S} {line['level']:<7} {line['source']}: {line['text']}"


def token_of(transaction: Told) -> str:
    token = transaction["id_token"]
    return str(token["value"]) if token else ""


def moment(stamp: Told) -> str:
    """UTC to the second; a question mark where the clock was not set."""
    at = datetime.fromtimestamp(stamp["wall_ms"] / 1000, UTC)
    return f"{at:%Y-%m-%d %H:%M:%S}{'?' if stamp['quality'] == 'unset' else ''}"


def kwh(watt_hours: int | None) -> str:
    return "" if watt_hours is None else f"{watt_hours / 1000:.3f} kWh"


def amperes(milliamperes: int | None) -> str:
    return "" if milliamperes is None else f"{milliamperes / 1000:.1f} A"


def duration(milliseconds: int) -> str:
    """Hours, minutes and seconds, e.g. `1:05:09`."""
    minutes, seconds = divmod(milliseconds // 1000, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
