"""Who is to install what: one small TUF repository per station, signed online when it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from tuf.api.metadata import TargetFile

from cloud.communication.api import Known, StationDirectory
from cloud.kernel.database import Cursor, Database
from cloud.ota import signing, store
from cloud.ota.api import FileNotFound
from cloud.ota.releases import Releases
from cloud.ota.signing import OnlineKey
from cloud.ota.store import Assigned, Directed, TargetRow
from protocols.release import Request, Window

_HALF: Final = signing.DIRECTOR_LIVES / 2


class Director:
    """Every method raises FileNotFound for what is not there, a station among it."""

    def __init__(
        self,
        database: Database,
        stations: StationDirectory,
        releases: Releases,
        key: OnlineKey,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._stations = stations
        self._releases = releases
        self._key = key
        self._clock = clock

    async def root(self, version: int) -> bytes:
        return (await self._releases.director_root(version)).body

    async def timestamp(self, identity: str) -> bytes:
        """The newest; what the station is to install is signed anew where it has changed."""
        async with self._database.glance() as cursor:
            known = await self._known(cursor, identity)
            named = await self._named(cursor, known, identity)
            held = await store.directed(cursor, known.id)
        digest = hashlib.sha256(msgspec.json.encode(named, order="sorted")).hexdigest()
        if self._stands(held, digest):
            assert held is not None
            return held.timestamp
        return (await self._sign(known, identity)).timestamp

    async def document(self, identity: str, role: str, version: int) -> bytes:
        """`targets` or `snapshot` of that version, as it was signed."""
        async with self._database.glance() as cursor:
            known = await self._known(cursor, identity)
            held = await store.directed(cursor, known.id, version)
        if held is None:
            raise FileNotFound(f"the director has no {role} {version} for this station")
        return held.targets if role == "targets" else held.snapshot

    def _stands(self, held: Directed | None, digest: str) -> bool:
        fresh = held is not None and held.expires_at - self._clock() > _HALF
        return fresh and held is not None and held.digest == digest

    async def _known(self, cursor: Cursor, identity: str) -> Known:
        known = await self._stations.resolve(cursor, identity)
        if known is None:
            raise FileNotFound("the director knows no such station")
        return known

    async def _sign(self, known: Known, identity: str) -> Directed:
        """Under a lock, with what is assigned read behind it: versions follow what they say."""
        await self._releases.director_root()
        async with self._database.commit_unit() as cursor:
            await store.hold_director(cursor, known.id)
            named = await self._named(cursor, known, identity)
            digest = hashlib.sha256(msgspec.json.encode(named, order="sorted")).hexdigest()
            held = await store.directed(cursor, known.id)
            if held is not None and self._stands(held, digest):
                return held
            now = self._clock()
            version = signing.following(0 if held is None else held.version, now)
            files = {path: TargetFile.from_dict(body, path) for path, body in named.items()}
            parts = signing.director(self._key, version, files, now)
            made = Directed(version, digest, *parts, now + signing.DIRECTOR_LIVES)
            await store.put_directed(cursor, known.id, known.tenant_id, made)
            return made

    async def _named(self, cursor: Cursor, known: Known, identity: str) -> dict[str, Any]:
        """Each target by its path: as the images repository has it, with the request beside."""
        requests = await store.assigned(cursor, known.id)
        rows = await store.targets_at(cursor, {one.path for one in requests})
        return named(identity, requests, rows)


def named(identity: str, requests: Sequence[Assigned], rows: Sequence[TargetRow]) -> dict[str, Any]:
    """Targets as the station's metadata has them. A revoked release is named to nobody."""
    found = {}
    for asked in requests:
        request = msgspec.to_builtins(_request(identity, asked))
        for row in rows:
            if row.path == asked.path:
                custom = {**row.body["custom"], "request": request}
                found[row.path] = {**row.body, "custom": custom}
    return found


def _request(identity: str, asked: Assigned) -> Request:
    window = None
    if asked.opens_at is not None and asked.closes_at is not None:
        window = Window(_ms(asked.opens_at), _ms(asked.closes_at))
    return Request(
        id=asked.request,
        station=identity,
        expires_at=_ms(asked.deadline_at),
        window=window,
        force=asked.force,
    )


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
