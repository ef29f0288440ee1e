"""Stations in bulk."""

from __future__ import annotations

import csv
import io
from typing import Any

import httpx

URL = "/api/v1/stations/import"
CSV = {"Content-Type": "text/csv"}


async def post(client: httpx.AsyncClient, text: str, **params: Any) -> httpx.Response:
    return await client.post(URL, content=text.encode(), headers=CSV, params=params)


async def test_new_stations_are_created_with_their_codes(
    world: Any, admin: httpx.AsyncClient
) -> None:
    await admin.post("/api/v1/sites", json={"name": "Чорсу"})
    text = "station,name,site_name\r\nTAS-1,Nord,чорсу\r\nTAS-2,,\r\n"
    tried = (await post(admin, text, dry_run=True)).json()
    assert (tried["committed"], tried["created"]) == (False, 2)
    assert (await admin.get("/api/v1/stations")).json()["items"] == []
    made = (await post(admin, text)).json()
    assert (made["committed"], made["created"], made["failed"]) == (True, 2, 0)
    assert [(row["line"], row["key"]) for row in made["rows"]] == [(2, "TAS-1"), (3, "TAS-2")]
    shown = (await admin.get("/api/v1/stations/TAS-1")).json()
    assert (shown["name"], shown["registration"], shown["site"]) == ("Nord", "expected", 1)
    code = made["rows"][0]["claim_code"]
    claimed = await admin.post("/api/v1/claims", json={"station": "TAS-1", "code": code})
    assert claimed.status_code == 200


async def test_the_same_import_again_changes_nothing(world: Any, admin: httpx.AsyncClient) -> None:
    rows = [{"station": "a", "name": "A"}, {"station": "b"}]
    await admin.post(URL, json=rows)
    again = (await admin.post(URL, json={"stations": rows})).json()
    assert (again["created"], again["updated"], again["unchanged"]) == (0, 0, 2)
    assert [row["claim_code"] for row in again["rows"]] == [None, None]
    await admin.post("/api/v1/sites", json={"name": "S"})
    changed = (await admin.post(URL, json=[{"station": "a", "site": 1}])).json()
    assert changed["updated"] == 1
    shown = (await admin.get("/api/v1/stations/a")).json()
    assert (shown["name"], shown["site"]) == ("A", 1)
    kept = (await admin.post(URL, json=[{"station": "a", "name": "B"}])).json()
    assert kept["updated"] == 1
    shown = (await admin.get("/api/v1/stations/a")).json()
    assert (shown["name"], shown["site"]) == ("B", 1)


async def test_every_bad_row_is_told_and_keeps_the_others_out(
    world: Any, admin: httpx.AsyncClient
) -> None:
    await world.station("foreign", tenant=2)
    text = (
        "station;name;site;site_name\n"
        "good;;;\n"
        "a/b;;;\n"
        "lost;;77;\n"
        "lost2;;;nowhere\n"
        "foreign;;;\n"
        "good;again;;\n"
        f"{'x' * 49};;;\n"
    )
    refused = await post(admin, text)
    assert (refused.status_code, refused.json()["code"]) == (422, "import.refused")
    told = refused.json()["params"]["report"]["rows"]
    assert [row["line"] for row in told] == [3, 4, 5, 6, 7, 8]
    assert "claim_code" in told[0]
    assert (await admin.get("/api/v1/stations")).json()["items"] == []
    skipped = await post(admin, text, on_error="skip", format="csv")
    rows = list(csv.DictReader(io.StringIO(skipped.text, newline="")))
    assert [row["outcome"] for row in rows] == ["created"] + ["failed"] * 6
    assert len(rows[0]["claim_code"]) == 17
    assert (await admin.get("/api/v1/stations")).json()["items"][0]["station"] == "good"


async def test_an_unreadable_body_is_refused(admin: httpx.AsyncClient) -> None:
    for body, kind in ((b"\xff\xfe", "text/csv"), (b"nope", "application/json"), (b"", "image/x")):
        answer = await admin.post(URL, content=body, headers={"Content-Type": kind})
        assert (answer.status_code, answer.json()["code"]) == (422, "import.unreadable")


async def test_a_retried_import_tells_the_same_codes(admin: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "monday"}
    first = await admin.post(URL, json=[{"station": "a"}], headers=headers)
    again = await admin.post(URL, json=[{"station": "a"}], headers=headers)
    assert first.json()["rows"][0]["claim_code"] == again.json()["rows"][0]["claim_code"]


async def test_ten_thousand_are_taken_at_once(world: Any, admin: httpx.AsyncClient) -> None:
    text = "station,name\n" + "".join(f"S{n:05},Station {n}\n" for n in range(10_000))
    made = (await post(admin, text)).json()
    assert (made["created"], made["failed"]) == (10_000, 0)
    assert (await post(admin, text + "one more,\n")).json()["code"] == "import.unreadable"
