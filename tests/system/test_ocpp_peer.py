"""Stations built on the `ocpp` package, none of the gateway's own code, against a real cloud.

What the cloud understood is read back through REST only.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import ocpp.v16.call
import ocpp.v16.call_result
import ocpp.v16.enums
import ocpp.v201.call
import ocpp.v201.call_result
import ocpp.v201.enums
import pytest
from ocpp.routing import on
from ocpp.v16 import ChargePoint as ChargePoint16
from ocpp.v201 import ChargePoint as ChargePoint201
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from karvon.demo.process import Child, free_port, wait_for
from karvon.demo.rest import Rest

TOKEN = "04A1B2C3D4"
START_S = 60.0
ENERGY = "Energy.Active.Import.Register"


class Cloud:
    """A `karvon cloud serve` that speaks OCPP, and its REST."""

    def __init__(self, folder: Path) -> None:
        self._key = folder / "admin.key"
        http, self.port = free_port(), free_port()
        self.rest = Rest(f"http://127.0.0.1:{http}/api/v1")
        args = [
            *("cloud", "serve", "--json", "--registration", "open"),
            *("--data-dir", str(folder / "cloud"), "--admin-key-file", str(self._key)),
            *("--http-port", str(http), "--mqtt-port", str(free_port())),
            *("--ocpp-port", str(self.port)),
        ]
        self.process = Child("cloud", args, folder)

    def start(self) -> None:
        """Not from a thread that ends before: the process would end with it."""
        self.process.start()
        self.process.ready(START_S)
        self.rest.key = self._key.read_text().strip()

    async def get(self, path: str, **query: str) -> Any:
        return await asyncio.to_thread(self.rest.get, path, **query)

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        return await asyncio.to_thread(self.rest.post, path, body)

    async def until(self, look: Callable[[], Any], what: str) -> Any:
        return await asyncio.to_thread(wait_for, look, 30.0, what)

    async def transactions(self, station: str) -> list[dict[str, Any]]:
        found = (await self.get("/transactions", station=station))["items"]
        return sorted(found, key=lambda one: one["started_at"])

    async def executed(self, given: dict[str, Any]) -> None:
        """Wait until the station has done what it was asked."""
        path = f"/commands/{given['command']}"
        await self.until(lambda: self.rest.get(path)["status"] == "executed", path)


class _On16(ChargePoint16):
    def __init__(self, identity: str, socket: Any, asked: asyncio.Queue[dict[str, Any]]) -> None:
        super().__init__(identity, socket, response_timeout=30)
        self._asked = asked

    @on(ocpp.v16.enums.Action.remote_start_transaction)
    def on_start(self, **payload: Any) -> ocpp.v16.call_result.RemoteStartTransaction:
        self._asked.put_nowait(payload)
        return ocpp.v16.call_result.RemoteStartTransaction(status="Accepted")

    @on(ocpp.v16.enums.Action.remote_stop_transaction)
    def on_stop(self, **payload: Any) -> ocpp.v16.call_result.RemoteStopTransaction:
        self._asked.put_nowait(payload)
        return ocpp.v16.call_result.RemoteStopTransaction(status="Accepted")

    @on(ocpp.v16.enums.Action.get_configuration)
    def on_get(self, key: list[str]) -> ocpp.v16.call_result.GetConfiguration:
        known = {"key": "HeartbeatInterval", "readonly": False, "value": "300"}
        return ocpp.v16.call_result.GetConfiguration(
            configuration_key=[known], unknown_key=[one for one in key if one != known["key"]]
        )


class _On201(ChargePoint201):
    def __init__(self, identity: str, socket: Any, asked: asyncio.Queue[dict[str, Any]]) -> None:
        super().__init__(identity, socket, response_timeout=30)
        self._asked = asked

    @on(ocpp.v201.enums.Action.request_start_transaction)
    def on_start(self, **payload: Any) -> ocpp.v201.call_result.RequestStartTransaction:
        self._asked.put_nowait(payload)
        return ocpp.v201.call_result.RequestStartTransaction(status="Accepted")

    @on(ocpp.v201.enums.Action.request_stop_transaction)
    def on_stop(self, **payload: Any) -> ocpp.v201.call_result.RequestStopTransaction:
        self._asked.put_nowait(payload)
        return ocpp.v201.call_result.RequestStopTransaction(status="Accepted")

    @on(ocpp.v201.enums.Action.get_variables)
    def on_get(self, get_variable_data: list[Any]) -> ocpp.v201.call_result.GetVariables:
        results = [
            {**one, "attribute_status": "Accepted", "attribute_value": "300"}
            for one in get_variable_data
        ]
        return ocpp.v201.call_result.GetVariables(get_variable_result=results)


class Peer(ABC):
    """A station that keeps what it has to say until it was answered, and says it in order."""

    version: str
    point: type[_On16 | _On201]
    read: tuple[str, dict[str, Any], str]
    """An action that it answers, its payload, and where in the answer the value lies."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        self.identity = f"PEER-{uuid4()}"
        self.asked: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._number = 0
        self._owed: list[Callable[[], Any]] = []
        self._said: list[Callable[[], Any]] = []

    async def connect(self) -> None:
        url = f"ws://127.0.0.1:{self.cloud.port}/ocpp/{self.identity}"
        socket = await connect(url, subprotocols=[self.version])  # type: ignore[list-item]
        self._point = self.point(self.identity, socket, self.asked)
        self._reading = asyncio.create_task(self._point.start())
        booted = await self._call(self._boot())
        assert booted.status == "Accepted"
        await self._call(self._available())
        assert await self.authorize(TOKEN) == "Accepted"

    async def lost(self) -> None:
        """Wait until the connection is gone."""
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(self._reading, 10)

    async def close(self) -> None:
        await self._point._connection.close()
        await self.lost()

    async def _call(self, payload: Any) -> Any:
        return await self._point.call(payload, suppress=False)

    async def _say(self, *messages: Callable[[], Any]) -> None:
        """Now if that is possible, else once it is connected again."""
        self._owed += messages
        while self._owed:
            try:
                answer = await self._call(self._owed[0]())
            except ConnectionClosed:
                return
            self._number = getattr(answer, "transaction_id", self._number)
            self._said.append(self._owed.pop(0))

    async def repeat(self) -> None:
        """Say all of the session again, as one who never heard the answers, and what is owed."""
        self._owed, self._said = [*self._said, *self._owed], []
        await self._say()
        assert not self._owed

    @abstractmethod
    def _boot(self) -> Any: ...
    @abstractmethod
    def _available(self) -> Any: ...
    @abstractmethod
    async def authorize(self, token: str) -> str: ...
    @abstractmethod
    async def begin(self, register: int, remotely: dict[str, Any] | None = None) -> None: ...
    @abstractmethod
    async def sample(self, register: int) -> None: ...
    @abstractmethod
    async def end(self, register: int, reason: str) -> None: ...
    @abstractmethod
    def is_running(self, asked: dict[str, Any]) -> bool:
        """Whether the running transaction is the one that it is asked to stop."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Peer16(Peer):
    version = "ocpp1.6"
    point = _On16
    read = ("GetConfiguration", {"key": ["HeartbeatInterval"]}, "configurationKey")

    def _boot(self) -> Any:
        return ocpp.v16.call.BootNotification("One", "Elsewhere")

    def _available(self) -> Any:
        return ocpp.v16.call.StatusNotification(1, "NoError", "Available", timestamp=_now())

    async def authorize(self, token: str) -> str:
        answer = await self._call(ocpp.v16.call.Authorize(token))
        return str(answer.id_tag_info["status"])

    async def begin(self, register: int, remotely: dict[str, Any] | None = None) -> None:
        token = remotely["id_tag"] if remotely else TOKEN
        start = ocpp.v16.call.StartTransaction(1, token, register, _now())
        self._said.clear()
        await self._say(lambda: start)

    async def sample(self, register: int) -> None:
        value = {"value": str(register), "measurand": ENERGY, "unit": "Wh"}
        values = [{"timestamp": _now(), "sampled_value": [value]}]
        await self._say(lambda: ocpp.v16.call.MeterValues(1, values, self._number))

    async def end(self, register: int, reason: str) -> None:
        at = _now()
        await self._say(
            lambda: ocpp.v16.call.StopTransaction(register, at, self._number, reason)  # type: ignore[arg-type]  # its text
        )

    def is_running(self, asked: dict[str, Any]) -> bool:
        return bool(asked["transaction_id"] == self._number)


class Peer201(Peer):
    version = "ocpp2.0.1"
    point = _On201
    read = (
        "GetVariables",
        {
            "getVariableData": [
                {
                    "component": {"name": "OCPPCommCtrlr"},
                    "variable": {"name": "HeartbeatInterval"},
                }
            ]
        },
        "getVariableResult",
    )
    _transaction = ""
    _seq = 0

    def _boot(self) -> Any:
        station = {"model": "One", "vendor_name": "Elsewhere"}
        return ocpp.v201.call.BootNotification(station, "PowerUp")  # type: ignore[arg-type]  # its text

    def _available(self) -> Any:
        return ocpp.v201.call.StatusNotification(_now(), "Available", 1, 1)  # type: ignore[arg-type]  # its text

    async def authorize(self, token: str) -> str:
        id_token = {"id_token": token, "type": "ISO14443"}
        answer = await self._call(ocpp.v201.call.Authorize(id_token))
        return str(answer.id_token_info["status"])

    async def _tell(self, kind: str, trigger: str, register: int, **more: Any) -> None:
        info = {"transaction_id": self._transaction, **more.pop("info", {})}
        value = {"value": register, "measurand": ENERGY}
        event = ocpp.v201.call.TransactionEvent(
            event_type=kind,  # type: ignore[arg-type]  # its text
            timestamp=_now(),
            trigger_reason=trigger,  # type: ignore[arg-type]  # its text
            seq_no=self._seq,
            transaction_info=info,
            meter_value=[{"timestamp": _now(), "sampled_value": [value]}],
            evse={"id": 1, "connector_id": 1},
            **more,
        )
        self._seq += 1
        await self._say(lambda: event)

    async def begin(self, register: int, remotely: dict[str, Any] | None = None) -> None:
        self._transaction, self._seq = str(uuid4()), 0
        self._said.clear()
        token, info = {"id_token": TOKEN, "type": "ISO14443"}, {"charging_state": "Charging"}
        if remotely:
            token, number = remotely["id_token"], remotely["remote_start_id"]
            info["remote_start_id"] = number
        trigger = "RemoteStart" if remotely else "Authorized"
        await self._tell("Started", trigger, register, id_token=token, info=info)

    async def sample(self, register: int) -> None:
        await self._tell("Updated", "MeterValuePeriodic", register)

    async def end(self, register: int, reason: str) -> None:
        trigger = "RemoteStop" if reason == "Remote" else "StopAuthorized"
        await self._tell("Ended", trigger, register, info={"stopped_reason": reason})

    def is_running(self, asked: dict[str, Any]) -> bool:
        return bool(asked["transaction_id"] == self._transaction)


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    folder = Path(tempfile.mkdtemp(prefix="karvon-system-"))
    folder.chmod(0o755)
    cloud = Cloud(folder)
    try:
        cloud.start()
        cloud.rest.post("/id-tokens", {"value": TOKEN})
        yield cloud
    finally:
        cloud.process.stop(30.0)
        shutil.rmtree(folder, ignore_errors=True)


EACH = pytest.mark.parametrize("kind", [Peer16, Peer201], ids=["1.6", "2.0.1"])


@EACH
async def test_a_session_at_the_station_and_one_by_rest(cloud: Cloud, kind: type[Peer]) -> None:
    peer = kind(cloud)
    await peer.connect()
    assert await peer.authorize("STRANGER") != "Accepted"
    await peer.begin(5_000)
    await peer.sample(5_400)
    await peer.end(6_250, "Local")
    (first,) = await cloud.transactions(peer.identity)
    assert (first["state"], first["energy_wh"], first["review"]) == ("ended", 1_250, None)

    url = f"/stations/{peer.identity}"
    wish = {"evse": 1, "id_token": {"value": TOKEN}}
    given = await cloud.post(f"{url}/commands/remote-start", wish)
    asked = await asyncio.wait_for(peer.asked.get(), 20)
    await cloud.executed(given)
    await peer.begin(6_250, asked)
    await peer.sample(6_500)
    running = (await cloud.transactions(peer.identity))[-1]
    assert (running["state"], running["energy_wh"]) == ("open", 250)
    assert running["id_token"]["value"] == TOKEN
    stop = {"transaction": running["transaction"]}
    given = await cloud.post(f"{url}/commands/remote-stop", stop)
    assert peer.is_running(await asyncio.wait_for(peer.asked.get(), 20))
    await cloud.executed(given)
    await peer.end(6_990, "Remote")
    ended = (await cloud.transactions(peer.identity))[-1]
    assert (ended["transaction"], ended["state"]) == (running["transaction"], "ended")
    assert (ended["energy_wh"], ended["reason"], ended["review"]) == (740, "Remote", None)
    assert await cloud.get(f"{url}/deviations") == []
    await peer.close()


@EACH
async def test_what_the_station_answers_is_what_the_caller_gets(
    cloud: Cloud, kind: type[Peer]
) -> None:
    peer = kind(cloud)
    await peer.connect()
    url = f"/stations/{peer.identity}/ocpp"
    action, payload, where = peer.read
    answer = await cloud.post(f"{url}/{action}", payload)
    assert (answer["status"], answer["accepted"]) == ("executed", True)
    (value,) = answer["response"][where]
    assert "300" in {value.get("value"), value.get("attributeValue")}
    refused = await cloud.post(f"{url}/ClearCache", {})
    assert not refused["accepted"]
    assert refused["response"] is None
    assert "NotSupported" in refused["error"] or "NotImplemented" in refused["error"]
    await peer.close()


@EACH
async def test_a_session_that_the_cloud_dies_in_is_booked_once(
    cloud: Cloud, kind: type[Peer]
) -> None:
    peer = kind(cloud)
    await peer.connect()
    await peer.begin(5_000)
    await peer.sample(5_400)
    cloud.process.kill()
    await peer.lost()
    await peer.sample(5_900)
    await peer.end(6_250, "Local")
    cloud.start()
    (found,) = await cloud.transactions(peer.identity)
    assert (found["state"], found["energy_wh"]) == ("open", 400)
    await peer.connect()
    await peer.repeat()
    (booked,) = await cloud.transactions(peer.identity)
    assert booked["transaction"] == found["transaction"]
    assert (booked["state"], booked["energy_wh"], booked["review"]) == ("ended", 1_250, None)
    assert booked["conflicts"] == 0
    await peer.close()
