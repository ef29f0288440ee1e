"""One station's credentials can neither publish nor read another's topics."""

from __future__ import annotations

import time

import pytest

from protocols.agent_link import Down, Up, down_filter, down_topic, up_topic


@pytest.fixture(scope="module")
def pair(world):
    """A station whose credentials are abused, and its neighbour."""
    thief = world.station("X-thief")
    thief.agent.stop()
    return thief, world.station("X-victim")


def test_it_cannot_read_its_neighbour(world, pair, stranger) -> None:
    thief, victim = pair
    filters = [down_filter(victim.identity), "#", "karvon/1/+/+/down/#", "karvon/1/+/+/up/#"]
    with stranger(thief) as client:
        granted = client.subscribe(*filters)
        world.network.rest.post(
            f"/stations/{victim.identity}/commands/set-limit",
            {"evse": 1, "limit_ma": 10_000, "valid_s": 60},
        )
        _limited(world, victim)
        time.sleep(1)
        assert client.received == [], f"read a neighbour's messages; granted: {granted}"


def test_it_cannot_publish_as_its_neighbour(world, pair, stranger) -> None:
    thief, victim = pair
    forged = stranger.transaction(energy_wh=77_777)
    with stranger(thief) as client:
        client.publish(up_topic(victim.identity, Up.BILLING), stranger.batch(forged, seq=900))
        client.publish(up_topic(victim.identity, Up.HELLO), b"{}")
        client.publish(down_topic(victim.identity, Down.COMMAND), b"{}")
        time.sleep(2)
    world.charge(victim)
    world.agree(victim)
    assert all(one["energy_wh"] != 77_777 for one in world.network.transactions(victim))


def test_it_cannot_even_stay_connected_with_a_wrong_password(pair, stranger) -> None:
    thief, _ = pair
    with pytest.raises(ConnectionError), stranger(thief, password="x" * 43):
        pytest.fail("the broker let a wrong password in")


def _limited(world, victim) -> None:
    def offered() -> bool:
        detail = world.network.rest.get(f"/stations/{victim.identity}")
        state = detail["evses"][0]["state"]
        return state is not None and (state["value"]["offered_ma"] or 0) <= 10_000

    world.network.wait_for(offered, 20, "the limit to reach the station")
