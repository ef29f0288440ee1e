"""The agent at a backend of the `ocpp` package: its central-system side, none of our own code."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ocpp.v16.call
import ocpp.v16.call_result
import ocpp.v201.call
import ocpp.v201.call_result
import pytest
from ocpp.routing import on
from ocpp.v16 import ChargePoint as ChargePoint16
from ocpp.v16.enums import Action as Action16
from ocpp.v201 import ChargePoint as ChargePoint201
from ocpp.v201.enums import Action as Action201
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from edge_agent.rules.station import RefusedError
from tests.edge_agent.uplink.ocpp.charging_site import Site, site, until

TOKEN = "04A1B2C3"


def _now() -> str:
    return datetime.now(UTC).isoformat()


class Books:
    """What a backend knows, over any number of connections."""

    def __init__(self) -> None:
        self.energy: dict[Any, int] = {}
        """By transaction, once it is over."""
        self.first: dict[Any, int] = {}
        self.heard: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.points: list[Any] = []

    def hear(self, action: str, told: dict[str, Any]) -> None:
        self.heard[action].append(told)

    @property
    def statuses(self) -> list[str]:
        told = self.heard["StatusNotification"]
        return [one.get("status") or one["connector_status"] for one in told]


class Backend16(ChargePoint16):
    def __init__(self, identity: str, socket: Any, books: Books) -> None:
        super().__init__(identity, socket)
        self.books = books

    @on(Action16.boot_notification)
    def on_boot(self, **told: Any) -> Any:
        self.books.hear("BootNotification", told)
        return ocpp.v16.call_result.BootNotification(_now(), 300, "Accepted")  # type: ignore[arg-type]  # its text

    @on(Action16.heartbeat)
    def on_heartbeat(self) -> Any:
        return ocpp.v16.call_result.Heartbeat(_now())

    @on(Action16.status_notification)
    def on_status(self, **told: Any) -> Any:
        self.books.hear("StatusNotification", told)
        return ocpp.v16.call_result.StatusNotification()

    @on(Action16.authorize)
    def on_authorize(self, id_tag: str) -> Any:
        return ocpp.v16.call_result.Authorize({"status": _known(id_tag)})  # type: ignore[arg-type]  # its text

    @on(Action16.start_transaction)
    def on_start(self, **told: Any) -> Any:
        number = len(self.books.first) + 1
        self.books.first[number] = told["meter_start"]
        info = {"status": _known(told["id_tag"])}
        return ocpp.v16.call_result.StartTransaction(number, info)  # type: ignore[arg-type]  # its text

    @on(Action16.meter_values)
    def on_values(self, **told: Any) -> Any:
        self.books.hear("MeterValues", told)
        return ocpp.v16.call_result.MeterValues()

    @on(Action16.stop_transaction)
    def on_stop(self, **told: Any) -> Any:
        number = told["transaction_id"]
        self.books.energy[number] = told["meter_stop"] - self.books.first[number]
        return ocpp.v16.call_result.StopTransaction()

    async def start(self) -> None:
        self.books.points.append(self)
        await super().start()

    async def remote_start(self) -> str:
        asked = ocpp.v16.call.RemoteStartTransaction(TOKEN, connector_id=1)
        return str((await self.call(asked, suppress=False)).status)

    async def remote_stop(self) -> str:
        asked = ocpp.v16.call.RemoteStopTransaction(len(self.books.first))
        return str((await self.call(asked, suppress=False)).status)

    async def heartbeat_interval(self) -> str:
        asked = ocpp.v16.call.GetConfiguration(["HeartbeatInterval"])
        return str((await self.call(asked, suppress=False)).configuration_key[0]["value"])


class Backend201(ChargePoint201):
    def __init__(self, identity: str, socket: Any, books: Books) -> None:
        super().__init__(identity, socket)
        self.books = books

    @on(Action201.boot_notification)
    def on_boot(self, **told: Any) -> Any:
        self.books.hear("BootNotification", told)
        return ocpp.v201.call_result.BootNotification(_now(), 300, "Accepted")  # type: ignore[arg-type]  # its text

    @on(Action201.heartbeat)
    def on_heartbeat(self) -> Any:
        return ocpp.v201.call_result.Heartbeat(_now())

    @on(Action201.status_notification)
    def on_status(self, **told: Any) -> Any:
        self.books.hear("StatusNotification", told)
        return ocpp.v201.call_result.StatusNotification()

    @on(Action201.authorize)
    def on_authorize(self, id_token: dict[str, str], **_: Any) -> Any:
        info = {"status": _known(id_token["id_token"])}
        return ocpp.v201.call_result.Authorize(info)  # type: ignore[arg-type]  # its text

    @on(Action201.transaction_event)
    def on_event(self, **told: Any) -> Any:
        name = told["transaction_info"]["transaction_id"]
        (energy,) = (
            int(value["value"])
            for value in told["meter_value"][0]["sampled_value"]
            if value["measurand"] == "Energy.Active.Import.Register"
        )
        self.books.hear("MeterValues", told)
        if told["event_type"] == "Started":
            self.books.first[name] = energy
        if told["event_type"] == "Ended":
            self.books.energy[name] = energy - self.books.first[name]
        return ocpp.v201.call_result.TransactionEvent()

    async def start(self) -> None:
        self.books.points.append(self)
        await super().start()

    async def remote_start(self) -> str:
        token = {"idToken": TOKEN, "type": "ISO14443"}
        asked = ocpp.v201.call.RequestStartTransaction(token, 7, evse_id=1)  # type: ignore[arg-type]  # its text
        return str((await self.call(asked, suppress=False)).status)

    async def remote_stop(self) -> str:
        running = list(self.books.first)[-1]
        asked = ocpp.v201.call.RequestStopTransaction(running)
        return str((await self.call(asked, suppress=False)).status)

    async def heartbeat_interval(self) -> str:
        wanted = {
            "component": {"name": "OCPPCommCtrlr"},
            "variable": {"name": "HeartbeatInterval"},
        }
        asked = ocpp.v201.call.GetVariables([wanted])  # type: ignore[list-item]  # plain
        answer = await self.call(asked, suppress=False)
        return str(answer.get_variable_result[0]["attribute_value"])


def _known(token: str) -> str:
    return "Accepted" if token == TOKEN else "Invalid"


KINDS = {"1.6": Backend16, "2.0.1": Backend201}


@asynccontextmanager
async def backend(
    version: str, books: Books, port: int = 0, *, names_protocol: bool = True
) -> AsyncIterator[int]:
    """It listens while the context lasts; gives its port."""

    async def serve_one(socket: ServerConnection) -> None:
        assert socket.request is not None
        identity = socket.request.path.rpartition("/")[2]
        with suppress(ConnectionClosed):
            await KINDS[version](identity, socket, books).start()

    spoken = [f"ocpp{version}"] if names_protocol else None
    server: Server = await serve(serve_one, "127.0.0.1", port, subprotocols=spoken)  # type: ignore[arg-type]  # a NewType of str
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def _by_command(here: Site, books: Books) -> None:
    point = books.points[-1]
    assert await point.heartbeat_interval() == "300"
    await here.plug()
    assert await point.remote_start() == "Accepted"
    await here.charging(30)
    assert await point.remote_stop() == "Accepted"
    await here.idle()
    await here.unplug()
    await here.delivered()


@pytest.mark.parametrize("version", ["1.6", "2.0.1"])
async def test_sessions_at_another_makers_backend(version: str, tmp_path: Path) -> None:
    """By card, by command, and while the backend is away; it comes back knowing nothing."""
    books = Books()
    async with site(tmp_path, "KRV-2") as here:
        async with backend(version, books) as port:
            here.configure(f"ws://127.0.0.1:{port}/steve/websocket", version)
            await here.start()
            await here.connected()
            await until(lambda: "Available" in books.statuses, "the first status")
            with pytest.raises(RefusedError):
                await here.card("STRANGER")
            await here.session(TOKEN)
            await here.delivered()
            await _by_command(here, books)
            assert sum(books.energy.values()) == pytest.approx(here.true_wh, abs=2)
            assert "Charging" in books.statuses or "Occupied" in books.statuses
        await until(lambda: here.agent.ocpp.link != "connected", "the link to be gone")
        await here.session(TOKEN)
        assert len(books.energy) == 2
        async with backend(version, books, port):
            await here.connected()
            await here.delivered()
            assert len(books.energy) == 3
            assert sum(books.energy.values()) == pytest.approx(here.true_wh, abs=3)
            assert version == "1.6" or books.heard["MeterValues"][-1]["offline"]
            assert here.journal.refused == []


async def test_a_backend_that_names_no_subprotocol_is_spoken_to(tmp_path: Path) -> None:
    async with (
        site(tmp_path, "KRV-4") as here,
        backend("1.6", Books(), names_protocol=False) as port,
    ):
        here.configure(f"ws://127.0.0.1:{port}", "1.6")
        await here.start()
        await here.connected()


async def test_a_backend_that_accepts_and_says_nothing_is_left(tmp_path: Path) -> None:
    """Charging goes on, and the link says what is wrong."""
    kept: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: kept.append(writer), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    async with silent, site(tmp_path, "KRV-3") as here:
        here.configure(f"ws://127.0.0.1:{port}/x", "1.6")
        config = here.folder / "agent.toml"
        config.write_text(config.read_text() + '[authorization]\nunknown = "allow"\n')
        await here.start()
        await here.session("ANYBODY")
        assert here.journal.pending_billing >= 2
        assert here.agent.ocpp.link != "connected"
    for writer in kept:
        writer.close()
