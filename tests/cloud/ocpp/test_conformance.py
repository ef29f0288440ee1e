"""Every action in every version, both ways: valid, invalid, refused; and what becomes of it.

The judges are OCPP's official schemas (`official.py`) and the REST API (`kept.py`); the gateway,
its database and its sockets are real. Each action's place in docs/ocpp.md is held against both.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import pytest
import pytest_asyncio

from protocols.ocpp.schemas import SchemaError, codec
from protocols.ocpp.tolerance import read_request
from protocols.ocpp.version import Version
from tests.cloud.ocpp import official
from tests.cloud.ocpp.conftest import Ocpp, Refused, Station, serving
from tests.cloud.ocpp.kept import AGREED, BLOCKED, CARD, TOLD, Case
from tests.cloud.ocpp.official import SENT, Fault, not_an_object, request, response, spelt

pytestmark = pytest.mark.asyncio(loop_scope="module")

Payload = dict[str, Any]
Counts = Callable[[int, int], int]
Record = Callable[[str, object], None]
NOT_SUPPORTED: Final = {
    "GetCertificateChainStatus",
    "OpenPeriodicEventStream",
    "PullDynamicScheduleUpdate",
    "VatNumberValidation",
}
"""2.1's that docs/ocpp.md says are refused."""
PAGE: Final = Path(__file__).parents[3] / "docs" / "ocpp.md"
FROM_STATIONS: Final = [(v, action) for v in Version for action in official.told(v)]
TO_STATIONS: Final = [(v, action) for v in Version for action in official.asked(v)]
KEPT: Final = [(v, action) for v, action in FROM_STATIONS if action not in NOT_SUPPORTED]
AGREEABLE: Final = [(v, action) for v, action in TO_STATIONS if action in AGREED]


def each(pairs: list[tuple[Version, str]]) -> pytest.MarkDecorator:
    ids = [f"{version.removeprefix('ocpp')}-{action}" for version, action in pairs]
    return pytest.mark.parametrize(("version", "action"), pairs, ids=ids)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ocpp(house_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ocpp]:
    """The module's gateway; its TLS port brings the authority that signs."""
    async with serving(house_dsn, tmp_path_factory.mktemp("house"), ocpp_tls_port=0) as served:
        await served.token(CARD)
        await served.token("é" * 9)  # that of the made-up instances
        blocked = await served.api.post("/id-tokens", json={"value": BLOCKED, "blocked": True})
        assert blocked.status_code == 201, blocked.text
        yield served


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def listeners(ocpp: Ocpp) -> dict[Version, Station]:
    """One station of each version, to be asked things."""
    return {version: await ocpp.booted(f"listener-{version}", version) for version in Version}


async def case_of(ocpp: Ocpp, version: Version, action: str, what: str) -> Case:
    name = f"{what}-{action}-{version.removeprefix('ocpp')}"
    return Case(ocpp, await ocpp.booted(name, version), name, version, action)


# --------------------------------------------------------------------------- from the station


@each(FROM_STATIONS)
async def test_what_stations_say_is_answered_by_the_schema(
    ocpp: Ocpp, version: Version, action: str, sample_size: Counts, record_property: Record
) -> None:
    case = await case_of(ocpp, version, action, "said")
    official_request, station = request(version, action), case.station
    valid = [official_request.minimal, official_request.full]
    for full in (False, True):
        some = itertools.islice(official_request.valid(full=full), sample_size(0, 100))
        valid += [one for _, one in some]
    for payload in valid:
        await _is_answered(case, payload)
    refused, taken = faults(version, action, sample_size(4, 100))
    for fault in refused:
        with pytest.raises(Refused) as refusal:
            await station.call(action, fault.payload)
        assert refusal.value.args[0] in fault.codes, (fault.name, refusal.value)
    for fault in taken:
        await _is_answered(case, fault.payload)
    assert await station.call("Heartbeat", {}), "the connection lives on"
    record_property("valid ones answered", len(valid))
    record_property("faults refused", len(refused))
    record_property("faults understood", len(taken))


