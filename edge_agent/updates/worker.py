"""The process that fetches an update: metadata, image, slot; then it ends.

It gets a `Job` on stdin and tells messages on stdout, the last of which is its result. What it
needs of memory is gone when it ends, and ending it at any time is safe: the next one goes on.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import urllib3

from edge_agent.updates import images, launcher, packing, slots
from edge_agent.updates.archive import ImageError, sha256
from edge_agent.updates.choosing import (
    Choice,
    Disagreement,
    Here,
    Named,
    Refused,
    deltas,
    directed,
    newest,
)
from edge_agent.updates.download import (
    SPARE_BYTES,
    Bucket,
    Download,
    DownloadFailed,
    ImageRefused,
    Pace,
    Wanted,
)
from edge_agent.updates.fetching import (
    FolderFetcher,
    FolderSource,
    HttpFetcher,
    HttpSource,
    Source,
    pool,
)
from edge_agent.updates.floors import Floors, JournalError
from edge_agent.updates.messages import (
    Component,
    Current,
    Failure,
    Job,
    Message,
    Nothing,
    Progress,
    Ready,
    Subject,
)
from edge_agent.updates.trust import Repository, Unreachable, Untrusted
from protocols.agent_link import UpdateState
from protocols.release import (
    IMAGES_METADATA,
    IMAGES_TARGETS,
    Encoding,
    Kind,
    Release,
    director_metadata,
)

FOLDER: Final = "folder:"
METADATA: Final = "metadata"
DOWNLOADS: Final = "downloads"
LOCK: Final = "worker.lock"
MEMORY: Final = 8
"""Times the image's bytes that it takes to apply a delta to another."""
MEMINFO: Final = Path("/proc/meminfo")
TREE: Final = 2
"""Times the image's bytes that a slot takes at most."""
_PR_SET_PDEATHSIG: Final = 1
Tell = Callable[[Message], None]


@dataclass(frozen=True)
class Found:
    """What is to be installed, and how long that may be done."""

    choice: Choice
    ways: list[tuple[Named, Release]]
    """Deltas that lead there from what runs, then the whole image."""
    valid_until_ms: int

    @property
    def about(self) -> Subject:
        return _about(self.choice)


def _about(choice: Choice) -> Subject:
    return Subject(
        target=choice.target.path,
        version=choice.release.version,
        request=None if choice.request is None else choice.request.id,
    )


def _first(choices: Iterable[Choice], current: list[Subject]) -> Choice | None:
    """The first that does not run yet; what does is noted."""
    for choice in choices:
        if not choice.runs:
            return choice
        current.append(_about(choice))
    return None


