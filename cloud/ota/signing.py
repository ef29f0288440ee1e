"""The cloud's own keys: for how fresh the metadata is, and for who gets what.

Neither makes software genuine. A thief of both may withhold releases, or choose among those that
the release keys have signed for that hardware.
"""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

SNAPSHOT_LIVES: Final = timedelta(days=7)
TIMESTAMP_LIVES: Final = timedelta(days=2)
DIRECTOR_LIVES: Final = timedelta(days=1)
ROOT_LIVES: Final = timedelta(days=365)
_COMPACT: Final = JSONSerializer(compact=True)


class OnlineKey:
    """An Ed25519 key in a file that only this process's user can read."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._signer = CryptoSigner(private)

    @classmethod
    def kept(cls, file: Path) -> Self:
        """The key in the file, which is made when there is none.

        Raises OSError, and ValueError for a file that holds no Ed25519 key as plain PEM.
        """
        with suppress(FileExistsError):
            _make(file)
        try:
            private = load_pem_private_key(file.read_bytes(), None)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file} holds no unencrypted private key as PEM: {error}") from None
        if not isinstance(private, Ed25519PrivateKey):
            raise ValueError(f"{file} holds another key than Ed25519's; make one with openssl")  # noqa: TRY004  # of its content
        return cls(private)

    @property
    def public(self) -> Key:
        return self._signer.public_key

    @property
    def id(self) -> str:
        return str(self.public.keyid)

    @property
    def told(self) -> dict[str, Any]:
        """Its public half with its id."""
        return {"keyid": self.id, **self.public.to_dict()}

    def sign(self, signed: Root | Snapshot | Targets | Timestamp) -> bytes:
        """The metadata as it is served."""
        metadata: Metadata[Any] = Metadata(signed)
        metadata.sign(self._signer)
        return metadata.to_bytes(_COMPACT)


def _make(file: Path) -> None:
    """Whole or not at all: another process may be doing the same."""
    if file.exists():
        return
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    pem = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    aside = file.with_name(f"{file.name}.{os.getpid()}")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(pem)
        out.flush()
        os.fsync(out.fileno())
    try:
        file.hardlink_to(aside)
    finally:
        aside.unlink()


# --------------------------------------------------------------------------- what is signed


def following(version: int, now: datetime) -> int:
    """The next version: never behind the clock, so that a cloud restored from a backup goes on
    above what stations have seen, and does not look like a replay to them.
    """
    return max(version + 1, int(now.timestamp()))


def snapshot(key: OnlineKey, version: int, held: dict[str, int], now: datetime) -> bytes:
    """Which version of each role belongs together."""
    meta = {f"{role}.json": MetaFile(number) for role, number in held.items()}
    return key.sign(Snapshot(version, expires=_whole(now + SNAPSHOT_LIVES), meta=meta))


def timestamp(key: OnlineKey, version: int, newest: tuple[int, bytes], expires: datetime) -> bytes:
    """Which snapshot (version and body) is the newest."""
    meta = MetaFile.from_data(*newest, ["sha256"])
    return key.sign(Timestamp(version, expires=_whole(expires), snapshot_meta=meta))


def director(
    key: OnlineKey, version: int, targets: dict[str, TargetFile], now: datetime
) -> tuple[bytes, bytes, bytes]:
    """Targets, snapshot and timestamp of one station."""
    expires = _whole(now + DIRECTOR_LIVES)
    named = key.sign(Targets(version, expires=expires, targets=targets))
    meta = {"targets.json": MetaFile.from_data(version, named, ["sha256"])}
    shot = key.sign(Snapshot(version, expires=expires, meta=meta))
    return named, shot, timestamp(key, version, (version, shot), expires)


def director_root(key: OnlineKey, now: datetime) -> bytes:
    """A root for the director that its own key signs: for a start, until one is made offline."""
    root = Root(1, expires=_whole(now + ROOT_LIVES), consistent_snapshot=True)
    for role in ("root", "targets", "snapshot", "timestamp"):
        root.add_key(key.public, role)
    return key.sign(root)


def _whole(moment: datetime) -> datetime:
    """TUF's times have no fractions of a second."""
    return moment.replace(microsecond=0)
