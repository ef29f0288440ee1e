"""SQL of releases, their metadata, and what the director says; campaigns' is in campaign_store."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg.types.json import Jsonb

from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.paging import Column, Cut, Part, Sorts, Where, select_page
from cloud.kernel.rows import row, rows
from cloud.ota.trust import Document, File, Repository

IMAGES: Final = "images"
DIRECTOR: Final = "director"
_ONLINE: Final = ("snapshot", "timestamp")

# --------------------------------------------------------------------------- metadata


async def hold_repository(cursor: Cursor) -> None:
    """Let nobody else publish until this transaction ends."""
    await cursor.execute("SELECT pg_advisory_xact_lock(hashtext('ota.metadata'))")


async def repository(cursor: Cursor) -> Repository:
    """What the images repository holds: the newest of each role signed offline."""
    found = await newest(cursor, IMAGES)
    root = found.pop("root", None)
    return Repository(root, {r: one for r, one in found.items() if r not in _ONLINE})


async def newest(cursor: Cursor, repository_name: str) -> dict[str, Document]:
    documents = await rows(
        cursor,
        Document,
        "SELECT DISTINCT ON (role) role, version, body, expires_at AS expires FROM ota.metadata"
        " WHERE repository = %s ORDER BY role, version DESC",
        (repository_name,),
    )
    return {one.role: one for one in documents}


async def metadata(cursor: Cursor, repository_name: str, role: str, version: int) -> bytes | None:
    await cursor.execute(
        "SELECT body FROM ota.metadata WHERE repository = %s AND role = %s AND version = %s",
        (repository_name, role, version),
    )
    found = await cursor.fetchone()
    return None if found is None else bytes(found[0])


async def add_metadata(
    cursor: Cursor,
    tenant: TenantId,
    repository_name: str,
    documents: Iterable[Document],
    now: datetime,
) -> None:
    await cursor.executemany(
        "INSERT INTO ota.metadata"
        " (repository, role, version, tenant_id, body, expires_at, created_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s)",
        [
            (repository_name, one.role, one.version, tenant, one.body, one.expires, now)
            for one in documents
        ],
    )


async def drop_timestamps(cursor: Cursor, before: int) -> None:
    """Nobody asks for older ones: a timestamp has no version in its name."""
    await cursor.execute(
        "DELETE FROM ota.metadata WHERE repository = %s AND role = 'timestamp' AND version < %s",
        (IMAGES, before),
    )


# --------------------------------------------------------------------------- uploads


async def note_upload(
    cursor: Cursor, tenant: TenantId, sha256: str, received: int, now: datetime
) -> None:
    await cursor.execute(
        "INSERT INTO ota.upload (tenant_id, sha256, received, at) VALUES (%s, %s, %s, %s)"
        " ON CONFLICT (tenant_id, sha256) DO UPDATE SET received = excluded.received,"
        " at = excluded.at",
        (tenant, sha256, received, now),
    )


async def upload(cursor: Cursor, sha256: str) -> int | None:
    """Bytes that came of it; None: it never began."""
    await cursor.execute("SELECT received FROM ota.upload WHERE sha256 = %s", (sha256,))
    found = await cursor.fetchone()
    return None if found is None else int(found[0])


# --------------------------------------------------------------------------- releases


@dataclass(frozen=True)
class ReleaseRow:
    id: int
    kind: str
    name: str
    version: str
    counter: int
    uploaded_by: str
    uploaded_at: datetime
    revoked_at: datetime | None

    @property
    def component(self) -> str:
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True)
class TargetRow:
    path: str
    release_id: int
    length: int
    sha256: str
    custom: dict[str, Any]
    body: dict[str, Any]
    """The target as its role's metadata has it."""
    is_current: bool