class Worker:
    """One job."""

    def __init__(
        self,
        job: Job,
        tell: Tell,
        pace: Pace | None = None,
        memory: Callable[[], int | None] | None = None,
    ) -> None:
        self.job = job
        self.tell = tell
        self._pace = pace
        self._memory = memory or available
        self._root, self._state = Path(job.root), Path(job.state)
        self._received = 0
        self._about: Subject | None = None

    def run(self) -> Message:
        """The result, which is also told."""
        try:
            result = self._run()
        except Unreachable as error:
            result = self._failed(UpdateState.DOWNLOAD_FAILED, error)
        except (Untrusted, Disagreement, ImageRefused) as error:
            result = self._failed(UpdateState.INVALID_SIGNATURE, error)
        except DownloadFailed as error:
            result = self._failed(UpdateState.DOWNLOAD_FAILED, error)
        except (Refused, JournalError) as error:
            result = self._failed(UpdateState.INSTALLATION_FAILED, error)
        except ImageError as error:
            result = self._failed(UpdateState.INSTALL_VERIFICATION_FAILED, error)
        except OSError as error:
            text = f"{error.filename or self._root}: {error.strerror}; free space or repair it"
            result = Failure(UpdateState.INSTALLATION_FAILED, text, self._about)
        self.tell(result)
        return result

    def _failed(self, state: UpdateState, error: Exception) -> Failure:
        return Failure(state, str(error), self._about)

    def _run(self) -> Message:
        floors = Floors(self._state)
        current: list[Subject] = []
        try:
            found = self._look(floors, current)
        finally:
            floors.close()
        if found is None:
            for about in current[:-1]:
                self.tell(Progress(about, UpdateState.INSTALLED))
            return Current(current[-1]) if current else Nothing()
        for about in current:
            self.tell(Progress(about, UpdateState.INSTALLED))
        self._about = found.about
        release = found.choice.release
        if not self._here(release):
            self._room(release)
            self._say(UpdateState.DOWNLOADING)
            image = self._fetched(found)
            self._say(UpdateState.SIGNATURE_VERIFIED)
            if release.kind is Kind.AGENT:
                slots.prepare(self._root, image, selftest=self.job.selftest)
            else:
                images.keep(self._root, image)
        request = found.choice.request
        return Ready(
            about=found.about,
            slot=release.raw_sha256,
            component=release.component,
            counter=release.release_counter,
            valid_until_ms=found.valid_until_ms,
            window=None if request is None else request.window,
            force=request is not None and request.force,
            received=self._received,
            release=release,
        )

    def _here(self, release: Release) -> bool:
        if release.kind is Kind.AGENT:
            return launcher.usable(self._root, release.raw_sha256)
        return images.usable(self._root, release.raw_sha256)

    def _room(self, release: Release) -> None:
        """A slot holds the image's files and their bytecode. Raises DownloadFailed."""
        free = shutil.disk_usage(self._root).free
        needed = TREE * release.raw_length + SPARE_BYTES
        if free < needed:
            raise DownloadFailed(
                f"{self._root}: {free >> 20} MiB are free, and a slot needs {needed >> 20} MiB;"
                " free space"
            )

    def _say(self, state: UpdateState) -> None:
        if self._about is not None:
            self.tell(Progress(self._about, state))

    def _running(self) -> str:
        """The image that runs; the factory's name is in its mark."""
        if self.job.running:
            return self.job.running
        try:
            mark = launcher.path_of(self._root, "") / launcher.COMPLETE
            return mark.read_text(encoding="ascii").strip()
        except OSError:
            return ""

    # ------------------------------------------------------------------ metadata

    def _look(self, floors: Floors, current: list[Subject]) -> Found | None:
        """Both repositories refreshed, the floors raised, what is to be installed next chosen.

        `current` gets what is asked for and runs already.
        """
        if self.job.clock_trusted:
            floors.raise_time(self.job.now_ms)
        now_ms = max(self.job.now_ms, floors.time_ms())
        here = Here(
            station=self.job.station,
            takes=self._takes(),
            version=self.job.version,
            now_ms=now_ms,
            counter=floors.counter,
        )
        genuine = self._repository("images", IMAGES_METADATA, self.job.images_root, floors, now_ms)
        genuine.refresh()
        genuine.accept()
        until = [genuine.valid_until_ms]
        if self.job.folder or self.job.director_root is None:
            kinds = dict.fromkeys(one.kind for one in here.takes)
            everything = [named for kind in kinds for named in genuine.all_of(kind)]
            choice = _first(newest(everything, here), [])
        else:
            director = self._repository(
                "director",
                director_metadata(self.job.station),
                self.job.director_root,
                floors,
                now_ms,
            )
            director.refresh()
            director.accept()
            told = {named.path: named for named in director.targets()}
            choice = _first(directed(told, genuine.named, here), current)
            until.append(director.valid_until_ms)
        ways = []
        if choice is not None:
            same_kind = genuine.all_of(choice.release.kind)
            ways = deltas(choice, same_kind, choice.component.running)
            until.append(genuine.valid_until_ms)
            if choice.request is not None:
                until.append(choice.request.expires_at)
        genuine.accept()
        if choice is None:
            return None
        return Found(choice, [*ways, (choice.target, choice.release)], min(until))

    def _takes(self) -> tuple[Component, ...]:
        own = Component(kind=Kind.AGENT, hw_ids=(self.job.hardware,), running=self._running())
        return (own, *self.job.others)

    def _repository(
        self, name: str, place: str, root: str, floors: Floors, now_ms: int
    ) -> Repository:
        if self.job.folder:
            fetcher: FolderFetcher | HttpFetcher = FolderFetcher(Path(self.job.folder), FOLDER)
            url = f"{FOLDER}{place}/"
        else:
            fetcher = HttpFetcher(self._connections())
            url = f"{self.job.url.rstrip('/')}/{place}/"
        return Repository(
            name,
            url,
            folder=self._state / METADATA,
            root=Path(root),
            fetcher=fetcher,
            floors=floors,
            now_ms=now_ms,
        )

    def _connections(self) -> urllib3.PoolManager:
        return pool(None if self.job.ca is None else Path(self.job.ca))

    # ------------------------------------------------------------------ the image

    def _fetched(self, found: Found) -> bytes:
        """The image, by the shortest way that leads to it."""
        self._forget_others(found)
        last: Exception | None = None
        for named, release in found.ways:
            whole = release.encoding is not Encoding.ZSTD_DELTA
            if not whole and not self._affordable(release):
                continue
            try:
                base = None if whole else self._base(found.choice.component, release)
                path = self._download(named)
                self._say(UpdateState.DOWNLOADED)
                image = _unpacked(path.read_bytes(), release, base)
            except (ImageError, ImageRefused, OSError) as error:
                if whole:
                    raise
                last = error
                continue
            path.unlink()
            return image
        raise ImageError(f"no way leads to the image: {last}")

    def _affordable(self, release: Release) -> bool:
        """A delta needs both images in memory; without that the whole one comes."""
        free = self._memory()
        return free is None or free >= MEMORY * release.raw_length

    def _forget_others(self, found: Found) -> None:
        """What earlier updates have left of their downloads."""
        wanted = {named.sha256 for named, _ in found.ways}
        for path in (self._state / DOWNLOADS).glob("*"):
            if path.name.partition(".")[0] not in wanted:
                path.unlink()

    def _base(self, component: Component, release: Release) -> bytes:
        """What runs, as an image. Raises ImageError when its files were changed."""
        if component.kind is Kind.AGENT:
            base = slots.image_of(self._root, self.job.running)
        else:
            base = images.load(self._root, component.running)
        if sha256(base) != release.base_sha256:
            raise ImageError("what runs was changed: no delta fits it")
        return base

    def _download(self, named: Named) -> Path:
        source: Source
        if self.job.folder:
            source = FolderSource(Path(self.job.folder) / IMAGES_TARGETS)
        else:
            address = f"{self.job.url.rstrip('/')}/{IMAGES_TARGETS}"
            source = HttpSource(address, self._connections())
        download = Download(
            source,
            self._state / DOWNLOADS,
            Wanted(named.path, named.length, named.sha256),
            bucket=Bucket(self.job.rate),
            pace=self._pace,
        )
        path = download.run()
        self._received += named.length
        return path


