"""Where metadata and images come from: a web server, or a folder such as a USB stick.

Metadata is small and read whole, within a time; images are read from any byte on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import quote, unquote

import urllib3
from tuf.api.exceptions import DownloadError, DownloadHTTPError, SlowRetrievalError
from tuf.ngclient import FetcherInterface

CHUNK: Final = 32 * 1024
CONNECT_S: Final = 10.0
READ_S: Final = 20.0
METADATA_S: Final = 60.0
"""For one metadata file, however slowly it drips."""


class SourceError(Exception):
    """The source did not give what was asked for; another try may."""


class RangeRefusedError(SourceError):
    """It has nothing from that byte on: what was fetched so far was of another file."""


@dataclass(frozen=True)
class Answer:
    """What a source answered: bytes from `start` on."""

    start: int
    length: int | None
    """Bytes that are to follow; None when the source does not say."""
    etag: str
    chunks: Iterator[bytes] = field(repr=False)


class Source(Protocol):
    """Images by their path below the source's targets."""

    def get(self, path: str, start: int, etag: str) -> contextlib.AbstractContextManager[Answer]:
        """From byte `start` on, if it is still the file with this etag; else from 0.

        Raises SourceError.
        """


def pool(ca_file: Path | None = None) -> urllib3.PoolManager:
    """Connections with deadlines; certificates are checked against the system's, or this file."""
    timeout = urllib3.Timeout(connect=CONNECT_S, read=READ_S)
    ca = None if ca_file is None else str(ca_file)
    return urllib3.PoolManager(timeout=timeout, ca_certs=ca, cert_reqs="CERT_REQUIRED", maxsize=2)


class HttpSource:
    """A web server: Range with If-Range, no redirects (a captive portal's lead astray)."""

    def __init__(self, base: str, connections: urllib3.PoolManager) -> None:
        self._base = base.rstrip("/")
        self._connections = connections

    @contextlib.contextmanager
    def get(self, path: str, start: int, etag: str) -> Iterator[Answer]:
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
            if etag:
                headers["If-Range"] = etag
        try:
            response = self._connections.request(
                "GET",
                f"{self._base}/{quote(path)}",
                headers=headers,
                preload_content=False,
                redirect=False,
                retries=False,
            )
            try:
                yield _answer(response, start)
            finally:
                response.close()
                response.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise SourceError(str(error)) from error


def _answer(response: urllib3.BaseHTTPResponse, start: int) -> Answer:
    length = response.headers.get("Content-Length", "")
    begins = 0
    if response.status == 206:
        unit, _, span = response.headers.get("Content-Range", "").partition(" ")
        begins = int(first) if (first := span.partition("-")[0]).isdigit() else -1
        if unit != "bytes" or begins != start:
            raise SourceError(f"it answered with other bytes than those from {start} on")
    elif response.status == 416:
        raise RangeRefusedError(f"it has nothing from byte {start} on")
    elif response.status != 200:
        raise SourceError(f"it answered HTTP {response.status}")
    return Answer(
        start=begins,
        length=int(length) if length.isdigit() else None,
        etag=response.headers.get("ETag", ""),
        chunks=_pieces(response),
    )


def _pieces(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    try:
        while piece := response.read1(CHUNK):
            yield piece
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise SourceError(str(error)) from error


class FolderSource:
    """A folder laid out as a server shows it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def get(self, path: str, start: int, etag: str) -> Iterator[Answer]:
        del etag  # the file is what it is
        try:
            with (self._folder / path).open("rb") as file:
                size = file.seek(0, 2)
                file.seek(min(start, size))
                yield Answer(min(start, size), size - min(start, size), "", _file_pieces(file.read))
        except OSError as error:
            raise SourceError(f"{self._folder / path}: {error.strerror}") from error


def _file_pieces(read: Callable[[int], bytes]) -> Iterator[bytes]:
    while piece := read(CHUNK):
        yield piece


class HttpFetcher(FetcherInterface):
    """Metadata from a web server."""

    def __init__(
        self,
        connections: urllib3.PoolManager,
        clock: Callable[[], float] = time.monotonic,
        within_s: float = METADATA_S,
    ) -> None:
        self._connections = connections
        self._clock = clock
        self._within_s = within_s

    def _fetch(self, url: str) -> Iterator[bytes]:
        began = self._clock()
        response = self._connections.request(
            "GET", url, preload_content=False, redirect=False, retries=False
        )
        try:
            if response.status != 200:
                raise DownloadHTTPError(f"{url}: HTTP {response.status}", response.status)
            for piece in _pieces(response):
                if self._clock() - began > self._within_s:
                    raise SlowRetrievalError(f"{url}: not here within {self._within_s:g} s")
                yield piece
        except SourceError as error:
            raise DownloadError(f"{url}: {error}") from error
        finally:
            response.close()
            response.release_conn()


class FolderFetcher(FetcherInterface):
    """Metadata from a folder; addresses begin with `base`."""

    def __init__(self, folder: Path, base: str) -> None:
        self._folder = folder
        self._base = base

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = self._folder / unquote(url.removeprefix(self._base))
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise DownloadHTTPError(f"{path}: not there", 404) from None
        except OSError as error:
            raise DownloadError(f"{path}: {error.strerror}") from error
        return iter([content])
