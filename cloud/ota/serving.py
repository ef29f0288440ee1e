"""/ota: what stations read. Without a login: what is to be believed of it is signed.

Whoever asks too often gets 429. Metadata of a version never changes and is kept by caches for
ever; timestamps are asked for each time. Images come in ranges and have strong ETags, so that a
download goes on where it was cut.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from fastapi import APIRouter, Request, Response
from starlette.responses import FileResponse

from cloud.kernel.limiter import Limiter
from cloud.ota.api import FileNotFound, TooManyDownloads
from cloud.ota.campaigns import Campaigns
from cloud.ota.director import Director
from cloud.ota.releases import Releases
from cloud.ota.storage import Files
from cloud.ota.store import TargetRow
from protocols.agent_link import LinkError, unescape

FOR_EVER: Final = "public, max-age=31536000, immutable"
EACH_TIME: Final = "no-cache"
PRIVATE: Final = "private, no-store"
BURST: Final = 300
EVERY: Final = timedelta(milliseconds=100)
"""Requests of one address: a site's stations stand behind the same one."""
_VERSIONED: Final = re.compile(r"([0-9]{1,10})\.([a-z]{1,20})\.json")
_PREFIXED: Final = re.compile(r"((?:[^/]+/)*)([0-9a-f]{64})\.([^/]+)")
_JSON: Final = "application/json"
_TIMESTAMP: Final = "timestamp.json"
_READ: Final = ["GET", "HEAD"]


@dataclass(frozen=True)
class Served:
    """What there is to serve."""

    releases: Releases
    director: Director
    campaigns: Campaigns
    files: Files
    clock: Callable[[], datetime]
    limiter: Limiter = field(default_factory=lambda: Limiter(BURST, EVERY))

    def admit(self, request: Request) -> None:
        """Raises TooManyDownloads."""
        address = request.client.host if request.client else ""
        if not self.limiter.allow(address, self.clock()):
            raise TooManyDownloads(
                "this address asks too often; wait a second, then go on where you were"
            )

    async def file(self, row: TargetRow, cache: str) -> Response:
        """An image, or the range of it that the request names. Raises FileNotFound."""
        file = await self.files.path(row.sha256)
        if file is None:
            raise _missing()
        headers = {"ETag": f'"{row.sha256}"', "Cache-Control": cache}
        return FileResponse(file, media_type="application/octet-stream", headers=headers)


def router(served: Served) -> APIRouter:
    routes = APIRouter(prefix="/ota", tags=["ota"], include_in_schema=False)
    _add_images(routes, served)
    _add_director(routes, served)
    _add_files(routes, served)
    return routes


def _add_images(routes: APIRouter, served: Served) -> None:
    @routes.api_route("/images/metadata/{name}", methods=_READ)
    async def images_metadata(request: Request, name: str) -> Response:
        served.admit(request)
        if name == _TIMESTAMP:
            return _metadata(request, await served.releases.timestamp(), EACH_TIME)
        role, version = _parts(name)
        return _metadata(request, await served.releases.metadata(role, version), FOR_EVER)

    @routes.api_route("/images/targets/{path:path}", methods=_READ)
    async def image(request: Request, path: str) -> Response:
        served.admit(request)
        found = _PREFIXED.fullmatch(path)
        row = None if found is None else await served.releases.target(found[1] + found[3])
        if found is None or row is None or row.sha256 != found[2]:
            raise _missing()
        return await served.file(row, FOR_EVER)


def _add_director(routes: APIRouter, served: Served) -> None:
    @routes.api_route("/director/{station}/metadata/{name}", methods=_READ)
    async def director_metadata(request: Request, station: str, name: str) -> Response:
        served.admit(request)
        try:
            identity = unescape(station)
        except LinkError:
            raise _missing() from None
        if name == _TIMESTAMP:
            return _metadata(request, await served.director.timestamp(identity), EACH_TIME)
        role, version = _parts(name)
        if role == "root":
            body = await served.director.root(version)
        elif role in {"targets", "snapshot"}:
            body = await served.director.document(identity, role, version)
        else:
            raise _missing()
        return _metadata(request, body, FOR_EVER)


def _add_files(routes: APIRouter, served: Served) -> None:
    @routes.api_route("/files/{token}/{name}", methods=_READ)
    async def plain_file(request: Request, token: str, name: str) -> Response:
        """For stations that speak OCPP: the image that the token's campaign offers, as a file."""
        served.admit(request)
        path = await served.campaigns.offered_file(token)
        row = None if path is None else await served.releases.target(path)
        if row is None or row.path.rpartition("/")[2] != name:
            raise _missing()
        return await served.file(row, PRIVATE)


def _parts(name: str) -> tuple[str, int]:
    """Role and version of a file's name. Raises FileNotFound."""
    found = _VERSIONED.fullmatch(name)
    if found is None or found[2] == "timestamp":
        raise _missing()
    return found[2], int(found[1])


def _metadata(request: Request, body: bytes | None, cache: str) -> Response:
    if body is None:
        raise _missing()
    tag = f'"{hashlib.sha256(body).hexdigest()}"'
    headers = {"ETag": tag, "Cache-Control": cache}
    seen = request.headers.get("if-none-match", "")
    if tag in {one.strip().removeprefix("W/") for one in seen.split(",")}:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=_JSON, headers=headers)


def _missing() -> FileNotFound:
    return FileNotFound("there is no such file; read the metadata again")
