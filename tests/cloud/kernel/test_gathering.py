"""Many at one moment are one question; a failure reaches everybody who asked."""

from __future__ import annotations

import asyncio

import pytest

from cloud.kernel.gathering import Gathering


async def test_a_moments_keys_are_asked_for_together_and_once_each() -> None:
    asked: list[list[int]] = []

    async def double(keys: list[int]) -> dict[int, int]:
        asked.append(keys)
        return {key: key * 2 for key in keys if key}

    gathering = Gathering(double, most=3)
    found = await asyncio.gather(*(gathering.ask(key) for key in [1, 2, 3, 0, 2]))
    assert found == [2, 4, 6, None, 4]
    assert asked == [[1, 2, 3], [0]]
    assert await gathering.ask(5) == 10


async def test_a_failure_is_everybodys_and_the_next_question_starts_afresh() -> None:
    fails = True

    async def answer(keys: list[str]) -> dict[str, str]:
        if fails:
            raise OSError("away")
        return {key: key for key in keys}

    gathering = Gathering(answer)
    both = await asyncio.gather(gathering.ask("a"), gathering.ask("b"), return_exceptions=True)
    assert [type(one) for one in both] == [OSError, OSError]
    fails = False
    assert await gathering.ask("a") == "a"


async def test_one_who_gives_up_takes_nothing_from_the_others() -> None:
    async def slow(keys: list[int]) -> dict[int, int]:
        await asyncio.sleep(0.02)
        return dict.fromkeys(keys, 1)

    gathering = Gathering(slow)
    quitter, stayer = (asyncio.create_task(gathering.ask(7)) for _ in range(2))
    await asyncio.sleep(0.01)
    quitter.cancel()
    assert await stayer == 1
    with pytest.raises(asyncio.CancelledError):
        await quitter
