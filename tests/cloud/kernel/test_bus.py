"""The bus' contract; every implementation is one more parameter."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from cloud.kernel.bus import Bus, LocalBus, Notice


@pytest.fixture(params=[LocalBus], ids=["local"])
def make_bus(request: pytest.FixtureRequest) -> Callable[..., Bus]:
    return request.param  # type: ignore[no-any-return]


def notice(number: int, topic: str = "station.connected") -> Notice:
    return Notice(topic, {"number": number})


async def test_each_subscriber_gets_every_notice_of_its_topics_in_order(
    make_bus: Callable[..., Bus],
) -> None:
    bus = make_bus()
    async with bus.subscribe("station.connected", "x.y") as one, bus.subscribe("x.y") as other:
        for published in (notice(1), notice(2, "x.y"), notice(3), notice(4, "none.hears")):
            await bus.publish(published)
        assert [(await one.next()).data["number"] for _ in range(3)] == [1, 2, 3]
        assert await other.next() == notice(2, "x.y")


async def test_nothing_is_kept_for_those_who_come_later_or_went(
    make_bus: Callable[..., Bus],
) -> None:
    bus = make_bus()
    await bus.publish(notice(1))
    async with bus.subscribe("station.connected") as gone:
        pass
    await bus.publish(notice(2))
    async with bus.subscribe("station.connected") as late:
        await bus.publish(notice(3))
        assert await late.next() == notice(3)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await gone.next()


async def test_a_slow_subscriber_loses_its_oldest_and_holds_nobody_up(
    make_bus: Callable[..., Bus],
) -> None:
    bus = make_bus(most_waiting=3)
    async with bus.subscribe("station.connected") as slow:
        for number in range(5):
            await bus.publish(notice(number))
        assert slow.lost == 2
        assert [(await slow.next()).data["number"] for _ in range(3)] == [2, 3, 4]


async def test_a_subscriber_waits_for_what_is_not_there_yet(make_bus: Callable[..., Bus]) -> None:
    bus = make_bus()
    async with bus.subscribe("station.connected") as notices:
        waiting = asyncio.create_task(notices.next())
        await asyncio.sleep(0)
        await bus.publish(notice(7))
        assert await waiting == notice(7)
