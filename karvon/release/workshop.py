"""A folder in which releases are made: what is published, what is staged, who still has to sign.

    metadata/   what was published, every version        targets/   images as they are sent
    staged/     the next versions, signed one by one     images/    unpacked, as bases of deltas

Nothing in it is secret. It may travel on a stick from signer to signer.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec
from securesystemslib.signer import Key, Signer, SSlibKey
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from edge_agent.updates import archive, packing
from karvon.release.keys import SETS, ReleaseProblem
from protocols.release import (
    IMAGES_METADATA,
    IMAGES_TARGETS,
    Encoding,
    Kind,
    Release,
    ReleaseError,
    custom_of,
    image_path,
    release_of,
)

DAYS: Final = {
    "root": 365,
    "targets": 180,
    "agent": 90,
    "board": 90,
    "settings": 90,
    "snapshot": 7,
    "timestamp": 2,
}
"""How long each role's metadata is good."""
TOP: Final = ("root", "targets", "snapshot", "timestamp")
DELEGATED: Final = tuple(str(kind) for kind in Kind)
_PLAIN: Final = JSONSerializer(compact=False, validate=True)


@dataclass(frozen=True, slots=True)
class Missing:
    """A staged role and the signatures it has, of those that count."""

    role: str
    version: int
    have: int
    need: int


def system_now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


