"""Makers, a director, a folder that a server shows, and a controller that looks there."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import msgspec
from ota_slots import GOOD, Controller, image
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from edge_agent.updates import launcher
from edge_agent.updates.download import Pace
from edge_agent.updates.floors import Floors
from edge_agent.updates.messages import Job, Message
from edge_agent.updates.worker import Worker
from karvon.release.keys import SETS
from karvon.release.workshop import Workshop
from protocols.release import (
    Encoding,
    Kind,
    Release,
    Request,
    custom_of,
    director_metadata,
    release_of,
)

HARDWARE: Final = "linux-test-cp311"
STATION: Final = "UZ*KRV*E1"
NAME: Final = "karvon-agent"
NO_WAIT: Final = Pace(sleep=lambda _: None, tries=3)


class Maker:
    """Every key of the release makers, and their workshop; or a copy of another's."""

    def __init__(self, folder: Path, like: Maker | None = None) -> None:
        self.time = datetime.now(UTC).replace(microsecond=0)
        self.workshop = Workshop(folder, lambda: self.time)
        if like is not None:
            shutil.copytree(like.workshop.folder, folder)
            self.signers = {role: list(signers) for role, signers in like.signers.items()}
            return
        self.signers = {
            role: [CryptoSigner.generate_ed25519() for _ in range(count)]
            for role, (_, count) in SETS.items()
        }
        self.workshop.start(
            {role: [each.public_key for each in signers] for role, signers in self.signers.items()}
        )

    def sign(self, *roles: str, count: int | None = None) -> None:
        """With the keys of these roles (all offline ones), or only the first few of each."""
        for role in roles or ("root", "targets", "agent", "board", "settings"):
            for signer in self.signers[role][:count]:
                self.workshop.sign(signer)

    def publish(self, out: Path) -> None:
        self.sign()
        self.workshop.publish(out, self.signers["snapshot"][0], self.signers["timestamp"][0])

    def release(
        self, version: str, does: str = GOOD, delta_from: tuple[str, ...] = (), **fields: Any
    ) -> tuple[str, bytes]:
        """Stage a release, an agent's unless `fields` say so; returns its path and image."""
        made = fields.pop("made", None) or image(version, does, **fields.pop("files", {}))
        release = Release(
            kind=Kind.AGENT,
            name=NAME,
            version=version,
            release_counter=0,
            hw_ids=(HARDWARE,),
            raw_sha256="",
            raw_length=0,
            encoding=Encoding.ZSTD,
        )
        release = msgspec.structs.replace(release, **fields)
        return self.workshop.add(made, release, delta_from)[0], made

    def rotate(self, role: str, number: int = 0) -> CryptoSigner:
        """Another key in the place of one; returns the old."""
        old, new = self.signers[role][number], CryptoSigner.generate_ed25519()
        self.workshop.rotate(role, old.public_key.keyid, new.public_key)
        if role == "root":
            self.sign("root")
        self.signers[role][number] = new
        return old


class Director:
    """The online repository of one station, made by hand: one key for all its roles."""

    def __init__(self, out: Path, station: str = STATION) -> None:
        self.signer = CryptoSigner.generate_ed25519()
        self.place = out / director_metadata(station)
        self.station = station
        self.place.mkdir(parents=True)
        self.root = Root(expires=self._in(365), consistent_snapshot=True)
        for role in ("root", "targets", "snapshot", "timestamp"):
            self.root.add_key(self.signer.public_key, role)
        self.write("1.root", self.root)
        self.version = 0

    @staticmethod
    def _in(days: float) -> datetime:
        return datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)

    def write(self, name: str, signed: Any) -> bytes:
        metadata = Metadata(signed)
        metadata.sign(self.signer)
        content = metadata.to_bytes()
        (self.place / f"{name}.json").write_bytes(content)
        return content

    def ask(
        self, targets: dict[str, TargetFile], *, days: float = 1, version: int | None = None
    ) -> None:
        """Publish these targets for the station."""
        self.version = version or self.version + 1
        number, expires = self.version, self._in(days)
        self.write(f"{number}.targets", Targets(number, expires=expires, targets=targets))
        meta = {"targets.json": MetaFile(number)}
        self.write(f"{number}.snapshot", Snapshot(number, expires=expires, meta=meta))
        self.write("timestamp", Timestamp(number, expires=expires, snapshot_meta=MetaFile(number)))


