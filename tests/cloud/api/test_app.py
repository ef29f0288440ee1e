"""The application as a whole: every route against every role, errors, the event log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import anyio.to_thread
import httpx
import pytest
from fastapi.routing import APIRoute

from cloud.kernel.facts import Delivery
from cloud.kernel.http import Role
from cloud.stations.api import to_ms
from protocols.agent_link import BillingBatch, ClockQuality, SecurityEvent, Stamp, Stream
from protocols.quantities import Milliseconds

V, T, OP, A = Role.VIEWER, Role.TECHNICIAN, Role.OPERATOR, Role.ADMIN
OWN_LOGIN = {("POST", "/api/v1/claims/certificate"), ("POST", "/api/v1/claims/retirement")}
"""A controller asks these with the credentials that its claim gave it; no role is enough."""
NEEDS: dict[tuple[str, str], Role | None] = {
    ("GET", "/api/v1/me"): V,
    ("POST", "/api/v1/login"): None,
    ("GET", "/api/v1/api-keys"): A,
    ("POST", "/api/v1/api-keys"): A,
    ("DELETE", "/api/v1/api-keys/{key_id}"): A,
    ("GET", "/api/v1/api-keys/{key_id}"): A,
    ("GET", "/api/v1/users/{user_id}"): A,
    ("DELETE", "/api/v1/users/{user_id}"): A,
    ("GET", "/api/v1/commands"): V,
    ("GET", "/api/v1/commands/{command}"): V,
    ("POST", "/api/v1/commands/{command}/cancellation"): T,
    ("GET", "/api/v1/stations/{station}/commands"): V,
    ("GET", "/api/v1/users"): A,
    ("POST", "/api/v1/users"): A,
    ("PATCH", "/api/v1/users/{user_id}"): A,
    ("GET", "/api/v1/sites"): V,
    ("POST", "/api/v1/sites"): OP,
    ("GET", "/api/v1/sites/{site}"): V,
    ("PATCH", "/api/v1/sites/{site}"): OP,
    ("DELETE", "/api/v1/sites/{site}"): OP,
    ("GET", "/api/v1/stations"): V,
    ("POST", "/api/v1/stations"): OP,
    ("GET", "/api/v1/stations/{station}"): V,
    ("PATCH", "/api/v1/stations/{station}"): OP,
    ("DELETE", "/api/v1/stations/{station}"): OP,
    ("POST", "/api/v1/stations/import"): OP,
    ("GET", "/api/v1/stations/{station}/evses"): V,
    ("GET", "/api/v1/stations/{station}/evses/{evse}"): V,
    ("GET", "/api/v1/stations/{station}/evses/{evse}/connectors"): V,
    ("GET", "/api/v1/evses"): V,
    ("POST", "/api/v1/stations/{station}/claim-codes"): T,
    ("POST", "/api/v1/stations/{station}/commands/set-limit"): T,
    ("POST", "/api/v1/stations/{station}/commands/set-availability"): T,
    ("POST", "/api/v1/stations/{station}/commands/remote-start"): OP,
    ("POST", "/api/v1/stations/{station}/commands/unlock-connector"): T,
    ("POST", "/api/v1/stations/{station}/commands/reset"): T,
    ("POST", "/api/v1/stations/{station}/commands/trigger-message"): T,
    ("POST", "/api/v1/stations/{station}/commands/clear-cache"): T,
    ("POST", "/api/v1/stations/{station}/commands/get-variables"): T,
    ("POST", "/api/v1/stations/{station}/commands/reserve"): OP,
    ("POST", "/api/v1/stations/{station}/commands/cancel-reservation"): OP,
    ("POST", "/api/v1/stations/{station}/commands/set-charging-profile"): OP,
    ("POST", "/api/v1/stations/{station}/commands/clear-charging-profile"): OP,
    ("POST", "/api/v1/stations/{station}/commands/get-charging-profiles"): T,
    ("POST", "/api/v1/stations/{station}/commands/get-composite-schedule"): T,
    ("POST", "/api/v1/stations/{station}/commands/update-firmware"): OP,
    ("POST", "/api/v1/stations/{station}/commands/get-log"): T,
    ("POST", "/api/v1/stations/{station}/commands/send-local-list"): OP,
    ("POST", "/api/v1/stations/{station}/commands/get-local-list-version"): T,
    ("POST", "/api/v1/stations/{station}/commands/data-transfer"): OP,
    ("POST", "/api/v1/stations/{station}/ocpp/{action}"): OP,
    ("PATCH", "/api/v1/stations/{station}/variables"): T,
    ("GET", "/api/v1/stations/{station}/variables"): V,
    ("GET", "/api/v1/stations/{station}/charging-profiles"): V,
    ("GET", "/api/v1/stations/{station}/charging-limits"): V,
    ("GET", "/api/v1/stations/{station}/reservations"): V,
    ("GET", "/api/v1/stations/{station}/local-list"): V,
    ("GET", "/api/v1/stations/{station}/security-events"): V,
    ("GET", "/api/v1/stations/{station}/firmware"): V,
    ("GET", "/api/v1/stations/{station}/logs"): V,
    ("GET", "/api/v1/stations/{station}/monitors"): V,
    ("GET", "/api/v1/stations/{station}/display-messages"): V,
    ("GET", "/api/v1/stations/{station}/notices"): V,
    ("POST", "/api/v1/stations/{station}/commands/remote-stop"): OP,
    ("GET", "/api/v1/stations/{station}/telemetry"): V,
    ("POST", "/api/v1/claims"): None,
    ("GET", "/api/v1/stations/{station}/ocpp"): V,
    ("PATCH", "/api/v1/stations/{station}/ocpp"): OP,
    ("PUT", "/api/v1/stations/{station}/ocpp-password"): OP,
    ("DELETE", "/api/v1/stations/{station}/ocpp-password"): OP,
    ("POST", "/api/v1/stations/{station}/ocpp-certificates"): A,
    ("GET", "/api/v1/ocpp-authority"): V,
    ("GET", "/api/v1/ocpp-certificates"): V,
    ("GET", "/api/v1/ocpp-certificates/{serial}"): V,
    ("POST", "/api/v1/ocpp-certificates/{serial}/revocation"): OP,
    ("GET", "/api/v1/pending"): T,
    ("POST", "/api/v1/pending/{station}/approval"): OP,
    ("DELETE", "/api/v1/pending/{station}"): OP,
    ("GET", "/api/v1/id-tokens"): V,
    ("POST", "/api/v1/id-tokens"): OP,
    ("POST", "/api/v1/id-tokens/import"): OP,
    ("GET", "/api/v1/id-tokens/{value}"): V,
    ("PATCH", "/api/v1/id-tokens/{value}"): OP,
    ("DELETE", "/api/v1/id-tokens/{value}"): OP,
    ("GET", "/api/v1/id-token-groups"): V,
    ("POST", "/api/v1/id-token-groups"): OP,
    ("GET", "/api/v1/id-token-groups/{group}"): V,
    ("PATCH", "/api/v1/id-token-groups/{group}"): OP,
    ("DELETE", "/api/v1/id-token-groups/{group}"): OP,
    ("GET", "/api/v1/tariffs"): V,
    ("POST", "/api/v1/tariffs"): OP,
    ("GET", "/api/v1/tariffs/{tariff}"): V,
    ("PATCH", "/api/v1/tariffs/{tariff}"): OP,
    ("GET", "/api/v1/tariffs/{tariff}/versions"): V,
    ("POST", "/api/v1/tariffs/{tariff}/versions"): OP,
    ("POST", "/api/v1/tariffs/{tariff}/quote"): V,
    ("GET", "/api/v1/tariff-assignments"): V,
    ("POST", "/api/v1/tariff-assignments"): OP,
    ("GET", "/api/v1/tariff-assignments/{assignment}"): V,
    ("DELETE", "/api/v1/tariff-assignments/{assignment}"): OP,
    ("GET", "/api/v1/stations/{station}/tariff"): V,
    ("GET", "/api/v1/transactions"): V,
    ("GET", "/api/v1/transactions/{transaction}"): V,
    ("GET", "/api/v1/transactions/{transaction}/events"): V,
    ("GET", "/api/v1/telemetry/energy"): V,
    ("GET", "/api/v1/events"): V,
    ("GET", "/api/v1/events/stream"): V,
    ("GET", "/api/v1/releases"): V,
    ("POST", "/api/v1/releases"): A,
    ("GET", "/api/v1/releases/{release}"): V,
    ("GET", "/api/v1/release-trust"): V,
    ("GET", "/api/v1/release-files/{sha256}"): A,
    ("PUT", "/api/v1/release-files/{sha256}"): A,
    ("GET", "/api/v1/cohorts"): V,
    ("POST", "/api/v1/cohorts"): OP,
    ("GET", "/api/v1/cohorts/{cohort}"): V,
    ("PATCH", "/api/v1/cohorts/{cohort}"): OP,
    ("DELETE", "/api/v1/cohorts/{cohort}"): OP,
    ("GET", "/api/v1/cohorts/{cohort}/members"): V,
    ("GET", "/api/v1/stations/{station}/settings"): V,
    ("PUT", "/api/v1/stations/{station}/settings"): OP,
    ("GET", "/api/v1/settings"): V,
    ("PUT", "/api/v1/settings"): OP,
    ("GET", "/api/v1/stations/{station}/tags"): V,
    ("PUT", "/api/v1/stations/{station}/tags"): OP,
    ("GET", "/api/v1/stations/{station}/updates"): V,
    ("GET", "/api/v1/campaigns"): V,
    ("POST", "/api/v1/campaigns"): OP,
    ("GET", "/api/v1/campaigns/{campaign}"): V,
    ("GET", "/api/v1/campaigns/{campaign}/audit"): V,
    ("POST", "/api/v1/campaigns/{campaign}/approval"): OP,
    ("POST", "/api/v1/campaigns/{campaign}/pause"): OP,
    ("POST", "/api/v1/campaigns/{campaign}/resumption"): OP,
    ("POST", "/api/v1/campaigns/{campaign}/abort"): OP,
    ("GET", "/api/v1/campaigns/{campaign}/devices"): V,
    ("GET", "/api/v1/campaigns/{campaign}/devices/{station}/history"): V,
}


def routes(app: Any) -> set[tuple[str, str]]:
    return {
        (method, path)
        for path, methods in app.openapi()["paths"].items()
        for method in (name.upper() for name in methods)
    }


@pytest.mark.parametrize(("method", "path"), sorted(OWN_LOGIN))
async def test_what_controllers_ask_with_their_own_login(
    admin: httpx.AsyncClient, method: str, path: str
) -> None:
    answer = await admin.request(method, path, json={})
    assert answer.status_code in {401, 422}


async def test_every_route_asks_for_its_role(world: Any) -> None:
    assert routes(world.app) == set(NEEDS) | OWN_LOGIN
    for role in (None, *Role):
        async with await world.client(role) as client:
            for (method, path), needed in NEEDS.items():
                url = path.replace("{transaction}", str(uuid4())).format(
                    command=uuid4(),
                    key_id=999,
                    user_id=999,
                    site=999,
                    station="CP-9",
                    evse=1,
                    value="none",
                    serial="ab",
                    group=999,
                    action="Reset",
                    tariff=999,
                    assignment=999,
                    release=999,
                    cohort=999,
                    campaign=999,
                    sha256="0" * 64,
                )
                query = {"cursor": "x"} if url.endswith("/stream") else None  # it has no end
                answer = await client.request(method, url, params=query)
                allowed = needed is None or (role is not None and role.covers(needed))
                refused = 401 if role is None else 403
                at = f"{method} {path} as {role}: {answer.status_code} {answer.text}"
                assert (answer.status_code != refused) is allowed, at
                assert answer.status_code < 500, at


async def test_reading_takes_no_turn_through_a_thread(
    admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: object, **__: object) -> None:
        raise AssertionError("FastAPI calls what is no coroutine in a thread")

    monkeypatch.setattr(anyio.to_thread, "run_sync", refused)
    for method, path in NEEDS:
        if method == "GET" and not path.endswith("/stream"):
            url = path.format(
                command=uuid4(), key_id=9, user_id=9, site=9, station="CP-9", evse=1, value="none",
                group=9, transaction=uuid4(), serial="00", tariff=9, assignment=9,
                release=9, cohort=9, campaign=9, sha256="0" * 64,
            )  # fmt: skip
            assert (await admin.get(url)).status_code in {200, 404}, path


async def test_a_wrong_key_is_a_problem_not_a_page(world: Any) -> None:
    async with await world.client(None) as client:
        for key in ("kv_1_" + "a" * 43, "nonsense", "kv_999_" + "b" * 43):
            answer = await client.get("/api/v1/me", headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code == 401
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("url", ["/api/v1/stations/%00", "/api/v1/stations?text=%00", "/api/v1/no"])
async def test_what_cannot_be_answered_is_a_problem(admin: httpx.AsyncClient, url: str) -> None:
    answer = await admin.get(url)
    assert answer.status_code in {404, 422}
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_body_with_a_nul_is_refused(admin: httpx.AsyncClient) -> None:
    answer = await admin.post("/api/v1/sites", json={"name": "a\0b"})
    assert answer.status_code == 422


async def test_a_body_that_cannot_be_read_is_a_problem(admin: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "application/json"}
    for body, status in ((b"\xff", 400), (b"{", 422), (b"", 422)):
        answer = await admin.post("/api/v1/sites", content=body, headers=headers)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"


async def test_a_wrong_method_is_told_all_right_ones(admin: httpx.AsyncClient) -> None:
    answer = await admin.put("/api/v1/sites/1")
    assert (answer.status_code, answer.headers["allow"]) == (405, "DELETE, GET, PATCH")


async def test_a_body_without_end_is_refused(admin: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(9):
            yield b" " * 1024 * 1024

    answer = await admin.post("/api/v1/sites", content=endless())
    assert (answer.status_code, answer.json()["code"]) == (413, "http.413")


async def test_unexpected_errors_give_a_reference_and_no_details(world: Any) -> None:
    async def explode() -> None:
        raise RuntimeError("the secret is swordfish")

    app = world.app_of_its_own()
    app.router.routes.append(APIRoute("/explode", explode))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://cloud") as client:
        answer = await client.get("/explode")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "swordfish" not in answer.text
    assert answer.json()["params"]["reference"] in answer.json()["detail"]


async def test_events_are_read_on_from_a_cursor(world: Any, admin: httpx.AsyncClient) -> None:
    first = (await admin.get("/api/v1/events")).json()
    assert first["items"] == []
    one, two = await world.station("CP-1"), await world.station("CP-2")
    foreign = await world.station("CP-3", tenant=2)
    now = world.clock()
    stamp = Stamp(Milliseconds(to_ms(now)), Milliseconds(0), UUID(int=1), ClockQuality.SYNCED)
    for n, station in enumerate([one, two, one, foreign, one]):
        fact = SecurityEvent(uuid4(), stamp, "Test", str(n))
        batch = BillingBatch(UUID(int=2), n + 1, 1, stamp, (fact,))
        await world.commit(
            Delivery(station.id, station.tenant_id, UUID(int=2), now, Stream.BILLING, batch)
        )
        world.clock.forward(seconds=1)
    seen, cursor = [], first["next"]
    for _ in range(3):
        page = (await admin.get("/api/v1/events", params={"cursor": cursor, "limit": 2})).json()
        seen += page["items"]
        cursor = page["next"]
    assert [(event["station"], event["data"]["text"]) for event in seen] == [
        ("CP-1", "0"), ("CP-2", "1"), ("CP-1", "2"), ("CP-1", "4"),
    ]  # fmt: skip
    assert len({event["id"] for event in seen}) == 4


async def test_a_crafted_cursor_is_refused(admin: httpx.AsyncClient) -> None:
    for cursor in ("x", "WzFd", "W1sxXV0"):
        answer = await admin.get("/api/v1/events", params={"cursor": cursor})
        assert (answer.status_code, answer.json()["code"]) == (422, "cursor.invalid")
