"""Id tokens: entering, deciding, and the list that agents hold."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest

from cloud.authorization.decision import Decision, TokenRules, decide
from cloud.authorization.store import refer, reveal
from cloud.communication.api import Presence
from protocols.agent_link import (
    ClockQuality,
    Hello,
    IdToken,
    LocalListEntry,
    SetLocalList,
    Stamp,
)
from protocols.quantities import Milliseconds

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("rules", "decision"),
    [
        (None, Decision.UNKNOWN),
        (TokenRules(blocked=False, expires_at=None), Decision.ACCEPTED),
        (TokenRules(blocked=False, expires_at=NOW + HOUR), Decision.ACCEPTED),
        (TokenRules(blocked=False, expires_at=NOW), Decision.EXPIRED),
        (TokenRules(blocked=True, expires_at=NOW - HOUR), Decision.BLOCKED),
    ],
)
def test_decisions(rules: TokenRules | None, decision: Decision) -> None:
    assert decide(rules, NOW) is decision


async def test_tokens_are_entered_changed_and_taken_out(admin: httpx.AsyncClient) -> None:
    assert (await admin.get("/api/v1/id-tokens")).json() == {"items": [], "next": None}
    await admin.post("/api/v1/id-token-groups", json={"name": "Fleet"})
    made = await admin.post(
        "/api/v1/id-tokens", json={"value": "04AB", "group": "fleet", "label": "van"}
    )
    assert (made.status_code, made.json()["group"]) == (201, "Fleet")
    again = await admin.post("/api/v1/id-tokens", json={"value": "04ab"})
    assert (again.status_code, again.json()["code"]) == (409, "id_token.exists")
    changed = await admin.patch("/api/v1/id-tokens/04aB", json={"blocked": True})
    assert changed.json() == {**made.json(), "blocked": True}
    blocked = await admin.get("/api/v1/id-tokens", params={"blocked": True})
    assert [one["value"] for one in blocked.json()["items"]] == ["04AB"]
    assert (await admin.delete("/api/v1/id-tokens/04AB")).status_code == 204
    assert (await admin.get("/api/v1/id-tokens/04AB")).status_code == 404


async def test_an_unknown_group_is_refused_and_nothing_is_entered(
    admin: httpx.AsyncClient,
) -> None:
    tokens = [{"value": "1"}, {"value": "2", "group": "nowhere"}]
    answer = await admin.post("/api/v1/id-tokens/import", json={"id_tokens": tokens})
    assert (answer.status_code, answer.json()["code"]) == (404, "id_token_group.not_found")
    assert (await admin.get("/api/v1/id-tokens")).json()["items"] == []


async def test_an_import_replaces_what_is_there(admin: httpx.AsyncClient) -> None:
    await admin.post("/api/v1/id-tokens", json={"value": "aa", "label": "old"})
    tokens = [{"value": "AA", "label": "new"}, *({"value": f"n{n}"} for n in range(30))]
    answer = await admin.post("/api/v1/id-tokens/import", json={"id_tokens": tokens})
    assert answer.json() == {"imported": 31}
    assert (await admin.get("/api/v1/id-tokens/aa")).json()["label"] == "new"
    first = (await admin.get("/api/v1/id-tokens", params={"limit": 20})).json()
    rest = await admin.get("/api/v1/id-tokens", params={"limit": 20, "cursor": first["next"]})
    assert len(first["items"]) + len(rest.json()["items"]) == 31


async def test_groups_are_listed_and_unique(admin: httpx.AsyncClient) -> None:
    made = await admin.post("/api/v1/id-token-groups", json={"name": "Guests"})
    assert made.status_code == 201
    again = await admin.post("/api/v1/id-token-groups", json={"name": "GUESTS"})
    assert (again.status_code, again.json()["code"]) == (409, "id_token_group.exists")
    listed = await admin.get("/api/v1/id-token-groups", params={"text": "gue"})
    assert [group["name"] for group in listed.json()["items"]] == ["Guests"]


# --------------------------------------------------------------------------- the agents' list


def hello(version: int) -> Hello:
    stamp = Stamp(Milliseconds(0), Milliseconds(0), UUID(int=1), ClockQuality.SYNCED)
    return Hello(UUID(int=2), (UUID(int=1),), stamp, {}, "1.0", (), (), version)


async def greet(world: Any, station: int, version: int) -> None:
    async with world.database.commit_unit() as cursor:
        await world.authorization.hello(cursor, 1, station, hello(version))


async def test_a_change_goes_to_connected_agents_only(world: Any, admin: httpx.AsyncClient) -> None:
    near, far = await world.station("CP-1"), await world.station("CP-2")
    world.link.present[near.id] = Presence(online=True, last_seen=NOW)
    world.link.present[far.id] = Presence(online=False, last_seen=NOW)
    entry = {"value": "04AB", "expires_at": "2026-06-01T00:00:00Z", "blocked": True}
    await admin.post("/api/v1/id-tokens", json=entry)
    await world.authorization.push_changed()
    ((station, pushed),) = world.link.sent
    assert station == near.id
    assert isinstance(pushed, SetLocalList)
    async with world.database.commit_unit() as cursor:
        composed = await world.authorization.local_list(cursor, 1)
    assert (composed.version, pushed.entries) == (pushed.version, ())
    assert composed.entries == (
        LocalListEntry(IdToken("04AB"), Milliseconds(1_780_272_000_000), None, blocked=True),
    )
    await world.authorization.push_changed()
    assert len(world.link.sent) == 1


async def test_versions_only_rise_even_over_a_restored_database(
    world: Any, admin: httpx.AsyncClient
) -> None:
    station = await world.station()
    world.link.present[station.id] = Presence(online=True, last_seen=NOW)
    for value in ("1", "2", "3"):
        await admin.post("/api/v1/id-tokens", json={"value": value})
        await world.authorization.push_changed()
    versions = [action.version for _, action in world.link.sent]
    assert versions == sorted(set(versions))
    assert versions[0] >= int(NOW.timestamp())


async def test_a_hello_with_another_version_gets_the_list(
    world: Any, admin: httpx.AsyncClient
) -> None:
    station = await world.station()
    await greet(world, station.id, 0)
    assert world.link.sent == []
    await admin.post("/api/v1/id-tokens", json={"value": "04AB"})
    await greet(world, station.id, 0)
    await greet(world, station.id, 0)
    assert len(world.link.sent) == 1
    version = world.link.sent[0][1].version
    world.clock.forward(minutes=1)
    await greet(world, station.id, version)
    assert len(world.link.sent) == 1
    await greet(world, station.id, version + 5)
    assert len(world.link.sent) == 2


async def test_references_stand_for_tokens_in_any_case(world: Any) -> None:
    async with world.database.commit_unit() as cursor:
        seen = {(1, IdToken("Ab")), (1, IdToken("aB")), (2, IdToken("Ab")), (1, IdToken("Ab", "X"))}
        refs = await refer(cursor, seen)
        assert refs[1, IdToken("Ab")] == refs[1, IdToken("aB")]
        assert len(set(refs.values())) == 3
        assert await refer(cursor, seen) == refs
    async with world.database.unit(1) as cursor:
        mine = await reveal(cursor, set(refs.values()))
    assert set(mine) == {refs[1, IdToken("Ab")], refs[1, IdToken("Ab", "X")]}
