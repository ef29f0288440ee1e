"""Whether uploaded metadata follows from what the release keys have signed so far.

The same rules that stations check (TUF, by python-tuf), asked before anything becomes visible: a
release that no station would take is refused here, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeVar

from securesystemslib.signer import Key
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    Metadata,
    Root,
    RootVerificationResult,
    Signed,
    TargetFile,
    Targets,
    VerificationResult,
)
from tuf.api.serialization import DeserializationError

from cloud.ota.api import ReleaseRefused
from protocols.release import Kind, Release, ReleaseError, release_of

ROOT: Final = "root"
TARGETS: Final = "targets"
ONLINE: Final = ("snapshot", "timestamp")
T = TypeVar("T", Root, Targets)


@dataclass(frozen=True)
class Document:
    """A role's metadata as it was signed."""

    role: str
    version: int
    body: bytes
    expires: datetime


@dataclass(frozen=True)
class File:
    """A target of the images repository."""

    path: str
    role: str
    length: int
    sha256: str
    release: Release
    target: TargetFile


@dataclass
class Repository:
    """What stands: the newest root and the newest metadata of each offline role."""

    root: Document | None = None
    roles: dict[str, Document] = field(default_factory=dict)
    """targets and those that it delegates to."""


@dataclass(frozen=True)
class Accepted:
    """What an upload brings."""

    documents: list[Document]
    """New ones, in the order in which each rests on those before it."""
    files: dict[str, File]
    """All targets that there are now, old and new."""


def accept(
    held: Repository, uploaded: Iterable[tuple[str, bytes]], online: Key, now: datetime
) -> Accepted:
    """Judge an upload of (role, metadata) against what is held. Raises ReleaseRefused.

    The first root of all is taken as it is, if it is whole in itself: stations have theirs from
    their commissioning, and believe no other.
    """
    given = list(uploaded)
    roots = roots_after(held.root, [body for role, body in given if role == ROOT], now)
    newest = roots[-1] if roots else held.root
    if newest is None:
        raise ReleaseRefused("there is no root yet; upload the repository's root first")
    root = _parsed(Root, ROOT, newest.body).signed
    _demand_online(root, online)
    roles = {role: (document, False) for role, document in held.roles.items()}
    for role, body in given:
        if role != ROOT:
            document = _next(held.roles.get(role), role, body, now)
            if document is not None:
                roles[role] = (document, True)
    files = _judged(root, {role: document for role, (document, _) in roles.items()})
    order = sorted((r for r, (_, new) in roles.items() if new), key=lambda r: (r != TARGETS, r))
    return Accepted([*roots, *(roles[role][0] for role in order)], files)


def roots_after(held: Document | None, bodies: Sequence[bytes], now: datetime) -> list[Document]:
    """The new ones of a chain of roots, each signed by the one before and by itself.

    Raises ReleaseRefused.
    """
    found = {}
    for body in bodies:
        metadata = _parsed(Root, ROOT, body)
        found[metadata.signed.version] = (metadata, body)
    before = None if held is None else _parsed(Root, ROOT, held.body).signed
    new: list[Document] = []
    for version, (metadata, body) in sorted(found.items()):
        if held is not None and version < held.version:
            continue
        if held is not None and version == held.version:
            _demand_same(ROOT, held, body)
            continue
        if before is not None and version != before.version + 1:
            raise ReleaseRefused(
                f"root {version} does not follow root {before.version}; upload those between too"
            )
        _demand(ROOT, metadata.signed.get_root_verification_result(
            before, metadata.signed_bytes, metadata.signatures
        ))  # fmt: skip
        before = metadata.signed
        new.append(_document(ROOT, metadata, body))
    if new:
        _demand_fresh(new[-1], now)
    return new


def director_roots(
    held: Document | None, bodies: Sequence[bytes], key: Key, now: datetime
) -> list[Document]:
    """The same for the director's roots, which must name the cloud's director key."""
    new = roots_after(held, bodies, now)
    for document in new[-1:]:
        root = _parsed(Root, ROOT, document.body).signed
        for role in (TARGETS, *ONLINE):
            _demand_key(root, role, key, "director")
    return new


