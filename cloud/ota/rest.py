"""/api/v1/releases, /release-files: what may be installed, taken in and shown."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, Field

from cloud.kernel.etags import ETAG_RESPONSES, IfNoneMatch, version_of
from cloud.kernel.http import Caller, Role, require
from cloud.kernel.lists import LIST_RESPONSES, Listing, listing
from cloud.kernel.paging import Page
from cloud.kernel.rest import LARGEST_ID, Body, example
from cloud.ota import store
from cloud.ota.releases import Released, Releases, Trust
from cloud.ota.store import ReleaseRow, TargetRow
from protocols.release import IMAGE_LIMIT, METADATA_LIMIT, Kind

Viewer = Annotated[Caller, Depends(require(Role.VIEWER))]
Admin = Annotated[Caller, Depends(require(Role.ADMIN))]
ReleasePath = Annotated[int, Path(ge=1, le=LARGEST_ID)]
Digest = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="its SHA-256")]
Text = Annotated[str | None, Query(max_length=100)]
_BYTES: Final = "application/octet-stream"


class SignedDocument(Body):
    role: Annotated[str, Field(pattern="^(root|targets|agent|board|settings)$")]
    body: Annotated[str, Field(min_length=1, max_length=METADATA_LIMIT)] = Field(
        description="TUF metadata, as it was signed"
    )


class PublishRequest(Body):
    """What was signed offline; each file that it names has been uploaded before."""

    model_config = example(metadata=[{"role": "root", "body": '{"signatures": [], "signed": {}}'}])

    metadata: list[SignedDocument] = Field(min_length=1, max_length=100)
    director_roots: list[Annotated[str, Field(max_length=METADATA_LIMIT)]] = Field(
        [], max_length=100, description="roots of the director's repository, where made offline"
    )


class FileView(BaseModel):
    path: str
    length: int = Field(description="bytes, as it is downloaded")
    sha256: str
    encoding: str = Field(description="raw, zstd, or zstd-delta on top of another image")
    hw_ids: list[str]
    current: bool = Field(description="false: the newest metadata names it no more")

    @classmethod
    def of(cls, row: TargetRow) -> FileView:
        return cls(
            path=row.path,
            length=row.length,
            sha256=row.sha256,
            encoding=row.custom["encoding"],
            hw_ids=row.custom["hw_ids"],
            current=row.is_current,
        )


class ReleaseView(BaseModel):
    id: int
    kind: Kind
    name: str
    version: str
    counter: int
    uploaded_by: str
    uploaded_at: datetime
    revoked_at: datetime | None

    @classmethod
    def of(cls, row: ReleaseRow) -> ReleaseView:
        return cls.model_validate(row, from_attributes=True)


class ReleaseDetail(ReleaseView):
    files: list[FileView]

    @classmethod
    def whole(cls, found: Released) -> ReleaseDetail:
        files = [FileView.of(one) for one in found.targets]
        return cls(**ReleaseView.of(found.row).model_dump(), files=files)


class PublishedView(BaseModel):
    releases: list[ReleaseDetail] = Field(description="those that are new")


class ReceivedView(BaseModel):
    sha256: str
    received: int = Field(description="bytes; the next part begins there")


class KeyView(BaseModel):
    """As TUF writes a key, with its id."""

    keyid: str
    keytype: str
    scheme: str
    keyval: dict[str, str]


class TrustView(BaseModel):
    online: KeyView = Field(description="what a root must let sign snapshot and timestamp")
    director: KeyView
    root: str | None = Field(description="the images' newest root, for commissioning")
    director_root: str

    @classmethod
    def of(cls, trust: Trust) -> TrustView:
        return cls(
            online=KeyView(**trust.online),
            director=KeyView(**trust.director),
            root=trust.root,
            director_root=trust.director_root,
        )


def router(releases: Releases) -> APIRouter:
    routes = APIRouter(prefix="/api/v1", tags=["updates"])
    _add_releases(routes, releases)
    _add_files(routes, releases)
    return routes


def _add_releases(routes: APIRouter, releases: Releases) -> None:
    @routes.get("/releases", responses=LIST_RESPONSES)
    async def list_releases(
        caller: Viewer,
        listing: Annotated[Listing, Depends(listing(store.RELEASES))],
        kind: Annotated[Kind | None, Query()] = None,
        name: Text = None,
        revoked: Annotated[bool | None, Query()] = None,
    ) -> Page[ReleaseView]:
        found = await releases.list_releases(caller, listing.part, kind, name, revoked=revoked)
        return listing.answer(found, ReleaseView, ReleaseView.of)

    @routes.post("/releases", status_code=201)
    async def publish(caller: Admin, request: PublishRequest) -> PublishedView:
        """All of it becomes visible at once, or nothing: what is not signed by enough of the
        release keys is refused, with the reason. Sent again, it changes nothing.
        """
        documents = [(one.role, one.body.encode()) for one in request.metadata]
        roots = [one.encode() for one in request.director_roots]
        made = await releases.publish(caller, documents, roots)
        return PublishedView(releases=[ReleaseDetail.whole(one) for one in made])

    @routes.get("/releases/{release}", responses=ETAG_RESPONSES)
    async def read_release(
        caller: Viewer, release: ReleasePath, tagged: IfNoneMatch
    ) -> ReleaseDetail:
        found = await releases.release(caller, release)
        return tagged.answer(ReleaseDetail.whole(found), version_of(found.row, found.targets))

    @routes.get("/release-trust")
    async def read_trust(caller: Viewer) -> TrustView:
        """The cloud's own keys, which a root must name, and what stations are commissioned with."""
        return TrustView.of(await releases.trust(caller))


_RAW: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {_BYTES: {"schema": {"type": "string", "format": "binary"}}},
    }
}


def _add_files(routes: APIRouter, releases: Releases) -> None:
    @routes.get("/release-files/{sha256}")
    async def read_received(caller: Admin, sha256: Digest) -> ReceivedView:
        """How much of a file is here."""
        return ReceivedView(sha256=sha256, received=await releases.received(caller, sha256))

    @routes.put("/release-files/{sha256}", openapi_extra=_RAW)
    async def append(
        caller: Admin,
        sha256: Digest,
        request: Request,
        offset: Annotated[int, Query(ge=0, le=IMAGE_LIMIT, description="where the part begins")],
    ) -> ReceivedView:
        """The next part of a file, of up to 8 MiB. One that came before changes nothing."""
        part = await request.body()
        have = await releases.append(caller, sha256, offset, part)
        return ReceivedView(sha256=sha256, received=have)
