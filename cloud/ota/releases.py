"""Releases: taken in when they prove to be signed, and served with fresh signatures of ours."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from cloud.kernel import events
from cloud.kernel.database import Cursor, Database, TenantId
from cloud.kernel.errors import Contended
from cloud.kernel.events import Event
from cloud.kernel.http import Caller
from cloud.kernel.paging import Cut, Part
from cloud.ota import signing, store
from cloud.ota.api import FileNotFound, ReleaseIncomplete, ReleaseNotFound
from cloud.ota.signing import OnlineKey
from cloud.ota.storage import Files
from cloud.ota.store import DIRECTOR, IMAGES, ReleaseRow, TargetRow
from cloud.ota.trust import ROOT, Document, accept, director_roots

logger = logging.getLogger(__name__)
NOBODY: Final = TenantId(1)
"""Whose the online metadata is: the first tenant's, which every installation has."""


@dataclass(frozen=True)
class Keys:
    """The cloud's own: `online` signs snapshot and timestamp, `director` who gets what."""

    online: OnlineKey
    director: OnlineKey


@dataclass(frozen=True)
class Released:
    """A release with its files."""

    row: ReleaseRow
    targets: list[TargetRow]


@dataclass(frozen=True)
class Trust:
    """What a station is commissioned with, and what a root must name."""

    online: dict[str, Any]
    """The key's id, type, scheme and public part, as TUF writes them."""
    director: dict[str, Any]
    root: str | None
    """The newest root of the images, as JSON text; None: none was uploaded yet."""
    director_root: str