def request(**fields: Any) -> Request:
    soon = round((datetime.now(UTC) + timedelta(hours=8)).timestamp() * 1000)
    known: dict[str, Any] = {"id": UUID(int=5), "station": STATION, "expires_at": soon}
    return Request(**(known | fields))


class World:
    """All of it, and a controller."""

    def __init__(self, folder: Path, like: Maker | None = None) -> None:
        """`like` has published nothing but its keys, which takes a while."""
        self.folder = folder
        self.out = folder / "shown"
        self.maker = Maker(folder / "repo", like)
        if like is None:
            self.maker.publish(self.out)
        else:
            self.maker.workshop.lay_out(self.out)
        self.director = Director(self.out)
        self.controller = Controller(folder)
        self.state = folder / "state"
        self.messages: list[Message] = []
        self.running = ""

    # ------------------------------------------------------------------ the makers' side

    def target(self, path: str, asked: Request | None = None) -> TargetFile:
        """A published target as a director names it."""
        role = self.maker.workshop.newest(path.split("/", maxsplit=1)[0]).signed
        genuine = role.targets[path]
        named = TargetFile(genuine.length, dict(genuine.hashes), path)
        release = release_of(path, genuine.custom)
        named.unrecognized_fields["custom"] = custom_of(release, asked or request())
        return named

    def offer(self, version: str, does: str = GOOD, **fields: Any) -> str:
        """Release, publish and direct; returns the image's name."""
        path, made = self.maker.release(version, does, **fields)
        self.maker.publish(self.out)
        self.ask(path)
        from edge_agent.updates.archive import sha256

        return sha256(made)

    def ask(self, path: str, **fields: Any) -> None:
        self.director.ask({path: self.target(path, request(**fields))})

    def install_running(self, version: str = "1.0", does: str = GOOD, **files: str) -> str:
        """What runs before an update."""
        self.running = self.controller.install(version, does, **files)
        self.controller.record(confirmed=self.running)
        return self.running

    # ------------------------------------------------------------------ the controller's side

    def job(self, **fields: Any) -> Job:
        known: dict[str, Any] = {
            "root": str(self.controller.folder),
            "state": str(self.state),
            "images_root": str(self.folder / "images.root.json"),
            "director_root": str(self.folder / "director.root.json"),
            "station": STATION,
            "hardware": HARDWARE,
            "version": "1.0",
            "running": self.running,
            "now_ms": round(datetime.now(UTC).timestamp() * 1000),
            "clock_trusted": True,
            "folder": "",
            "url": "",
            "selftest": ("selftest",),
        }
        for name, source in (
            ("images.root.json", self.maker.workshop.folder / "metadata" / "1.root.json"),
            ("director.root.json", self.director.place / "1.root.json"),
        ):
            if not (self.folder / name).exists():
                shutil.copy(source, self.folder / name)
        return Job(**(known | fields))

    def work(self, pace: Pace = NO_WAIT, memory: Any = None, **fields: Any) -> Any:
        """One run of the worker in this process; returns its result."""
        self.messages = []
        return Worker(self.job(**fields), self.messages.append, pace, memory).run()

    def floors(self) -> Floors:
        return Floors(self.state)

    def forget_metadata(self) -> None:
        """What a power cut may leave of files that were never synced: nothing."""
        for path in (self.state / "metadata").rglob("*.json"):
            if path.is_symlink():
                path.unlink()
            else:
                path.write_bytes(b"")

    def slots(self) -> list[str]:
        return launcher.slots(self.controller.folder)


def changed(metadata: Metadata[Any], change: Callable[[Any], None], *signers: Any) -> bytes:
    """Metadata with a changed content, signed anew by these."""
    change(metadata.signed)
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


__all__ = ["STATION", "Director", "Maker", "World", "changed", "dataclasses", "request"]
