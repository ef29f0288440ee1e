"""Commands that look at the agent: over its socket while it runs, into its journal otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge_agent import control
from edge_agent.cli.output import (
    amperes,
    complain,
    duration,
    kwh,
    mib,
    print_json,
    print_lines,
    print_table,
    when,
)
from edge_agent.config import Config, ConfigError, load
from edge_agent.control import NotRunningError, Request
from edge_agent.hardware.board import (
    BoardRefusedError,
    BoardUnreachableError,
    Meter,
    PowerBoard,
)
from edge_agent.hardware.metered_board import MeteredBoard
from edge_agent.journal import JournalError, JournalView, RefusedFact
from edge_agent.wording import DEFAULT, wording
from protocols.agent_link import TransactionEvent

START_IT = "start it with: karvon agent run"


async def status(path: Path, *, as_json: bool) -> int:
    """1 when an EVSE is faulted or an alarm stands; 3 when the agent does not run."""
    try:
        config = load(path)
    except ConfigError as error:
        return complain(str(error), 2)
    try:
        answer = await control.ask(_folder(config), Request(do="status"))
    except NotRunningError as error:
        return _status_from_journal(config, str(error), as_json=as_json)
    if as_json:
        print_json(answer)
    else:
        _print_status(answer)
    ill = any(evse["status"] == "Faulted" for evse in answer["evses"])
    return 1 if ill or answer["status"]["alarms"] else 0


def _folder(config: Config) -> Path:
    return config.path(config.journal.folder)


def _print_status(answer: dict[str, Any]) -> None:
    station = answer["status"]
    print_lines(
        [
            f"station {answer['station']}, agent {station['agent_version']} runs",
            f"uplink: {answer['uplink']}; clock: {answer['clock']}",
            *(
                [f"OCPP backend: {answer['ocpp']}"]
                if answer.get("ocpp", "not configured") != "not configured"
                else []
            ),
            f"billing facts that wait for the cloud: {station['pending_billing']}",
            f"samples that wait for the cloud: {station['pending_telemetry']}",
            *(
                f"board {name}: {what or 'not yet open'}"
                for name, what in station["boards"].items()
            ),
            *_site_lines(answer.get("site")),
            *_traffic_lines(answer.get("traffic")),
            *_update_lines(answer.get("updates")),
            *(f"ALARM: {alarm}" for alarm in station["alarms"]),
            "",
        ]
    )
    rows = [
        (
            evse["evse"],
            evse["status"],
            evse["charging_state"],
            amperes(evse.get("offered_ma")),
            evse.get("limited_by", ""),
            evse.get("error", ""),
        )
        for evse in answer["evses"]
    ]
    print_table(("EVSE", "status", "charging", "offered", "limited by", "error"), rows)
    _print_links(answer.get("links", []))


def _print_links(found: list[dict[str, Any]]) -> None:
    """Each link in a line, and for each in trouble why and what to do."""
    if not found:
        return
    words = wording(DEFAULT)
    rows, advice = [], []
    for link in found:
        what, why, todo = words.told(link["code"], link["facts"])
        state = words("state", link["state"])
        age = words.age(link["age_ms"]) if link["age_ms"] is not None else ""
        rows.append((words("kind", link["kind"]), link["name"], state, age, what))
        if link["state"] == "trouble":
            said = f" ({link['why']})" if link["why"] else ""
            advice.append(f"{words('kind', link['kind'])} {link['name']}: {why}{said}; {todo}")
    print_lines([""])
    print_table(("link", "name", "state", "heard", "what"), rows)
    print_lines(["", *advice] if advice else [])


def _site_lines(site: dict[str, Any] | None) -> list[str]:
    """The site's load management in a few lines, per phase."""
    if site is None:
        return []
    rows = [f"site: at most {_phases(site['limit_ma'])}"]
    if site["measured_ma"] is not None:
        age = f"{site['measured_age_ms'] / 1000:.0f} s ago"
        rows.append(f"site meter: {_phases(site['measured_ma'])}, {age}")
    rows.append(f"vehicles here: {_phases(site['own_ma'])}; reserved {_phases(site['held_ma'])}")
    if site["room_ma"] is not None:
        rows.append(f"room for them: {_phases(site['room_ma'])} ({site['why']})")
    others = site["neighbours"]
    return rows + (_neighbour_lines(others) if others is not None else [])