class Releases:
    def __init__(
        self, database: Database, files: Files, keys: Keys, clock: Callable[[], datetime]
    ) -> None:
        self._database = database
        self._files = files
        self._keys = keys
        self._clock = clock

    # ------------------------------------------------------------------ reading

    async def list_releases(
        self,
        caller: Caller,
        part: Part,
        kind: str | None,
        name: str | None,
        *,
        revoked: bool | None,
    ) -> Cut[ReleaseRow]:
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            return await store.releases(cursor, part, kind, name, revoked=revoked)

    async def release(self, caller: Caller, release_id: int) -> Released:
        """Raises ReleaseNotFound."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            return Released(
                await find(cursor, release_id), await store.targets(cursor, [release_id])
            )

    async def trust(self, caller: Caller) -> Trust:
        """The keys by their ids and public parts, and the roots."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            root = (await store.newest(cursor, IMAGES)).get(ROOT)
        director = await self.director_root()
        return Trust(
            self._keys.online.told,
            self._keys.director.told,
            None if root is None else root.body.decode(),
            director.body.decode(),
        )

    # ------------------------------------------------------------------ taking in

    async def received(self, caller: Caller, sha256: str) -> int:
        """Raises FileNotFound for a file of which nothing came."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            begun = await store.upload(cursor, sha256)
        if begun is None:
            raise FileNotFound(f"no part of a file {sha256} has come", sha256=sha256)
        return await self._files.received(caller.tenant_id, sha256)

    async def append(self, caller: Caller, sha256: str, offset: int, part: bytes) -> int:
        """Take a file's next part; returns how much is here. Raises FileMisplaced, FileTooLarge."""
        async with self._database.unit(caller.tenant_id) as cursor:
            # the row first: it makes two parts at once wait for each other
            await store.note_upload(cursor, caller.tenant_id, sha256, offset, self._clock())
            have = await self._files.append(caller.tenant_id, sha256, offset, part)
            await store.note_upload(cursor, caller.tenant_id, sha256, have, self._clock())
            return have

    async def publish(
        self,
        caller: Caller,
        documents: Sequence[tuple[str, bytes]],
        roots: Sequence[bytes] = (),
    ) -> list[Released]:
        """Make an upload visible as a whole, or refuse it; returns the releases that are new.

        Raises ReleaseRefused, ReleaseIncomplete.
        """
        now = self._clock()
        async with self._database.commit_unit() as cursor:
            held = await store.repository(cursor)
            director = (await store.newest(cursor, DIRECTOR)).get(ROOT)
        accepted = accept(held, documents, self._keys.online.public, now)
        chain = director_roots(director, roots, self._keys.director.public, now)
        for file in accepted.files.values():
            if not await self._files.finish(caller.tenant_id, file.sha256, file.length):
                raise ReleaseIncomplete(
                    f"{file.path} ({file.sha256}, {file.length} bytes) has not come, or is damaged;"
                    " upload it first",
                    path=file.path,
                    sha256=file.sha256,
                )
        # of the whole installation: the repository is one, whoever adds to it
        async with self._database.commit_unit() as cursor:
            await store.hold_repository(cursor)
            if await store.repository(cursor) != held:
                raise Contended("somebody else published at the same moment; try again")
            await store.add_metadata(cursor, caller.tenant_id, IMAGES, accepted.documents, now)
            await store.add_metadata(cursor, caller.tenant_id, DIRECTOR, chain, now)
            new = await store.put_files(
                cursor, caller.tenant_id, accepted.files, caller.subject, now
            )
            made = await self._released(cursor, new)
            await events.append(cursor, [_event(caller, one.row) for one in made])
        if accepted.documents:
            await self._freshen(anyway=True)
        return made

    async def _released(self, cursor: Cursor, ids: Sequence[int]) -> list[Released]:
        files = await store.targets(cursor, ids)
        return [
            Released(one, [file for file in files if file.release_id == one.id])
            for one in await store.releases_by(cursor, ids)
        ]

    # ------------------------------------------------------------------ freshness

    async def metadata(self, role: str, version: int) -> bytes | None:
        """An images repository's document as it was signed."""
        async with self._database.glance() as cursor:
            return await store.metadata(cursor, IMAGES, role, version)

    async def timestamp(self) -> bytes | None:
        """The images repository's newest, signed anew when half of its time is over."""
        async with self._database.glance() as cursor:
            held = await store.newest(cursor, IMAGES)
        if "targets" not in held:
            return None
        stamp = held.get("timestamp")
        now = self._clock()
        if stamp is not None and stamp.expires - now > signing.TIMESTAMP_LIVES / 2:
            return stamp.body
        return await self._freshen(anyway=False)

    async def _freshen(self, *, anyway: bool) -> bytes | None:
        """Sign what stands: a new timestamp, and a new snapshot where something changed."""
        now = self._clock()
        async with self._database.commit_unit() as cursor:
            await store.hold_repository(cursor)
            held = await store.newest(cursor, IMAGES)
            shot, stamp = held.get("snapshot"), held.get("timestamp")
            roles = {
                role: one.version
                for role, one in held.items()
                if role not in {ROOT, "snapshot", "timestamp"}
            }
            if not roles:
                return None
            if shot is None or anyway or shot.expires - now < signing.SNAPSHOT_LIVES / 2:
                version = signing.following(0 if shot is None else shot.version, now)
                body = signing.snapshot(self._keys.online, version, roles, now)
                shot = Document("snapshot", version, body, now + signing.SNAPSHOT_LIVES)
                await store.add_metadata(cursor, NOBODY, IMAGES, [shot], now)
            version = signing.following(0 if stamp is None else stamp.version, now)
            expires = now + signing.TIMESTAMP_LIVES
            body = signing.timestamp(self._keys.online, version, (shot.version, shot.body), expires)
            fresh = Document("timestamp", version, body, expires)
            await store.add_metadata(cursor, NOBODY, IMAGES, [fresh], now)
            await store.drop_timestamps(cursor, version)
            return body

    async def director_root(self, version: int | None = None) -> Document:
        """That one of the director's roots, or the newest; the first is made when it is wanted.

        Raises FileNotFound for a version that is not there.
        """
        async with self._database.commit_unit() as cursor:
            held = (await store.newest(cursor, DIRECTOR)).get(ROOT)
            if held is None:
                await store.hold_repository(cursor)
                held = (await store.newest(cursor, DIRECTOR)).get(ROOT)
            if held is None:
                now = self._clock()
                body = signing.director_root(self._keys.director, now)
                held = Document(ROOT, 1, body, now + signing.ROOT_LIVES)
                await store.add_metadata(cursor, NOBODY, DIRECTOR, [held], now)
            if version is None or version == held.version:
                return held
            body_then = await store.metadata(cursor, DIRECTOR, ROOT, version)
        if body_then is None:
            raise FileNotFound(f"the director has no root {version}", version=version)
        return Document(ROOT, version, body_then, held.expires)

    async def target(self, path: str) -> TargetRow | None:
        """A file that is published now."""
        async with self._database.glance() as cursor:
            found = await store.target(cursor, path)
        return found if found is not None and found.is_current else None


async def find(cursor: Cursor, release_id: int) -> ReleaseRow:
    """Raises ReleaseNotFound."""
    found = await store.release(cursor, release_id)
    if found is None:
        raise ReleaseNotFound(
            f"there is no release {release_id}; list the releases first", release=release_id
        )
    return found


def _event(caller: Caller, row: ReleaseRow) -> Event:
    data = {"kind": row.kind, "name": row.name, "version": row.version}
    return Event(caller.tenant_id, "release.published", None, str(row.id), data)
