"""What the gateway is compared with: servers that answer OCPP and keep nothing.

`websockets` is the anchor W: the plain library on asyncio, JSON in, a constant answer out. `ocpp`
is the `ocpp` package's ChargePoint as its documentation shows it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime
from typing import Any

from ocpp.routing import on
from ocpp.v16 import ChargePoint as ChargePoint16
from ocpp.v16 import call_result
from websockets.asyncio.server import ServerConnection, serve

_ANSWERS: dict[str, dict[str, Any]] = {
    "BootNotification": {
        "currentTime": "2026-01-01T00:00:00Z", "interval": 300, "status": "Accepted"},
    "Authorize": {"idTagInfo": {"status": "Accepted"}, "idTokenInfo": {"status": "Accepted"}},
    "StartTransaction": {"idTagInfo": {"status": "Accepted"}, "transactionId": 1},
    "Heartbeat": {"currentTime": "2026-01-01T00:00:00Z"},
}  # fmt: skip


async def bare(connection: ServerConnection) -> None:
    async for frame in connection:
        _, message_id, action, _ = json.loads(frame)
        await connection.send(json.dumps([3, message_id, _ANSWERS.get(action, {})]))


class Point(ChargePoint16):
    @on("BootNotification")
    def on_boot(self, **_: Any) -> Any:
        now = datetime.now(UTC).isoformat()
        return call_result.BootNotification(current_time=now, interval=300, status="Accepted")


async def package(connection: ServerConnection) -> None:
    await Point(connection.request.path if connection.request else "", connection).start()


async def main() -> None:
    handler = {"websockets": bare, "ocpp": package}[sys.argv[1]]
    async with serve(
        handler,
        "127.0.0.1",
        0,
        subprotocols=["ocpp1.6", "ocpp2.0.1"],  # type: ignore[list-item]
        compression=None,
        backlog=4096,
    ) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        sys.stdout.write(json.dumps({"port": port}) + "\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(main())
