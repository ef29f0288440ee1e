"""Local lists that the cloud keeps on stations: what goes over the wire, and what is told of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from cloud.kernel.serving import supervised
from tests.cloud.ocpp.conftest import Ask, Ocpp, Payload, Station

pytestmark = pytest.mark.asyncio(loop_scope="module")
VERSIONS = ("ocpp1.6", "ocpp2.0.1", "ocpp2.1")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keeping(house: Ocpp) -> AsyncIterator[Ocpp]:
    house.modules.station_lists.settle_s = 0.02
    async with supervised("lists", house.modules.station_lists.run):
        yield house


class Charger:
    """A station with a local list of its own, as the specifications want it."""

    def __init__(self, version: str, limits: dict[str, int] | None = None) -> None:
        self.old = version == "ocpp1.6"
        self.limits = limits or {}
        self.version = 0
        self.list: dict[str, Any] = {}
        self.messages: list[Payload] = []
        self.says: list[str] = []
        """What it answers next to lists, instead of taking them."""

    @property
    def kinds(self) -> list[str]:
        return [one["updateType"] for one in self.messages]

    def take(self, asked: Payload) -> Payload:
        self.messages.append(asked)
        if self.says:
            return {"status": self.says.pop(0)}
        number = asked["listVersion" if self.old else "versionNumber"]
        entries = asked.get("localAuthorizationList", [])
        tokens = [one["idTag"] if self.old else one["idToken"]["idToken"] for one in entries]
        if len(set(tokens)) != len(tokens) or len(tokens) > self.limits.get("items", 10**6):
            return {"status": "Failed"}
        if asked["updateType"] == "Differential" and number <= self.version:
            return {"status": "VersionMismatch"}
        if asked["updateType"] == "Full":
            self.list = {}
        for token, one in zip(tokens, entries, strict=True):
            info = one.get("idTagInfo" if self.old else "idTokenInfo")
            self.list.pop(token, None)
            if info is not None:
                self.list[token] = info["status"]
        self.version = number
        return {"status": "Accepted"}

    def tell_version(self, _: Payload) -> Payload:
        return {"listVersion" if self.old else "versionNumber": self.version}

    def tell_limits(self, asked: Payload) -> Payload:
        told = {"items": self.limits.get("items"), "entries": self.limits.get("entries")}
        if self.old:
            keys = {"SendLocalListMaxLength": "items", "LocalAuthListMaxLength": "entries"}
            known = {k: told[v] for k, v in keys.items() if told[v] is not None}
            return {
                "configurationKey": [
                    {"key": key, "readonly": True, "value": str(value)}
                    for key, value in known.items()
                ],
                "unknownKey": [key for key in asked["key"] if key not in known],
            }
        results = []
        for one in asked["getVariableData"]:
            known_one = one["variable"]["name"] == "ItemsPerMessage" and told["items"] is not None
            answer = {"attributeStatus": "Accepted", "attributeValue": str(told["items"])}
            unknown = {"attributeStatus": "UnknownVariable"}
            results.append({**one, **(answer if known_one else unknown)})
        return {"getVariableResult": results}

    def join(self, station: Station) -> None:
        station.choose |= {
            "SendLocalList": self.take,
            "GetLocalListVersion": self.tell_version,
            "GetConfiguration": self.tell_limits,
            "GetVariables": self.tell_limits,
        }


async def policy(house: Ocpp, path: str, keep: str, *groups: str) -> Payload:
    body = {"keep": keep, "groups": list(groups)}
    put = await house.api.put(f"{path}/local-list-policy", json=body)
    assert put.status_code == 200, put.text
    return dict(put.json())


async def standing(house: Ocpp, station: str, *statuses: str) -> Payload:
    async def stands() -> Any:
        found = await house.get(f"/stations/{station}/local-list/sync")
        return found if found["status"] in statuses else None

    return dict(await house.until(stands, f"{station}'s list to be {statuses}"))


async def synced(house: Ocpp, station: str, charger: Charger, wanted: dict[str, str]) -> Payload:
    async def same() -> Any:
        found = await house.get(f"/stations/{station}/local-list/sync")
        return found if found["in_sync"] and charger.list == wanted else None

    try:
        return dict(await house.until(same, f"{station} to hold {wanted}"))
    except AssertionError:
        found = await house.get(f"/stations/{station}/local-list/sync")
        raise AssertionError(f"{charger.list} is not {wanted}: {found}") from None


async def boot(house: Ocpp, station: str, version: str, charger: Charger, **more: Any) -> Station:
    socket = await house.connect(station, version)
    charger.join(socket)
    await socket.boot(**more)
    return socket


async def add(house: Ocpp, group: str, *tokens: str) -> None:
    made = await house.api.post("/id-token-groups", json={"name": group})
    assert made.status_code in {201, 409}
    for token in tokens:
        await house.token(token, group=group)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_station_is_given_what_its_policy_names_and_then_only_changes(
    keeping: Ocpp, version: str
) -> None:
    name, group = f"L1-{version}", f"g1 {version}"
    await add(keeping, group, f"{version}A", f"{version}B")
    await keeping.token(f"{version}Z")
    charger = Charger(version)
    await boot(keeping, name, version, charger)
    off = await keeping.get(f"/stations/{name}/local-list/sync")
    assert (off["status"], off["in_sync"], off["from"]) == ("off", False, None)
    await policy(keeping, f"/stations/{name}", "groups", group)
    both = {f"{version}A": "Accepted", f"{version}B": "Accepted"}
    first = await synced(keeping, name, charger, both)
    assert (charger.kinds, first["version"]) == (["Full"], charger.version)
    assert (first["from"], first["policy"]["groups"]) == ("station", [group])
    assert first["behind"] == 0

    await keeping.api.patch(f"/id-tokens/{version}A", json={"blocked": True})
    await synced(keeping, name, charger, {**both, f"{version}A": "Blocked"})
    await keeping.api.delete(f"/id-tokens/{version}B")
    await synced(keeping, name, charger, {f"{version}A": "Blocked"})
    assert set(charger.kinds[1:]) == {"Differential"}
    sent = len(charger.messages)
    await keeping.api.patch(f"/id-tokens/{version}Z", json={"blocked": True})
    await keeping.api.patch(f"/id-tokens/{version}A", json={"group": None})
    await synced(keeping, name, charger, {})
    assert len(charger.messages) == sent + 1, "what does not concern it is not sent"


async def test_a_station_that_comes_back_with_its_list_is_sent_nothing(
    keeping: Ocpp, house_sql: Ask
) -> None:
    await add(keeping, "g2", "back1")
    charger = Charger("ocpp1.6")
    station = await boot(keeping, "L2", "ocpp1.6", charger)
    await policy(keeping, "/stations/L2", "groups", "g2")
    before = await synced(keeping, "L2", charger, {"back1": "Accepted"})
    await station.leave()
    station = await boot(keeping, "L2", "ocpp1.6", charger)

    async def checked() -> Any:
        found = await keeping.get("/stations/L2/local-list/sync")
        return found["in_sync"] and found["checked_at"] > before["checked_at"]

    await keeping.until(checked, "its version to be asked")
    assert charger.kinds == ["Full"]
    charger.list, charger.version = {}, 0  # a factory reset
    await station.leave()
    await boot(keeping, "L2", "ocpp1.6", charger)
    await synced(keeping, "L2", charger, {"back1": "Accepted"})
    assert charger.kinds == ["Full", "Full"]
    kept = house_sql(
        "SELECT action, request FROM communication.command c JOIN stations.station s"
        " ON s.id = c.station_id WHERE s.identity = 'L2' AND ocpp_action = 'SendLocalList'"
    )
    assert len(kept) == 2
    assert "back1" not in str(kept), "lists are not stored with commands"
    assert {request["entries"] for _, request in kept} == {1}


@pytest.mark.parametrize("version", ["ocpp1.6", "ocpp2.0.1"])
async def test_long_lists_go_in_messages_as_long_as_the_station_takes(
    keeping: Ocpp, version: str
) -> None:
    name, group = f"L3-{version}", f"g3 {version}"
    tokens = {f"{version}-{n}": "Accepted" for n in range(25)}
    await add(keeping, group, *tokens)
    charger = Charger(version, {"items": 10})
    await boot(keeping, name, version, charger)
    await policy(keeping, f"/stations/{name}", "groups", group)
    await synced(keeping, name, charger, tokens)
    assert charger.kinds == ["Full", "Differential", "Differential"]
    rows = [{"value": one, "blocked": "true"} for one in tokens]
    await keeping.api.post("/id-tokens/import", json=rows)
    await synced(keeping, name, charger, dict.fromkeys(tokens, "Blocked"))
    assert charger.kinds[3:] == ["Differential"] * 3, "one import is one change"


async def test_a_list_longer_than_the_station_takes_is_not_tried(keeping: Ocpp) -> None:
    await add(keeping, "g4", *(f"long{n}" for n in range(5)))
    await add(keeping, "g4 few", "few")
    charger = Charger("ocpp1.6", {"items": 10, "entries": 4})
    await boot(keeping, "L4", "ocpp1.6", charger)
    await policy(keeping, "/stations/L4", "groups", "g4")
    told = await standing(keeping, "L4", "too_long")
    assert "5 id tokens" in told["reason"]
    assert "takes 4" in told["reason"]
    await policy(keeping, "/stations/L4", "groups", "g4 few")
    await synced(keeping, "L4", charger, {"few": "Accepted"})
    assert charger.kinds == ["Full"]


async def test_a_version_mismatch_is_mended_with_the_whole_list(keeping: Ocpp) -> None:
    await add(keeping, "g5", "mis1")
    charger = Charger("ocpp2.0.1")
    await boot(keeping, "L5", "ocpp2.0.1", charger)
    await policy(keeping, "/stations/L5", "groups", "g5")
    await synced(keeping, "L5", charger, {"mis1": "Accepted"})
    charger.says = ["VersionMismatch"]
    await keeping.token("mis2", group="g5")
    await synced(keeping, "L5", charger, {"mis1": "Accepted", "mis2": "Accepted"})
    assert charger.kinds == ["Full", "Differential", "Full"]


@pytest.mark.parametrize(
    ("answer", "status"), [("Failed", "failed"), ("NotSupported", "unsupported")]
)
async def test_what_is_refused_is_told_and_not_tried_for_ever(
    keeping: Ocpp, answer: str, status: str
) -> None:
    name, group = f"L6-{answer}", f"g6 {answer}"
    await add(keeping, group, f"r{answer}")
    charger = Charger("ocpp1.6")
    charger.says = [answer]
    await boot(keeping, name, "ocpp1.6", charger)
    await policy(keeping, f"/stations/{name}", "groups", group)
    told = await standing(keeping, name, status)
    assert answer in told["reason"]
    assert (told["next_try_at"] is None) == (status == "unsupported")
    for _ in range(3):
        await keeping.modules.station_lists.plan()
    assert len(charger.messages) == 1
    listed = await keeping.get("/local-lists", status=status)
    assert name in [one["station"] for one in listed["items"]]
    again = await keeping.api.post(f"/stations/{name}/local-list/sync")
    assert again.status_code == 202
    await synced(keeping, name, charger, {f"r{answer}": "Accepted"})


async def test_a_station_without_lists_is_asked_again_with_other_firmware(keeping: Ocpp) -> None:
    await add(keeping, "g7", "fw1")
    charger = Charger("ocpp1.6")
    station = await keeping.connect("L7", "ocpp1.6")
    charger.join(station)
    station.refuses["GetLocalListVersion"] = "NotImplemented"
    await station.boot(firmwareVersion="1.0")
    await policy(keeping, "/stations/L7", "groups", "g7")
    assert "NotImplemented" in (await standing(keeping, "L7", "unsupported"))["reason"]
    await station.leave()
    station = await boot(keeping, "L7", "ocpp1.6", charger, firmwareVersion="1.0")
    await keeping.modules.station_lists.plan()
    assert charger.messages == []
    await station.leave()
    await boot(keeping, "L7", "ocpp1.6", charger, firmwareVersion="1.1")
    await synced(keeping, "L7", charger, {"fw1": "Accepted"})


async def test_the_nearest_policy_holds_and_without_one_the_list_goes(keeping: Ocpp) -> None:
    await add(keeping, "g8", "near1")
    await add(keeping, "g8 site", "near2")
    site = (await keeping.api.post("/sites", json={"name": "Depot"})).json()["id"]
    charger = Charger("ocpp2.0.1")
    await boot(keeping, "L8", "ocpp2.0.1", charger)
    moved = await keeping.api.patch("/stations/L8", json={"site": site})
    assert moved.status_code == 200, moved.text
    await policy(keeping, f"/sites/{site}", "groups", "g8 site")
    found = await synced(keeping, "L8", charger, {"near2": "Accepted"})
    assert found["from"] == "site"
    await policy(keeping, "/stations/L8", "groups", "g8")
    assert (await synced(keeping, "L8", charger, {"near1": "Accepted"}))["from"] == "station"
    assert (await keeping.api.delete("/stations/L8/local-list-policy")).status_code == 204
    await synced(keeping, "L8", charger, {"near2": "Accepted"})
    assert (await keeping.api.delete(f"/sites/{site}/local-list-policy")).status_code == 204
    await standing(keeping, "L8", "off")
    assert charger.list == {}
    assert charger.kinds == ["Full"] * 4


async def test_a_list_that_somebody_else_sent_is_replaced(keeping: Ocpp) -> None:
    await add(keeping, "g9", "mine")
    charger = Charger("ocpp1.6")
    await boot(keeping, "L9", "ocpp1.6", charger)
    await policy(keeping, "/stations/L9", "groups", "g9")
    await synced(keeping, "L9", charger, {"mine": "Accepted"})
    entry = {"idTag": "foreign", "idTagInfo": {"status": "Accepted"}}
    full = {"listVersion": 7, "updateType": "Full", "localAuthorizationList": [entry]}
    sent = await keeping.api.post("/stations/L9/ocpp/SendLocalList", json=full)
    assert sent.status_code == 200, sent.text
    await synced(keeping, "L9", charger, {"mine": "Accepted"})


async def test_tokens_that_a_version_cannot_write_are_left_out(keeping: Ocpp) -> None:
    await add(keeping, "g10", "short", "x" * 30)
    charger = Charger("ocpp1.6")
    await boot(keeping, "L10", "ocpp1.6", charger)
    await policy(keeping, "/stations/L10", "groups", "g10")
    await synced(keeping, "L10", charger, {"short": "Accepted"})


async def test_a_policy_that_makes_no_sense_is_refused(keeping: Ocpp) -> None:
    for body in ({"keep": "groups"}, {"keep": "all", "groups": ["x"]}, {"keep": "some"}):
        put = await keeping.api.put("/local-list-policy", json=body)
        assert put.status_code == 422, put.text
    unknown = await keeping.api.put(
        "/local-list-policy", json={"keep": "groups", "groups": ["nobody"]}
    )
    assert (unknown.status_code, unknown.json()["code"]) == (404, "id_token_group.not_found")
    assert (await keeping.api.get("/stations/nowhere/local-list/sync")).status_code == 404
    assert (await keeping.get("/local-list-policy"))["keep"] is None


async def test_a_fleet_is_asked_a_few_stations_at_a_time(
    keeping: Ocpp, house_sql: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who does not answer keeps its place until its time is over."""
    await add(keeping, "g11", "fleet1")
    names = [f"L11-{n}" for n in range(5)]
    for name in names:
        station = await boot(keeping, name, "ocpp1.6", Charger("ocpp1.6"))
        station.choose["GetLocalListVersion"] = lambda _: None  # type: ignore[assignment,return-value]  # mute
    monkeypatch.setattr("cloud.authorization.station_lists.AT_ONCE", 2)
    for name in names:
        await policy(keeping, f"/stations/{name}", "groups", "g11")

    async def asked() -> int:
        return len(
            house_sql(
                'SELECT 1 FROM "authorization".station_list JOIN stations.station s'
                " ON s.id = station_id WHERE command IS NOT NULL AND s.identity = ANY(%s)",
                names,
            )
        )

    async def two() -> bool:
        return await asked() == 2

    await keeping.until(two, "two stations to be asked")
    for _ in range(3):
        await keeping.modules.station_lists.plan()
    assert await asked() == 2
