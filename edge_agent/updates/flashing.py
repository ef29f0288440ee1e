"""The process that puts firmware into boards; then it ends.

It gets a `FlashJob` on stdin and tells `FlashWord`s on stdout, the last of which has the outcomes.
Its plan is journalled: it may be killed at any moment, and the same job takes it up.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Final, cast

import msgspec

from edge_agent.updates.worker import alone, die_with_the_agent
from firmware_bridge.boards import Boards
from firmware_bridge.flashing import Flasher, Progress, Result
from firmware_bridge.journal import ImageStore, Journal
from firmware_bridge.loader import BridgeError, FirmwareImage, Loader
from firmware_bridge.ways import Kind, Parity, UsageError, Where, opened

IMAGES: Final = "images"


class Reached(msgspec.Struct, frozen=True, kw_only=True):
    """A board, and how its loader is reached."""

    board: str
    device: str
    loader: Kind
    baudrate: int | None = None
    parity: Parity | None = None
    unit: int = 1
    pins: str | None = None
    hw_id: str | None = None
    address: int | None = None
    """Of a board of our own, which is asked and told in its own language."""
    speed: int = 115_200
    """At which that is spoken."""

    def where(self) -> Where:
        return Where(
            device=self.device,
            loader=self.loader,
            baudrate=self.baudrate,
            parity=self.parity,
            unit=self.unit,
            pins=self.pins,
            hw_id=self.hw_id,
            address=self.address,
            speed=self.speed,
        )


class FlashJob(msgspec.Struct, frozen=True, kw_only=True):
    """One image for several boards: all of them, or none."""

    boards: tuple[Reached, ...]
    state: str
    """The folder of journals."""
    image: str
    version: str
    hw_ids: tuple[str, ...]
    protocol: int | None
    protocols: tuple[int, ...]
    """Major versions that the agent speaks; empty: it does not care."""


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How it ended for one board."""

    result: Result
    version: str | None
    reason: str = ""


class FlashWord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where it is; with outcomes: the last word."""

    board: str = ""
    phase: str = ""
    done: int = 0
    total: int = 0
    outcomes: dict[str, Ended] | None = None
    failure: str = ""
    """Why nothing could be begun."""


Tell = Callable[[FlashWord], None]


def work(job: FlashJob, tell: Tell) -> dict[str, Ended]:
    """Raises BridgeError, UsageError where nothing could be begun, OSError for the image."""
    image = FirmwareImage(
        octets=Path(job.image).read_bytes(),
        version=job.version,
        hw_ids=frozenset(job.hw_ids),
        protocol=job.protocol,
    )
    with ExitStack() as last:
        flashers = {one.board: _flasher(job, one, tell, last) for one in job.boards}
        outcomes = Boards(boards=flashers, available=lambda _: None).install(image)
    told = {
        name: Ended(result=one.result, version=one.version, reason=one.reason)
        for name, one in outcomes.items()
    }
    missing = [one.board for one in job.boards if one.board not in told]
    reason = "not begun, because another board could not be brought to it"
    return told | {
        name: Ended(result=Result.PREVIOUS, version=None, reason=reason) for name in missing
    }


class _InTurn:
    """A Loader that is opened when it is used: boards may share a port, which is exclusive."""

    _last: ClassVar[_InTurn | None] = None

    def __init__(self, where: Where) -> None:
        self._where = where
        self._loader: Loader | None = None
        self._open = ExitStack()

    def __getattr__(self, name: str) -> Any:
        if _InTurn._last is not self and _InTurn._last is not None:
            _InTurn._last.close()
        _InTurn._last = self
        if self._loader is None:
            self._loader = self._open.enter_context(opened(self._where))
        return getattr(self._loader, name)

    def close(self) -> None:
        self._loader = None
        self._open.close()


def _flasher(job: FlashJob, one: Reached, tell: Tell, last: ExitStack) -> Flasher:
    loader = _InTurn(one.where())
    last.callback(loader.close)
    return Flasher(
        loader=cast("Loader", loader),
        journal=Journal(Path(job.state) / f"{one.board}.json"),
        images=ImageStore(Path(job.state) / IMAGES),
        protocols=frozenset(job.protocols) or None,
        hw_id=one.hw_id,
        asks=one.where().asks,
        watch=_watch(one.board, tell),
    )


def _watch(board: str, tell: Tell) -> Callable[[Progress], None]:
    def watch(progress: Progress) -> None:
        word = FlashWord(
            board=board, phase=progress.phase, done=progress.done, total=progress.total
        )
        tell(word)

    return watch


def main() -> int:
    """Work off the job on stdin; 0 when it could be done, whatever its outcome is."""
    die_with_the_agent()
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=FlashJob)
    lock = alone(Path(job.state))

    def tell(word: FlashWord) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(word) + b"\n")
        sys.stdout.buffer.flush()

    try:
        tell(FlashWord(outcomes=work(job, tell)))
    except (BridgeError, UsageError, OSError) as error:
        tell(FlashWord(outcomes={}, failure=str(error)))
    finally:
        os.close(lock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
