"""The services that other tests lean on are what they say they are."""

from __future__ import annotations

from typing import Any

import aiomqtt
import psycopg


def test_every_test_has_an_empty_database_that_folds_unicode(pg_dsn: str) -> None:
    with psycopg.connect(pg_dsn) as connection:
        tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        assert connection.execute(tables).fetchone() == (0,)
        assert connection.execute("SELECT lower('ЎЗБЕКИСТОН') = 'ўзбекистон'").fetchone() == (True,)
        connection.execute("CREATE TABLE dirt (id int)")


def test_timescale_is_the_apache_edition(timescale_dsn: str) -> None:
    with psycopg.connect(timescale_dsn) as connection:
        assert connection.execute("SHOW timescaledb.license").fetchone() == ("apache",)


async def test_a_station_is_kept_to_its_own_topics(broker: Any) -> None:
    broker.admit("st-a", "secret-a")
    broker.admit("st-b", "secret-b")
    async with (
        connect(broker, broker.cloud_user, broker.cloud_secret) as cloud,
        connect(broker, "st-a", "secret-a") as mine,
        connect(broker, "st-b", "secret-b") as thief,
    ):
        await cloud.subscribe("karvon/1/+/st-a/up/#", qos=1)
        await mine.subscribe("karvon/1/0/st-a/down/#", qos=1)
        await thief.subscribe("karvon/1/0/st-a/down/#", qos=1)
        await thief.subscribe("karvon/1/0/st-b/down/#", qos=1)
        await thief.publish("karvon/1/0/st-a/up/facts", b"forged", qos=1)
        await mine.publish("karvon/1/0/st-a/up/facts", b"true", qos=1)
        assert await first(cloud) == (b"true", "karvon/1/0/st-a/up/facts")
        await cloud.publish("karvon/1/0/st-a/down/acks", b"for a", qos=1)
        await cloud.publish("karvon/1/0/st-b/down/acks", b"for b", qos=1)
        assert await first(mine) == (b"for a", "karvon/1/0/st-a/down/acks")
        assert await first(thief) == (b"for b", "karvon/1/0/st-b/down/acks")


def connect(broker: Any, user: str, secret: str) -> aiomqtt.Client:
    return aiomqtt.Client(
        broker.host,
        broker.port,
        username=user,
        password=secret,
        tls_context=broker.tls(),
        timeout=5,
    )


async def first(client: aiomqtt.Client) -> tuple[object, str]:
    message = await anext(aiter(client.messages))
    return message.payload, str(message.topic)
