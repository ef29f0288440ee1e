"""Operators' wishes about OCPP stations over REST: settings, passwords, certificates."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest
from cryptography import x509

from cloud.communication import security_store
from cloud.communication.api import CertificateRefused, Known, TooManyCertificates
from cloud.kernel import events
from cloud.kernel.database import TenantId
from cloud.kernel.http import Role

URL = "/api/v1/stations/CP-1"
OCPP, PASSWORD, CERTIFICATES = (f"{URL}/{part}" for part in (
    "ocpp", "ocpp-password", "ocpp-certificates",
))  # fmt: skip


async def happened(world: Any) -> list[tuple[str, dict[str, Any]]]:
    async with world.database.commit_unit() as cursor:
        logged = await events.read(cursor, {}, 100, events.Narrow(kind="ocpp."))
    return [(one.event.kind, one.event.data) for one in logged]


async def test_settings_begin_with_defaults_and_are_changed_one_by_one(
    world: Any, admin: httpx.AsyncClient
) -> None:
    await world.station()
    read = await admin.get(OCPP)
    assert read.json() == {
        "station": "CP-1", "security_profile": 0, "pending_profile": None, "password": False,
        "password_set_at": None, "password_change_under_way": False, "key_form": None,
        "allow_no_subprotocol": False, "time_zone": None, "ping_s": None, "updated_at": None,
    }  # fmt: skip
    seen = {"If-Match": read.headers["etag"]}
    wish = {"time_zone": "Asia/Tashkent", "ping_s": 0}
    changed = await admin.patch(OCPP, json=wish, headers=seen)
    assert {name: changed.json()[name] for name in wish} == wish
    assert (await admin.patch(OCPP, json=wish, headers=seen)).status_code == 412
    again = await admin.patch(OCPP, json={"allow_no_subprotocol": True, "time_zone": None})
    assert again.json()["time_zone"] is None
    assert again.json()["ping_s"] == 0
    tag = (await admin.get(OCPP)).headers["etag"]
    assert again.headers["etag"] == tag
    assert (await admin.get(OCPP, headers={"If-None-Match": tag})).status_code == 304
    kind, data = (await happened(world))[0]
    assert (kind, data["by"]) == ("ocpp.settings_changed", "key:1")
    assert data["changes"]["time_zone"] == {"from": None, "to": "Asia/Tashkent"}


@pytest.mark.parametrize(
    "wish",
    [
        {"security_profile": 4}, {"pending_profile": 0}, {"time_zone": "Mars"}, {"ping_s": -1},
        {"password": "x"}, {"tenant_id": 2}, {"allow_no_subprotocol": 1},
    ],
)  # fmt: skip
async def test_what_makes_no_sense_is_refused(
    world: Any, admin: httpx.AsyncClient, wish: dict[str, Any]
) -> None:
    await world.station()
    assert (await admin.patch(OCPP, json=wish)).status_code == 422
    assert (await admin.get(OCPP)).json()["updated_at"] is None


async def test_nobody_is_locked_out_by_a_wish(
    world: Any, admin: httpx.AsyncClient, csr: Callable[[str], str]
) -> None:
    await world.station()

    async def status(**wish: Any) -> int:
        return (await admin.patch(OCPP, json=wish)).status_code

    assert await status(security_profile=1) == await status(pending_profile=2) == 409
    assert await status(security_profile=3) == 409
    assert await status(pending_profile=3) == 200
    assert (await admin.put(PASSWORD, json={})).status_code == 200
    assert await status(pending_profile=1) == 200
    assert await status(security_profile=1) == 200
    assert (await admin.get(OCPP)).json()["pending_profile"] is None, "it is fulfilled"
    assert await status(pending_profile=1) == 409
    assert (await admin.delete(PASSWORD)).status_code == 409
    assert (await admin.post(CERTIFICATES, json={"csr": csr("CP-1")})).status_code == 201
    assert await status(security_profile=3) == 200
    assert (await admin.delete(PASSWORD)).status_code == 204
    assert await status(security_profile=0) == 200, "an operator's way down"


async def test_a_password_is_shown_once_and_never_stands_in_an_event(
    world: Any, admin: httpx.AsyncClient
) -> None:
    station = await world.station()
    made = await admin.put(PASSWORD, json={})
    assert made.headers["cache-control"] == "no-store"
    assert made.json() == {
        "station": "CP-1",
        "password": made.json()["password"],
        "generated": True,
        "earlier_holds": False,
    }
    assert len(bytes.fromhex(made.json()["password"])) == 20
    chosen = await admin.put(PASSWORD, json={"password": "correct horse"})
    assert chosen.json()["earlier_holds"] is True
    shown = (await admin.get(OCPP)).json()
    assert (shown["password"], shown["password_change_under_way"]) == (True, True)
    for bad in ("short", "x" * 65, "ключ от зарядки", "line\nbreak"):
        assert (await admin.put(PASSWORD, json={"password": bad})).status_code == 422
    told = str(await happened(world))
    async with world.database.commit_unit() as cursor:
        kept = str(await security_store.ocpp_station(cursor, station.id))
    for secret in ("correct horse", made.json()["password"]):
        assert secret not in told
        assert secret not in kept


async def test_certificates_are_signed_listed_and_revoked(
    world: Any, admin: httpx.AsyncClient, csr: Callable[[str], str]
) -> None:
    await world.station()
    signed = await admin.post(CERTIFICATES, json={"csr": csr("CP-1")})
    leaf = x509.load_pem_x509_certificate(signed.json()["pem"].encode())
    root = await admin.get("/api/v1/ocpp-authority")
    assert root.headers["content-type"].startswith("application/x-pem-file")
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(root.content))
    other = await admin.post(CERTIFICATES, json={"csr": csr("CP-2")})
    assert (other.status_code, other.json()["params"]) == (422, {"why": "name"})
    listed = await admin.get("/api/v1/ocpp-certificates", params={"station": "CP-1"})
    assert listed.json()["items"] == [signed.json()]
    url = f"/api/v1/ocpp-certificates/{signed.json()['serial']}"
    revoked = await admin.post(f"{url}/revocation", json={"reason": "stolen"})
    assert revoked.json()["reason"] == "stolen"
    assert (await admin.get(url)).json() == revoked.json()
    again = await admin.post(f"{url}/revocation", json={"reason": "lost"})
    assert (again.status_code, again.json()["code"]) == (409, "certificate.revoked")
    assert (await admin.get("/api/v1/ocpp-certificates/abc")).status_code == 404
    good = await admin.get("/api/v1/ocpp-certificates", params={"revoked": "false"})
    assert good.json()["items"] == []
    assert [kind for kind, _ in await happened(world)] == [
        "ocpp.certificate_issued", "ocpp.certificate_refused", "ocpp.certificate_revoked",
    ]  # fmt: skip


async def test_each_role_does_what_it_may(world: Any, csr: Callable[[str], str]) -> None:
    await world.station()
    asked: list[tuple[str, str, Any, Role]] = [
        ("GET", OCPP, None, Role.VIEWER),
        ("GET", "/api/v1/ocpp-certificates", None, Role.VIEWER),
        ("PATCH", OCPP, {"ping_s": 5}, Role.OPERATOR),
        ("PUT", PASSWORD, {}, Role.OPERATOR),
        ("DELETE", PASSWORD, None, Role.OPERATOR),
        ("POST", "/api/v1/ocpp-certificates/ab/revocation", {"reason": "x"}, Role.OPERATOR),
        ("POST", CERTIFICATES, {"csr": csr("CP-1")}, Role.ADMIN),
    ]
    for role in Role:
        async with await world.client(role) as client:
            for method, url, body, needed in asked:
                content = {} if body is None else {"json": body}
                answer = await client.request(method, url, **content)
                assert (answer.status_code == 403) is not role.covers(needed), (role, method, url)


async def test_another_tenants_station_is_not_there(world: Any, csr: Callable[[str], str]) -> None:
    await world.station("CP-1", tenant=2)
    async with await world.client(Role.ADMIN) as client:
        for method, url, body in (
            ("GET", OCPP, None), ("PATCH", OCPP, {"ping_s": 5}), ("PUT", PASSWORD, {}),
            ("DELETE", PASSWORD, None), ("POST", CERTIFICATES, {"csr": csr("CP-1")}),
        ):  # fmt: skip
            content = {} if body is None else {"json": body}
            answer = await client.request(method, url, **content)
            assert answer.status_code == 404, (method, url)


# --------------------------------------------------------------------------- for the gateway


async def test_a_station_cannot_ask_without_end(world: Any, csr: Callable[[str], str]) -> None:
    station = await world.station()
    known = Known(station.id, TenantId(1))
    for _ in range(5):
        with pytest.raises(CertificateRefused):
            await world.security.sign(known, "CP-1", csr("CP-2"))
    with pytest.raises(TooManyCertificates):
        await world.security.sign(known, "CP-1", csr("CP-1"))
    world.clock.forward(minutes=11)
    await world.security.sign(known, "CP-1", csr("CP-1"))
    refused = [data for kind, data in await happened(world) if kind.endswith("refused")]
    assert [data["why"] for data in refused] == ["name"] * 5


async def test_renewal_is_asked_once_a_day_of_the_last_certificate(
    world: Any, csr: Callable[[str], str]
) -> None:
    one, two = await world.station("CP-1"), await world.station("CP-2")
    known = Known(one.id, TenantId(1))
    await world.security.sign(known, "CP-1", csr("CP-1"))
    here = [one.id, two.id]

    async def due() -> list[str]:
        return [row.serial for row in await world.security.due_for_renewal(here)]

    assert await due() == []
    world.clock.forward(days=340)
    (serial,) = await due()
    assert await due() == []
    world.clock.forward(days=2)
    assert await due() == [serial]
    assert await world.security.due_for_renewal([two.id]) == []
    world.clock.forward(days=2)
    await world.security.sign(known, "CP-1", csr("CP-1"))
    assert await due() == []
    world.clock.forward(days=340)
    (renewed,) = await due()
    assert renewed != serial
    world.clock.forward(days=60)
    assert await due() == [], "it is over"


async def test_a_deleted_station_leaves_no_way_in(world: Any, csr: Callable[[str], str]) -> None:
    station = await world.station()
    known = Known(station.id, TenantId(1))
    made = await world.security.sign(known, "CP-1", csr("CP-1"))
    async with world.database.unit(TenantId(1)) as cursor:
        await security_store.forget_station(cursor, station.id)
        revoked = await security_store.certificate(cursor, made.row.serial)
    assert revoked is not None
    assert revoked.revoked_at is not None
    async with world.database.commit_unit() as cursor:
        assert await security_store.revoked_of(cursor, [made.row.fingerprint])
        now = world.clock.now + timedelta(seconds=1)
        assert not await security_store.has_certificate(cursor, station.id, now)