RELEASES: Final = Sorts(
    "-uploaded_at",
    Column("id", int),
    uploaded_at=Column("uploaded_at", datetime),
    version=Column("version"),
    counter=Column("counter", int),
)
_RELEASE: Final = "id, kind, name, version, counter, uploaded_by, uploaded_at, revoked_at"
_TARGET: Final = "path, release_id, length, sha256, custom, body, is_current"


async def put_files(
    cursor: Cursor, tenant: TenantId, files: Mapping[str, File], by: str, now: datetime
) -> list[int]:
    """Enter what is new, and revoke what is named no more; returns the new releases."""
    await cursor.execute("SELECT path FROM ota.target")
    known = {path for (path,) in await cursor.fetchall()}
    new: list[int] = []
    ids: dict[tuple[str, str, str], int] = {}
    for file in files.values():
        if file.path not in known:
            key = (str(file.release.kind), file.release.name, file.release.version)
            if key not in ids:
                ids[key], is_new = await _release(cursor, tenant, file, by, now)
                new += [ids[key]] if is_new else []
            await _add_target(cursor, tenant, ids[key], file)
    await cursor.execute(
        "UPDATE ota.target SET is_current = path = ANY(%(paths)s)"
        " WHERE is_current <> (path = ANY(%(paths)s))",
        {"paths": list(files)},
    )
    await cursor.execute(
        "UPDATE ota.release r SET revoked_at = CASE WHEN t.any THEN NULL"
        " ELSE coalesce(r.revoked_at, %s) END"
        " FROM (SELECT release_id, bool_or(is_current) AS any FROM ota.target GROUP BY 1) t"
        " WHERE t.release_id = r.id AND (r.revoked_at IS NULL) <> t.any",
        (now,),
    )
    return new


async def _release(
    cursor: Cursor, tenant: TenantId, file: File, by: str, now: datetime
) -> tuple[int, bool]:
    release = file.release
    key = (release.kind, release.name, release.version)
    await cursor.execute(
        "INSERT INTO ota.release (tenant_id, kind, name, version, counter, uploaded_by,"
        " uploaded_at) VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING RETURNING id",
        (tenant, *key, release.release_counter, by, now),
    )
    made = await cursor.fetchone()
    if made is not None:
        return int(made[0]), True
    await cursor.execute(
        "SELECT id FROM ota.release WHERE kind = %s AND name = %s AND version = %s", key
    )
    found = await cursor.fetchone()
    assert found is not None
    return int(found[0]), False


async def _add_target(cursor: Cursor, tenant: TenantId, release_id: int, file: File) -> None:
    body = file.target.to_dict()
    await cursor.execute(
        "INSERT INTO ota.target (path, tenant_id, release_id, role, length, sha256, custom, body,"
        " is_current) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, true)",
        (
            file.path,
            tenant,
            release_id,
            file.role,
            file.length,
            file.sha256,
            Jsonb(body["custom"]),
            Jsonb(body),
        ),
    )


async def releases(
    cursor: Cursor, part: Part, kind: str | None, name: str | None, *, revoked: bool | None
) -> Cut[ReleaseRow]:
    where = (
        Where()
        .add("kind = {}", kind)
        .add("name = {}", name)
        .add("(revoked_at IS NOT NULL) = {}", revoked)
    )
    return await select_page(cursor, ReleaseRow, part, _RELEASE, "ota.release", where)


async def release(cursor: Cursor, release_id: int) -> ReleaseRow | None:
    sql = f"SELECT {_RELEASE} FROM ota.release WHERE id = %s"
    return await row(cursor, ReleaseRow, sql, (release_id,))


async def releases_by(cursor: Cursor, ids: Collection[int]) -> list[ReleaseRow]:
    sql = f"SELECT {_RELEASE} FROM ota.release WHERE id = ANY(%s) ORDER BY id"
    return await rows(cursor, ReleaseRow, sql, (list(ids),))


async def targets(cursor: Cursor, releases_: Collection[int]) -> list[TargetRow]:
    sql = f"SELECT {_TARGET} FROM ota.target WHERE release_id = ANY(%s) ORDER BY path"
    return await rows(cursor, TargetRow, sql, (list(releases_),))


