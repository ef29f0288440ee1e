"""/api/v1/tariffs and what belongs to them, as an operator's program uses them."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from cloud.kernel.http import Role

DAY = {"name": "Day", "currency": "UZS", "per_kwh": "1500", "per_minute": "50.5"}


async def made(admin: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await admin.post("/api/v1/tariffs", json={**DAY, **fields})
    assert answer.status_code == 201, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def test_a_tariff_is_made_with_its_first_prices(admin: httpx.AsyncClient) -> None:
    day = await made(admin, tax_percent="12", min_total="5000", max_total="500000.00")
    current = day["current"]
    assert (day["name"], day["currency"], day["versions"]) == ("Day", "UZS", 1)
    assert (current["version"], current["per_kwh"], current["per_minute"]) == (1, "1500", "50.5")
    assert (current["per_session"], current["tax_percent"]) == ("0", "12")
    assert (current["min_total"], current["max_total"]) == ("5000.00", "500000.00")
    assert (current["shown_digits"], current["tax_included"]) == (0, True)
    assert (await admin.get(f"/api/v1/tariffs/{day['id']}")).json() == day
    again = await admin.post("/api/v1/tariffs", json={**DAY, "name": "dAY"})
    assert (again.status_code, again.json()["code"]) == (409, "tariff.exists")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"min_total": "10", "max_total": "9"}, "tariff.terms"),
        ({"min_total": "10.005"}, "tariff.terms"),
        ({"currency": "JPY", "max_total": "0.5"}, "tariff.terms"),
        ({"shown_digits": 3}, "tariff.terms"),
        ({"currency": "XXX"}, "request.invalid"),
        ({"per_kwh": 1500}, "request.invalid"),
        ({"per_kwh": "-1"}, "request.invalid"),
        ({"per_kwh": "1e3"}, "request.invalid"),
        ({"per_kwh": "0.1234567"}, "request.invalid"),
        ({"tax_percent": "100"}, "request.invalid"),
    ],
)
async def test_what_is_no_price_is_refused(
    admin: httpx.AsyncClient, fields: dict[str, Any], code: str
) -> None:
    answer = await admin.post("/api/v1/tariffs", json={**DAY, **fields})
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert (await admin.get("/api/v1/tariffs")).json()["items"] == []


async def test_new_prices_are_a_new_version_from_a_moment_on(
    world: Any, admin: httpx.AsyncClient
) -> None:
    day = await made(admin)
    url = f"/api/v1/tariffs/{day['id']}"
    later = {"per_kwh": "1700", "valid_from": "2026-05-01T14:00:00+02:00"}
    world.clock.forward(hours=-1)
    assert (await admin.post(f"{url}/versions", json=later)).json()["version"] == 2
    past = {"per_kwh": "1", "valid_from": "2026-05-01T10:54:59Z"}
    refused = await admin.post(f"{url}/versions", json=past)
    assert (refused.status_code, refused.json()["code"]) == (409, "tariff.in_the_past")
    almost = {"per_kwh": "1600", "valid_from": "2026-05-01T10:55:00Z"}
    third = (await admin.post(f"{url}/versions", json=almost)).json()
    assert (third["version"], third["valid_from"]) == (3, "2026-05-01T11:00:00Z")
    told = (await admin.get(url)).json()
    assert (told["versions"], told["current"]["per_kwh"]) == (3, "1600")
    world.clock.forward(hours=1)
    assert (await admin.get(url)).json()["current"]["per_kwh"] == "1700"
    history = (await admin.get(f"{url}/versions")).json()["items"]
    assert [one["version"] for one in history] == [3, 2, 1]
    first = (await admin.get(f"{url}/versions", params={"sort": "number", "limit": 1})).json()
    assert [one["per_kwh"] for one in first["items"]] == ["1500"]
    rest = {"sort": "number", "cursor": first["next"]}
    more = (await admin.get(f"{url}/versions", params=rest)).json()["items"]
    assert [one["version"] for one in more] == [2, 3]


async def test_nobody_overwrites_unseen(admin: httpx.AsyncClient) -> None:
    day = await made(admin)
    await made(admin, name="Night")
    url = f"/api/v1/tariffs/{day['id']}"
    answer = await admin.get(url)
    seen = {"If-Match": answer.headers["etag"]}
    unchanged = await admin.get(url, headers={"If-None-Match": answer.headers["etag"]})
    assert unchanged.status_code == 304
    assert (await admin.post(f"{url}/versions", json={}, headers=seen)).status_code == 201
    late = await admin.post(f"{url}/versions", json={}, headers=seen)
    assert (late.status_code, late.json()["code"]) == (412, "etag.stale")
    assert (await admin.patch(url, json={"name": "x"}, headers=seen)).status_code == 412
    renamed = await admin.patch(url, json={"name": "Daylight"})
    assert (renamed.json()["name"], renamed.json()["versions"]) == ("Daylight", 2)
    taken = await admin.patch(url, json={"name": "night"})
    assert (taken.status_code, taken.json()["code"]) == (409, "tariff.exists")
    assert (await admin.patch(url, json={})).json()["name"] == "Daylight"


async def test_versions_given_at_once_are_numbered_one_by_one(admin: httpx.AsyncClient) -> None:
    url = f"/api/v1/tariffs/{(await made(admin))['id']}/versions"
    answers = await asyncio.gather(*[admin.post(url, json={}) for _ in range(6)])
    assert sorted(one.json()["version"] for one in answers) == [2, 3, 4, 5, 6, 7]


async def test_a_quote_says_what_charging_would_cost(world: Any, admin: httpx.AsyncClient) -> None:
    day = await made(admin, tax_percent="12", per_session="999.99")
    url = f"/api/v1/tariffs/{day['id']}"
    measure = {"energy_wh": 20_000, "duration_ms": 45 * 60_000}
    async with await world.client(Role.VIEWER) as viewer:
        quote = (await viewer.post(f"{url}/quote", json=measure)).json()
    assert quote == {
        "version": 1,
        "currency": "UZS",
        "total_minor": 3_327_249,
        "total": "33272",
        "tax_minor": 356_491,
        "parts": [
            {"kind": "session", "amount_minor": 99_999},
            {"kind": "energy", "amount_minor": 3_000_000},
            {"kind": "time", "amount_minor": 227_250},
        ],
    }
    await admin.post(f"{url}/versions", json={"valid_from": "2027-01-01T00:00:00Z"})
    for chosen, total in (
        ({"version": 2}, 0),
        ({"at": "2027-01-01T00:00:00Z"}, 0),
        ({}, 3_327_249),
    ):
        asked = await admin.post(f"{url}/quote", json={**measure, **chosen})
        assert asked.json()["total_minor"] == total
    unknown = await admin.post(f"{url}/quote", json={**measure, "version": 3})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "tariff_version.not_found")
    early = await admin.post(f"{url}/quote", json={**measure, "at": "2026-01-01T00:00:00Z"})
    assert (early.status_code, early.json()["code"]) == (409, "tariff.not_in_force")


async def test_tariffs_hold_where_they_are_assigned(world: Any, admin: httpx.AsyncClient) -> None:
    day, night = await made(admin), await made(admin, name="Night")
    site = (await admin.post("/api/v1/sites", json={"name": "Home"})).json()["id"]
    await admin.post("/api/v1/stations", json={"station": "CP-1", "site": site})
    here, url = "/api/v1/stations/CP-1/tariff", "/api/v1/tariff-assignments"
    none = await admin.get(here)
    assert (none.status_code, none.json()["code"]) == (404, "tariff.none_assigned")
    everywhere = (await admin.post(url, json={"tariff": day["id"]})).json()
    assert (everywhere["site"], everywhere["station"], everywhere["evse"]) == (None, None, None)
    assert (await admin.get(here)).json() == day
    narrow = {"tariff": night["id"], "station": "CP-1", "evse": 2}
    evse = (await admin.post(url, json=narrow)).json()
    assert (evse["station"], evse["evse"], evse["name"]) == ("CP-1", 2, "Night")
    assert (await admin.get(here, params={"evse": 2})).json()["name"] == "Night"
    assert (await admin.get(here)).json()["name"] == "Day"
    world.clock.forward(hours=1)
    at_site = (await admin.post(url, json={"tariff": night["id"], "site": site})).json()
    assert (await admin.get(here)).json()["name"] == "Night"

    async def found(**params: Any) -> list[int]:
        page = (await admin.get(url, params=params)).json()
        return [one["id"] for one in page["items"]]

    assert await found() == [everywhere["id"], evse["id"], at_site["id"]]
    assert await found(sort="-since", limit=1) == [at_site["id"]]
    assert await found(tariff=night["id"]) == [evse["id"], at_site["id"]]
    assert await found(site=site) == [at_site["id"]]
    assert await found(station="CP-1") == [evse["id"]]
    sheet = await admin.get(url, params={"format": "csv"})
    assert sheet.text.startswith("id,tariff,name,site,station,evse,since,until,created_by\r\n")
    assert await found(ended=True) == []
    one = f"{url}/{at_site['id']}"
    tag = {"If-Match": (await admin.get(one)).headers["etag"]}
    assert (await admin.delete(one, headers={"If-Match": '"0"'})).status_code == 412
    assert (await admin.delete(one, headers=tag)).status_code == 204
    assert (await admin.get(one)).status_code == 404
    assert (await admin.delete(one)).json()["code"] == "tariff_assignment.not_found"
    assert await found(ended=True) == [at_site["id"]]
    assert (await admin.get(here)).json()["name"] == "Day"


async def test_assigning_replaces_what_held_there_and_is_the_same_when_it_is(
    admin: httpx.AsyncClient,
) -> None:
    day, night = await made(admin), await made(admin, name="Night")
    url = "/api/v1/tariff-assignments"
    first = (await admin.post(url, json={"tariff": day["id"]})).json()
    assert (await admin.post(url, json={"tariff": day["id"]})).json() == first
    await admin.post(url, json={"tariff": night["id"]})
    held = (await admin.get(url)).json()["items"]
    assert [one["name"] for one in held] == ["Night"]
    (ended,) = (await admin.get(url, params={"ended": True})).json()["items"]
    assert (ended["id"], ended["until"]) == (first["id"], held[0]["since"])


async def test_assigning_at_once_leaves_one(admin: httpx.AsyncClient) -> None:
    made_ = [await made(admin, name=f"tariff {n}") for n in range(4)]
    url = "/api/v1/tariff-assignments"
    answers = await asyncio.gather(*[admin.post(url, json={"tariff": o["id"]}) for o in made_])
    assert {one.status_code for one in answers} == {201}
    assert len((await admin.get(url)).json()["items"]) == 1
    assert len((await admin.get(url, params={"ended": True})).json()["items"]) == 3


@pytest.mark.parametrize(
    ("place", "status", "code"),
    [
        ({"site": 9}, 404, "site.not_found"),
        ({"station": "CP-9"}, 404, "station.not_found"),
        ({"tariff": 9}, 404, "tariff.not_found"),
        ({"site": 1, "station": "CP-1"}, 422, "request.invalid"),
        ({"evse": 1}, 422, "request.invalid"),
    ],
)
async def test_a_place_must_be_there(
    admin: httpx.AsyncClient, place: dict[str, Any], status: int, code: str
) -> None:
    await made(admin)
    answer = await admin.post("/api/v1/tariff-assignments", json={"tariff": 1, **place})
    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_lists_are_narrowed_sorted_and_exported(world: Any, admin: httpx.AsyncClient) -> None:
    for name, currency in (("b", "EUR"), ("A", "UZS"), ("c", "UZS")):
        await made(admin, name=name, currency=currency)
        world.clock.forward(seconds=1)

    async def found(**params: Any) -> list[str]:
        page = (await admin.get("/api/v1/tariffs", params=params)).json()
        return [one["name"] for one in page["items"]]

    assert await found() == ["A", "b", "c"]
    assert await found(sort="-created_at", limit=2) == ["c", "A"]
    assert await found(currency="UZS", text="a") == ["A"]
    sheet = await admin.get("/api/v1/tariffs", params={"format": "csv"})
    assert "current.per_kwh" in sheet.text.splitlines()[0]


async def test_other_tenants_see_and_change_nothing(world: Any, admin: httpx.AsyncClient) -> None:
    day = await made(admin)
    held = (await admin.post("/api/v1/tariff-assignments", json={"tariff": day["id"]})).json()
    async with await world.client(Role.ADMIN, tenant=2) as other:
        url = f"/api/v1/tariffs/{day['id']}"
        for path in (url, f"{url}/versions", f"/api/v1/tariff-assignments/{held['id']}"):
            assert (await other.get(path)).status_code == 404
        assert (await other.post(f"{url}/versions", json={})).status_code == 404
        assert (await other.post(f"{url}/quote", json={"energy_wh": 1})).status_code == 404
        mine = {"tariff": day["id"]}
        assert (await other.post("/api/v1/tariff-assignments", json=mine)).status_code == 404
        assert (await other.post("/api/v1/tariffs", json=DAY)).status_code == 201


async def test_a_repeated_request_makes_one_version(admin: httpx.AsyncClient) -> None:
    day = await made(admin)
    url, key = f"/api/v1/tariffs/{day['id']}/versions", {"Idempotency-Key": "once"}
    first = await admin.post(url, json={"per_kwh": "1600"}, headers=key)
    again = await admin.post(url, json={"per_kwh": "1600"}, headers=key)
    assert (again.json(), again.headers["idempotency-replayed"]) == (first.json(), "true")
    assert (await admin.get(f"/api/v1/tariffs/{day['id']}")).json()["versions"] == 2