def _neighbour_lines(site: dict[str, Any]) -> list[str]:
    """Who leads, and what each of several controllers has."""
    if site["role"] == "follower":
        heard = _ago(site["leader_heard_ms"])
        lease = "no lease"
        if site["lease_ma"] is not None:
            lease = f"lease of {_phases(site['lease_ma'])}, {site['lease_left_ms'] // 1000} s left"
        return [f"leader: {site['leader'] or 'not heard yet'}, heard {heard}; {lease}"]
    return [
        f"member {one['station']}: heard {_ago(one['heard_ms'])},"
        f" granted {_phases(one['granted_ma'])},"
        f" takes {_phases(one['measured_ma']) if one['measured_ma'] else 'unknown'},"
        f" counts for {_phases(one['counts_for_ma']) if one['counts_for_ma'] else 'everything'}"
        for one in site["members"]
    ]


def _ago(milliseconds: int | None) -> str:
    return "never" if milliseconds is None else f"{milliseconds / 1000:.0f} s ago"


def _update_lines(updates: dict[str, Any] | None) -> list[str]:
    """Which slot runs, and what waits to take its place."""
    if updates is None:
        return []
    after = f", {updates['version']} waits" if updates["version"] else ""
    rows = [f"updates: slot {updates['slot'][:12]} runs, {updates['phase']}{after}"]
    boards = updates.get("board", {})
    if "flashing" in boards:
        done = f"{boards['done'] * 100 // max(1, boards['total'])} %"
        rows.append(f"firmware: board {boards['flashing']}, {boards['phase']} {done}")
    return rows


def _traffic_lines(traffic: dict[str, Any] | None) -> list[str]:
    """What each network link has carried, and what is left of a month that costs money."""
    if traffic is None:
        return []
    rows = []
    for link, today in traffic["today_bytes"].items():
        trouble = traffic["troubles"].get(link, "")
        unused = link != traffic["in_use"] and not traffic["month_bytes"].get(link)
        if unused and not trouble:
            continue
        if link not in traffic["month_bytes"]:
            rows.append(f"link {link} (in use): counted by day once the date is known")
            continue
        used = " (in use)" if link == traffic["in_use"] else ""
        month = mib(traffic["month_bytes"].get(link, 0))
        metered = ", metered" if link in traffic["metered"] else ""
        dead = f"; does not serve: {trouble}" if trouble else ""
        rows.append(f"link {link}{used}: {mib(today)} today, {month} this month{metered}{dead}")
    if traffic["monthly_budget_bytes"] is not None:
        budget = mib(traffic["monthly_budget_bytes"])
        rows.append(f"metered links: {budget} a month; {traffic['text']}")
    return rows


def _phases(currents: Sequence[int]) -> str:
    """Three currents, or one where all are the same."""
    shown = [f"{current / 1000:.1f}" for current in currents]
    return f"{shown[0]} A" if len(set(shown)) == 1 else f"{' '.join(shown)} A (L1 L2 L3)"


def _status_from_journal(config: Config, why: str, *, as_json: bool) -> int:
    try:
        with JournalView(_folder(config)) as view:
            known, waiting = view.transactions(), view.queue()
    except JournalError as error:
        return complain(f"{why}; {error}", 3)
    if as_json:
        print_json(
            {
                "running": False,
                "station": config.station,
                "open_transactions": known,
                "queue": waiting,
            }
        )
    else:
        rows = [f"open transaction on EVSE {t.evse}: {kwh(t.energy_wh)}" for t in known]
        print_lines([*rows, f"waiting for the cloud: {waiting.billing_facts} billing facts"])
    return complain(f"{why}; {START_IT}", 3)


def sessions(path: Path, limit: int, before: int | None, *, as_json: bool) -> int:
    try:
        with JournalView(_folder(load(path))) as view:
            found = view.sessions(limit, before)
    except ConfigError as error:
        return complain(str(error), 2)
    except JournalError as error:
        return complain(str(error), 3)
    if as_json:
        print_json(found)
        return 0
    rows = [
        (
            one.number,
            one.evse,
            when(one.started),
            duration(one.duration_ms),
            one.id_token or "",
            kwh(one.energy_wh),
            one.reason if one.ended else "open",
            "yes" if one.synced else "no",
        )
        for one in found
    ]
    head = ("no", "EVSE", "start (UTC)", "duration", "id token", "energy", "end", "in the cloud")
    print_table(head, rows)
    return 0


def queue(path: Path, *, as_json: bool) -> int:
    try:
        with JournalView(_folder(load(path))) as view:
            waiting, refused = view.queue(), view.refused()
    except ConfigError as error:
        return complain(str(error), 2)
    except JournalError as error:
        return complain(str(error), 3)
    if as_json:
        print_json({**msgspec.structs.asdict(waiting), "refused": refused})
        return 0
    print_lines(
        [
            f"billing: {waiting.billing_facts} facts",
            f"sent and not yet acknowledged: {waiting.billing_batches_sent} batches of them",
            f"telemetry: {waiting.telemetry_samples} samples on disk (the newest are in memory)",
            f"journal: {waiting.bytes_on_disk / 1024 / 1024:.1f} MiB on disk",
            *(f"REFUSED by the OCPP backend: {_told(one)}" for one in refused),
        ]
    )
    return 0


