"""The cloud's side of whichever broker serves: embedded beside us, or a Mosquitto elsewhere."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cloud.communication.credentials import BrokerAccounts, MosquittoFiles, mosquitto_hash
from cloud.communication.receiver import BrokerSettings
from cloud.communication.store import StoredCredential
from cloud.kernel.config import CloudConfig
from cloud.kernel.embedded import BrokerUser, ChildEvent, EmbeddedBroker, hash_secret
from cloud.stations.ports import AgentEndpoint
from protocols.agent_link import VERSION, shard, unescape

CLOUD_USER = "karvon.cloud"
"""No station can have this user name: a dot is escaped in theirs."""


@dataclass(frozen=True)
class Broker:
    """How we connect, how agents connect, and where their accounts go."""

    settings: BrokerSettings
    endpoint: AgentEndpoint
    accounts: BrokerAccounts


class _EmbeddedAccounts:
    def __init__(self, broker: EmbeddedBroker, own: BrokerUser) -> None:
        self._broker = broker
        self._own = own

    async def publish(self, stations: Sequence[StoredCredential]) -> None:
        await self._broker.set_users([self._own, *map(_station_user, stations)])


def _station_user(station: StoredCredential) -> BrokerUser:
    base = f"karvon/{VERSION}/{shard(unescape(station.username))}/{station.username}"
    return BrokerUser(station.username, station.bcrypt, [f"{base}/up/+"], [f"{base}/down/+"])


@asynccontextmanager
async def embedded_broker(
    config: CloudConfig, report: Callable[[ChildEvent], None]
) -> AsyncIterator[Broker]:
    """nats-server beside us, its port kept from one start to the next."""
    password = secrets.token_urlsafe(32)
    everything = [f"karvon/{VERSION}/#"]
    own = BrokerUser(CLOUD_USER, hash_secret(password), everything, everything)
    home = config.data_dir / "broker"
    hostnames = [config.reachable_host]
    broker = EmbeddedBroker(
        home,
        users=[own],
        host=config.host,
        port=config.mqtt_port or _kept_port(home),
        hostnames=hostnames,
        report=report,
    )
    async with broker:
        _keep_port(home, broker.port)
        ca = broker.ca_file.read_text()
        yield Broker(
            BrokerSettings(f"mqtts://localhost:{broker.port}", CLOUD_USER, password, ca),
            AgentEndpoint(f"mqtts://{config.reachable_host}:{broker.port}", ca),
            _EmbeddedAccounts(broker, own),
        )


def _kept_port(home: Path) -> int:
    try:
        return int((home / "port").read_text())
    except (OSError, ValueError):
        return 0


def _keep_port(home: Path, port: int) -> None:
    (home / "port").write_text(f"{port}\n")


def outside_broker(config: CloudConfig, url: str) -> Broker:
    """A broker that somebody else runs; its password file is written for it."""
    parts = urlsplit(url)
    user, password = unquote(parts.username or "karvon-cloud"), unquote(parts.password or "")
    address = f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
    ca = config.mqtt_ca_file.read_text() if config.mqtt_ca_file else None
    file = config.mosquitto_password_file or config.data_dir / "mosquitto.passwd"
    file.parent.mkdir(parents=True, exist_ok=True)
    accounts = MosquittoFiles(
        file, user, mosquitto_hash(password, os.urandom(12)), lambda: _reload(config)
    )
    shards = f"-{config.shards.replace(',', '_')}" if config.shards else ""
    settings = BrokerSettings(address, user, password, ca, f"karvon-cloud{shards}")
    return Broker(settings, AgentEndpoint(address, ca or ""), accounts)


def _reload(config: CloudConfig) -> None:
    """Let Mosquitto read its files again, when we were told its pid file."""
    if config.mosquitto_pid_file is not None:
        os.kill(int(config.mosquitto_pid_file.read_text()), signal.SIGHUP)
