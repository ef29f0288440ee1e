"""An S3-compatible object store, as far as images need it: put one, get one.

Requests are signed by AWS Signature Version 4. Objects are named by their SHA-256, which is also
the payload hash that the signature covers: the store refuses what was damaged on the way.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

import httpx

from cloud.kernel.errors import Unavailable

EMPTY: Final = hashlib.sha256(b"").hexdigest()
_CHUNK: Final = 1024 * 1024
_ALGORITHM: Final = "AWS4-HMAC-SHA256"
_PATIENCE: Final = httpx.Timeout(60.0, connect=10.0)


class StoreAway(Unavailable):
    code = "release_file.store"


@dataclass(frozen=True)
class StoreKey:
    key_id: str
    secret: str
    region: str

    @classmethod
    def read(cls, file: Path, region: str) -> StoreKey:
        """From a file with `KEY_ID:SECRET`. Raises OSError, ValueError."""
        key_id, colon, secret = file.read_text().strip().partition(":")
        if not (key_id and colon and secret):
            raise ValueError(f"{file} must hold KEY_ID:SECRET")
        return cls(key_id, secret, region)


def signed(
    key: StoreKey,
    method: str,
    url: str,
    payload_sha256: str,
    now: datetime,
    more: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The headers of a request without a query, its signature among them."""
    parts = urlsplit(url)
    moment = now.strftime("%Y%m%dT%H%M%SZ")
    headers = {
        **{name.lower(): value for name, value in (more or {}).items()},
        "host": parts.netloc,
        "x-amz-content-sha256": payload_sha256,
        "x-amz-date": moment,
    }
    names = ";".join(sorted(headers))
    listed = "".join(f"{name}:{headers[name].strip()}\n" for name in sorted(headers))
    request = f"{method}\n{parts.path}\n\n{listed}\n{names}\n{payload_sha256}"
    scope = f"{moment[:8]}/{key.region}/s3/aws4_request"
    digest = hashlib.sha256(request.encode()).hexdigest()
    signature = _mac(_day_key(key, moment[:8]), f"{_ALGORITHM}\n{moment}\n{scope}\n{digest}").hex()
    headers["authorization"] = (
        f"{_ALGORITHM} Credential={key.key_id}/{scope},SignedHeaders={names},Signature={signature}"
    )
    return headers


def _day_key(key: StoreKey, day: str) -> bytes:
    derived = f"AWS4{key.secret}".encode()
    for part in (day, key.region, "s3", "aws4_request"):
        derived = _mac(derived, part)
    return derived


def _mac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


class Bucket:
    """Blocking; for a thread. `url` is endpoint, bucket and prefix: https://s3.example/karvon/ota."""

    def __init__(self, url: str, key: StoreKey, clock: Callable[[], datetime]) -> None:
        self._url = url.rstrip("/")
        self._key = key
        self._clock = clock

    def put(self, sha256: str, file: Path) -> None:
        """Store the file under its digest. Raises StoreAway."""
        length = {"content-length": str(file.stat().st_size)}
        with file.open("rb") as content:
            self._ask("PUT", sha256, sha256, length, _parts(content.read))

    def get(self, sha256: str, file: Path) -> bool:
        """Write it to the file, unchecked; False: the store has none. Raises StoreAway."""
        url = self._address(sha256)
        headers = signed(self._key, "GET", url, EMPTY, self._clock())
        try:
            with (
                httpx.stream("GET", url, headers=headers, timeout=_PATIENCE) as answer,
                file.open("wb") as out,
            ):
                if answer.status_code == httpx.codes.NOT_FOUND:
                    return False
                _demand(answer)
                for chunk in answer.iter_bytes(_CHUNK):
                    out.write(chunk)
        except httpx.HTTPError as error:
            raise _away(error) from error
        return True

    def _ask(
        self,
        method: str,
        name: str,
        payload: str,
        more: Mapping[str, str],
        content: Iterator[bytes],
    ) -> None:
        url = self._address(name)
        headers = signed(self._key, method, url, payload, self._clock())
        try:
            answer = httpx.request(
                method, url, headers={**headers, **more}, content=content, timeout=_PATIENCE
            )
        except httpx.HTTPError as error:
            raise _away(error) from error
        _demand(answer)

    def _address(self, name: str) -> str:
        parts = urlsplit(f"{self._url}/{name}")
        return f"{parts.scheme}://{parts.netloc}{quote(parts.path, safe='/-_.~')}"


def _parts(read: Callable[[int], bytes]) -> Iterator[bytes]:
    while part := read(_CHUNK):
        yield part


def _demand(answer: httpx.Response) -> None:
    if not answer.is_success:
        raise StoreAway(
            f"the object store answered {answer.status_code} {answer.reason_phrase}; check"
            " KARVON_OTA_S3_URL, its region and key"
        )


def _away(error: httpx.HTTPError) -> StoreAway:
    return StoreAway(f"the object store is out of reach: {error or type(error).__name__}")
