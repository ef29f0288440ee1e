"""The demo's network: three sites in Uzbekistan, six stations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

TIME_ZONE: Final = "Asia/Tashkent"


@dataclass(frozen=True)
class Site:
    name: str
    city: str
    latitude: float
    longitude: float


@dataclass(frozen=True)
class Plan:
    """A station to run: its wire identity, what people call it, where it stands."""

    identity: str
    name: str
    site: Site
    max_ma: int = 32_000


TASHKENT: Final = Site("Chorsu bozori", "Toshkent", 41.3267, 69.2353)
SAMARKAND: Final = Site("Registon avtoturargoh", "Samarqand", 39.6542, 66.9750)
BUKHARA: Final = Site("Lyabi Hovuz", "Buxoro", 39.7731, 64.4197)

PLANS: Final = (
    Plan("UZ-TAS-001", "Chorsu 1", TASHKENT),
    Plan("UZ-TAS-002", "Chorsu 2", TASHKENT),
    Plan("UZ-TAS-003", "Chorsu 3", TASHKENT),
    Plan("UZ-SAM-001", "Registon 1", SAMARKAND),
    Plan("UZ-SAM-002", "Registon 2", SAMARKAND),
    Plan("UZ-BUX-001", "Lyabi Hovuz 1", BUKHARA),
)


def plans(count: int) -> tuple[Plan, ...]:
    """The first `count` stations; beyond six they are numbered on through the same sites."""
    sites = (TASHKENT, SAMARKAND, BUKHARA)
    more = (
        Plan(f"UZ-EXT-{number:03d}", f"{sites[number % 3].name} +{number}", sites[number % 3])
        for number in range(1, count - len(PLANS) + 1)
    )
    return (*PLANS[:count], *more)
