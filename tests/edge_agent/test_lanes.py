from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.journal.lanes import Lanes

NAMES = st.sampled_from(["", "a", "b", "c"])
STEPS = st.lists(st.tuples(NAMES, st.none() | st.integers(1, 50)), max_size=40)


@settings(deadline=None)
@given(steps=STEPS, after=st.integers(0, 50))
def test_it_is_a_dictionary_in_the_order_of_its_values(
    steps: list[tuple[str, int | None]], after: int
) -> None:
    lanes, model = Lanes([("a", 7)]), {"a": 7}
    for lane, pos in steps:
        lanes.move(lane, pos)
        model.pop(lane, None)
        if pos is not None:
            lanes.add(lane, pos + 1)  # it is there already
            model[lane] = pos
    expected = sorted((pos, lane) for lane, pos in model.items() if pos > after)
    assert list(lanes.after(after)) == expected
