"""Images in an S3-compatible store: AWS's own examples of signatures, and a store over HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from cloud.ota.bucket import EMPTY, Bucket, StoreAway, StoreKey, signed
from cloud.ota.storage import Files

EXAMPLE = StoreKey("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "us-east-1")
THEN = datetime(2013, 5, 24, tzinfo=UTC)
IMAGE = b"an image " * 400_000
DIGEST = hashlib.sha256(IMAGE).hexdigest()


def signature(headers: dict[str, str]) -> str:
    return headers["authorization"].rpartition("Signature=")[2]


def test_the_examples_that_aws_publishes_are_signed_as_published() -> None:
    """Authenticating Requests: Using the Authorization Header (AWS Signature Version 4)."""
    base = "https://examplebucket.s3.amazonaws.com"
    got = signed(EXAMPLE, "GET", f"{base}/test.txt", EMPTY, THEN, {"Range": "bytes=0-9"})
    assert signature(got) == "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    body = hashlib.sha256(b"Welcome to Amazon S3.").hexdigest()
    more = {
        "Date": "Fri, 24 May 2013 00:00:00 GMT",
        "x-amz-storage-class": "REDUCED_REDUNDANCY",
    }
    put = signed(EXAMPLE, "PUT", f"{base}/test%24file.text", body, THEN, more)
    assert signature(put) == "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"


class Store:
    """An object store that checks signature and payload as S3 does."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.gets = 0
        self.url = ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        body, more = b"", scope["method"] == "PUT"
        while more:
            message = await receive()
            body += message["body"]
            more = message.get("more_body", False)
        status, content = self._answer(scope["method"], scope["path"], headers, body)
        await send({"type": "http.response.start", "status": status,
                    "headers": [(b"content-length", b"%d" % len(content))]})  # fmt: skip
        await send({"type": "http.response.body", "body": content})

    def _answer(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, bytes]:
        told = headers["x-amz-content-sha256"]
        when = datetime.strptime(headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        want = signed(EXAMPLE, method, f"http://{headers['host']}{path}", told, when)
        if headers.get("authorization") != want["authorization"]:
            return 403, b"SignatureDoesNotMatch"
        if hashlib.sha256(body).hexdigest() != told:
            return 400, b"XAmzContentSHA256Mismatch"
        if method == "PUT":
            self.objects[path] = body
            return 200, b""
        self.gets += 1
        return (200, self.objects[path]) if path in self.objects else (404, b"NoSuchKey")


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    made = Store()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(made, log_config=None, access_log=False, lifespan="off")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve([listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        made.url = f"http://127.0.0.1:{listener.getsockname()[1]}/karvon/ota"
        yield made
        server.should_exit = True
        await serving


def files(folder: Path, store: Store, credentials: StoreKey = EXAMPLE) -> Files:
    return Files(folder, Bucket(store.url, credentials, lambda: datetime.now(UTC)))


async def test_an_image_outlives_the_disk_that_took_it(store: Store, tmp_path: Path) -> None:
    first = files(tmp_path / "one", store)
    await first.append(1, DIGEST, 0, IMAGE)
    assert await first.finish(1, DIGEST, len(IMAGE))
    assert list(store.objects) == [f"/karvon/ota/{DIGEST}"]
    other = files(tmp_path / "two", store)
    found = await asyncio.gather(*(other.path(DIGEST) for _ in range(3)))
    assert found[0] is not None
    assert found[0].read_bytes() == IMAGE
    assert (len(set(found)), store.gets) == (1, 1), "fetched once, however many ask"
    third = files(tmp_path / "three", store)
    assert await third.finish(2, DIGEST, len(IMAGE)), "it need not be uploaded again"


async def test_what_is_damaged_or_missing_in_the_store_is_not_served(
    store: Store, tmp_path: Path
) -> None:
    here = files(tmp_path / "one", store)
    assert await here.path(DIGEST) is None
    store.objects[f"/karvon/ota/{DIGEST}"] = IMAGE[:-1]
    assert await here.path(DIGEST) is None
    assert not list((tmp_path / "one" / "incoming").iterdir())


async def test_a_store_that_refuses_or_is_away_is_told(store: Store, tmp_path: Path) -> None:
    wrong = StoreKey(EXAMPLE.key_id, "wrong", EXAMPLE.region)
    here = files(tmp_path / "one", store, wrong)
    await here.append(1, DIGEST, 0, IMAGE)
    with pytest.raises(StoreAway, match="answered 403"):
        await here.finish(1, DIGEST, len(IMAGE))
    store.url = "http://127.0.0.1:9/karvon"
    away = files(tmp_path / "two", store)
    with pytest.raises(StoreAway, match="out of reach"):
        await away.path(DIGEST)


def test_a_key_file_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("AKID:secret:with:colons\n")
    assert StoreKey.read(file, "eu").secret == "secret:with:colons"
    file.write_text("AKID")
    with pytest.raises(ValueError, match="KEY_ID:SECRET"):
        StoreKey.read(file, "eu")
