"""Whatever tier holds them, the same samples answer the same question identically."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from cloud.kernel.database import TenantId
from cloud.kernel.facts import Delivery
from cloud.kernel.http import Caller, Role
from cloud.stations.api import StationRef, to_ms
from cloud.stations.writer import StateWriter
from cloud.telemetry.service import Span, Telemetry
from cloud.telemetry.store import Bucket
from cloud.telemetry.tiers.keeper import Keep
from cloud.telemetry.writer import TelemetryWriter
from protocols.agent_link import COLUMNS, ClockQuality, Sample, Stamp, Stream, TelemetryBatch
from protocols.quantities import Milliseconds, WattHours
from protocols.series import to_series

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
BOOT = UUID(int=1)
MEANS = COLUMNS[1:8]


def made(dice: random.Random, count: int, days: float) -> list[Sample]:
    """Samples of the days before NOON in bursts, with holes, strange values, and equal times."""
    told: list[Sample] = []
    while len(told) < count:
        evse = dice.choice((0, 1, 1, 2))
        at = NOON - timedelta(milliseconds=dice.randrange(int(days * 86_400_000)))
        step = dice.choice((1000, 1000, 10_000, 60_000, 997))
        for n in range(min(dice.randint(1, 40), count - len(told))):
            jitter = dice.choice((0, 0, 0, dice.randint(-400, 400)))
            one = at + timedelta(milliseconds=n * step + jitter)
            told.append(_sample(dice, evse, min(one, NOON)))
    return told


def _sample(dice: random.Random, evse: int, at: datetime) -> Sample:
    wall = to_ms(at)
    values = {
        name: dice.choice((None, 0, dice.randint(-40, 40), dice.randint(0, 2**31 - 1)))
        for name in COLUMNS[1:]
    }
    return Sample(
        evse=evse,
        at=Stamp(Milliseconds(wall), Milliseconds(wall - 10**9), BOOT, ClockQuality.SYNCED),
        every_ms=Milliseconds(dice.choice((1000, 1000, 10_000, 10_000, 0, 2**31 - 1))),
        energy_wh=WattHours(wall // 3_600_000 * 7 + evse) if dice.random() < 0.8 else None,
        **values,  # type: ignore[arg-type]  # the names are Sample's own columns
    )


def when(sample: Sample) -> datetime:
    return datetime.fromtimestamp(sample.at.wall_ms / 1000, UTC)


def buckets(
    told: Iterable[Sample], start: datetime, end: datetime, every: timedelta, evse: int | None
) -> list[Bucket]:
    """The answer to the question over exactly these samples."""
    grouped: dict[tuple[int, datetime], list[Sample]] = defaultdict(list)
    for sample in told:
        at = when(sample)
        if start <= at < end and evse in {None, sample.evse}:
            grouped[sample.evse, start + (at - start) // every * every].append(sample)
    return [_bucket(*key, grouped[key]) for key in sorted(grouped)]


def _bucket(evse: int, at: datetime, inside: Sequence[Sample]) -> Bucket:
    powers = [sample.power_w for sample in inside if sample.power_w is not None]
    return Bucket(
        evse=evse,
        at=at,
        samples=len(inside),
        energy_wh=_last(inside, "energy_wh"),
        power_max_w=max(powers, default=None),
        offered_ma=_last(inside, "offered_ma"),
        **{name: _mean(inside, name) for name in MEANS},  # type: ignore[arg-type]  # as above
    )


def _last(inside: Sequence[Sample], name: str) -> int | None:
    known = [(s.at.wall_ms, getattr(s, name)) for s in inside if getattr(s, name) is not None]
    return max(known)[1] if known else None


def _mean(inside: Sequence[Sample], name: str) -> int | None:
    known = [(getattr(s, name), s.every_ms) for s in inside if getattr(s, name) is not None]
    weight = sum(each for _, each in known)
    if not weight:
        return None
    mean = Fraction(sum(value * each for value, each in known), weight)
    rounded = int(abs(mean) + Fraction(1, 2))
    return rounded if mean >= 0 else -rounded


# --------------------------------------------------------------------------- the database's answer

BOSS = Caller(TenantId(1), "test", Role.ADMIN)
DAYS = 3
STEPS = ("1s", "7s", "60s", "90s", "900s", "3600s", "5400s", "86400s")
FRESH = """
    TRUNCATE telemetry.sample, telemetry.extra, telemetry.minute, telemetry.hour, telemetry.late,
        telemetry.block, telemetry.extra_block;
    UPDATE telemetry.tier SET (fence, until, raw_from, minute_from, hour_from)
        = (SELECT t, t, t, t, t FROM (VALUES (timestamptz '1970-01-01 00:00+00')) AS v (t))
