"""Fakes at the link's ports."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cloud.communication.api import Known
from cloud.communication.receiver import Received
from cloud.kernel.database import Cursor, TenantId
from protocols.agent_link import (
    BillingBatch,
    ClockQuality,
    Down,
    Hello,
    IdToken,
    LocalListEntry,
    Mark,
    OpenTransaction,
    SetLocalList,
    Stamp,
    Stream,
    Up,
    decode_down,
    encode,
    up_topic,
)
from protocols.quantities import Milliseconds

BOOT = UUID(int=0xB007)
OUTBOX = UUID(int=0x0B0C)


@dataclass
class Surroundings:
    """Everything that the link asks its neighbours, answered from memory."""

    stations: dict[str, Known] = field(
        default_factory=lambda: {
            "CP-1": Known(1, TenantId(1)),
            "CP 2/ü": Known(2, TenantId(2)),
        }
    )
    still: tuple[OpenTransaction, ...] = ()
    over: tuple[UUID, ...] = ()
    version: int = 0
    hellos: list[tuple[int, Hello]] = field(default_factory=list)

    async def resolve(self, cursor: Cursor, identity: str, *, hold: bool = False) -> Known | None:
        return self.stations.get(identity)

    async def key_of(self, cursor: Cursor, identity: str) -> int:
        return self.stations[identity].id

    async def identities(self, cursor: Cursor, stations: Collection[int]) -> dict[int, str]:
        return {known.id: name for name, known in self.stations.items() if known.id in stations}

    async def hello(self, cursor: Cursor, tenant: TenantId, station_id: int, hello: Hello) -> None:
        self.hellos.append((station_id, hello))

    async def open_transactions(
        self, cursor: Cursor, station_id: int, told: Collection[UUID]
    ) -> tuple[tuple[OpenTransaction, ...], tuple[UUID, ...]]:
        return self.still, self.over

    async def list_version(self, cursor: Cursor, tenant: TenantId) -> int:
        return self.version

    async def local_list(self, cursor: Cursor, tenant: TenantId) -> SetLocalList:
        return SetLocalList(self.version, (LocalListEntry(IdToken(f"{tenant}-{self.version}")),))


class FakeReceiver:
    """The broker's side of the link, without a broker: messages in, messages out, what is done."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[Sequence[Received]] = asyncio.Queue()
        self.messages: list[tuple[str, bytes]] = []
        self.settled: list[int] = []
        self._tokens = itertools.count(1)

    def publish(self, topic: str, payload: bytes, *, surely: bool = True) -> None:
        self.messages.append((topic, payload))

    def done(self, messages: Iterable[Received]) -> None:
        self.settled += [message.token for message in messages]

    def arrive(
        self,
        channel: Up,
        message: msgspec.Struct | bytes,
        station: str = "CP-1",
        *,
        retained: bool = False,
    ) -> Received:
        payload = message if isinstance(message, bytes) else encode(message)
        received = Received(up_topic(station, channel), payload, next(self._tokens), retained)
        self.inbox.put_nowait([received])
        return received

    def of(self, channel: Down) -> list[msgspec.Struct]:
        return [
            decode_down(channel, payload)
            for topic, payload in self.messages
            if topic.endswith(f"/{channel}")
        ]


def stamp(ms: int = 0) -> Stamp:
    return Stamp(Milliseconds(ms), Milliseconds(ms), BOOT, ClockQuality.SYNCED)


def hello(
    *, boots: tuple[UUID, ...] = (BOOT,), next_number: int = 1, outbox: UUID = OUTBOX
) -> Hello:
    return Hello(
        outbox=outbox,
        boots=boots,
        sent=stamp(),
        marks={stream: Mark(next_number, 1) for stream in Stream},
        agent_version="1.0",
        evses=(),
        open_transactions=(),
        local_list_version=0,
    )


def billing(seq: int, *facts: object, outbox: UUID = OUTBOX) -> BillingBatch:
    return BillingBatch(outbox=outbox, seq=seq, floor=1, sent=stamp(), facts=facts)  # type: ignore[arg-type]


@pytest.fixture
def surroundings() -> Surroundings:
    return Surroundings()


@pytest.fixture
def fake_receiver() -> FakeReceiver:
    return FakeReceiver()


@pytest.fixture
def make_hello() -> object:
    return hello


@pytest.fixture
def make_billing() -> object:
    return billing


def signing_request(name: str) -> str:
    """A PEM request of this common name, by a fresh key."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    made = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


@pytest.fixture
def csr() -> Callable[[str], str]:
    return signing_request
