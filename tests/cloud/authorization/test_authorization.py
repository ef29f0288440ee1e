"""Id tokens: entering, deciding, and the list that agents hold."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote
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
    assert (answer.status_code, answer.json()["code"]) == (422, "import.refused")
    assert "nowhere" in answer.json()["detail"]
    assert (await admin.get("/api/v1/id-tokens")).json()["items"] == []
    one = await admin.post("/api/v1/id-tokens", json={"value": "2", "group": "nowhere"})
    assert (one.status_code, one.json()["code"]) == (404, "id_token_group.not_found")


async def test_an_import_changes_what_it_says_and_keeps_the_rest(
    admin: httpx.AsyncClient,
) -> None:
    await admin.post("/api/v1/id-token-groups", json={"name": "Flotte"})
    for value in ("aa", "bb"):
        made = {"value": value, "label": "old", "group": "flotte"}
        await admin.post("/api/v1/id-tokens", json=made)
    sheet = "value,blocked,group\r\nAA,true,\r\nbb,false,FLOTTE\r\ncc,,flotte\r\n"
    url, kind = "/api/v1/id-tokens/import", {"content-type": "text/csv"}
    tried = await admin.post(url, params={"dry_run": True}, content=sheet, headers=kind)
    assert (tried.json()["committed"], tried.json()["created"]) == (False, 1)
    assert (await admin.get("/api/v1/id-tokens/cc")).status_code == 404
    done = (await admin.post(url, content=sheet, headers=kind)).json()
    assert [row["outcome"] for row in done["rows"]] == ["updated", "unchanged", "created"]
    changed = (await admin.get("/api/v1/id-tokens/aa")).json()
    assert changed["value"] == "aa", "what is entered keeps its spelling"
    assert (changed["label"], changed["blocked"], changed["group"]) == ("old", True, "Flotte")
    again = (await admin.post(url, content=sheet, headers=kind)).json()
    assert again["unchanged"] == 3
    skipped = await admin.post(
        url,
        params={"on_error": "skip"},
        json=[{"value": "dd"}, {"value": ""}, {"value": "DD"}, {"value": "ee", "group": "x"}],
    )
    assert [row["outcome"] for row in skipped.json()["rows"]] == ["created"] + ["failed"] * 3


async def test_an_import_sends_the_list_once_and_a_dry_run_does_not(
    world: Any, admin: httpx.AsyncClient
) -> None:
    station = await world.station()
    world.link.present[station.id] = Presence(online=True, last_seen=NOW)
    url, tokens = "/api/v1/id-tokens/import", [{"value": f"n{n}"} for n in range(30)]
    await admin.post(url, params={"dry_run": True}, json=tokens)
    await world.authorization.push_changed()
    assert world.link.sent == []
    await admin.post(url, json=tokens)
    await admin.post(url, json=tokens)
    await world.authorization.push_changed()
    assert len(world.link.sent) == 1


async def test_lists_are_narrowed_sorted_and_exported(admin: httpx.AsyncClient) -> None:
    group = (await admin.post("/api/v1/id-token-groups", json={"name": "Fleet"})).json()
    tokens = [
        {"value": "b", "expires_at": "2026-04-01T00:00:00Z", "group": "fleet"},
        {"value": "A", "label": "=1+1"},
        {"value": "c", "expires_at": "2027-01-01T00:00:00Z", "type": "eMAID", "blocked": True},
    ]
    await admin.post("/api/v1/id-tokens/import", json=tokens)

    async def found(**params: Any) -> list[str]:
        page = (await admin.get("/api/v1/id-tokens", params=params)).json()
        return [token["value"] for token in page["items"]]

    assert await found() == ["A", "b", "c"]
    assert await found(sort="-expires_at") == ["c", "b", "A"]
    assert await found(expired=True) == ["b"]
    assert await found(expired=False) == ["A", "c"]
    assert await found(type="eMAID", blocked=True) == ["c"]
    assert await found(group=group["id"]) == ["b"]
    assert await found(text="1+") == ["A"]
    sheet = await admin.get("/api/v1/id-tokens", params={"format": "csv", "limit": 1})
    assert sheet.text.startswith("value,type,group,label,blocked,expires_at,created_at\r\n")
    assert "'=1+1" in sheet.text
    assert 'rel="next"' in sheet.headers["link"]


async def test_nobody_overwrites_unseen(admin: httpx.AsyncClient) -> None:
    await admin.post("/api/v1/id-tokens", json={"value": "aa"})
    url = "/api/v1/id-tokens/aa"
    seen = {"If-Match": (await admin.get(url)).headers["etag"]}
    assert (await admin.patch(url, json={"label": "x"}, headers=seen)).status_code == 200
    late = await admin.patch(url, json={"label": "y"}, headers=seen)
    assert (late.status_code, late.json()["code"]) == (412, "etag.stale")
    assert (await admin.delete(url, headers=seen)).status_code == 412
    now = {"If-None-Match": (await admin.get(url)).headers["etag"]}
    assert (await admin.get(url, headers=now)).status_code == 304


@pytest.mark.parametrize("value", ["İstanbul", "ẞ", "a/b c", "=1", "Ünïcode-ﬃ", "\u2028", "%41"])
async def test_any_text_is_a_token_in_any_case(admin: httpx.AsyncClient, value: str) -> None:
    made = await admin.post("/api/v1/id-tokens", json={"value": value})
    assert (made.status_code, made.json()["value"]) == (201, value)
    await admin.post("/api/v1/id-token-groups", json={"name": value})
    tokens = [{"value": value, "group": value}, {"value": value.upper()}, {"value": value.lower()}]
    url = "/api/v1/id-tokens/import"
    answer = await admin.post(url, params={"on_error": "skip"}, json=tokens)
    assert answer.status_code == 200, answer.text
    one = await admin.get(f"/api/v1/id-tokens/{quote(value, safe='')}")
    assert (one.status_code, one.json()["group"]) == (200, value)


@pytest.mark.parametrize("text", ["a\\u0000b", "\\ud800", "\\udfff\\ud800"])
async def test_what_is_no_text_is_refused(admin: httpx.AsyncClient, text: str) -> None:
    one = await admin.post("/api/v1/id-tokens", content=f'{{"value": "{text}"}}')
    assert one.status_code == 422
    assert one.headers["content-type"] == "application/problem+json"
    for body in (f'[{{"value": "{text}"}}]', f'[{{"value": "x", "{text}": 1}}]', f'["{text}"]'):
        many = await admin.post("/api/v1/id-tokens/import", content=body)
        assert many.status_code == 422, many.text


async def test_a_time_beyond_all_calendars_is_refused(admin: httpx.AsyncClient) -> None:
    expires = {"value": "x", "expires_at": "0001-01-01T00:00:00+23:00"}
    assert (await admin.post("/api/v1/id-tokens", json=expires)).status_code == 422


async def test_groups_are_renamed_and_go_when_they_are_empty(
    world: Any, admin: httpx.AsyncClient
) -> None:
    station = await world.station()
    world.link.present[station.id] = Presence(online=True, last_seen=NOW)
    made = await admin.post("/api/v1/id-token-groups", json={"name": "Fleet"})
    other = await admin.post("/api/v1/id-token-groups", json={"name": "Guests"})
    url = f"/api/v1/id-token-groups/{made.json()['id']}"
    await admin.post("/api/v1/id-tokens", json={"value": "aa", "group": "fleet"})
    await world.authorization.push_changed()
    etag = {"If-Match": (await admin.get(url)).headers["etag"]}
    renamed = await admin.patch(url, json={"name": "Vans"}, headers=etag)
    assert renamed.json() == {**made.json(), "name": "Vans"}
    assert (await admin.patch(url, json={"name": "x"}, headers=etag)).status_code == 412
    taken = await admin.patch(url, json={"name": "GUESTS"})
    assert (taken.status_code, taken.json()["code"]) == (409, "id_token_group.exists")
    assert (await admin.get("/api/v1/id-tokens/aa")).json()["group"] == "Vans"
    await world.authorization.push_changed()
    assert len(world.link.sent) == 2
    used = await admin.delete(url)
    assert (used.status_code, used.json()["code"]) == (409, "id_token_group.in_use")
    assert (await admin.delete(f"/api/v1/id-token-groups/{other.json()['id']}")).status_code == 204
    names = [one["name"] for one in (await admin.get("/api/v1/id-token-groups")).json()["items"]]
    assert names == ["Vans"]


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
