"""People with vehicles: they arrive, hold a card to the reader, charge, and leave again."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from karvon.demo.process import DemoError


class Forecourt(Protocol):
    """What a driver can do at a station."""

    def plug(self, want_wh: int, max_ma: int) -> None:
        """Raises DemoError when the place is not free yet."""
        ...

    def present(self, token: str) -> None:
        """Raises DemoError when the reader does not react or refuses."""
        ...

    def unplug(self) -> None: ...

    def full(self) -> bool:
        """Whether the vehicle has what it wanted."""
        ...


class Stage(StrEnum):
    AWAY = "away"
    PLUGGED = "plugged"
    CHARGING = "charging"
    FULL = "full"


@dataclass(frozen=True)
class Habits:
    """Ranges to draw from: seconds of waiting, Wh wanted, mA the vehicle takes."""

    away_s: tuple[float, float] = (2.0, 25.0)
    card_s: tuple[float, float] = (1.0, 4.0)
    linger_s: tuple[float, float] = (3.0, 10.0)
    patience_s: float = 120.0
    want_wh: tuple[int, int] = (600, 3_000)
    max_ma: tuple[int, ...] = (16_000, 20_000, 32_000)


EVERYDAY: Final = Habits()


class Driver:
    """One vehicle after the other at one station; `step` is called about once a second."""

    def __init__(
        self, forecourt: Forecourt, token: str, chance: random.Random, habits: Habits = EVERYDAY
    ) -> None:
        self.stage = Stage.AWAY
        self.sessions = 0
        self._forecourt = forecourt
        self._token = token
        self._chance = chance
        self._habits = habits
        self._due: float | None = None
        self._give_up = 0.0

    def step(self, now: float) -> None:
        """Do what is due at `now` (monotonic seconds)."""
        if self._due is None:
            self._due = now + self._chance.uniform(*self._habits.away_s)
        if self.stage is Stage.CHARGING:
            if self._forecourt.full() or now >= self._give_up:
                self._next(Stage.FULL, now, self._habits.linger_s)
        elif now >= self._due:
            self._act(now)

    def _act(self, now: float) -> None:
        habits = self._habits
        if self.stage is Stage.AWAY:
            want, most = self._chance.randint(*habits.want_wh), self._chance.choice(habits.max_ma)
            try:
                self._forecourt.plug(want, most)
            except DemoError:
                self._next(Stage.AWAY, now, habits.card_s)
                return
            self._next(Stage.PLUGGED, now, habits.card_s)
            self._give_up = now + habits.patience_s
        elif self.stage is Stage.PLUGGED:
            self._hold_card(now)
        else:
            self._forecourt.unplug()
            self._next(Stage.AWAY, now, habits.away_s)

    def _hold_card(self, now: float) -> None:
        """A reader that does not react is tried again, until patience ends."""
        try:
            self._forecourt.present(self._token)
        except DemoError:
            tired = now >= self._give_up
            self._next(Stage.FULL if tired else Stage.PLUGGED, now, self._habits.card_s)
            return
        self.sessions += 1
        self._give_up = now + self._habits.patience_s
        self._next(Stage.CHARGING, now, (0.0, 0.0))

    def _next(self, stage: Stage, now: float, wait_s: tuple[float, float]) -> None:
        self.stage = stage
        self._due = now + self._chance.uniform(*wait_s)