async def _is_answered(case: Case, payload: Payload) -> None:
    if case.action in NOT_SUPPORTED:
        with pytest.raises(Refused, match="NotSupported"):
            await case.station.call(case.action, payload)
        return
    answer = await case.station.call(case.action, payload)
    response(case.version, case.action).check(answer)


def faults(version: Version, action: str, count: int) -> tuple[list[Fault], list[Fault]]:
    """Some that nobody can understand, and some fewer that a named tolerance takes."""
    refused, taken = [not_an_object(version)], list[Fault]()
    for full in (False, True):
        for fault in request(version, action).faults(full=full):
            side = taken if _is_understood(version, action, fault.payload) else refused
            if len(side) < (count if side is refused else count // 4):
                side.append(fault)
            elif len(refused) >= count:
                return refused, taken
    return refused, taken


def _is_understood(version: Version, action: str, payload: Payload) -> bool:
    raw = json.dumps(payload).encode()
    try:
        _, deviations = read_request(codec(version), action, raw, now=datetime.now(UTC))
    except SchemaError:
        return False
    assert deviations, "what breaks the schema is taken under a name only"
    return True


@pytest.mark.parametrize("version", Version)
async def test_valid_messages_are_no_deviations(ocpp: Ocpp, version: Version) -> None:
    name = f"good-{version}"
    station = await ocpp.booted(name, version)
    if version is Version.V21:
        await station.send([6, "sent", SENT, request(version, SENT).full])
    for action in official.told(version):
        if action not in NOT_SUPPORTED:
            await station.call(action, request(version, action).full)
    with pytest.raises(Refused):  # so that there is something to wait for
        await station.call("MakeSamsa", {})
    await station.leave()
    assert (await ocpp.deviations(name, "refused")).keys() == {"refused"}


@pytest.mark.parametrize("version", Version)
async def test_actions_of_other_versions_and_of_clouds_are_refused(
    ocpp: Ocpp, version: Version
) -> None:
    station = await ocpp.booted(f"foreign-{version}", version)
    known = codec(version).actions
    for action in sorted({a for other in Version for a in codec(other).actions} - known):
        with pytest.raises(Refused, match="NotImplemented"):
            await station.call(action, {})
    with pytest.raises(Refused, match="NotImplemented"):
        await station.call("MakeSamsa", {})
    for action in official.asked(version):
        if action != official.BOTH_WAYS:
            with pytest.raises(Refused, match="NotSupported"):
                await station.call(action, request(version, action).minimal)
    assert await station.call("Heartbeat", {}), "the connection lives on"


@each(KEPT)
async def test_what_stations_tell_is_found_over_rest(
    ocpp: Ocpp, version: Version, action: str
) -> None:
    case = await case_of(ocpp, version, action, "told")
    await TOLD[action](case)
    assert places_in(rows_of("from the station")[action][-1]) <= case.read


# --------------------------------------------------------------------------- to the station


@each(TO_STATIONS)
async def test_stations_are_asked_what_is_valid_and_nothing_else(
    ocpp: Ocpp,
    listeners: dict[Version, Station],
    version: Version,
    action: str,
    sample_size: Counts,
    record_property: Record,
) -> None:
    station, url = listeners[version], f"/stations/listener-{version}/ocpp/{action}"
    before = len(station.asked)
    count = sample_size(2, 200)
    wrong = list(itertools.islice(request(version, action).faults(full=False), count))
    wrong += itertools.islice(request(version, action).faults(full=True), count - len(wrong))
    answers = await asyncio.gather(*(ocpp.api.post(url, json=fault.payload) for fault in wrong))
    for refused, fault in zip(answers, wrong, strict=True):
        _is_invalid(refused, fault)
    minimal, full = request(version, action).minimal, request(version, action).full
    answer = response(version, action).minimal
    await _is_done(ocpp, station, version, action, minimal, answer)
    asked = [minimal, full]
    if "Rejected" in response(version, action).statuses:
        asked.append(full)
        answer = {**answer, "status": "Rejected"}
        told = await _is_done(ocpp, station, version, action, full, answer)
        assert (told["accepted"], told["status"], told["text"]) == (False, "rejected", "Rejected")
    code = ("NotSupported", "NotImplemented")[TO_STATIONS.index((version, action)) % 2]
    await _is_refused(ocpp, station, version, action, full, code)
    assert station.asked[before:] == [(action, payload) for payload in asked]
    record_property("calls", len(asked))
    record_property("calls refused over REST", len(wrong))


def _is_invalid(refused: Any, fault: Fault) -> None:
    assert refused.status_code == 422, (fault.name, refused.text)
    assert refused.headers["content-type"] == "application/problem+json"
    problem = refused.json()
    assert problem["code"] == "ocpp.invalid"
    params = problem["params"]
    assert params["code"] in fault.codes, (fault.name, params)
    assert fault.field in f"{params['path']} {params['reason']}", (fault.name, params)


async def _is_done(
    ocpp: Ocpp, station: Station, version: Version, action: str, payload: Payload, answer: Payload
) -> Payload:
    """The station answers; both sides of it are told and kept."""
    station.refuses.pop(action, None)
    station.answers[action] = answer
    told = await _called(ocpp, version, action, payload)
    assert (told["response"], told["error"], told["action"]) == (answer, "", action)
    assert told["accepted"] is (told["status"] == "executed")
    if answer.get("status", "Accepted") == "Accepted":
        assert told["accepted"], told
    command = await _command(ocpp, told, version, action, payload)
    assert (command["response"], command["error"]) == (answer, "")
    return told


async def _is_refused(
    ocpp: Ocpp, station: Station, version: Version, action: str, payload: Payload, code: str
) -> None:
    station.refuses[action] = code
    told = await _called(ocpp, version, action, payload)
    assert (told["status"], told["accepted"], told["response"]) == ("failed", False, None)
    assert told["error"].startswith(code)
    command = await _command(ocpp, told, version, action, payload)
    assert (command["response"], command["error"]) == (None, told["error"])


async def _called(ocpp: Ocpp, version: Version, action: str, payload: Payload) -> Payload:
    called = await ocpp.api.post(f"/stations/listener-{version}/ocpp/{action}", json=payload)
    assert called.status_code == 200, called.text
    return dict(called.json())


async def _command(
    ocpp: Ocpp, told: Payload, version: Version, action: str, payload: Payload
) -> Payload:
    """As it is kept, which is as it was told."""
    command: Payload = await ocpp.get(f"/commands/{UUID(told['command'])}")
    assert re.fullmatch(r"key:\d+", command["actor"])
    assert command["station"] == f"listener-{version}"
    assert (command["link"], command["status"]) == ("ocpp", told["status"])
    assert (command["ocpp_action"], command["request"]) == (action, hidden(payload))
    assert command["action"] == {"action": "ocpp", "ocpp": action}
    assert command["requested_at"] <= command["sent_at"] <= command["finished_at"]
    return command


def hidden(payload: Any) -> Any:
    """Without what a password may stand in."""
    if isinstance(payload, list):
        return [hidden(one) for one in payload]
    if not isinstance(payload, dict):
        return payload
    secret = {"basicAuthPassword", "apnPassword", "password"} | (
        {"key"} if "server" in payload else set()
    )
    return {key: "***" if key in secret else hidden(one) for key, one in payload.items()}


@pytest.mark.parametrize("version", Version)
async def test_what_the_version_cannot_be_asked_is_told_so(
    ocpp: Ocpp, listeners: dict[Version, Station], version: Version
) -> None:
    station = listeners[version]
    before = list(station.asked)
    everything = {a for other in Version for a in codec(other).actions} | {"MakeSamsa"}
    unknown = sorted(everything - set(official.asked(version)))
    urls = [f"/stations/listener-{version}/ocpp/{action}" for action in unknown]
    answers = await asyncio.gather(*(ocpp.api.post(url, json={}) for url in urls))
    for action, told in zip(unknown, answers, strict=True):
        assert (told.status_code, told.json()["code"]) == (404, "ocpp.unknown_action")
        assert told.json()["params"] == {"action": action, "version": version}
    inside = request(version, "UpdateFirmware").minimal
    (inside.get("firmware") or inside)["location"] = "http://127.0.0.1/firmware"
    told = await ocpp.api.post(f"/stations/listener-{version}/ocpp/UpdateFirmware", json=inside)
    assert (told.status_code, told.json()["code"]) == (422, "transfer.refused")
    assert station.asked == before


@pytest.mark.parametrize("version", Version)
async def test_an_answer_that_breaks_the_schema_is_none(
    ocpp: Ocpp, listeners: dict[Version, Station], version: Version
) -> None:
    station = listeners[version]
    station.refuses.pop("ClearCache", None)
    station.answers["ClearCache"] = {"status": "Perhaps"}
    told = await _called(ocpp, version, "ClearCache", {})
    assert (told["status"], told["accepted"], told["response"]) == ("failed", False, None)
    assert "status" in told["error"]


@pytest.mark.parametrize("version", Version)
async def test_times_and_numbers_go_out_as_they_were_written(
    ocpp: Ocpp, listeners: dict[Version, Station], version: Version
) -> None:
    """2.0.1 Part 2, 2.1.4: at most three decimals."""
    action, field = "GetLog", "oldestTimestamp"
    payload = request(version, action).minimal
    payload["log"][field] = "2026-11-28T13:00:00.25+05:00"
    await _is_done(
        ocpp, listeners[version], version, action, payload, response(version, action).minimal
    )
    assert listeners[version].asked[-1] == (action, payload)


@pytest.mark.parametrize(
    "payload",
    [
        '{"totalCost": NaN, "transactionId": "4711"}',
        '{"totalCost": 1e999, "transactionId": "4711"}',
        '{"totalCost": 1, "transactionId": "\\ud800"}',
    ],
    ids=["nan", "infinite", "surrogate"],
)
async def test_what_json_cannot_hold_is_not_sent(
    ocpp: Ocpp, listeners: dict[Version, Station], payload: str
) -> None:
    before = list(listeners[Version.V201].asked)
    told = await ocpp.api.post(
        "/stations/listener-ocpp2.0.1/ocpp/CostUpdated",
        content=payload,
        headers={"Content-Type": "application/json"},
    )
    assert told.status_code == 422, told.text
    assert listeners[Version.V201].asked == before


FAR: Final = 10**12
"""Whole numbers and times have no bounds in the schemas, and texts may hold anything."""
_PLACE: Final = {"component": {"name": "C", "evse": {"id": FAR}}, "variable": {"name": "V"}}
_MONITOR: Final = {"type": "Delta", "severity": FAR, **_PLACE}


@pytest.mark.parametrize(
    ("version", "action", "more", "answer"),
    [
        (Version.V16, "ReserveNow", {"connectorId": FAR}, {}),
        (Version.V16, "SetChargingProfile", {"connectorId": FAR}, {}),
        (Version.V16, "ClearChargingProfile", {"connectorId": FAR}, {}),
        (Version.V16, "SendLocalList", {"listVersion": FAR}, {}),
        (Version.V16, "CancelReservation", {"reservationId": -FAR}, {}),
        (Version.V201, "ReserveNow", {"evseId": FAR}, {}),
        (Version.V201, "GetLocalListVersion", {}, {"versionNumber": FAR}),
        (
            Version.V201,
            "SetVariables",
            {"setVariableData": [{"attributeValue": "1", **_PLACE}]},
            {"setVariableResult": [{"attributeStatus": "Accepted", **_PLACE}]},
        ),
        (
            Version.V201,
            "SetVariableMonitoring",
            {"setMonitoringData": [{"value": 1, **_MONITOR}]},
            {"setMonitoringResult": [{"status": "Accepted", "id": FAR, **_MONITOR}]},
        ),
        (Version.V201, "ClearVariableMonitoring", {"id": [FAR]}, {}),
        (Version.V201, "GetLog", {"requestId": FAR}, {"filename": "a\0.zip"}),
        (Version.V201, "Reset", {}, {"statusInfo": {"reasonCode": "Why", "additionalInfo": "\0"}}),
        (Version.V201, "ReserveNow", {"expiryDateTime": "0001-01-01T00:00:00+14:00"}, {}),
        (Version.V201, "ReserveNow", {"expiryDateTime": "9999-12-31T23:59:59-14:00"}, {}),
    ],
)
async def test_absurd_values_cost_nobody_the_answer(
    ocpp: Ocpp,
    listeners: dict[Version, Station],
    version: Version,
    action: str,
    more: Payload,
    answer: Payload,
) -> None:
    station = listeners[version]
    station.refuses.pop(action, None)
    station.answers[action] = response(version, action).minimal | answer
    payload = request(version, action).minimal | more
    request(version, action).check(payload)
    url = f"/stations/listener-{version}/ocpp/{action}"
    told = await ocpp.api.post(url, json=payload, params={"wait": 3})
    assert (told.status_code, told.json().get("status")) == (200, "executed"), told.text
    for part in ("reservations", "charging-profiles", "logs", "monitors", "variables"):
        await ocpp.get(f"/stations/listener-{version}/{part}")


@pytest.mark.parametrize("version", Version)
async def test_a_zero_in_a_text_costs_nothing_that_was_told(ocpp: Ocpp, version: Version) -> None:
    """Firmware written in C pads its texts; no column holds a zero."""
    name = f"zero-{version}"
    station = await ocpp.booted(name, version)
    what = {"vendorName": "Acme\0", "model": "One\\u0000"}
    old = {"chargePointVendor": "Acme\0", "chargePointModel": "One\\u0000"}
    told = old if version is Version.V16 else {"chargingStation": what}
    assert (await station.boot(**told))["status"] == "Accepted"
    hardware = (await ocpp.get(f"/stations/{name}"))["hardware"]
    assert (hardware["vendor"], hardware["model"]) == (
        "Acme\N{REPLACEMENT CHARACTER}",
        "One\\u0000",
    )
    await station.leave()
    assert "zero_in_text" in await ocpp.deviations(name, "zero_in_text")


@each(AGREEABLE)
async def test_what_stations_agree_to_is_found_over_rest(
    ocpp: Ocpp, version: Version, action: str
) -> None:
    case = await case_of(ocpp, version, action, "asked")
    case.hurry()
    await AGREED[action](case)
    assert places_in(rows_of("to the station")[action][-1]) <= case.read


# --------------------------------------------------------------------------- the page


@cache
def rows_of(heading: str) -> dict[str, list[str]]:
    """The rows of the page's table with that heading in its first cell, by action."""
    lines = PAGE.read_text().splitlines()
    (start,) = [n for n, line in enumerate(lines) if line.startswith(f"| {heading} |")]
    table = itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert len({row[0] for row in rows}) == len(rows), "each action once"
    return {row[0]: row[1:] for row in rows}


def places_in(cell: str) -> set[str]:
    return {one for one in re.findall(r"`([^`]*)`", cell) if one.startswith("/")}


@pytest.mark.parametrize(
    ("heading", "actions"),
    [("from the station", official.told), ("to the station", official.asked)],
)
async def test_the_page_has_every_action_of_every_version(
    heading: str, actions: Callable[[Version], list[str]]
) -> None:
    marks = {
        action: ["✓" if action in actions(version) else "" for version in Version]
        for action in {one for version in Version for one in actions(version)}
    }
    if actions is official.told:
        marks |= {action: ["", "", "*NotSupported*"] for action in NOT_SUPPORTED}
    table = rows_of(heading)
    assert {action: row[:3] for action, row in table.items()} == marks
    assert list(table) == sorted(table), "in the order of the alphabet"
    found = {action for action, row in table.items() if places_in(row[3])}
    assert found <= (TOLD if actions is official.told else AGREED).keys()
    assert all(row[3] for row in table.values())


async def test_the_codes_are_those_of_each_version() -> None:
    """OCPP-J 1.6 table 7 misspells two, and 2.x does not."""
    assert spelt(Version.V16, "OccurrenceConstraintViolation") == "OccurenceConstraintViolation"
    assert spelt(Version.V21, "FormatViolation") == "FormatViolation"