"""


def delivery(station: StationRef, told: list[Sample]) -> Delivery:
    sent = Stamp(
        Milliseconds(to_ms(NOON)), Milliseconds(to_ms(NOON) - 10**9), BOOT, ClockQuality.SYNCED
    )
    batch = TelemetryBatch(UUID(int=2), 1, 1, sent, to_series(told))
    return Delivery(station.id, station.tenant_id, UUID(int=2), NOON, Stream.TELEMETRY, batch)


async def ask(
    telemetry: Telemetry, station: str, span: Span, page: int
) -> tuple[list[Bucket], bool]:
    """All pages; and whether anything was coarser than asked for."""
    after, found, coarse = None, list[Bucket](), False
    while True:
        answer = await telemetry.read(BOSS, station, span, after, page)
        found += answer.buckets
        coarse = coarse or bool(answer.coarse)
        if len(answer.buckets) < page:
            return found, coarse
        after = (found[-1].evse, found[-1].at)


@st.composite
def questions(draw: st.DrawFn) -> Span:
    unit = draw(st.sampled_from((86_400_000, 3_600_000, 60_000, 60_000, 1000, 1)))
    length = draw(st.integers(1, DAYS * 86_400_000))
    back = draw(st.integers(length // 2, DAYS * 86_400_000 + 3_600_000))
    start = NOON - timedelta(milliseconds=back - back % unit)
    every = timedelta(seconds=int(draw(st.sampled_from(STEPS))[:-1]))
    return Span(
        start, start + timedelta(milliseconds=length), every, draw(st.sampled_from((None, 1)))
    )


WORK = st.one_of(
    st.tuples(st.just("write"), st.integers(1, 60)),
    st.tuples(st.just("roll"), st.integers(0, DAYS * 24 + 1)),
    st.tuples(st.just("compact"), st.integers(0, DAYS)),
)
seeds = st.integers(0, 2**32)


@pytest.fixture
def examples(sample_size: Callable[[int, int], int]) -> int:
    return sample_size(6, 300)


async def test_every_tier_answers_alike(world: Any, cloud_dsn: str, examples: int) -> None:
    """Written in any order and batches, rolled up and compacted at any time between."""
    station = await world.station()
    loop = asyncio.get_running_loop()

    @seed(4)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        seeds,
        st.lists(WORK, min_size=4, max_size=14),
        st.lists(questions(), min_size=6, max_size=6),
    )
    def holds(number: int, work: list[tuple[str, int]], asked: list[Span]) -> None:
        example = _example(world, station, cloud_dsn, number, work, asked)
        asyncio.run_coroutine_threadsafe(example, loop).result(60)

    await asyncio.to_thread(holds)


async def _example(
    world: Any,
    station: StationRef,
    dsn: str,
    number: int,
    work: list[tuple[str, int]],
    asked: list[Span],
) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as owner:
        await owner.execute(FRESH)
    world.writers = [StateWriter(), TelemetryWriter()]  # who remembers no partition
    dice = random.Random(number)
    told = made(dice, 250, DAYS)
    dice.shuffle(told)
    stored: list[Sample] = []
    span = iter(asked * 3)
    for deed, amount in [*work, ("write", len(told)), ("roll", 99)]:
        if deed == "write":
            batch = told[len(stored) : len(stored) + amount]
            stored += batch
            if batch:
                await world.commit(delivery(station, batch))
        elif deed == "roll":
            await world.telemetry.roll(NOON - timedelta(days=DAYS) + timedelta(hours=amount))
        else:
            await world.telemetry.tidy(NOON, Keep(hot=timedelta(days=amount)))
        await _compare(world.telemetry, next(span), stored, dice)
    for one in asked:
        await _compare(world.telemetry, one, stored, dice)


async def _compare(
    telemetry: Telemetry, span: Span, stored: list[Sample], dice: random.Random
) -> None:
    wanted = buckets(stored, span.start, span.end, span.every, span.evse)
    found, coarse = await ask(telemetry, "CP-1", span, dice.choice((40, 10_000)))
    assert found == wanted
    assert not coarse