def _judged(root: Root, roles: Mapping[str, Document]) -> dict[str, File]:
    """All files, once every role proves to be signed by enough keys of the one above it."""
    top = roles.get(TARGETS)
    if top is None:
        if roles:
            raise ReleaseRefused("there are no targets yet; upload targets with its delegations")
        return {}
    metadata = _parsed(Targets, TARGETS, top.body)
    _demand(TARGETS, root.get_verification_result(
        TARGETS, metadata.signed_bytes, metadata.signatures
    ))  # fmt: skip
    if metadata.signed.targets:
        raise ReleaseRefused("targets only delegates; files are signed by agent, board or settings")
    known = (metadata.signed.delegations and metadata.signed.delegations.roles) or {}
    files: dict[str, File] = {}
    for role, document in roles.items():
        if role == TARGETS:
            continue
        if role not in known:
            raise ReleaseRefused(f"targets {top.version} delegates nothing to {role}", role=role)
        files |= _files(metadata.signed, role, document)
    return files


def _files(top: Targets, role: str, document: Document) -> dict[str, File]:
    metadata = _parsed(Targets, role, document.body)
    _demand(role, top.get_verification_result(
        role, metadata.signed_bytes, metadata.signatures
    ))  # fmt: skip
    delegated = (top.delegations.roles or {})[role] if top.delegations else None
    if metadata.signed.delegations is not None:
        raise ReleaseRefused(f"{role} may not delegate any further", role=role)
    files = {}
    for path, target in metadata.signed.targets.items():
        if delegated is None or not delegated.is_delegated_path(path):
            raise ReleaseRefused(f"{role} may not sign {path}", role=role, path=path)
        files[path] = _file(role, path, target)
    return files


def _file(role: str, path: str, target: TargetFile) -> File:
    try:
        release = release_of(path, target.custom)
    except ReleaseError as error:
        raise ReleaseRefused(str(error), role=role, path=path) from None
    digest = target.hashes.get("sha256", "")
    if len(digest) != 64 or release.kind != role:
        raise ReleaseRefused(f"{path} has no sha256, or is none of {role}", role=role, path=path)
    return File(path, role, target.length, digest, release, target)


def _next(held: Document | None, role: str, body: bytes, now: datetime) -> Document | None:
    """The uploaded metadata if it is newer; None for what is held already."""
    if role not in {TARGETS, *map(str, Kind)}:
        raise ReleaseRefused(
            f"{role!r} is none of the roles that are signed offline: root, targets, agent, board,"
            " settings",
            role=role,
        )
    metadata = _parsed(Targets, role, body)
    document = _document(role, metadata, body)
    if held is not None and document.version == held.version:
        _demand_same(role, held, body)
        return None
    if held is not None and document.version < held.version:
        raise ReleaseRefused(
            f"{role} {document.version} is older than {held.version}, which is published",
            role=role,
        )
    _demand_fresh(document, now)
    return document


def _parsed(kind: type[T], role: str, body: bytes) -> Metadata[T]:
    try:
        metadata = Metadata[T].from_bytes(body)
    except (DeserializationError, RepositoryError, ValueError) as error:
        raise ReleaseRefused(f"{role} is no TUF metadata: {error}", role=role) from None
    if not isinstance(metadata.signed, kind):
        raise ReleaseRefused(f"{role} holds metadata of type {metadata.signed.type}", role=role)
    return metadata


def _document(role: str, metadata: Metadata[T], body: bytes) -> Document:
    signed: Signed = metadata.signed
    return Document(role, signed.version, body, signed.expires)


def _demand(role: str, result: VerificationResult | RootVerificationResult) -> None:
    """Raises ReleaseRefused with how many signatures there are, and how many it takes."""
    if result.verified:
        return
    parts = (
        [result.first, result.second] if isinstance(result, RootVerificationResult) else [result]
    )
    missing = next(part for part in parts if not part.verified)
    raise ReleaseRefused(
        f"{role} is signed by {len(missing.signed)} of the {missing.threshold} keys that it takes",
        role=role,
        signed=len(missing.signed),
        threshold=missing.threshold,
    )


def _demand_fresh(document: Document, now: datetime) -> None:
    if document.expires <= now:
        raise ReleaseRefused(
            f"{document.role} {document.version} expired at {document.expires.isoformat()}; sign"
            " it anew",
            role=document.role,
        )


def _demand_same(role: str, held: Document, body: bytes) -> None:
    if body != held.body:
        raise ReleaseRefused(
            f"{role} {held.version} is published with another content; take a new version",
            role=role,
        )


def _demand_online(root: Root, key: Key) -> None:
    for role in ONLINE:
        _demand_key(root, role, key, "online")


def _demand_key(root: Root, role: str, key: Key, name: str) -> None:
    named = root.roles[role]
    if key.keyid not in named.keyids or named.threshold != 1:
        raise ReleaseRefused(
            f"root {root.version} does not let this cloud's {name} key {key.keyid} sign {role}"
            " alone; make a root that does",
            role=role,
            key=key.keyid,
        )
