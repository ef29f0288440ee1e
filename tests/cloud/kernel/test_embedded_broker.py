"""The embedded broker: who may do what, over TLS, and that it comes back."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiomqtt
import pytest
from cryptography import x509

from cloud.kernel.embedded import (
    BrokerUser,
    ChildEvent,
    EmbeddedBroker,
    EmbeddedError,
    hash_secret,
)
from cloud.kernel.embedded.broker import subjects
from cloud.kernel.embedded.child import running_in
from cloud.kernel.embedded.tls import ensure_certificates

CLOUD = BrokerUser("karvon-cloud", hash_secret("c"), ["karvon/1/#"], ["karvon/1/#"])


def station(name: str) -> BrokerUser:
    return BrokerUser(
        name, hash_secret(name), [f"karvon/1/+/{name}/up/#"], [f"karvon/1/+/{name}/down/#"]
    )


def client(broker: EmbeddedBroker, name: str, secret: str) -> aiomqtt.Client:
    trust = ssl.create_default_context(cafile=str(broker.ca_file))
    return aiomqtt.Client(
        "localhost", broker.port, username=name, password=secret, tls_context=trust, timeout=5
    )


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[EmbeddedBroker]:
    users = [CLOUD, station("st-1"), station("st-2")]
    async with EmbeddedBroker(tmp_path / "broker", users=users) as running:
        yield running


async def test_a_message_goes_up_and_down_at_qos_1(broker: EmbeddedBroker) -> None:
    async with client(broker, "karvon-cloud", "c") as cloud, client(broker, "st-1", "st-1") as edge:
        await cloud.subscribe("karvon/1/+/+/up/#", qos=1)
        await edge.subscribe("karvon/1/0/st-1/down/#", qos=1)
        await edge.publish("karvon/1/0/st-1/up/billing", b"b" * 5_000_000, qos=1)
        assert len(await next_payload(cloud)) == 5_000_000
        await cloud.publish("karvon/1/0/st-1/down", b"parent", qos=1)
        assert await next_payload(edge) == b"parent"
        await cloud.publish("karvon/1/0/st-1/down/ack", b"ack", qos=1)
        assert await next_payload(edge) == b"ack"


async def test_a_station_neither_reads_nor_writes_for_another(broker: EmbeddedBroker) -> None:
    async with (
        client(broker, "karvon-cloud", "c") as cloud,
        client(broker, "st-2", "st-2") as thief,
    ):
        await cloud.subscribe("karvon/1/+/+/up/#", qos=1)
        for topic in ("karvon/1/0/st-1/down/#", "karvon/1/#", "#", "$MQTT/#", "$SYS/#"):
            granted = await thief.subscribe(topic, qos=1)
            assert [int(code.value) for code in granted] == [128], topic
        await thief.publish("karvon/1/0/st-1/up/billing", b"forged", qos=1)
        await thief.publish("karvon/1/0/st-2/up/billing", b"own", qos=1)
        assert await next_payload(cloud) == b"own"


async def test_wrong_or_missing_credentials_are_refused(broker: EmbeddedBroker) -> None:
    for name, secret in (("st-1", "st-2"), ("nobody", ""), ("stranger", "x")):
        with pytest.raises(aiomqtt.MqttError):
            async with client(broker, name, secret):
                pytest.fail("it let a stranger in")


async def test_without_users_nobody_gets_in(tmp_path: Path) -> None:
    async with EmbeddedBroker(tmp_path / "broker") as broker:
        trust = ssl.create_default_context(cafile=str(broker.ca_file))
        with pytest.raises(aiomqtt.MqttError):
            async with aiomqtt.Client("localhost", broker.port, tls_context=trust, timeout=5):
                pytest.fail("it let a stranger in")


async def test_new_users_take_effect_without_a_restart(broker: EmbeddedBroker) -> None:
    before = broker.pid
    async with client(broker, "st-1", "st-1") as staying:
        await broker.set_users([CLOUD, station("st-1"), station("st-3")])
        async with client(broker, "st-3", "st-3"):
            pass
        with pytest.raises(aiomqtt.MqttError):
            async with client(broker, "st-2", "st-2"):
                pytest.fail("it let a removed user in")
        await staying.publish("karvon/1/0/st-1/up/state", b"still here", qos=1)
    assert broker.pid == before


async def test_comes_back_on_its_port_with_retained_messages(tmp_path: Path) -> None:
    back = asyncio.Event()

    def report(event: ChildEvent) -> None:
        if event.what == "restarted":
            back.set()

    async with EmbeddedBroker(tmp_path / "broker", users=[CLOUD], report=report) as broker:
        port = broker.port
        async with client(broker, "karvon-cloud", "c") as cloud:
            await cloud.publish("karvon/1/kept", b"kept", qos=1, retain=True)
        os.kill(broker.pid, signal.SIGKILL)
        await asyncio.wait_for(back.wait(), 20)
        assert broker.port == port
        async with client(broker, "karvon-cloud", "c") as cloud:
            await cloud.subscribe("karvon/1/kept", qos=1)
            assert await next_payload(cloud) == b"kept"


OWNER = """
import asyncio, sys
from pathlib import Path
from cloud.kernel.embedded import EmbeddedBroker

async def main():
    async with EmbeddedBroker(Path(sys.argv[1])) as broker:
        print(broker.pid, flush=True)
        await asyncio.sleep(3600)

asyncio.run(main())
"""


async def test_dies_with_its_owner_and_starts_again(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "broker")], stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdout is not None
        assert int(owner.stdout.readline()) > 0
        with pytest.raises(EmbeddedError, match=rf"another Karvon \(pid {owner.pid}\)"):
            await EmbeddedBroker(tmp_path / "broker").start()
        owner.kill()
    async with asyncio.timeout(60):
        while any(running_in(tmp_path / "broker", "nats-server")):
            await asyncio.sleep(0.02)
    async with EmbeddedBroker(tmp_path / "broker") as broker:
        assert broker.pid > 0


async def test_secrets_stay_private_and_the_log_stays_bounded(broker: EmbeddedBroker) -> None:
    home = broker.ca_file.parent.parent
    for name in ("nats.conf", "nats.log", "tls/server.key", "tls/ca.key"):
        assert (home / name).stat().st_mode & 0o777 == 0o600, name


def test_subjects_translate_filters() -> None:
    assert subjects(["cmd/X/#", "a/+/b", "#"]) == ["cmd.X", "cmd.X.>", "a.*.b", ">"]
    for bad in ("a//b", "a.b/c", "a/b*", ""):
        with pytest.raises(ValueError, match="topic filter"):
            subjects([bad])


def test_certificates_are_renewed_before_their_end_and_for_new_names(tmp_path: Path) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    files = ensure_certificates(tmp_path, ["broker.example"], now)
    first, authority = files.certificate.read_bytes(), files.ca.read_bytes()
    names = x509.load_pem_x509_certificate(first).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == ["localhost", "broker.example"]

    ensure_certificates(tmp_path, ["broker.example"], now + timedelta(days=366))
    assert files.certificate.read_bytes() == first
    ensure_certificates(tmp_path, ["broker.example"], now + timedelta(days=368))
    renewed = files.certificate.read_bytes()
    assert renewed != first
    ensure_certificates(tmp_path, ["other.example"], now + timedelta(days=368))
    assert files.certificate.read_bytes() != renewed
    assert files.ca.read_bytes() == authority


async def next_payload(subscriber: aiomqtt.Client) -> bytes:
    async with asyncio.timeout(10):
        message = await anext(aiter(subscriber.messages))
    assert isinstance(message.payload, bytes)
    return message.payload