class Workshop:
    """The makers' side of the images repository."""

    def __init__(self, folder: Path, now: Callable[[], datetime] = system_now) -> None:
        self.folder = folder
        self.now = now

    # ------------------------------------------------------------------ what is there

    def published(self, role: str) -> Metadata[Any] | None:
        """The latest published version."""
        versions = [
            int(path.name.split(".")[0])
            for path in (self.folder / "metadata").glob(f"*.{role}.json")
        ]
        return self._read(f"metadata/{max(versions)}.{role}.json") if versions else None

    def staged(self, role: str) -> Metadata[Any] | None:
        path = self.folder / "staged" / f"{role}.json"
        return self._read(f"staged/{role}.json") if path.exists() else None

    def newest(self, role: str) -> Metadata[Any]:
        """What is staged, or else what is published. Raises ReleaseProblem."""
        found = self.staged(role) or self.published(role)
        if found is None:
            raise ReleaseProblem(
                f"{self.folder}: no {role} metadata; begin with: karvon release keys start"
            )
        return found

    def _read(self, name: str) -> Metadata[Any]:
        try:
            return Metadata.from_file(str(self.folder / name))
        except (OSError, RepositoryError, ValueError) as error:
            raise ReleaseProblem(f"{self.folder / name}: {error}") from error

    def waiting(self) -> list[Missing]:
        """Every staged role, with the signatures it has and needs."""
        return [self._missing(role) for role in (*TOP, *DELEGATED) if self.staged(role)]

    def _missing(self, role: str) -> Missing:
        metadata = self.newest(role)
        results = list(self._results(role, metadata))
        worst = min(results, key=lambda each: len(each.signed) - each.threshold)
        return Missing(role, metadata.signed.version, len(worst.signed), worst.threshold)

    def _results(self, role: str, metadata: Metadata[Any]) -> Iterable[Any]:
        payload, signatures = metadata.signed_bytes, metadata.signatures
        root = self.newest("root").signed
        if role == "root":
            earlier = self.published("root")
            previous = None if earlier is None else earlier.signed
            both = root.get_root_verification_result(previous, payload, signatures)
            return [both.first, both.second]
        delegator = self.newest("targets").signed if role in DELEGATED else root
        return [delegator.get_verification_result(role, payload, signatures)]

    # ------------------------------------------------------------------ staging

    def _stage(self, role: str, signed: Any) -> None:
        earlier = self.published(role)
        signed.version = 1 if earlier is None else earlier.signed.version + 1
        signed.expires = self.now() + timedelta(days=DAYS[role])
        self._write(f"staged/{role}.json", Metadata(signed).to_bytes(_PLAIN))

    def _write(self, name: str, content: bytes) -> None:
        _replace(self.folder / name, content)

    def start(self, keys: Mapping[str, Sequence[SSlibKey]]) -> None:
        """Stage the first version of every role that is signed offline. Raises ReleaseProblem."""
        if self.published("root") or self.staged("root"):
            raise ReleaseProblem(f"{self.folder}: a repository was started here already")
        for role, (_, count) in SETS.items():
            if len(keys.get(role, ())) != count:
                raise ReleaseProblem(f"{role} needs {count} keys; make them with: keys create")
        root = Root(expires=self.now(), consistent_snapshot=True)
        for role in TOP:
            root.roles[role] = Role([], SETS[role][0])
            for key in keys[role]:
                root.add_key(key, role)
        self._stage("root", root)
        roles = {
            kind: DelegatedRole(kind, [], SETS[kind][0], terminating=True, paths=[f"{kind}/*"])
            for kind in DELEGATED
        }
        targets = Targets(expires=self.now(), delegations=Delegations({}, roles))
        for kind in DELEGATED:
            for key in keys[kind]:
                targets.add_key(key, kind)
            self._stage(kind, Targets(expires=self.now()))
        self._stage("targets", targets)

    def renew(self, role: str) -> None:
        """Stage the same content with a new version and expiry. Raises ReleaseProblem."""
        self._stage(role, self.newest(role).signed)

    def rotate(self, role: str, old: str, new: Key) -> None:
        """Stage a role's keys with `new` in the place of key id `old`. Raises ReleaseProblem."""
        self._change_keys(role, old, new)

    def revoke(self, role: str, old: str) -> None:
        """Stage a role's keys without `old`; refused where too few would be left."""
        self._change_keys(role, old, None)

    def _change_keys(self, role: str, old: str, new: Key | None) -> None:
        if role not in {*TOP, *DELEGATED}:
            raise ReleaseProblem(f"no such role: {role}; it is one of {', '.join(DAYS)}")
        owner = "targets" if role in DELEGATED else "root"
        signed = self.newest(owner).signed
        holder = signed.delegations.roles[role] if role in DELEGATED else signed.roles[role]
        if old not in holder.keyids:
            have = ", ".join(holder.keyids)
            raise ReleaseProblem(f"{role} has no key {old}; it has {have}")
        if new is None and len(holder.keyids) <= holder.threshold:
            raise ReleaseProblem(
                f"{role} needs {holder.threshold} keys and would have"
                f" {len(holder.keyids) - 1}; rotate this key to a new one instead"
            )
        if new is not None:
            signed.add_key(new, role)
        signed.revoke_key(old, role)
        self._stage(owner, signed)
        if role in {"targets", *DELEGATED}:
            self.renew(role)

    # ------------------------------------------------------------------ images

    def releases(self) -> list[tuple[str, Release]]:
        """Every target, staged or published, by its path."""
        found = []
        for kind in DELEGATED:
            for path, target in self.newest(kind).signed.targets.items():
                found.append((path, release_of(path, target.custom)))
        return found

    def add(self, image: bytes, release: Release, delta_from: Sequence[str] = ()) -> list[str]:
        """Stage an image, whole and as deltas from earlier versions; returns the targets' paths.

        `release` says what it is; its lengths, hashes and counter (0: the next) are set here. Sent
        as it is where `release` says raw, else packed. Raises ReleaseProblem.
        """
        earlier = [r for _, r in self.releases() if r.component == release.component]
        highest = max((each.release_counter for each in earlier), default=0)
        counter = release.release_counter or highest + 1
        if counter < highest:
            raise ReleaseProblem(
                f"{release.component} is at release counter {highest}; stations refuse less"
            )
        raw = release.encoding is Encoding.RAW
        whole = msgspec.structs.replace(
            release,
            release_counter=counter,
            raw_sha256=archive.sha256(image),
            raw_length=len(image),
            encoding=Encoding.RAW if raw else Encoding.ZSTD,
        )
        made = [(whole, image if raw else packing.compress(image))]
        for version in delta_from:
            base = self._base(whole, version)
            delta = msgspec.structs.replace(
                whole, encoding=Encoding.ZSTD_DELTA, base_sha256=archive.sha256(base)
            )
            made.append((delta, packing.compress(image, base)))
        return self._put(release.kind, image, made)

    def _put(self, kind: Kind, image: bytes, made: list[tuple[Release, bytes]]) -> list[str]:
        role = self.newest(kind).signed
        paths = []
        for release, packed in made:
            path = image_path(release)
            try:
                release_of(path, custom_of(release))
            except ReleaseError as error:
                raise ReleaseProblem(str(error)) from error
            known = role.targets.get(path)
            if known is not None and known.custom["raw_sha256"] != release.raw_sha256:
                raise ReleaseProblem(f"{path} is released already; give the release a new version")
            target = TargetFile.from_data(path, packed, ["sha256"])
            target.unrecognized_fields["custom"] = custom_of(release)
            role.targets[path] = target
            self._write(f"targets/{path}", packed)
            paths.append(path)
        self._write(f"images/{archive.sha256(image)}", image)
        self._stage(kind, role)
        return paths

    def _base(self, release: Release, version: str) -> bytes:
        for _, other in self.releases():
            same = (other.component, other.hw_ids) == (release.component, release.hw_ids)
            if same and other.version == version:
                path = self.folder / "images" / other.raw_sha256
                try:
                    return path.read_bytes()
                except OSError as error:
                    raise ReleaseProblem(
                        f"{path}: {error.strerror}; a delta needs the earlier image"
                    ) from error
        raise ReleaseProblem(f"{release.component} {version} was never released for this hardware")

    def withdraw(self, version: str, kind: Kind) -> list[str]:
        """Stage a role without a version's targets; returns their paths. Raises ReleaseProblem."""
        role = self.newest(kind).signed
        gone = [path for path, release in self.releases() if release.version == version]
        gone = [path for path in gone if path in role.targets]
        if not gone:
            raise ReleaseProblem(f"{kind} has no version {version}")
        for path in gone:
            del role.targets[path]
        self._stage(kind, role)
        return gone

    # ------------------------------------------------------------------ signing

    def sign(self, signer: Signer) -> list[str]:
        """Sign every staged role that this key signs; returns their names."""
        signed = []
        for role in (*TOP, *DELEGATED):
            metadata = self.staged(role)
            if metadata is not None and signer.public_key.keyid in self._keyids(role):
                metadata.sign(signer, append=True)
                self._write(f"staged/{role}.json", metadata.to_bytes(_PLAIN))
                signed.append(role)
        return signed

    def _keyids(self, role: str) -> set[str]:
        root = self.newest("root").signed
        if role in DELEGATED:
            return set(self.newest("targets").signed.delegations.roles[role].keyids)
        earlier = self.published("root") if role == "root" else None
        before = set() if earlier is None else set(earlier.signed.roles["root"].keyids)
        return before | set(root.roles[role].keyids)

    # ------------------------------------------------------------------ publishing

    def check(self) -> None:
        """Raises ReleaseProblem when signatures are missing, or an image is not what it was."""
        short = [each for each in self.waiting() if each.have < each.need]
        if short:
            listed = ", ".join(f"{each.role} has {each.have} of {each.need}" for each in short)
            raise ReleaseProblem(f"signatures are missing: {listed}; ask the others to sign")
        for kind in DELEGATED:
            for path, target in self.newest(kind).signed.targets.items():
                try:
                    with (self.folder / "targets" / path).open("rb") as file:
                        target.verify_length_and_hashes(file)
                except (OSError, RepositoryError) as error:
                    raise ReleaseProblem(f"{path}: {error}; build it again") from error

    def publish(self, out: Path, snapshot: Signer, timestamp: Signer) -> int:
        """Sign freshness and put everything into a folder that a server shows; the version.

        Images first, the timestamp last: whoever reads meanwhile sees the old state or the new.
        Raises ReleaseProblem.
        """
        self.check()
        for role in ("root", "targets", *DELEGATED):
            metadata = self.staged(role)
            if metadata is not None:
                self._write(f"metadata/{metadata.signed.version}.{role}.json", metadata.to_bytes())
                (self.folder / "staged" / f"{role}.json").unlink()
        meta = {f"{role}.json": self._meta(role) for role in ("targets", *DELEGATED)}
        number = self._publish_online("snapshot", Snapshot(meta=meta), snapshot)
        signed = Timestamp(snapshot_meta=self._meta("snapshot"))
        self._publish_online("timestamp", signed, timestamp)
        self.lay_out(out)
        return number

    def _publish_online(self, role: str, signed: Any, signer: Signer) -> int:
        earlier = self.published(role)
        signed.version = 1 if earlier is None else earlier.signed.version + 1
        signed.expires = self.now() + timedelta(days=DAYS[role])
        metadata = Metadata(signed)
        metadata.sign(signer)
        root = self.newest("root").signed
        if not root.get_verification_result(role, metadata.signed_bytes, metadata.signatures):
            raise ReleaseProblem(f"this key does not sign {role}; use the one that root names")
        self._write(f"metadata/{signed.version}.{role}.json", metadata.to_bytes())
        return int(signed.version)

    def _meta(self, role: str) -> MetaFile:
        metadata = self.published(role)
        if metadata is None:
            raise ReleaseProblem(f"{role} was never signed; it belongs to every publication")
        content = (self.folder / "metadata" / f"{metadata.signed.version}.{role}.json").read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        return MetaFile(metadata.signed.version, len(content), {"sha256": digest})

    def lay_out(self, out: Path) -> None:
        """What was published, as a server shows it. Raises ReleaseProblem."""
        for kind in DELEGATED:
            shown = self.published(kind)
            for path, target in () if shown is None else shown.signed.targets.items():
                folder, name = path.rsplit("/", 1)
                place = out / IMAGES_TARGETS / folder / f"{target.hashes['sha256']}.{name}"
                if not place.exists():
                    _replace(place, (self.folder / "targets" / path).read_bytes())
        metadata = out / IMAGES_METADATA
        for path in sorted((self.folder / "metadata").iterdir()):
            if ".timestamp." not in path.name and not (metadata / path.name).exists():
                _replace(metadata / path.name, path.read_bytes())
        latest = self.newest("timestamp").signed.version
        content = (self.folder / "metadata" / f"{latest}.timestamp.json").read_bytes()
        _replace(metadata / "timestamp.json", content)


def _replace(path: Path, content: bytes) -> None:
    """Whole or not at all. Raises ReleaseProblem."""
    draft = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        draft.replace(path)
    except OSError as error:
        raise ReleaseProblem(f"{path}: {error.strerror}; free or allow it, then repeat") from error
