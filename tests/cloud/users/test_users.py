"""Keys, users and logins."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from cloud.kernel.database import TenantId
from cloud.kernel.errors import Forbidden
from cloud.kernel.http import Caller, Role
from cloud.users import keys
from cloud.users.keys import KeyFacts

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
PASSWORD = "correct horse battery"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


class TestKeys:
    def test_what_was_written_is_read(self) -> None:
        secret = keys.new_secret()
        assert keys.read(keys.write(12, secret)) == (12, secret)

    @pytest.mark.parametrize(
        "text",
        ["", "kv_1_", "kv_x_" + "a" * 40, "kv_1_" + "a" * 40 + "\n", "kv_9999999999_" + "a" * 40],
    )
    def test_anything_else_is_no_key(self, text: str) -> None:
        assert keys.read(text) is None

    @pytest.mark.parametrize(
        ("change", "holds"),
        [
            ({}, True),
            ({"expires_at": NOW + timedelta(seconds=1)}, True),
            ({"expires_at": NOW}, False),
            ({"revoked_at": NOW}, False),
            ({"disabled_at": NOW}, False),
            ({"digest": keys.digest("other")}, False),
        ],
    )
    def test_a_key_holds_only_while_nothing_speaks_against_it(
        self, change: dict[str, Any], holds: bool
    ) -> None:
        known: dict[str, Any] = {
            "tenant_id": 1,
            "person_id": None,
            "digest": keys.digest("secret"),
            "role": Role.ADMIN,
            "expires_at": None,
            "revoked_at": None,
            "disabled_at": None,
            "last_used_at": None,
        }
        assert keys.opens(KeyFacts(**{**known, **change}), "secret", NOW) is holds


async def test_a_key_is_shown_once_and_never_stored(world: Any, admin: httpx.AsyncClient) -> None:
    made = await admin.post("/api/v1/api-keys", json={"name": "grafana", "role": "viewer"})
    assert made.status_code == 201
    key = made.json()["key"]
    me = await admin.get("/api/v1/me", headers=bearer(key))
    subject = f"key:{made.json()['id']}"
    assert me.json() == {"tenant": 1, "subject": subject, "role": "viewer", "user": None}
    listed = (await admin.get("/api/v1/api-keys")).json()["items"]
    assert [one["name"] for one in listed] == ["test ADMIN", "grafana"]
    assert not any("key" in one for one in listed)
    async with world.database.commit_unit() as cursor:
        await cursor.execute("SELECT k::text FROM users.api_key k")
        assert not any(key.split("_", 2)[2] in text for (text,) in await cursor.fetchall())


async def test_a_revoked_key_stops_at_once(admin: httpx.AsyncClient) -> None:
    made = (await admin.post("/api/v1/api-keys", json={"name": "x", "role": "admin"})).json()
    gone = await admin.delete(f"/api/v1/api-keys/{made['id']}")
    assert gone.json()["revoked_at"] is not None
    refused = await admin.get("/api/v1/me", headers=bearer(made["key"]))
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
    active = (await admin.get("/api/v1/api-keys", params={"active": True})).json()["items"]
    assert made["id"] not in [one["id"] for one in active]
    assert (await admin.delete("/api/v1/api-keys/9999")).status_code == 404


async def test_an_expired_key_stops(world: Any, admin: httpx.AsyncClient) -> None:
    expiring = {"name": "x", "role": "viewer", "expires_at": "2026-05-01T13:00:00Z"}
    key = (await admin.post("/api/v1/api-keys", json=expiring)).json()["key"]
    assert (await admin.get("/api/v1/me", headers=bearer(key))).status_code == 200
    world.clock.forward(hours=1)
    assert (await admin.get("/api/v1/me", headers=bearer(key))).status_code == 401


async def test_use_is_noted_to_the_minute(world: Any, admin: httpx.AsyncClient) -> None:
    async def used() -> str:
        return str((await admin.get("/api/v1/api-keys")).json()["items"][0]["last_used_at"])

    first = await used()
    world.clock.forward(seconds=30)
    assert await used() == first
    world.clock.forward(seconds=31)
    assert await used() > first


async def test_a_user_logs_in_and_out_of_favour(world: Any, admin: httpx.AsyncClient) -> None:
    person = {"name": "Aziza", "role": "operator", "password": PASSWORD}
    made = await admin.post("/api/v1/users", json=person)
    assert made.status_code == 201
    assert "password" not in made.text
    login = {"name": "aziza", "password": PASSWORD}
    session = (await admin.post("/api/v1/login", json=login)).json()
    me = await admin.get("/api/v1/me", headers=bearer(session["key"]))
    assert me.json()["role"] == "operator"
    user = f"/api/v1/users/{made.json()['id']}"
    await admin.patch(user, json={"role": "viewer"})
    me = await admin.get("/api/v1/me", headers=bearer(session["key"]))
    assert me.json()["role"] == "viewer"
    await admin.patch(user, json={"disabled": True})
    assert (await admin.get("/api/v1/me", headers=bearer(session["key"]))).status_code == 401
    assert (await admin.post("/api/v1/login", json=login)).status_code == 401
    await admin.patch(user, json={"disabled": False})
    assert (await admin.get("/api/v1/me", headers=bearer(session["key"]))).status_code == 401
    again = (await admin.post("/api/v1/login", json=login)).json()
    world.clock.forward(hours=13)
    assert (await admin.get("/api/v1/me", headers=bearer(again["key"]))).status_code == 401


async def test_wrong_names_and_passwords_look_the_same(admin: httpx.AsyncClient) -> None:
    person = {"name": "Aziza", "role": "operator", "password": PASSWORD}
    await admin.post("/api/v1/users", json=person)
    nobody = await admin.post("/api/v1/login", json={"name": "nobody", "password": PASSWORD})
    wrong = await admin.post("/api/v1/login", json={"name": "Aziza", "password": "wrong"})
    assert nobody.status_code == wrong.status_code == 401
    assert nobody.json() == wrong.json()


async def test_guessing_is_slowed_down(world: Any, admin: httpx.AsyncClient) -> None:
    guess = {"name": "Aziza", "password": "guess"}
    answers = [(await admin.post("/api/v1/login", json=guess)).status_code for _ in range(6)]
    assert answers == [401] * 5 + [429]
    world.clock.forward(seconds=10)
    assert (await admin.post("/api/v1/login", json=guess)).status_code == 401


async def test_names_are_taken_in_any_case_and_passwords_are_not_short(
    admin: httpx.AsyncClient,
) -> None:
    person = {"name": "Азиза", "role": "operator", "password": PASSWORD}
    await admin.post("/api/v1/users", json=person)
    taken = await admin.post("/api/v1/users", json={**person, "name": "АЗИЗА"})
    assert (taken.status_code, taken.json()["code"]) == (409, "user.exists")
    short = await admin.post("/api/v1/users", json={**person, "name": "b", "password": "123"})
    assert short.status_code == 422
    assert (await admin.patch("/api/v1/users/99", json={"role": "viewer"})).status_code == 404


async def test_the_admin_key_file_is_written_once(world: Any, tmp_path: Path) -> None:
    file = tmp_path / "new" / "admin.key"
    assert await world.users.ensure_admin_key(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    key = file.read_text().strip()
    assert (await world.users.authenticate(key)).role is Role.ADMIN
    assert not await world.users.ensure_admin_key(file)
    assert file.read_text().strip() == key
    caller = await world.users.authenticate(key)
    await world.users.revoke_key(caller, int(key.split("_")[1]))
    assert await world.users.ensure_admin_key(file)
    assert file.read_text().strip() != key


async def test_users_are_read_changed_and_erased(world: Any, admin: httpx.AsyncClient) -> None:
    person = {"name": "Aziza", "role": "operator", "password": PASSWORD, "language": "uz"}
    made = (await admin.post("/api/v1/users", json=person)).json()
    url = f"/api/v1/users/{made['id']}"
    assert (made["language"], made["disabled"]) == ("uz", False)
    session = (await admin.post("/api/v1/login", json=person_login())).json()["key"]
    me = (await admin.get("/api/v1/me", headers=bearer(session))).json()
    assert me["subject"] == f"user:{made['id']}"
    assert me["user"] == {"id": made["id"], "name": "Aziza", "language": "uz"}
    seen = {"If-Match": (await admin.get(url)).headers["etag"]}
    changes = {"name": "Aziza K.", "language": "ru"}
    changed = await admin.patch(url, json=changes, headers=seen)
    assert changed.json() == {**made, **changes}
    assert (await admin.patch(url, json={"role": "viewer"}, headers=seen)).status_code == 412
    await admin.post("/api/v1/users", json={**person, "name": "Bek"})
    taken = await admin.patch(url, json={"name": "BEK"})
    assert (taken.status_code, taken.json()["code"]) == (409, "user.exists")
    assert (await admin.patch(url, json={"language": "fr"})).status_code == 422
    assert (await admin.delete(url)).status_code == 204
    assert (await admin.get(url)).status_code == 404
    assert (await admin.get("/api/v1/me", headers=bearer(session))).status_code == 401
    async with world.database.commit_unit() as cursor:
        await cursor.execute("SELECT p::text FROM users.person p")
        assert not any("Aziza" in text for (text,) in await cursor.fetchall())


def person_login() -> dict[str, str]:
    return {"name": "aziza", "password": PASSWORD}


async def test_users_are_listed_by_role_state_and_text(admin: httpx.AsyncClient) -> None:
    for name, role in (("Bek", "viewer"), ("aziza", "admin"), ("Carl", "viewer")):
        person = {"name": name, "role": role, "password": PASSWORD}
        await admin.post("/api/v1/users", json=person)

    async def found(**params: Any) -> list[str]:
        page = (await admin.get("/api/v1/users", params=params)).json()
        return [person["name"] for person in page["items"]]

    assert await found() == ["aziza", "Bek", "Carl"]
    assert await found(role="viewer", sort="-name") == ["Carl", "Bek"]
    await admin.patch("/api/v1/users/1", json={"disabled": True})
    assert await found(disabled=True) == ["Bek"]
    assert await found(disabled=False, text="AR") == ["Carl"]
    sheet = await admin.get("/api/v1/users", headers={"Accept": "text/csv"})
    assert "password" not in sheet.text


async def test_a_users_own_key_may_do_no_more_than_the_user(
    world: Any, admin: httpx.AsyncClient
) -> None:
    person = {"name": "Aziza", "role": "operator", "password": PASSWORD}
    user = (await admin.post("/api/v1/users", json=person)).json()["id"]
    wanted = {"name": "script", "role": "admin", "user": user}
    made = (await admin.post("/api/v1/api-keys", json=wanted)).json()

    async def role() -> str | None:
        return (await admin.get("/api/v1/me", headers=bearer(made["key"]))).json().get("role")

    assert await role() == "operator"
    await admin.patch(f"/api/v1/users/{user}", json={"role": "viewer"})
    assert await role() == "viewer"
    listed = (await admin.get("/api/v1/api-keys", params={"user": user})).json()["items"]
    assert [(one["name"], one["user"]) for one in listed] == [("script", user)]
    await admin.patch(f"/api/v1/users/{user}", json={"password": PASSWORD + "!"})
    assert await role() == "viewer", "a new password ends sessions, not keys"
    await admin.patch(f"/api/v1/users/{user}", json={"disabled": True})
    assert await role() is None
    nobody = await admin.post("/api/v1/api-keys", json={**wanted, "user": 99})
    assert (nobody.status_code, nobody.json()["code"]) == (404, "user.not_found")


async def test_nobody_gives_more_than_they_have(world: Any) -> None:
    operator = Caller(TenantId(1), "key:1", Role.OPERATOR)
    with pytest.raises(Forbidden):
        await world.users.create_key(operator, "x", Role.ADMIN, None)
    made = await world.users.create_key(operator, "x", Role.OPERATOR, None)
    assert made.key.created_by == "key:1"


async def test_one_key_is_read_and_tagged_apart_from_its_use(
    world: Any, admin: httpx.AsyncClient
) -> None:
    made = (await admin.post("/api/v1/api-keys", json={"name": "x", "role": "viewer"})).json()
    url = f"/api/v1/api-keys/{made['id']}"
    before = await admin.get(url)
    await admin.get("/api/v1/me", headers=bearer(made["key"]))
    after = await admin.get(url, headers={"If-None-Match": before.headers["etag"]})
    assert after.json()["last_used_at"] is not None
    guarded = {"If-Match": before.headers["etag"]}
    assert (await admin.delete(url, headers=guarded)).status_code == 200
    assert (await admin.get("/api/v1/api-keys/99999999999")).status_code == 422