def _unpacked(packed: bytes, release: Release, base: bytes | None) -> bytes:
    """Raises ImageError when it is not the image that was signed."""
    if release.encoding is Encoding.RAW:
        image = packed
    else:
        image = packing.decompress(packed, release.raw_length, base)
    if sha256(image) != release.raw_sha256:
        raise ImageError("the unpacked image is not the one that was signed")
    return image


def available(path: Path = MEMINFO) -> int | None:
    """Bytes of memory that may be had; None where the system does not tell."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        return (
            next(int(each.split()[1]) for each in lines if each.startswith("MemAvailable:")) << 10
        )
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def main() -> int:
    """Work off the job on stdin; 0 when it could be done, whatever its result is."""
    die_with_the_agent()
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    os.nice(10)  # charging goes first
    lock = alone(Path(job.state))

    def tell(message: Message) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
        sys.stdout.buffer.flush()

    try:
        Worker(job, tell).run()
    finally:
        os.close(lock)
    return 0


def die_with_the_agent() -> None:
    """A worker whose agent was killed would meet the next agent's."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def alone(state: Path) -> int:
    """Wait until no other worker has this folder."""
    state.mkdir(parents=True, exist_ok=True)
    handle = os.open(state / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


if __name__ == "__main__":
    sys.exit(main())
