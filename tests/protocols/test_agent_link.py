"""The wire form of the agent link: golden messages, the specification's examples, hostile input."""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocols.agent_link import (
    DOWN_TYPES,
    MAX_INFLATED,
    UP_TYPES,
    Down,
    LinkError,
    TelemetryBatch,
    Up,
    decode_down,
    decode_up,
    down_filter,
    down_topic,
    encode,
    escape,
    parse_up_topic,
    shard,
    unescape,
    up_topic,
)
from protocols.series import to_samples

ROOT: Final = Path(__file__).parent.parent.parent
VECTORS: Final = json.loads((ROOT / "tests" / "vectors" / "agent_link.json").read_text())
IDENTITIES: Final = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=48)


def payload_of(vector: dict[str, Any]) -> bytes:
    payload = vector["payload"]
    if "base64" in payload:
        return base64.b64decode(payload["base64"])
    return str(payload["text"]).encode()


def decode(direction: str, channel: str, payload: bytes) -> msgspec.Struct:
    if direction == "up":
        return decode_up(Up(channel), payload)
    return decode_down(Down(channel), payload)


def by_name(vectors: list[dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("vector", vectors, ids=lambda vector: vector["name"])


# --------------------------------------------------------------------------- golden messages


@by_name(VECTORS["messages"])
def test_golden_messages_mean_what_they_meant(vector: dict[str, Any]) -> None:
    message = decode(vector["direction"], vector["channel"], payload_of(vector))
    assert json.loads(msgspec.json.encode(message)) == vector["means"]


@by_name(VECTORS["messages"])
def test_what_is_written_is_what_was_agreed(vector: dict[str, Any]) -> None:
    """Deflate may pack differently from one library to the next; what it packs may not."""
    message = decode(vector["direction"], vector["channel"], payload_of(vector))
    written, golden = encode(message), payload_of(vector)
    assert written[:1] == golden[:1]
    if golden[:1] == b"\x78":
        written, golden = zlib.decompress(written), zlib.decompress(golden)
    assert written == golden


@by_name(VECTORS["later_commands"])
def test_commands_of_a_later_version_can_be_answered(vector: dict[str, Any]) -> None:
    message = decode_down(Down.COMMAND, payload_of(vector))
    assert json.loads(msgspec.json.encode(message)) == vector["means"]


def test_a_known_action_with_a_fault_is_no_later_version() -> None:
    poison = b'{"id":"00000000-0000-4000-8000-000000000020","do":{"action":"watch","evse":"x"}}'
    with pytest.raises(LinkError):
        decode_down(Down.COMMAND, poison)


@by_name(VECTORS["refused"])
def test_what_breaks_the_rules_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(LinkError):
        decode_up(Up(vector["channel"]), payload_of(vector))


def test_golden_messages_cover_every_channel() -> None:
    covered = {(vector["direction"], vector["channel"]) for vector in VECTORS["messages"]}
    assert covered == {("up", c) for c in UP_TYPES} | {("down", c) for c in DOWN_TYPES}


def test_the_golden_minute_holds_these_samples() -> None:
    (vector,) = [v for v in VECTORS["messages"] if v["channel"] == "telemetry"]
    batch = decode_up(Up.TELEMETRY, payload_of(vector))
    assert isinstance(batch, TelemetryBatch)
    rows = to_samples(batch.series[0])
    assert [row.energy_wh for row in rows] == [123456 + 2 * n for n in range(60)]
    assert [row.power_w for row in rows[:4]] == [7200, 7201, 7202, 7200]
    assert [row.at.wall_ms for row in rows[:2]] == [1790000000000, 1790000001000]
    assert rows[9].current_l1_ma == 31310
    assert rows[9].current_l2_ma is None
    assert len(payload_of(vector)) < 300


# --------------------------------------------------------------------------- the specification


def examples() -> list[tuple[str, str, str]]:
    text = (ROOT / "docs" / "agent-link.md").read_text()
    return re.findall(r"^```json (up|down)/(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("example", examples(), ids=lambda example: f"{example[0]}-{example[1]}")
def test_examples_of_the_specification_decode_completely(example: tuple[str, str, str]) -> None:
    direction, channel, text = example
    message = decode(direction, channel, text.encode())
    understood = json.loads(msgspec.json.encode(message))
    assert within(json.loads(text), understood)


def within(said: Any, understood: Any) -> bool:
    """Whether every field of an example was understood, none ignored."""
    if isinstance(said, dict):
        return all(key in understood and within(said[key], understood[key]) for key in said)
    if isinstance(said, list):
        pairs = zip(said, understood, strict=True)
        return all(within(*pair) for pair in pairs)
    return bool(said == understood)


def test_the_specification_shows_every_channel() -> None:
    shown = {(direction, channel) for direction, channel, _ in examples()}
    assert shown == {("up", c) for c in UP_TYPES} | {("down", c) for c in DOWN_TYPES}


def test_the_specification_names_every_word_of_the_wire() -> None:
    text = (ROOT / "docs" / "agent-link.md").read_text()
    schemas = msgspec.json.schema_components([*UP_TYPES.values(), *DOWN_TYPES.values()])[1]
    words = set()
    for schema in schemas.values():
        words |= {name for name in schema.get("properties", {}) if "_l2_" not in name}
        words |= {value for value in schema.get("enum", []) if isinstance(value, str)}
    assert {word for word in words if not re.search(rf"\b{word}\b", text)} == set()


# --------------------------------------------------------------------------- topics


@pytest.mark.parametrize("topic", VECTORS["topics"], ids=lambda topic: topic["station"])
def test_golden_topics(topic: dict[str, str]) -> None:
    station = topic["station"]
    assert escape(station) == topic["escaped"]
    assert unescape(topic["escaped"]) == station
    assert shard(station) == topic["shard"]
    assert up_topic(station, Up.BILLING) == topic["billing"]
    assert parse_up_topic(topic["billing"]) == (station, Up.BILLING)


@pytest.mark.parametrize("topic", VECTORS["not_topics"])
def test_topics_of_others_are_refused(topic: str) -> None:
    with pytest.raises(LinkError):
        parse_up_topic(topic)


@given(IDENTITIES)
@example("=")
@example("$SYS")
@example("+/#")
def test_every_identity_has_one_harmless_name(station: str) -> None:
    name = escape(station)
    assert re.fullmatch(r"[A-Za-z0-9_=-]+", name)
    assert unescape(name) == station
    assert down_topic(station, Down.ACK).startswith(down_filter(station)[:-1])


@given(IDENTITIES, IDENTITIES)
def test_two_identities_never_share_a_name(one: str, other: str) -> None:
    assert (escape(one) == escape(other)) == (one == other)


@given(st.text(max_size=60))
@example("=53")
@example("=C3")
@example("a\n")
def test_only_what_escape_writes_is_read(level: str) -> None:
    try:
        station = unescape(level)
    except LinkError:
        return
    assert escape(station) == level


@pytest.mark.parametrize("station", ["", "x" * 49, "\ud800"])
def test_impossible_identities_are_refused(station: str) -> None:
    with pytest.raises(LinkError):
        escape(station)


# --------------------------------------------------------------------------- hostile payloads


@given(st.sampled_from(Up), st.binary(max_size=300))
@example(Up.HELLO, b"[" * 100_000)
@example(Up.BILLING, b"\x78\x9c")
@example(Up.STATE, b"\xff\xfe{}")
def test_noise_is_refused_in_one_way_only(channel: Up, payload: bytes) -> None:
    with pytest.raises(LinkError):
        decode_up(channel, payload)


@given(st.data())
def test_damaged_messages_never_do_worse_than_be_refused(data: st.DataObject) -> None:
    vector = data.draw(st.sampled_from(VECTORS["messages"]))
    payload = bytearray(payload_of(vector))
    index = data.draw(st.integers(0, len(payload) - 1))
    payload[index] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(payload)))
    for damaged in (bytes(payload), bytes(payload[:cut])):
        try:
            decode(vector["direction"], vector["channel"], damaged)
        except LinkError:
            continue


def test_a_deflate_bomb_is_refused() -> None:
    with pytest.raises(LinkError, match="larger than"):
        decode_up(Up.HELLO, zlib.compress(b" " * (MAX_INFLATED + 1)))
