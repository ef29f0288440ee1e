"""How far a commissioning has come: one file beside the journal, on disk after each step.

Whoever is killed between two steps goes on at the first that is not done; each step may be done
twice. What the chargers had before is kept over a restart of the whole, for decommissioning.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import msgspec

from edge_agent.private import write_private

NAME: Final = "commissioning.json"
STEPS: Final = ("devices", "failsafe", "limits", "registration", "charge", "label")
Verdict = Literal["pass", "warn", "fail"]


class ProgressError(Exception):
    """The file is there and cannot be used; the text says why and what to do."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing looked at, for the report; `text` is what was seen."""

    step: str
    what: str
    verdict: Verdict
    text: str


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A device that the installer chose."""

    name: str
    kind: Literal["charger", "meter"]
    profile: str
    address: str
    identity: str
    serial: str = ""
    firmware: str = ""


class Before(msgspec.Struct, frozen=True, kw_only=True):
    """A charger's failsafe before anything of ours: (EVSE, half, value in s or mA)."""

    address: str
    raw: tuple[tuple[int, str, int], ...]


class Armed(msgspec.Struct, frozen=True, kw_only=True):
    """A charger's failsafe as read back; None: it has none, or does not tell this half of it."""

    board: str
    has: bool
    timeout_s: int | None = None
    current_ma: int | None = None


class Charged(msgspec.Struct, frozen=True, kw_only=True):
    """What a test charge showed (mA per phase, Wh)."""

    board: str
    evse: int
    seconds: int
    highest_ma: tuple[int | None, int | None, int | None]
    energy_wh: int | None


class Progress(msgspec.Struct, kw_only=True):
    """Everything that the report needs and the next start has to know."""

    station: str
    installer: str = ""
    began: str = ""
    done: dict[str, str] = {}
    """Step -> when it was done."""
    kept_config: bool = False
    """What was there before stands in the .bak file."""
    devices: tuple[Device, ...] = ()
    before: tuple[Before, ...] = ()
    armed: tuple[Armed, ...] = ()
    limits: dict[str, str] = {}
    """As shown to the installer."""
    claimed: str = ""
    """The cloud's address, once the claim is through."""
    claiming: str = ""
    """Digest of the code that is being used: what it gave may be on disk although this is not."""
    claim_code: str = ""
    """What an operator has to approve before it counts."""
    certificate_until: str | None = None
    uplinks: tuple[str, ...] = ()
    charged: Charged | None = None
    sticker: str = ""
    checks: tuple[Check, ...] = ()

    def put(self, step: str, checks: list[Check]) -> None:
        """The checks of a step, instead of those of its last attempt."""
        others = [check for check in self.checks if check.step != step]
        self.checks = (*others, *checks)

    def started_anew(self) -> Progress:
        """Nothing is done; what was before is still known."""
        return Progress(station=self.station, kept_config=self.kept_config, before=self.before)

    def failsafe_before(self, address: str) -> Before | None:
        return next((one for one in self.before if one.address == address), None)


def now_text() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def read(folder: Path) -> Progress | None:
    """None where nothing was begun. Raises ProgressError."""
    path = folder / NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Progress)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise ProgressError(
            f"{path}: cannot be used ({error}); keep a copy of it and begin anew with --restart"
        ) from error


def write(folder: Path, progress: Progress) -> None:
    """On disk when this returns. Raises OSError; then the old state is still there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(folder / NAME, msgspec.json.format(msgspec.json.encode(progress), indent=1))
