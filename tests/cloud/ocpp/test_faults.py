"""The gateway's process killed between commit and answer, storms, a locked table, disorder.

F28, F29, F31, F34 and F37 of the catalogue of faults: each session is there once, with its energy.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidHandshake

from cloud.kernel import faultpoints
from tests.cloud.ocpp.conftest import Ask, Ocpp, Refused, Station, serving
from tests.cloud.ocpp.wire import event_201, start_16, stop_16
from tests.cloud.test_serve import client
from tests.cloud.test_serve import serving as running

CARD = "0055AA0055"


# --------------------------------------------------------------------------- F28, F29


async def charger(ready: dict[str, Any]) -> Station:
    """Connected to that process, and booted."""
    socket = await connect(f"{ready['ocpp_url']}/CP-1", subprotocols=["ocpp1.6"])  # type: ignore[list-item]
    station = Station(socket, {})
    assert (await station.boot())["status"] == "Accepted"
    return station


def transactions(admin: httpx.Client) -> list[dict[str, Any]]:
    return list(admin.get("/api/v1/transactions").json()["items"])


@pytest.mark.system
@pytest.mark.parametrize("action", ["StartTransaction", "StopTransaction"])
@pytest.mark.parametrize("instant", [faultpoints.BEFORE_COMMIT, faultpoints.AFTER_COMMIT])
async def test_f28_f29_what_a_killed_gateway_left_unanswered_is_done_once(
    cloud_dsn: str, tmp_path: Path, instant: str, action: str
) -> None:
    settings = {
        "KARVON_DATABASE_URL": cloud_dsn,
        "KARVON_REGISTRATION": "open",
        "KARVON_OCPP_PORT": "0",
    }
    number = None
    if action == "StopTransaction":
        with running(tmp_path, **settings) as (_, ready):
            station = await charger(ready)
            number = (await station.call("StartTransaction", start_16(CARD)))["transactionId"]
            await station.leave()
    said = start_16(CARD) if number is None else stop_16(number)
    commits = 3  # the connection, its boot, and this
    with running(tmp_path, **settings, KARVON_FAULT=f"{instant}:{commits}") as (process, ready):
        station = await charger(ready)
        await station.send([2, "unanswered", action, said])
        await station.closed()
        assert "unanswered" not in station.results
        process.wait(10)
    with running(tmp_path, **settings) as (_, ready), client(tmp_path, ready) as admin:
        before = transactions(admin)
        committed = instant == faultpoints.AFTER_COMMIT
        if number is None:
            assert len(before) == committed
        else:
            assert [one["state"] for one in before] == ["ended" if committed else "open"]
        station = await charger(ready)
        answer = await station.call(action, said)
        (row,) = transactions(admin)
        if number is None:
            assert row["number"] == answer["transactionId"]
            assert [one["number"] for one in before] in ([], [row["number"]])
            await station.call("StopTransaction", stop_16(row["number"]))
        (row,) = transactions(admin)
        assert (row["energy_wh"], row["state"], row["conflicts"]) == (7_400, "ended", 0)


# --------------------------------------------------------------------------- F31


async def test_f31_all_reconnect_at_once_and_are_served(
    cloud_dsn: str,
    tmp_path: Path,
    sample_size: Callable[[int, int], int],
    record_property: Callable[[str, object], None],
) -> None:
    count = sample_size(200, 5_000)
    loop = asyncio.get_running_loop()
    most = 0
    gate = asyncio.Semaphore(1_000)  # what one process can have under way without thrashing
    async with serving(cloud_dsn, tmp_path, app_pool=3, commit_pool=4) as ocpp:
        booted_after: list[float] = []

        async def come(number: int, began: float) -> Station:
            while True:
                try:
                    async with gate:
                        station = await ocpp.connect(f"S-{number}")
                    break
                except (InvalidHandshake, OSError):  # refused, or cut with too many before it
                    await asyncio.sleep(random.uniform(0.2, 2))  # as Retry-After, in small
            assert (await station.boot())["status"] == "Accepted"
            booted_after.append(loop.time() - began)
            return station

        def storm() -> Any:
            return asyncio.gather(*(come(number, loop.time()) for number in range(count)))

        first = await storm()
        for station in first:
            station.socket.transport.abort()
        booted_after.clear()
        with psycopg.connect(cloud_dsn, autocommit=True) as connection:
            coming = asyncio.ensure_future(storm())
            while not coming.done():
                found = connection.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                ).fetchone()
                most = max(most, found[0] if found else 0)
                await asyncio.sleep(0.1)
        again = await coming
        p99 = sorted(booted_after)[count * 99 // 100]
        assert p99 < 30
        assert most < 3 + 4 + 12, "the pools, the listeners, and who asks here"
        online = await ocpp.get("/connections", online="true", limit=500)
        assert len(online["items"]) == min(count, 500)
        answers = await asyncio.gather(*(one.call("Heartbeat", {}) for one in again))
        assert len(answers) == count
    record_property("stations that came back at once", count)
    record_property("p99 of their boots in ms", round(p99 * 1000))


# --------------------------------------------------------------------------- F34


async def test_f34_a_locked_table_holds_up_no_heartbeat(
    ocpp: Ocpp, cloud_dsn: str, sample_size: Callable[[int, int], int]
) -> None:
    await ocpp.token(CARD)
    station, other = await ocpp.booted("CP-1"), await ocpp.booted("CP-2")
    assert await other.call("Authorize", {"idTag": CARD})
    loop = asyncio.get_running_loop()
    with psycopg.connect(cloud_dsn) as owner:
        owner.execute("LOCK TABLE transactions.transaction IN ACCESS EXCLUSIVE MODE")
        starting = asyncio.create_task(_until_answered(station))
        until = loop.time() + sample_size(2, 60)
        while loop.time() < until:
            began = loop.time()
            assert "currentTime" in await other.call("Heartbeat", {})
            told = await other.call("Authorize", {"idTag": CARD})
            assert told["idTagInfo"]["status"] == "Accepted"
            assert loop.time() - began < 3
            await asyncio.sleep(0.1)
        assert not starting.done()
        owner.rollback()
    number = await starting
    assert (await ocpp.transaction("CP-1"))["number"] == number


async def _until_answered(station: Station) -> int:
    """As chargers do: the same again after an error."""
    while True:
        try:
            return int((await station.call("StartTransaction", start_16(CARD)))["transactionId"])
        except (Refused, TimeoutError):
            await asyncio.sleep(0.2)


# --------------------------------------------------------------------------- F37


async def test_f37_events_in_any_order_and_number_make_the_same_session(
    ocpp: Ocpp, sample_size: Callable[[int, int], int]
) -> None:
    await ocpp.token(CARD)
    end = event_201("Ended", 4, 41, "tx", CARD, 8_400, info={"stoppedReason": "Local"})
    events = [
        event_201("Started", 0, 1, "tx", CARD, 1_000),
        *(event_201("Updated", n, 10 * n, "tx", None, 1_000 + 2_000 * n) for n in (1, 2, 3)),
        end,
    ]
    dice = random.Random(37)
    for number in range(sample_size(6, 200)):
        name = f"CS-{number}"
        told = [*events, *dice.choices(events, k=3)]
        dice.shuffle(told)
        station = await ocpp.booted(name, "ocpp2.0.1")
        for event in told:
            offline = {"offline": True} if dice.random() < 0.5 else {}
            assert isinstance(await station.call("TransactionEvent", {**event, **offline}), dict)
        found = await ocpp.transaction(name)
        assert (found["energy_wh"], found["state"], found["reason"]) == (7_400, "ended", "Local")
        assert (found["conflicts"], found["review"], found["start_seen"]) == (0, None, True)
        assert found["duration_ms"] == 40 * 60_000
        await station.leave()


# --------------------------------------------------------------------------- what cannot be stored


async def test_a_command_ends_whose_answer_cannot_be_stored(ocpp: Ocpp, sql: Ask) -> None:
    sql("ALTER TABLE configuration.variable ADD CONSTRAINT taste CHECK (value <> 'swordfish')")
    station = await ocpp.booted("CP-1")
    key = {"key": "Password", "readonly": False, "value": "swordfish"}
    station.answers["GetConfiguration"] = {"configurationKey": [key]}
    called = await ocpp.api.post("/stations/CP-1/ocpp/GetConfiguration", json={})
    assert called.status_code == 200, called.text
    assert called.json()["status"] == "failed"
    assert "cannot be stored" in called.json()["text"]
    assert sql("SELECT count(*) FROM kernel.dead_letter") == [(1,)]
    station.answers["GetConfiguration"] = {"configurationKey": [{**key, "value": "tuna"}]}
    again = await ocpp.api.post("/stations/CP-1/ocpp/GetConfiguration", json={})
    assert again.json()["status"] == "executed"
