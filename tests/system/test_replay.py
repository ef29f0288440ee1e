"""An agent of another make that says everything twice and in the wrong order."""

from __future__ import annotations

import random
from collections.abc import Callable

from protocols.agent_link import Stream


def test_duplicates_in_any_order_count_once(
    world, stranger, sample_size: Callable[[int, int], int]
) -> None:
    station = world.station("Y", start=False)
    chance = random.Random(3)
    transactions = [
        stranger.transaction(energy_wh=1000 + number, events=6)
        for number in range(sample_size(20, 1000))
    ]
    batches = stranger.batches([event for events in transactions for event in events])
    with stranger(station) as client:
        outbox = client.greet(station, batches)
        for _ in range(3):
            chance.shuffle(batches)
            client.send(station, outbox, batches)
        client.wait_acknowledged(Stream.BILLING, len(batches))
    booked = {one["transaction"]: one for one in world.network.transactions(station)}
    assert len(booked) == len(transactions)
    for events in transactions:
        one = booked[str(events[0].transaction)]
        assert (one["energy_wh"], one["state"]) == (events[-1].energy_wh, "ended")
        detail = world.network.rest.get(f"/transactions/{one['transaction']}")
        assert [event["seq_no"] for event in detail["events"]] == list(range(6))