async def retry(path: Path, *, as_json: bool) -> int:
    """What an OCPP backend refused is offered to it once more."""
    return await _tell(path, Request(do="retry"), as_json=as_json)


def _told(refused: RefusedFact) -> str:
    """A refused fact in one line: what it is, and what the backend said."""
    fact = refused.fact
    if not isinstance(fact, TransactionEvent):
        return f"{type(fact).__name__}: {refused.why}"
    what = f"{fact.type} of transaction {fact.transaction}, EVSE {fact.evse}, {when(fact.at)}"
    return f"{what}, {kwh(fact.energy_wh)}: {refused.why}"


async def read(path: Path, *, as_json: bool) -> int:
    """Through the agent while it runs (it owns the line), else straight from the devices."""
    try:
        config = load(path)
        try:
            found = await control.ask(_folder(config), Request(do="read"))
        except NotRunningError:
            found = await _read_devices(config)
    except ConfigError as error:
        return complain(str(error), 2)
    if as_json:
        print_json(found)
    else:
        columns = ("device", "evse", "name", "address", "raw", "value", "unit", "note")
        rows = [["" if one[c] is None else one[c] for c in columns] for one in found]
        print_table(columns, rows)
    return 0 if any(one["raw"] for one in found) else complain("no device answered", 3)


async def _read_devices(config: Config) -> list[dict[str, Any]]:
    from edge_agent.main import hardware, registers_of

    found = hardware(config)
    devices: list[PowerBoard | Meter] = [line.board for line in found.lines]
    devices += [line.board.meter for line in found.lines if isinstance(line.board, MeteredBoard)]
    devices += [found.meter] if found.meter else []
    try:
        for device in devices:
            await _open(device)
        dumps: list[dict[str, Any]] = msgspec.to_builtins(await registers_of(found))
        return dumps
    finally:
        for device in devices:
            await device.close()


async def _open(device: PowerBoard | Meter) -> None:
    """What cannot be opened is still read register by register, and says why it fails."""
    try:
        await device.open()
    except (BoardRefusedError, BoardUnreachableError) as error:
        complain(str(error), 3)


async def token(path: Path, value: str, kind: str, evse: int | None, *, as_json: bool) -> int:
    return await _tell(
        path, Request(do="token", token=value, type=kind, evse=evse), as_json=as_json
    )


async def recover(path: Path, evse: int | None, *, as_json: bool) -> int:
    return await _tell(path, Request(do="recover", evse=evse), as_json=as_json)


async def _tell(path: Path, request: Request, *, as_json: bool) -> int:
    """What only the running agent can do; it answers with a text for people."""
    try:
        answer = await control.ask(_folder(load(path)), request)
    except ConfigError as error:
        return complain(str(error), 2)
    except NotRunningError as error:
        return complain(f"{error}; {START_IT}", 3)
    if as_json:
        print_json(answer)
    if "error" in answer:
        return 1 if as_json else complain(answer["error"], 1)
    if not as_json:
        print_lines([answer["text"]])
    return 0


async def watch(path: Path, *, as_json: bool) -> int:
    try:
        folder = _folder(load(path))
        if as_json:
            async for answer in control.stream(folder, Request(do="watch")):
                print_json(answer)
        else:
            await _live_table(folder)
    except ConfigError as error:
        return complain(str(error), 2)
    except NotRunningError as error:
        return complain(f"{error}; {START_IT}", 3)
    except asyncio.CancelledError:
        return 0
    return complain("the agent has ended", 3)


async def _live_table(folder: Path) -> None:
    from rich.live import Live
    from rich.table import Table

    latest: dict[int, dict[str, Any]] = {}
    with Live(refresh_per_second=4) as live:
        async for answer in control.stream(folder, Request(do="watch")):
            latest[answer["reading"]["evse"]] = answer
            table = Table("EVSE", "status", "charging", "current", "power", "energy", "offered")
            for number in sorted(latest):
                table.add_row(str(number), *_watched(latest[number]))
            live.update(table)


def _watched(answer: dict[str, Any]) -> tuple[str, ...]:
    status, reading = answer["status"] or {}, answer["reading"]
    currents = " ".join(amperes(one) or "-" for one in reading["current_ma"])
    power = reading["power_w"]
    return (
        status.get("status", ""),
        status.get("charging_state", ""),
        currents,
        "" if power is None else f"{power} W",
        kwh(reading["transaction_wh"]),
        amperes(reading["offered_ma"]),
    )
