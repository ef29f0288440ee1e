"""Which open transactions are over although nobody has said so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from cloud.transactions.zombies import Open, Patience, Reason, Seen, over

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def ago(**span: float) -> datetime:
    return NOW - timedelta(**span)


CASES = {
    "free for long": (ago(minutes=30), Seen("Available", ago(minutes=20), ago(minutes=20)), True,
                      (Reason.AVAILABLE, ago(minutes=20))),
    "free since now": (ago(minutes=30), Seen("Available", ago(minutes=5), ago(minutes=5)), True,
                       None),
    "free before it began": (ago(minutes=30), Seen("Available", ago(minutes=40),
                             ago(minutes=40)), True, None),
    "heard of just now": (ago(minutes=5), Seen("Available", ago(minutes=2), ago(minutes=30)), True,
                          None),
    "silent, car there": (ago(days=2), Seen("Occupied", ago(days=2), ago(days=2)), True, None),
    "silent, no car": (ago(days=2), Seen("Unavailable", ago(days=2), ago(days=2)), True,
                       (Reason.LOST, ago(days=2))),
    "silent, nothing known": (ago(days=2), None, True, (Reason.LOST, ago(days=2))),
    "away for days": (ago(days=2), None, False, None),
    "away for a week": (ago(days=8), None, False, (Reason.LOST, ago(days=8))),
    "a week, car there": (ago(days=8), Seen("Occupied", ago(days=8), ago(days=8)), True,
                          (Reason.LOST, ago(days=8))),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_open_transaction_is_over(case: str) -> None:
    last, seen, connected, expected = CASES[case]
    one = Open(UUID(int=1), 7, 1, False, last, last)
    end = over(
        one, NOW, Patience(), stations={7}, connected={7} if connected else set(),
        evses={(7, 1): seen} if seen else {},
    )  # fmt: skip
    assert (end and (end.reason, end.at)) == expected


def test_an_agent_tells_its_own_ends_while_its_station_is_there() -> None:
    one = Open(UUID(int=1), 7, 1, True, ago(days=30), ago(days=30))
    none: set[int] = set()
    assert over(one, NOW, Patience(), stations={7}, connected=none, evses={}) is None
    end = over(one, NOW, Patience(), stations=none, connected=none, evses={})
    assert end is not None
    assert (end.reason, end.at) == (Reason.REMOVED, ago(days=30))
