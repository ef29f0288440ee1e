from __future__ import annotations

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.rules.clock import BACK_PATIENCE_MS, ClockRules, SystemTime, redate
from protocols.agent_link import ClockQuality

BOOT, FACT = UUID(int=7), UUID(int=8)
BUILT = 1_760_000_000_000


def rules() -> ClockRules:
    return ClockRules(BOOT, BUILT)


def test_1970_is_unset_and_re_dated_when_ntp_comes() -> None:
    clock = rules()
    early = SystemTime(5_000, 5_000, synced=False)
    assert clock.observe(early, FACT) is None
    stamp = clock.stamp(early)
    assert stamp.quality is ClockQuality.UNSET
    corrected = clock.observe(SystemTime(BUILT + 60_000, 60_000, synced=True), FACT)
    assert corrected is not None
    assert redate(stamp, corrected).wall_ms == BUILT + 5_000
    assert redate(stamp, corrected).quality is ClockQuality.SYNCED


def test_a_synchronised_clock_before_the_build_is_not_believed() -> None:
    clock = rules()
    assert clock.observe(SystemTime(BUILT - 1, 0, synced=True), FACT) is None
    assert clock.quality is ClockQuality.UNSET


def test_the_clouds_time_serves_until_ntp_is_there() -> None:
    clock = rules()
    corrected = clock.cloud_time(BUILT + 500, 400, FACT)
    assert corrected is not None
    assert (corrected.offset_ms, corrected.quality) == (BUILT + 100, ClockQuality.CLOUD)
    assert clock.stamp(SystemTime(9, 1_000, synced=False)).wall_ms == BUILT + 1_100
    synced = clock.observe(SystemTime(BUILT + 2_100, 2_000, synced=True), FACT)
    assert synced is not None
    assert synced.quality is ClockQuality.SYNCED
    assert clock.cloud_time(BUILT + 99_999, 2_500, FACT) is None


def test_a_step_back_is_believed_only_after_patience() -> None:
    clock = rules()
    clock.observe(SystemTime(BUILT + 3_600_000, 0, synced=True), FACT)
    back = SystemTime(BUILT + 1_000, 1_000, synced=True)
    assert clock.observe(back, FACT) is None
    assert clock.stamp(back).wall_ms == BUILT + 3_601_000
    later = 1_000 + BACK_PATIENCE_MS
    assert clock.observe(SystemTime(BUILT + later, later, synced=True), FACT) is not None


def test_a_foreign_or_trusted_stamp_is_not_re_dated() -> None:
    clock = rules()
    corrected = clock.observe(SystemTime(BUILT + 5, 5, synced=True), FACT)
    assert corrected is not None
    trusted = clock.stamp(SystemTime(0, 9, synced=True))
    assert redate(trusted, corrected) == trusted
    other = ClockRules(UUID(int=99), BUILT).stamp(SystemTime(1, 1, synced=False))
    assert redate(other, corrected) == other


@given(st.lists(st.tuples(st.integers(-3_000_000, 3_000_000), st.booleans()), max_size=40))
def test_trusted_wall_time_never_runs_back_within_patience(steps: list[tuple[int, bool]]) -> None:
    clock, walls = rules(), []
    for mono, (error, synced) in enumerate(steps):
        system = SystemTime(BUILT + 10_000_000 + mono + error, mono, synced=synced)
        clock.observe(system, FACT)
        if clock.quality is not ClockQuality.UNSET:
            walls.append(clock.stamp(system).wall_ms)
    assert walls == sorted(walls)
