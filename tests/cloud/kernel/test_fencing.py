"""Only the newest connection's words are committed, under whatever race, and once each."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

import psycopg
import pytest

from cloud.kernel.database import Cursor, Database, TenantId
from cloud.kernel.events import Event
from cloud.kernel.facts import GroupCommitter, Spoken
from cloud.kernel.fencing import let_go, lives, take_over, unfenced
from cloud.kernel.handover import Move, hand_over
from cloud.kernel.turns import Ask
from protocols.ocpp.messages import Answer, Connected, Security
from protocols.quantities import Milliseconds

NOW = datetime(2026, 5, 1, tzinfo=UTC)
HERE, THERE = UUID(int=1), UUID(int=2)
ONE = TenantId(1)


def spoken(station: int, epoch: int, text: str = "") -> Spoken:
    told = Security(type="test", at_ms=Milliseconds(0), text=text)
    return Spoken(station, ONE, epoch, NOW, told, Answer(now_ms=Milliseconds(0)))


def asks_of(said: Sequence[Spoken]) -> list[Ask]:
    asked = lives(said)
    return [asked] if asked else []


class Heard:
    """A SpokenWriter that logs who said what, and chokes on poison."""

    def __init__(self) -> None:
        self.tenants: list[int] = []

    async def write_spoken(self, cursor: Cursor, spoken: Sequence[Spoken]) -> list[Event]:
        for one in spoken:
            if isinstance(one.told, Security) and one.told.text == "poison":
                raise ValueError("this cannot be stored\0")
            self.tenants.append(one.tenant_id)
            one.answer.number = one.station_id
        return [Event(o.tenant_id, "heard", o.station_id, str(o.epoch), {}) for o in spoken]


async def connect(database: Database, gateway: UUID, *stations: int) -> dict[int, int]:
    async with database.commit_unit() as cursor:
        return await take_over(cursor, gateway, [(station, ONE) for station in stations])


async def logged(database: Database) -> list[tuple[str, int]]:
    async with database.commit_unit() as cursor:
        await cursor.execute("SELECT kind, station_id FROM kernel.event ORDER BY station_id, kind")
        return [(row[0], row[1]) for row in await cursor.fetchall()]


async def test_an_older_connections_words_are_not_taken(database: Database) -> None:
    old = await connect(database, HERE, 1, 2)
    new = await connect(database, THERE, 1)
    assert new[1] > old[1]
    async with GroupCommitter(database, [], [Heard()]) as sink:
        said = [spoken(1, old[1]), spoken(1, new[1]), spoken(2, old[2]), spoken(3, 1)]
        committed = await sink.append(said)
    assert [id(one) for one in committed] == [id(said[1]), id(said[2])]
    assert await logged(database) == [("heard", 1), ("heard", 2)]
    assert said[0].answer.number is None


async def test_commits_for_one_station_follow_each_other(database: Database) -> None:
    epochs = await connect(database, HERE, 1, 2)

    async def heard(station: int) -> None:
        said = [spoken(station, epochs[station])]
        async with database.commit_unit(asks=asks_of(said)) as cursor:
            assert list((await unfenced(cursor, said)).values()) == said

    said = [spoken(1, epochs[1])]
    async with database.commit_unit(asks=asks_of(said)) as cursor:
        await unfenced(cursor, said)
        await heard(2)
        later = asyncio.create_task(heard(1))
        done, _ = await asyncio.wait([later], timeout=0.3)
        assert not done
    await later


async def test_a_connections_beginning_needs_no_epoch(database: Database) -> None:
    told = Connected(gateway=HERE, version="ocpp1.6", security_profile=0, address="::1")
    said = Spoken(7, ONE, 0, NOW, told, Answer(now_ms=Milliseconds(0)))
    async with GroupCommitter(database, [], [Heard()]) as sink:
        assert await sink.append([said]) == [said]


async def test_letting_go_touches_only_ones_own_connection(database: Database) -> None:
    old = await connect(database, HERE, 1, 2)
    await connect(database, THERE, 1)
    async with database.commit_unit() as cursor:
        assert await let_go(cursor, [(1, old[1]), (2, old[2])]) == [2]


async def test_poison_among_many_is_answered_and_buried(database: Database) -> None:
    epochs = await connect(database, HERE, *range(1, 31))
    said = [spoken(s, epochs[s], "poison" if s == 13 else "") for s in range(1, 31)]
    async with GroupCommitter(database, [], [Heard()]) as sink:
        assert len(await sink.append(said)) == 30
    found = await logged(database)
    assert [s for kind, s in found if kind == "fact.dead_lettered"] == [13]
    assert [s for kind, s in found if kind == "heard"] == [s for s in range(1, 31) if s != 13]


async def test_a_move_changes_the_tenant_of_what_comes_after(database: Database) -> None:
    epochs = await connect(database, HERE, 1)
    async with database.commit_unit() as cursor:
        await hand_over(cursor, Move(1, ONE, TenantId(2)))
    heard = Heard()
    async with GroupCommitter(database, [], [heard]) as sink:
        await sink.append([spoken(1, epochs[1])])
    assert heard.tenants == [2]


async def test_takeovers_beside_commits_never_let_an_old_word_in_later(
    database: Database, kernel_dsn: str
) -> None:
    """Each commit is wholly before or after the takeover: epochs in the log only rise."""
    stop = asyncio.Event()

    async def keep_taking_over() -> None:
        while not stop.is_set():
            await connect(database, THERE, *range(1, 6))
            await asyncio.sleep(dice.uniform(0, 0.1))

    dice = random.Random(7)
    async with GroupCommitter(database, [], [Heard()], linger_s=0) as sink:
        task = asyncio.create_task(keep_taking_over())
        for _ in range(60):
            epochs = await connect(database, HERE, *range(1, 6))
            await sink.append([spoken(s, epochs[s]) for s in epochs])
        stop.set()
        await task
    async with await psycopg.AsyncConnection.connect(kernel_dsn) as connection:
        found = await connection.execute(
            "SELECT station_id, subject::bigint FROM kernel.event WHERE kind = 'heard'"
            " ORDER BY partition, position"
        )
        told = await found.fetchall()
    for station in range(1, 6):
        epochs_told = [epoch for s, epoch in told if s == station]
        assert epochs_told == sorted(epochs_told)
    assert told, pytest.fail("no commit ever came between two takeovers")


class Counting(Heard):
    """Foresees a question about all stations that speak, and asks it about those that count."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: list[list[int]] = []

    @staticmethod
    def question(spoken: Sequence[Spoken]) -> Ask:
        stations = sorted(one.station_id for one in spoken)
        return Ask(
            "SELECT station_id FROM kernel.live WHERE station_id = ANY(%s) ORDER BY 1", (stations,)
        )

    def foresee(self, spoken: Sequence[Spoken]) -> list[Ask]:
        return [self.question(spoken)]

    async def write_spoken(self, cursor: Cursor, spoken: Sequence[Spoken]) -> list[Event]:
        self.counted.append([row[0] for row in await cursor.ask(*self.question(spoken))])
        return await super().write_spoken(cursor, spoken)


async def test_what_was_foreseen_for_others_is_not_taken(database: Database) -> None:
    old = await connect(database, HERE, 1, 2)
    await connect(database, THERE, 1)
    writer = Counting()
    async with GroupCommitter(database, [], [writer]) as sink:
        await sink.append([spoken(1, old[1]), spoken(2, old[2])])
        await sink.append([spoken(2, old[2]), spoken(2, old[2], "poison")])
    assert writer.counted == [[2], [2], [2], [2], [2]]
    assert await logged(database) == [("fact.dead_lettered", 2), ("heard", 2), ("heard", 2)]
