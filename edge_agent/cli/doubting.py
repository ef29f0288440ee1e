"""What `karvon agent check` says of the profiles in use: what is unsure, slow, or misspelt."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_agent.config import BoardPart, Config, Device
from edge_agent.hardware.registry import find_profile
from protocols.modbus.describing import options_of, poll_seconds
from protocols.modbus.profile import Profile

BY_ID: Final = Path("/dev/serial/by-id")
NUMBERED: Final = re.compile(r"/dev/tty(USB|ACM)\d+")


@dataclass(frozen=True, slots=True)
class Doubt:
    """About one device; `well` is a warning that fails nothing."""

    what: str
    well: bool
    text: str


def profile_doubts(config: Config) -> Iterator[Doubt]:
    """What the profiles in use leave open, options that they do not know, and slow polls."""
    named: list[tuple[str, Device | BoardPart]] = [
        (f"board {part.name}", part) for part in config.boards
    ]
    named += [
        (f"meter of board {part.name}", part.meter)
        for part in config.boards
        if part.meter is not None
    ]
    if config.site is not None and config.site.meter is not None:
        named.append(("site meter", config.site.meter))
    for what, part in named:
        yield from _unstable(what, part.link.device)
        if isinstance(part, BoardPart) and part.kind == "serial_board":
            continue
        profile = find_profile(part.profile)
        known = options_of(profile)
        for option in part.options:
            if option not in known:
                text = f"profile {profile.profile} has no option '{option}'"
                has = f"it has {', '.join(known)}" if known else "it has none"
                yield Doubt(what, well=False, text=f"{text}; {has}")
        yield from _doubts(what, profile, config)


def _unstable(what: str, device: str) -> Iterator[Doubt]:
    """A name that goes to whichever adapter is found first."""
    if not NUMBERED.fullmatch(device):
        return
    known = [link for link in sorted(BY_ID.glob("*")) if link.resolve() == Path(device)]
    better = str(known[0]) if known else "its name under /dev/serial/by-id"
    text = f"{device} may be another adapter after a restart; in link.device write {better}"
    yield Doubt(what, well=True, text=text)


def _doubts(what: str, profile: Profile, config: Config) -> Iterator[Doubt]:
    if profile.status != "manual":
        text = f"profile {profile.profile} is not from the maker's manual: {profile.source}"
        yield Doubt(what, well=True, text=text)
    for doubt in profile.unsure:
        about = "" if doubt.about == "profile" else f"{doubt.about}: "
        yield Doubt(what, well=True, text=f"{about}{doubt.why}")
    seconds = poll_seconds(profile)
    if seconds > config.times.deadline_s / 2:
        text = (
            f"one poll takes at least {seconds:.1f} s; set times.deadline_s to "
            f"{2 * seconds:.0f} and times.lost_after_s to {3 * seconds:.0f} or more"
        )
        yield Doubt(what, well=True, text=text)
