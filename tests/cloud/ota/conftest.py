"""Release keys as they lie offline, and what they sign."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    Root,
    TargetFile,
    Targets,
)

from protocols.release import Encoding, Kind, Release, custom_of, image_path

IMAGE = b"an image of a few bytes" * 1000


def signer() -> CryptoSigner:
    return CryptoSigner(Ed25519PrivateKey.generate())


class ReleaseKeys:
    """2-of-3 root, 2-of-3 targets, 2-of-2 agent and board, 1 for settings."""

    def __init__(self, keys: Any, now: datetime) -> None:
        self.now = now
        self.roots = [signer() for _ in range(3)]
        self.tops = [signer() for _ in range(3)]
        self.roles = {"agent": [signer(), signer()], "board": [signer(), signer()],
                      "settings": [signer()]}  # fmt: skip
        self.online = keys.online.public
        self.files: dict[str, dict[str, TargetFile]] = {role: {} for role in self.roles}
        self.versions = {"root": 0, "targets": 0, "agent": 0, "board": 0, "settings": 0}

    def _next(self, role: str) -> dict[str, Any]:
        self.versions[role] += 1
        expires = (self.now + timedelta(days=90)).replace(microsecond=0)
        return {"version": self.versions[role], "expires": expires}

    def root(self, *signing: CryptoSigner, online: Any = None) -> bytes:
        root = Root(**self._next("root"), consistent_snapshot=True)
        for key in self.roots:
            root.add_key(key.public_key, "root")
        for key in self.tops:
            root.add_key(key.public_key, "targets")
        for role in ("snapshot", "timestamp"):
            root.add_key(online or self.online, role)
        root.roles["root"].threshold = root.roles["targets"].threshold = 2
        return signed(root, signing or self.roots[:2])

    def targets(self, *signing: CryptoSigner) -> bytes:
        keys = {key.public_key.keyid: key.public_key
                for held in self.roles.values() for key in held}  # fmt: skip
        roles = {
            role: DelegatedRole(role, [key.public_key.keyid for key in held], len(held), True,
                                paths=[f"{role}/*"])
            for role, held in self.roles.items()
        }  # fmt: skip
        top = Targets(**self._next("targets"), delegations=Delegations(keys, roles))
        return signed(top, signing or self.tops[:2])

    def role(self, role: str, *signing: CryptoSigner) -> bytes:
        named = Targets(**self._next(role), targets=dict(self.files[role]))
        return signed(named, signing or self.roles[role])

    def add(
        self,
        version: str = "2.0.0",
        image: bytes = IMAGE,
        kind: Kind = Kind.AGENT,
        packed: bytes | None = None,
        **more: Any,
    ) -> str:
        """A file of a release; returns its path."""
        given: dict[str, Any] = {
            "name": "karvon-agent", "release_counter": 7, "hw_ids": ("linux-arm64",),
            "raw_length": len(image), "encoding": Encoding.RAW, **more,
        }  # fmt: skip
        digest = hashlib.sha256(image).hexdigest()
        release = Release(kind=kind, version=version, raw_sha256=digest, **given)
        path, sent = image_path(release), packed or image
        hashes = {"sha256": hashlib.sha256(sent).hexdigest()}
        custom = {"custom": custom_of(release)}
        self.files[kind][path] = TargetFile(len(sent), hashes, path, custom)
        return path


def signed(payload: Any, signing: Sequence[CryptoSigner]) -> bytes:
    metadata: Metadata[Any] = Metadata(payload)
    for key in signing:
        metadata.sign(key, append=True)
    return metadata.to_bytes()


Publish = Callable[..., Awaitable[httpx.Response]]


@pytest.fixture
def release_keys(world: Any) -> ReleaseKeys:
    world.clock.now = datetime.now(UTC)
    return ReleaseKeys(world.keys, world.clock.now)


@pytest.fixture
def upload(admin: httpx.AsyncClient) -> Callable[..., Awaitable[str]]:
    """`upload(image)`: in parts, as a tool does."""

    async def sent(image: bytes = IMAGE, part: int = 10_000) -> str:
        digest = hashlib.sha256(image).hexdigest()
        for offset in range(0, len(image), part):
            answer = await admin.put(
                f"/api/v1/release-files/{digest}",
                params={"offset": offset},
                content=image[offset : offset + part],
            )
            assert answer.status_code == 200, answer.text
            assert answer.json()["received"] == min(offset + part, len(image))
        return digest

    return sent


@pytest.fixture
def publish(admin: httpx.AsyncClient) -> Publish:
    """`publish(root=…, agent=…)`: as one request."""

    async def sent(**metadata: bytes) -> httpx.Response:
        documents = [{"role": role, "body": body.decode()} for role, body in metadata.items()]
        return await admin.post("/api/v1/releases", json={"metadata": documents})

    return sent


@pytest.fixture
def released(
    release_keys: ReleaseKeys, upload: Any, publish: Publish
) -> Callable[..., Awaitable[int]]:
    """`released(version, **custom)`: a release that is published; returns its id."""

    async def made(version: str = "2.0.0", kind: Kind = Kind.AGENT, **more: Any) -> int:
        image = IMAGE + version.encode()
        release_keys.add(version, image, kind, **more)
        await upload(image)
        first = release_keys.versions["root"] == 0
        base = {"root": release_keys.root(), "targets": release_keys.targets()} if first else {}
        answer = await publish(**base, **{str(kind): release_keys.role(kind)})
        assert answer.status_code == 201, answer.text
        return int(answer.json()["releases"][0]["id"])

    return made


@pytest.fixture
async def address(world: Any) -> AsyncIterator[str]:
    """Where the world is served over a real socket."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(world.app, log_config=None, access_log=False, lifespan="off")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve([listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await serving
