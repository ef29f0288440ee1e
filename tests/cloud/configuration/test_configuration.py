"""What stations hold, from what they told and answered, over REST."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import httpx
import psycopg
import pytest

from cloud.configuration.changes import changes_of, concerning
from cloud.configuration.writer import ConfigurationWriter
from cloud.kernel.facts import Spoken
from protocols.agent_link import TransactionEventType
from protocols.ocpp.messages import (
    HEARTBEAT,
    Answer,
    Answered,
    Meter,
    Notice,
    Report,
    Transaction,
    Variable,
)
from protocols.quantities import Milliseconds

COMMAND = UUID(int=5)
URL = "/api/v1/stations/CP-1"
PERIODS = [{"startPeriod": 0, "limit": 16.0}]


def answered(action: str, request: Any, response: Any = None, **more: Any) -> Answered:
    fields = {"command": COMMAND, "accepted": True, **more}
    return Answered(
        action=action, request=request, response=response or {"status": "Accepted"}, **fields
    )


def profile(number: int, evse: int, purpose: str = "TxDefaultProfile", level: int = 0) -> Any:
    return {
        "id": number, "stackLevel": level, "chargingProfilePurpose": purpose,
        "chargingProfileKind": "Absolute",
        "chargingSchedule": [
            {"id": 1, "chargingRateUnit": "A", "chargingSchedulePeriod": PERIODS}
        ],
    }  # fmt: skip


def set_profile(*fields: Any) -> Answered:
    made = profile(*fields)
    return answered("SetChargingProfile", {"evseId": fields[1], "chargingProfile": made})


async def items(client: httpx.AsyncClient, what: str, **query: Any) -> list[Any]:
    answer = await client.get(f"{URL}/{what}", params=query)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["items"])


async def test_variables_are_as_told_last(world: Any, say: Any, admin: httpx.AsyncClient) -> None:
    station = await world.station()
    told = (
        Variable(component="OCPPCommCtrlr", variable="HeartbeatInterval", value="300",
                 characteristics={"unit": "s"}, mutability="ReadOnly"),
        Variable(component="EVSE", variable="Power", evse=1, value="11000"),
        Variable(component="SecurityCtrlr", variable="BasicAuthPassword", value="secret",
                 mutability="WriteOnly"),
    )  # fmt: skip
    at = Milliseconds(0)
    await say(station, Report(request_id=1, seq_no=0, more=False, at_ms=at, variables=told))
    world.clock.forward(minutes=1)
    changed = Variable(component="OCPPCommCtrlr", variable="HeartbeatInterval", value="60")
    await say(station, answered("SetVariables", {}, {}, variables=(changed, changed)))
    shown = await items(admin, "variables", text="heartbeat")
    assert [(one["value"], one["mutability"], one["characteristics"]) for one in shown] == [
        ("60", "ReadOnly", {"unit": "s"}),
    ]  # fmt: skip
    assert shown[0]["at"] == "2026-05-01T12:01:00Z"
    assert [one["variable"] for one in await items(admin, "variables", evse=1)] == ["Power"]
    assert [one["value"] for one in await items(admin, "variables", component="SecurityCtrlr")] == [
        None
    ]
    first = await admin.get(f"{URL}/variables", params={"limit": 2})
    rest = await items(admin, "variables", limit=2, cursor=first.json()["next"])
    assert len(rest) == 1


async def test_profiles_come_replace_each_other_and_go(
    world: Any, say: Any, admin: httpx.AsyncClient
) -> None:
    station = await world.station()
    report = {
        "requestId": 1, "chargingLimitSource": "EMS", "evseId": 0,
        "chargingProfile": [profile(90, 0, "ChargingStationExternalConstraints")],
    }  # fmt: skip
    await say(
        station,
        set_profile(1, 1),
        set_profile(2, 1),  # the same level and purpose: it makes room
        set_profile(3, 1, "TxDefaultProfile", 1),
        set_profile(4, 2),
        Notice(action="ReportChargingProfiles", payload=report),
    )

    async def held() -> list[int]:
        return sorted(one["profile"] for one in await items(admin, "charging-profiles"))

    assert await held() == [2, 3, 4, 90]
    await say(station, set_profile(5, 1))
    assert await held() == [3, 4, 5, 90]
    criteria = {"evseId": 1, "stackLevel": 1}
    await say(station, answered("ClearChargingProfile", {"chargingProfileCriteria": criteria}))
    assert await held() == [4, 5, 90]
    assert len(await items(admin, "charging-profiles", evse=2, purpose="TxDefaultProfile")) == 1
    # cleared and set in one commit: what came later counts
    await say(station, answered("ClearChargingProfile", {}), set_profile(7, 1))
    assert await held() == [7, 90]
    await say(station, set_profile(8, 2), answered("ClearChargingProfile", {}))
    assert await held() == [90]
    await say(station, answered("ClearChargingProfile", {"chargingProfileId": 90}))
    assert await held() == []


async def test_others_limits_are_known_until_they_are_lifted(
    world: Any, say: Any, admin: httpx.AsyncClient
) -> None:
    station = await world.station()
    limit = {"chargingLimitSource": "SO", "isGridCritical": True}
    for evse in ({}, {"evseId": 1}):
        await say(
            station, Notice(action="NotifyChargingLimit", payload={"chargingLimit": limit, **evse})
        )
    shown = await items(admin, "charging-limits")
    assert [(one["evse"], one["source"], one["is_grid_critical"]) for one in shown] == [
        (0, "SO", True), (1, "SO", True),
    ]  # fmt: skip
    gone = {"chargingLimitSource": "SO", "evseId": 1}
    await say(station, Notice(action="ClearedChargingLimit", payload=gone))
    assert [one["evse"] for one in await items(admin, "charging-limits")] == [0]
    await say(station, Notice(action="ClearedChargingLimit", payload={"chargingLimitSource": "SO"}))
    assert await items(admin, "charging-limits") == []


def reserve(number: int, until: str = "2026-05-01T13:00:00Z", command: int = 5) -> Answered:
    request = {"id": number, "expiryDateTime": until, "evseId": 1, "idToken": {"idToken": "A"}}
    return answered("ReserveNow", request, command=UUID(int=command))


async def test_reservations_end_as_they_end(world: Any, say: Any, admin: httpx.AsyncClient) -> None:
    station = await world.station()
    await say(station, *(reserve(number) for number in range(1, 6)))
    begun = Transaction(
        event=TransactionEventType.STARTED, at_ms=Milliseconds(0), trigger="Authorized",
        reservation=1,
    )  # fmt: skip
    update = {"reservationId": 3, "reservationUpdateStatus": "Removed"}
    told = await say(
        station,
        begun,
        answered("CancelReservation", {"reservationId": 2}),
        Notice(action="ReservationStatusUpdate", payload=update),
    )
    kinds = ["reservation.used", "reservation.cancelled", "reservation.removed"]
    assert [event.kind for event in told] == kinds
    assert await say(station, begun) == []
    assert "A" not in str(await items(admin, "reservations"))

    async def stand() -> dict[int, str]:
        return {one["reservation"]: one["status"] for one in await items(admin, "reservations")}

    assert await stand() == {1: "used", 2: "cancelled", 3: "removed", 4: "active", 5: "active"}
    world.clock.forward(hours=2)
    assert (await stand())[4] == "expired"
    assert len(await items(admin, "reservations", status="active")) == 0
    again = [reserve(4), reserve(4, "2026-05-01T20:00:00Z", 6)]
    await say(station, *again)
    assert (await stand())[4] == "active"


async def test_a_repeated_answer_does_not_revive_a_reservation(
    world: Any, say: Any, admin: httpx.AsyncClient
) -> None:
    station = await world.station()
    await say(station, reserve(1))
    await say(station, answered("CancelReservation", {"reservationId": 1}))
    await say(station, reserve(1))
    assert [one["status"] for one in await items(admin, "reservations")] == ["cancelled"]


async def test_which_list_a_station_holds(world: Any, say: Any, admin: httpx.AsyncClient) -> None:
    station = await world.station()
    assert (await admin.get(f"{URL}/local-list")).json()["version"] is None
    await say(station, answered("SendLocalList", {"listVersion": 4, "updateType": "Full"}))
    first = await admin.get(f"{URL}/local-list")
    assert (first.json()["version"], first.json()["command"]) == (4, str(COMMAND))
    tag = {"If-None-Match": first.headers["etag"]}
    assert (await admin.get(f"{URL}/local-list", headers=tag)).status_code == 304
    await say(station, answered("GetLocalListVersion", {}, {"versionNumber": 0}, accepted=False))
    assert (await admin.get(f"{URL}/local-list", headers=tag)).json()["version"] == 0


async def test_most_commits_cost_nothing(world: Any) -> None:
    meter = Meter(evse=1, readings=())
    quiet = Notice(action="NotifyEvent", payload={})
    begun = Transaction(
        event=TransactionEventType.STARTED, at_ms=Milliseconds(0), trigger="Authorized"
    )
    answer = Answer(now_ms=Milliseconds(0))
    spoken = [
        Spoken(1, world.users and 1, 1, world.clock(), told, answer)  # type: ignore[arg-type]  # any tenant
        for told in (meter, HEARTBEAT, quiet, begun)
    ]
    assert concerning(spoken) == []
    assert await ConfigurationWriter().write_spoken(None, spoken) == []  # type: ignore[arg-type]  # not used


async def test_what_is_malformed_is_the_messages_own_fault(world: Any, say: Any) -> None:
    station = await world.station()
    with pytest.raises(KeyError):
        await say(station, Notice(action="NotifyChargingLimit", payload={}))
    huge = {"reservationId": 2**70, "reservationUpdateStatus": "Expired"}
    with pytest.raises(psycopg.DataError):
        await say(station, Notice(action="ReservationStatusUpdate", payload=huge))


async def test_what_a_deleted_station_held_is_gone(world: Any, say: Any) -> None:
    from cloud.configuration import store

    station = await world.station()
    await say(station, reserve(1), set_profile(1, 1))
    async with world.database.unit(station.tenant_id) as cursor:
        await store.forget_station(cursor, station.id)
        for table in store.TABLES:
            await cursor.execute(f"SELECT FROM configuration.{table}")
            assert cursor.rowcount == 0


def test_nothing_is_kept_of_nothing() -> None:
    assert not any(vars(changes_of([])).values())
