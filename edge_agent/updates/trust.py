"""Two TUF repositories, checked by python-tuf and then against this controller's floors.

python-tuf alone forgets what it has seen when a power cut empties its cache, and believes a clock
that stands in the past. The floors do neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tuf.api.exceptions import DownloadError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Metadata, TargetFile
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edge_agent.updates.choosing import Named
from edge_agent.updates.floors import Floors, keys_of
from protocols.release import METADATA_LIMIT, ROOT_LIMIT

TOP: Final = ("timestamp", "snapshot", "targets")


class Unreachable(Exception):
    """The repository cannot be asked now."""


class Untrusted(Exception):
    """The repository says something that its keys, its expiry or our floors forbid."""


class Repository:
    """One repository, as far as it can be trusted now."""

    def __init__(
        self,
        name: str,
        url: str,
        *,
        folder: Path,
        root: Path,
        fetcher: FetcherInterface,
        floors: Floors,
        now_ms: int,
    ) -> None:
        self.name = name
        self.url = url
        self._folder = folder / name
        self._root = root
        self._fetcher = fetcher
        self._floors = floors
        self._now_ms = now_ms
        self._seen: dict[str, Metadata[Any]] = {}
        self._updater: Updater | None = None

    def refresh(self) -> None:
        """Fetch and check the top-level roles. Raises Unreachable, Untrusted."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._updater = Updater(
                str(self._folder),
                self.url,
                fetcher=self._fetcher,
                config=UpdaterConfig(
                    root_max_length=ROOT_LIMIT,
                    snapshot_max_length=METADATA_LIMIT,
                    targets_max_length=METADATA_LIMIT,
                ),
                bootstrap=self._root.read_bytes(),
            )
            self._updater.refresh()
        except (RepositoryError, DownloadError) as error:
            raise self._explained(error) from error
        except OSError as error:
            raise Unreachable(f"{self.name}: {error}") from error
        for role in ("root", *TOP):
            self._take(role)

    def named(self, path: str) -> Named | None:
        """A target and what is signed about it; None where nobody who may has signed it.

        Raises Unreachable, Untrusted.
        """
        if self._updater is None:
            raise Unreachable(f"{self.name}: not refreshed")
        try:
            info = self._updater.get_targetinfo(path)
        except (RepositoryError, DownloadError) as error:
            raise self._explained(error) from error
        except OSError as error:
            raise Unreachable(f"{self.name}: {error}") from error
        for role in self._delegated(path):
            self._take(role)
        return None if info is None else _named(info)

    def all_of(self, kind: str) -> list[Named]:
        """Every target of a kind that can be trusted. Raises Unreachable, Untrusted."""
        self.named(f"{kind}/")  # loads and checks the role
        role = self._seen.get(kind)
        found = [] if role is None else [self.named(path) for path in role.signed.targets]
        return [each for each in found if each is not None]

    def targets(self) -> list[Named]:
        """What the top-level role names itself."""
        return [_named(info) for info in self._seen["targets"].signed.targets.values()]

    @property
    def valid_until_ms(self) -> int:
        """When the first of the roles that were used expires."""
        return min(_expiry_ms(metadata) for metadata in self._seen.values())

    def accept(self) -> None:
        """Raise the floors to what was seen; call it before anything is done. JournalError."""
        seen = [(role, self._keys(role), each.signed.version) for role, each in self._seen.items()]
        self._floors.raise_versions(self.name, seen)

    # ------------------------------------------------------------------ checks

    def _take(self, role: str) -> None:
        """A role that python-tuf has verified and stored: read it, and hold it to the floors."""
        if role in self._seen:
            return
        try:
            metadata = Metadata.from_file(str(self._folder / f"{role}.json"))
        except (RepositoryError, OSError) as error:
            raise Untrusted(f"{self.name}: {role} cannot be read back: {error}") from error
        self._seen[role] = metadata
        version = metadata.signed.version
        floor = self._floors.version(self.name, role, self._keys(role))
        if version < floor:
            raise Untrusted(
                f"{self.name}: {role} version {version} is older than {floor}, which was here"
            )
        if _expiry_ms(metadata) <= self._now_ms:
            raise Untrusted(
                f"{self.name}: {role} expired on {metadata.signed.expires:%Y-%m-%d %H:%M} UTC;"
                " whoever publishes must renew it"
            )

    def _keys(self, role: str) -> str:
        if role == "root":
            return ""
        root = self._seen["root"].signed
        if role in root.roles:
            return keys_of(root.roles[role].keyids, root.roles[role].threshold)
        delegated = self._seen["targets"].signed.delegations.roles[role]
        return keys_of(delegated.keyids, delegated.threshold)

    def _delegated(self, path: str) -> Sequence[str]:
        """The roles that may sign this path and are here now."""
        delegations = self._seen["targets"].signed.delegations
        if delegations is None:
            return ()
        names = [name for name, _ in delegations.get_roles_for_target(path)]
        return [name for name in names if (self._folder / f"{name}.json").exists()]

    def _explained(self, error: Exception) -> Unreachable | Untrusted:
        if isinstance(error, ExpiredMetadataError):
            return Untrusted(f"{self.name}: {error}; whoever publishes must renew it")
        if isinstance(error, RepositoryError):
            return Untrusted(f"{self.name}: {error}")
        cause = error.__cause__ or error
        return Unreachable(f"{self.name}: {cause}")


def _named(info: TargetFile) -> Named:
    return Named(info.path, info.length, info.hashes.get("sha256", ""), info.custom)


def _expiry_ms(metadata: Metadata[Any]) -> int:
    return int(metadata.signed.expires.timestamp() * 1000)
