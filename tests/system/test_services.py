"""The services that other tests lean on are what they say they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiomqtt
import psycopg
import pytest


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
    await assert_kept_apart(broker, ("st-a", "secret-a"), ("st-b", "secret-b"))


async def test_the_example_devices_log_in_and_are_kept_apart(
    mosquitto: Any, mosquitto_service: dict[str, Any]
) -> None:
    one, other = mosquitto_service["devices"].items()
    await assert_kept_apart(mosquitto, one, other)
    await assert_kept_apart(mosquitto, other, one)
    with pytest.raises(aiomqtt.MqttError, match="Not authorized"):
        await connect(mosquitto, one[0], other[1]).__aenter__()


def test_what_holds_secrets_is_ours_alone(mosquitto_service: dict[str, Any]) -> None:
    folder = Path(mosquitto_service["folder"])
    secret = [folder.parent, folder, folder.parent / "services.json", folder / "passwd"]
    assert [oct(path.stat().st_mode & 0o077) for path in secret] == ["0o0"] * len(secret)


async def assert_kept_apart(broker: Any, owner: tuple[str, str], other: tuple[str, str]) -> None:
    """The other station can neither publish as the owner nor read what is sent to it."""
    a, b = (f"karvon/1/0/{station[0]}" for station in (owner, other))
    async with (
        connect(broker, broker.cloud_user, broker.cloud_secret) as cloud,
        connect(broker, *owner) as mine,
        connect(broker, *other) as thief,
    ):
        await cloud.subscribe(f"{a}/up/#", qos=1)
        await mine.subscribe(f"{a}/down/#", qos=1)
        await thief.subscribe(f"{a}/down/#", qos=1)
        await thief.subscribe(f"{b}/down/#", qos=1)
        await thief.publish(f"{a}/up/facts", b"forged", qos=1)
        await mine.publish(f"{a}/up/facts", b"true", qos=1)
        assert await first(cloud) == (b"true", f"{a}/up/facts")
        await cloud.publish(f"{a}/down/acks", b"for a", qos=1)
        await cloud.publish(f"{b}/down/acks", b"for b", qos=1)
        assert await first(mine) == (b"for a", f"{a}/down/acks")
        assert await first(thief) == (b"for b", f"{b}/down/acks")


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
