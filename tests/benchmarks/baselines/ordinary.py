"""The ordinary developer's ingester: aiomqtt, json, one executemany and one commit per message.

`ordinary.py JSON` with dsn, layout (narrow: one row a value, text metric; wide: one row a sample),
broker and the numbers file, into which it counts the messages that it has committed; it prints
`ready` when it is subscribed. Written as most would write it, with the tables most would make.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiomqtt
import psycopg
from ingest_load import Numbers
from ingest_messages import PLAIN_FILTER, PLAIN_NAMES

METRICS = tuple(PLAIN_NAMES.values())
TABLES = {
    "narrow": "CREATE TABLE sample (time timestamptz NOT NULL, station text NOT NULL,"
    " evse integer NOT NULL, metric text NOT NULL, value double precision)",
    "wide": "CREATE TABLE sample (time timestamptz NOT NULL, station text NOT NULL,"
    f" evse integer NOT NULL, {', '.join(f'{name} double precision' for name in METRICS)})",
}
INDEXES = {
    "narrow": "CREATE INDEX ON sample (station, evse, metric, time DESC)",
    "wide": "CREATE INDEX ON sample (station, evse, time DESC)",
}
INSERTS = {
    "narrow": "INSERT INTO sample (time, station, evse, metric, value) VALUES (%s, %s, %s, %s, %s)",
    "wide": f"INSERT INTO sample (time, station, evse, {', '.join(METRICS)})"
    f" VALUES (%s, %s, %s, {', '.join(['%s'] * len(METRICS))})",
}


def rows(layout: str, message: dict[str, Any]) -> list[tuple[Any, ...]]:
    station, evse = message["station"], message["evse"]
    if layout == "narrow":
        return [
            (
                datetime.fromtimestamp(sample["time"] / 1000, UTC),
                station,
                evse,
                metric,
                sample[metric],
            )
            for sample in message["samples"]
            for metric in METRICS
        ]
    return [
        (
            datetime.fromtimestamp(sample["time"] / 1000, UTC),
            station,
            evse,
            *(sample[metric] for metric in METRICS),
        )
        for sample in message["samples"]
    ]


async def make_table(connection: psycopg.AsyncConnection[Any], layout: str) -> None:
    """A hypertable with its default index where TimescaleDB is there, else a table."""
    await connection.execute(TABLES[layout])
    found = await connection.execute(
        "SELECT FROM pg_available_extensions WHERE name = 'timescaledb'"
    )
    if found.rowcount:
        await connection.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
        await connection.execute("SELECT create_hypertable('sample', 'time')")
    else:
        await connection.execute("CREATE INDEX ON sample (time DESC)")
    await connection.execute(INDEXES[layout])
    await connection.commit()


async def main(plan: dict[str, Any]) -> None:
    numbers, layout, broker = Numbers(Path(plan["numbers"])), plan["layout"], plan["broker"]
    client = aiomqtt.Client(
        broker["host"],
        broker["port"],
        identifier="karvon-ordinary",
        username=broker["user"],
        password=broker["password"],
        tls_context=ssl.create_default_context(cafile=broker["ca_file"]),
    )
    async with client, await psycopg.AsyncConnection.connect(plan["dsn"]) as connection:
        await make_table(connection, layout)
        await client.subscribe(PLAIN_FILTER, qos=1)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        committed = 0
        async for message in client.messages:
            reading = json.loads(message.payload)
            async with connection.cursor() as cursor:
                await cursor.executemany(INSERTS[layout], rows(layout, reading))
            await connection.commit()
            committed += 1
            numbers["committed"] = committed


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