async def targets_at(cursor: Cursor, paths: Collection[str]) -> list[TargetRow]:
    """Those of these that are published now."""
    sql = f"SELECT {_TARGET} FROM ota.target WHERE path = ANY(%s) AND is_current"
    return await rows(cursor, TargetRow, sql, (list(paths),))


async def target(cursor: Cursor, path: str) -> TargetRow | None:
    return await row(
        cursor, TargetRow, f"SELECT {_TARGET} FROM ota.target WHERE path = %s", (path,)
    )


# --------------------------------------------------------------------------- the director


@dataclass(frozen=True)
class Directed:
    """What the director says to a station."""

    version: int
    digest: str
    """Of what it names: a new one needs a new signature."""
    targets: bytes
    snapshot: bytes
    timestamp: bytes
    expires_at: datetime


@dataclass(frozen=True)
class Assigned:
    """A release that a station is to install, or to keep."""

    request: UUID
    path: str
    deadline_at: datetime
    opens_at: datetime | None
    closes_at: datetime | None
    force: bool


async def assigned(cursor: Cursor, station_id: int) -> list[Assigned]:
    return await rows(
        cursor,
        Assigned,
        "SELECT d.request, d.path, d.deadline_at, d.opens_at, d.closes_at,"
        " coalesce((c.terms ->> 'force')::boolean, false) AS force"
        " FROM ota.device d JOIN ota.campaign c ON c.id = d.campaign_id"
        " WHERE d.station_id = %s AND d.is_latest AND d.standing IN ('offered', 'succeeded')"
        " ORDER BY d.component",
        (station_id,),
    )


async def directed(cursor: Cursor, station_id: int, version: int | None = None) -> Directed | None:
    """That version, or the newest one."""
    return await row(
        cursor,
        Directed,
        "SELECT version, digest, targets, snapshot, timestamp, expires_at FROM ota.director"
        " WHERE station_id = %s AND version = coalesce(%s, version)"
        " ORDER BY version DESC LIMIT 1",
        (station_id, version),
    )


async def hold_director(cursor: Cursor, station_id: int) -> None:
    """Let nobody else sign for the station until this transaction ends."""
    await cursor.execute(
        "SELECT pg_advisory_xact_lock(hashtext('ota.director'), %s)", (station_id,)
    )


async def put_directed(cursor: Cursor, station_id: int, tenant: TenantId, made: Directed) -> None:
    """With the version before it, which a station may just be reading."""
    await cursor.execute(
        "INSERT INTO ota.director (station_id, version, tenant_id, digest, targets, snapshot,"
        " timestamp, expires_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
        (
            station_id,
            made.version,
            tenant,
            made.digest,
            made.targets,
            made.snapshot,
            made.timestamp,
            made.expires_at,
        ),
    )
    await cursor.execute(
        "DELETE FROM ota.director WHERE station_id = %s AND version < %s",
        (station_id, made.version - 1),
    )


# --------------------------------------------------------------------------- tags


async def tags(cursor: Cursor, stations: Sequence[int]) -> dict[int, list[str]]:
    await cursor.execute(
        "SELECT station_id, array_agg(tag ORDER BY tag) FROM ota.tag WHERE station_id = ANY(%s)"
        " GROUP BY station_id",
        (list(stations),),
    )
    return dict(await cursor.fetchall())


async def put_tags(
    cursor: Cursor, tenant: TenantId, station_id: int, names: Collection[str]
) -> None:
    await cursor.execute(
        "DELETE FROM ota.tag WHERE station_id = %s AND tag <> ALL(%s)", (station_id, list(names))
    )
    await cursor.executemany(
        "INSERT INTO ota.tag (station_id, tag, tenant_id) VALUES (%s, %s, %s)"
        " ON CONFLICT DO NOTHING",
        [(station_id, name, tenant) for name in sorted(names)],
    )
