"""The door over a real database: what is looked up, written down, and cut off."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest

from cloud.communication import security_store
from cloud.communication.admission import (
    Admit,
    ClientCertificate,
    Policy,
    Profile,
    Reason,
    Refuse,
    Request,
    Session,
    Standing,
)
from cloud.communication.api import Known
from cloud.communication.door import Door, session_of
from cloud.communication.throttle import Handshakes
from cloud.kernel import events
from cloud.kernel.database import Database, TenantId
from cloud.kernel.errors import Unavailable
from cloud.kernel.etags import ANYTHING
from cloud.kernel.http import Caller, Role
from cloud.stations import registration

BOSS = Caller(TenantId(1), "key:7", Role.ADMIN)
HERE = "192.0.2.1"


@pytest.fixture(scope="session")
def cloud_server(pg_server: str) -> str:
    return pg_server


@pytest.fixture
def door_of(world: Any) -> Callable[..., Door]:
    def made(policy: Policy | None = None, **other: Any) -> Door:
        settings = {"even_s": 0.0, **other}
        return Door(world.database, world.stations, policy or Policy(), world.clock, **settings)

    return made


@pytest.fixture
def door(door_of: Callable[..., Door]) -> Door:
    return door_of()


def asks(
    password: str | bytes | None = None,
    *,
    identity: str = "CP-1",
    source: str = HERE,
    tls: bool = False,
    certificate: ClientCertificate | None = None,
    subprotocols: tuple[str, ...] = ("ocpp1.6",),
) -> Request:
    header = None
    if password is not None:
        raw = password.encode() if isinstance(password, str) else password
        header = "Basic " + base64.b64encode(identity.encode() + b":" + raw).decode()
    return Request(
        identity, source, subprotocols, header, tls or certificate is not None, certificate
    )


def let_in(answer: Admit | Refuse) -> Admit:
    assert isinstance(answer, Admit), answer
    return answer


def refused(answer: Admit | Refuse) -> tuple[int, Reason]:
    assert isinstance(answer, Refuse), answer
    return answer.status, answer.reason


async def happened(world: Any, kind: str = "ocpp.") -> list[tuple[str, dict[str, Any]]]:
    async with world.database.commit_unit() as cursor:
        logged = await events.read(cursor, {}, 100, events.Narrow(kind=kind))
    return [(one.event.kind, one.event.data) for one in logged]


async def kept(world: Any, station_id: int) -> security_store.OcppStation:
    async with world.database.commit_unit() as cursor:
        return await security_store.ocpp_station(cursor, station_id)


async def given(world: Any, password: str | None = None, **other: Any) -> str:
    made = await world.security.set_password(BOSS, "CP-1", password, ANYTHING, **other)
    return str(made.password)


async def changed(world: Any, **changes: Any) -> None:
    await world.security.change(BOSS, "CP-1", changes, ANYTHING)


def certificate(world: Any, **other: Any) -> ClientCertificate:
    fields = {"organization": "Registan Energy", "serial": "ab", "fingerprint": "f" * 64, **other}
    return ClientCertificate("CP-1", not_after=world.clock.now + timedelta(days=30), **fields)


# --------------------------------------------------------------------------- joining


async def test_an_expected_station_is_let_in(world: Any, door: Door) -> None:
    station = await world.station()
    admitted = let_in(await door.admit(asks()))
    assert (admitted.profile, admitted.standing) == (Profile.OPEN, Standing.ACCEPTED)
    assert admitted.station is not None
    assert admitted.station.id == station.id
    assert refused(await door.admit(asks(identity="CP-9"))) == (404, Reason.UNKNOWN)


async def test_nobody_takes_an_agents_place(world: Any, door: Door) -> None:
    station = await world.station()
    async with world.database.commit_unit() as cursor:
        await cursor.execute(
            "INSERT INTO communication.credential VALUES (%s, 1, 'CP-1', 'b', 'm', now())",
            (station.id,),
        )
    assert refused(await door.admit(asks())) == (401, Reason.NO_CREDENTIALS)
    assert refused(await door.admit(asks("guess"))) == (401, Reason.NO_CREDENTIALS)
    let_in(await door.admit(asks(await given(world))))


async def test_an_open_house_takes_strangers_in_and_says_so(
    world_of: Callable[..., Any], database: Database
) -> None:
    world = world_of(database, registration.Policy.OPEN)
    door = Door(database, world.stations, Policy("open"), world.clock, even_s=0)
    admitted = let_in(await door.admit(asks()))
    assert admitted.station is not None
    assert admitted.standing is Standing.ACCEPTED
    assert (await world.stations.detail(BOSS, "CP-1")).station.registration == "expected"
    assert await happened(world) == [
        ("ocpp.stranger_admitted", {"source": HERE, "standing": "expected"})
    ]
    again = let_in(await door.admit(asks()))
    assert again.station is not None
    assert again.station.id == admitted.station.id


async def test_a_pending_station_waits_on_its_connection(
    world_of: Callable[..., Any], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = world_of(database, registration.Policy.PENDING)
    door = Door(database, world.stations, Policy("pending"), world.clock, even_s=0)
    admitted = let_in(await door.admit(asks()))
    assert admitted.standing is Standing.PENDING
    session = session_of(admitted, asks())
    assert await door.standing(session) is Standing.PENDING
    async with await world.client(Role.OPERATOR) as client:
        waiting = (await client.get("/api/v1/pending")).json()["items"]
        assert [one["station"] for one in waiting] == ["CP-1"]
        assert (await client.post("/api/v1/pending/CP-1/approval")).status_code == 200
        assert await door.standing(session) is Standing.ACCEPTED
        assert let_in(await door.admit(asks())).standing is Standing.ACCEPTED
        await door.admit(asks(identity="CP-2"))
        assert (await client.delete("/api/v1/pending/CP-2")).status_code == 204
    assert world.link.forgotten == [2], "which tells the gateways"
    assert await door.standing(Session("CP-2", 2, Profile.OPEN)) is None
    monkeypatch.setattr("cloud.stations.service.MOST_PENDING", 0)
    assert refused(await door.admit(asks(identity="CP-3"))) == (503, Reason.PENDING_FULL)


# --------------------------------------------------------------------------- passwords


async def test_the_earlier_password_holds_until_the_new_one_is_used(world: Any, door: Door) -> None:
    station = await world.station()
    first = await given(world)
    let_in(await door.admit(asks(first)))
    second = await given(world, "a chosen password")
    let_in(await door.admit(asks(first)))
    third = await given(world)
    assert refused(await door.admit(asks(second))) == (401, Reason.WRONG_PASSWORD)
    let_in(await door.admit(asks(first)))
    let_in(await door.admit(asks(third)))
    assert refused(await door.admit(asks(first))) == (401, Reason.WRONG_PASSWORD)
    assert (await kept(world, station.id)).previous_password is None
    assert [kind for kind, _ in await happened(world, "ocpp.password_in_use")] == [
        "ocpp.password_in_use"
    ]


async def test_the_earlier_password_ends_when_the_station_confirms(world: Any, door: Door) -> None:
    station = await world.station()
    first = await given(world)
    second = await given(world)
    for _ in range(2):
        await world.security.password_confirmed(Known(station.id, TenantId(1)), "CP-1")
    assert refused(await door.admit(asks(first))) == (401, Reason.WRONG_PASSWORD)
    let_in(await door.admit(asks(second)))


async def test_a_stolen_password_is_void_at_once_if_wished(world: Any, door: Door) -> None:
    await world.station()
    first = await given(world)
    let_in(await door.admit(asks(first)))
    await given(world, keep_earlier=False)
    assert refused(await door.admit(asks(first))) == (401, Reason.WRONG_PASSWORD)


async def test_the_form_of_the_key_is_noted(world: Any, door: Door) -> None:
    station = await world.station()
    password = await given(world)
    let_in(await door.admit(asks(bytes.fromhex(password))))
    assert (await kept(world, station.id)).key_form == "bytes"
    let_in(await door.admit(asks(password)))
    assert (await kept(world, station.id)).key_form == "text"


async def test_guesses_from_elsewhere_do_not_hold_the_station_up(world: Any, door: Door) -> None:
    await world.station()
    password = await given(world, "a chosen password")
    answers = [
        refused(await door.admit(asks(f"guess {number}", source="192.0.2.66")))
        for number in range(25)
    ]
    assert answers.count((401, Reason.WRONG_PASSWORD)) == 10
    assert answers.count((429, Reason.TOO_MANY_GUESSES)) == 15
    let_in(await door.admit(asks(password)))
    assert let_in(await door.admit(asks(password, source="192.0.2.66"))), "it is known by now"
    told = await happened(world, "ocpp.refused")
    assert [data["reason"] for _, data in told] == ["wrong_password", "too_many_guesses"]
    assert {data["source"] for _, data in told} == {"192.0.2.66"}
    assert "guess" not in str([data for _, data in told if data["reason"] == "wrong_password"])


async def test_strangers_are_slowed_by_source(world: Any, door: Door) -> None:
    await world.station()
    answers = [refused(await door.admit(asks(identity=f"X{number}"))) for number in range(80)]
    assert answers.count((429, Reason.TOO_MANY_STRANGERS)) == 20
    let_in(await door.admit(asks()))


async def test_refusals_take_the_same_time(world: Any, door_of: Callable[..., Door]) -> None:
    await world.station()
    await given(world, "a chosen password")
    door, loop = door_of(even_s=0.2), asyncio.get_running_loop()
    for request in (asks("wrong password"), asks(identity="CP-9"), asks()):
        begun = loop.time()
        assert isinstance(await door.admit(request), Refuse)
        assert loop.time() - begun >= 0.19


async def test_a_crowd_is_told_to_come_back(world: Any, door_of: Callable[..., Door]) -> None:
    await world.station()
    door = door_of(handshakes=Handshakes(places=8, per_second=6))
    crowd = [asks(source=f"192.0.2.{number}") for number in range(30)]
    answers = await asyncio.gather(*(door.admit(request) for request in crowd))
    busy = [answer for answer in answers if isinstance(answer, Refuse)]
    assert {(one.status, one.reason) for one in busy} == {(503, Reason.BUSY)}
    assert len(busy) == 24
    world.clock.forward(seconds=1)
    let_in(await door.admit(asks()))


async def test_a_database_that_is_away_is_no_refusal_for_good(
    world: Any, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any) -> Any:
        raise Unavailable("away")

    monkeypatch.setattr(world.stations, "residents", away)
    assert refused(await door.admit(asks())) == (503, Reason.UNAVAILABLE)


# --------------------------------------------------------------------------- profiles


async def test_a_wished_profile_is_taken_over_when_it_was_reached(world: Any, door: Door) -> None:
    station = await world.station()
    password = await given(world)
    await changed(world, pending_profile=2)
    let_in(await door.admit(asks(password)))
    assert (await kept(world, station.id)).security_profile == 0
    let_in(await door.admit(asks(password, tls=True)))
    row = await kept(world, station.id)
    assert (row.security_profile, row.pending_profile) == (2, None)
    assert refused(await door.admit(asks(password))) == (403, Reason.TLS_NEEDED)
    assert ("ocpp.profile_raised", {"from": 0, "to": 2}) in await happened(world)


async def test_a_revoked_certificate_opens_nothing(world: Any, door: Door, csr: Any) -> None:
    station = await world.station()
    made = await world.security.sign(Known(station.id, TenantId(1)), "CP-1", csr("CP-1"))
    shown = certificate(world, fingerprint=made.row.fingerprint, serial=made.row.serial)
    assert let_in(await door.admit(asks(certificate=shown))).profile is Profile.MUTUAL_TLS
    await world.security.revoke(BOSS, made.row.serial, "stolen")
    answer = refused(await door.admit(asks(certificate=shown)))
    assert answer == (401, Reason.CERTIFICATE_REVOKED)


# --------------------------------------------------------------------------- while it lasts


@pytest.fixture
async def watched(
    door: Door,
) -> AsyncIterator[tuple[list[Session], asyncio.Queue[tuple[str, Reason]]]]:
    sessions: list[Session] = []
    cut: asyncio.Queue[tuple[str, Reason]] = asyncio.Queue()

    async def end(session: Session, reason: Reason) -> None:
        sessions.remove(session)
        cut.put_nowait((session.identity, reason))

    watching = asyncio.create_task(door.watch(lambda: sessions, end))
    yield sessions, cut
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def next_of(cut: asyncio.Queue[tuple[str, Reason]]) -> tuple[str, Reason]:
    async with asyncio.timeout(5):
        return await cut.get()


async def test_who_may_not_stay_is_cut_off_in_seconds(
    world: Any, door: Door, watched: Any, csr: Any
) -> None:
    sessions, cut = watched
    station = await world.station()
    await world.station("CP-2")
    made = await world.security.sign(Known(station.id, TenantId(1)), "CP-1", csr("CP-1"))
    shown = certificate(world, fingerprint=made.row.fingerprint)
    sessions.append(session_of(let_in(await door.admit(asks(identity="CP-2"))), asks()))
    sessions.append(
        session_of(let_in(await door.admit(asks(certificate=shown))), asks(certificate=shown))
    )
    await world.security.revoke(BOSS, made.row.serial, "stolen")
    assert await next_of(cut) == ("CP-1", Reason.CERTIFICATE_REVOKED)

    password = await given(world)
    request = asks(password)
    sessions.append(session_of(let_in(await door.admit(request)), request))
    await changed(world, security_profile=2)
    assert await next_of(cut) == ("CP-1", Reason.PROFILE)
    assert [one.identity for one in sessions] == ["CP-2"]


async def test_a_deleted_stations_connection_is_cut_off(
    world: Any, door: Door, watched: Any
) -> None:
    sessions, cut = watched
    station = await world.station()
    sessions.append(session_of(let_in(await door.admit(asks())), asks()))
    await world.stations.delete_station(BOSS, "CP-1", ANYTHING)
    async with world.database.commit_unit() as cursor:
        await security_store.forget_station(cursor, station.id)
    assert await next_of(cut) == ("CP-1", Reason.UNKNOWN)


async def test_whoever_keeps_the_rules_stays(world: Any, door: Door) -> None:
    await world.station()
    request = asks()
    session = session_of(let_in(await door.admit(request)), request)
    assert await door.overdue([session]) == []
    await given(world)
    assert await door.overdue([session]) == [], "it is told its password over this connection"
    assert await door.overdue([Session("CP-1", 99, Profile.OPEN)]) != []
