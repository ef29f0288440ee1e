"""What holds for any bytes, in any order: no exception, one answer a call, flat memory."""

from __future__ import annotations

import gc
import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from ocpp_instances import Instances
from ocpp_messages import cycle_16, cycle_201

from protocols.ocpp.deviations import DEVIATIONS
from protocols.ocpp.events import (
    Answered,
    CallReceived,
    Close,
    Failed,
    Note,
    Output,
    Refused,
    Send,
    TimedOut,
)
from protocols.ocpp.rpc import Limits, Rpc
from protocols.ocpp.schemas import Codec, SchemaError, codec
from protocols.ocpp.tolerance import read_request
from protocols.ocpp.version import Version

NOW = datetime(2026, 3, 14, tzinfo=UTC)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda below: (
        st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=6), below, max_size=4)
    ),
    max_leaves=8,
)
frames = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=60),
    st.lists(json_values, max_size=6).map(json.dumps),
    st.tuples(st.integers(1, 7), json_values, json_values, json_values).map(json.dumps),
    st.tuples(st.just(2), st.sampled_from("ab"), st.just("Heartbeat"), json_values).map(json.dumps),
)


@settings(deadline=None)
@given(st.sampled_from(Version), st.lists(frames, max_size=8))
def test_no_frame_raises_and_none_is_answered_twice(
    version: Version, told: list[str | bytes]
) -> None:
    rpc = Rpc(version, "k", Limits(strikes=4))
    for frame in told:
        outputs = rpc.receive(frame, 0)
        assert sum(isinstance(one, Send) for one in outputs) <= 1
        assert sum(isinstance(one, CallReceived) for one in outputs) <= 1
        for one in outputs:
            if isinstance(one, Note):
                assert one.deviation.name in DEVIATIONS
            if isinstance(one, CallReceived):
                _read(codec(version), one)
                rpc.answer(one.id, b"{}")


@given(
    st.sampled_from(Version), st.sampled_from(["StatusNotification", "MeterValues"]), json_values
)
def test_no_payload_raises_anything_but_a_schema_error(
    version: Version, action: str, payload: object
) -> None:
    for raw in (json.dumps(payload).encode(), json.dumps({"timestamp": payload}).encode()):
        call = CallReceived("1", action, raw)  # type: ignore[arg-type]  # bytes will do
        _read(codec(version), call)


def _read(types: Codec, call: CallReceived) -> bool:
    """Whether it could be read; what could is written again."""
    try:
        message, _ = read_request(types, call.action, call.payload, now=NOW)
    except SchemaError as error:
        if not error.text.isprintable() or len(error.text) > 400:
            raise
        return False
    types.encode(message)
    return True


class Connection(RuleBasedStateMachine):
    """A station that calls, repeats and answers as it likes; a shell that answers when it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = Limits(waiting=3, pipelined=2, answers=64, strikes=1000)
        self.rpc = Rpc(Version.V16, "k", self.limits)
        self.now = 0.0
        self.open: list[CallReceived] = []
        self.frames: dict[str, str] = {}
        self.answers: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.under_way: str | None = None
        self.ended: Counter[str] = Counter()
        self.answered_times: Counter[str] = Counter()

    def _take(self, outputs: list[Output]) -> None:
        for one in outputs:
            match one:
                case CallReceived():
                    self.open.append(one)
                case Send(frame) if json.loads(frame)[0] == 2:
                    assert self.under_way is None
                    self.under_way = json.loads(frame)[1]
                case Answered(id=ended) | Failed(id=ended) | TimedOut(id=ended) | Refused(id=ended):
                    self.ended[ended] += 1
                    self.under_way = None if self.under_way == ended else self.under_way
                case Close():
                    raise AssertionError(one)

    @rule(number=st.integers(0, 5))
    def station_calls(self, number: int) -> None:
        frame = f'[2,"{number}","Authorize",{{"idTag":"{number}"}}]'
        outputs = self.rpc.receive(frame, self.now)
        answers = [one.frame for one in outputs if isinstance(one, Send)]
        if str(number) in self.answers:
            assert answers == [self.answers[str(number)]]
        self._take(outputs)

    @rule(code=st.booleans())
    def shell_answers(self, code: bool) -> None:
        if not self.open:
            return
        call = self.open.pop()
        reply = self.rpc.answer(call.id, b"{}") if code else self.rpc.fail(call.id, "Odd", "text")
        sent = reply[0]
        assert isinstance(sent, Send)
        assert call.id not in self.answers
        self.answers[str(call.id)] = sent.frame
        self._take(reply[1:])

    @rule()
    def shell_answers_twice(self) -> None:
        for done in set(self.answers) - {str(call.id) for call in self.open}:
            assert not any(isinstance(one, Send) for one in self.rpc.answer(done, b"{}"))

    @rule(timeout=st.integers(1, 5))
    def shell_asks(self, timeout: int) -> None:
        asked, outputs = self.rpc.call("Reset", b"{}", self.now, timeout)
        self.asked.append(asked)
        self._take(outputs)

    @rule(which=st.integers(0, 8), kind=st.sampled_from(['3,"{}",{{}}', '4,"{}","E","",{{}}']))
    def station_answers(self, which: int, kind: str) -> None:
        message_id = f"k{which}"
        outputs = self.rpc.receive(f"[{kind.format(message_id)}]", self.now)
        ended = [one for one in outputs if isinstance(one, Answered | Failed)]
        assert [one.id for one in ended] == ([message_id] if self.under_way == message_id else [])
        self._take(outputs)

    @rule(seconds=st.integers(0, 3))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds
        self._take(self.rpc.tick(self.now))
        deadline = self.rpc.next_deadline
        assert deadline is None or deadline > self.now

    @rule(frame=frames)
    def noise_arrives(self, frame: str | bytes) -> None:
        if '"a"' in str(frame) or '"b"' in str(frame) or str(frame)[:2] == "[2":
            return  # calls have their own rule
        self._take(self.rpc.receive(frame, self.now))

    @invariant()
    def one_call_is_open_in_each_direction(self) -> None:
        assert len(self.open) <= 1

    @invariant()
    def every_call_of_ours_ends_once(self) -> None:
        assert all(count == 1 for count in self.ended.values())
        under_way = 1 if self.under_way else 0
        waiting = len(self.asked) - len(self.ended) - under_way
        assert 0 <= waiting <= self.limits.waiting
        assert under_way or not waiting


TestConnection = Connection.TestCase
TestConnection.settings = settings(deadline=None)


# --------------------------------------------------------------------------- a million frames


def test_a_million_damaged_frames(
    sample_size: Callable[[int, int], int], record_property: Callable[[str, object], None]
) -> None:
    """Everything that one connection holds together: no exception, flat memory, still alive."""
    chance = random.Random(20260314)
    count = sample_size(10_000, 1_000_000)
    seeds = {version: _seeds(version) for version in Version}
    outcomes: Counter[str] = Counter()
    for version in Version:
        _run(version, seeds[version], 1000, chance, Counter())  # types are made, caches filled
    before = _blocks()
    for version in Version:
        _run(version, seeds[version], count // len(Version), chance, outcomes)
    assert _blocks() - before < 5000
    assert outcomes["read"] > count // 20
    assert outcomes["refused"] > count // 50
    record_property("damaged frames", sum(outcomes.values()))


def _blocks() -> int:
    """Pieces of memory that Python holds: exact, where the size of the process is not."""
    gc.collect()
    return sys.getallocatedblocks()


def _seeds(version: Version) -> list[bytes]:
    """Real messages, and the fullest of every action."""
    told = {Version.V16: cycle_16(), Version.V201: cycle_201(), Version.V21: cycle_201()}[version]
    shapes = codec(version).shapes
    for action in sorted(shapes.requests):
        payload = Instances(json.loads(shapes.request_text(action))).valid(full=True)
        told.append(json.dumps([2, "seed", action, payload]).encode())
    return [frame for frame in told if len(frame) < 4000]


def _run(
    version: Version, seeds: list[bytes], count: int, chance: random.Random, outcomes: Counter[str]
) -> None:
    rpc, types = Rpc(version, "k"), codec(version)
    for _ in range(count):
        outputs = rpc.receive(_damaged(chance.choice(seeds), chance), 0)
        kind = "unreadable"
        for one in outputs:
            if isinstance(one, CallReceived):
                kind = "read" if _read(types, one) else "refused"
                rpc.answer(one.id, b"{}")
            if isinstance(one, Close):
                rpc = Rpc(version, "k")
        outcomes[kind] += 1


PIECES = (b"[", b"]", b"{", b"}", b'"', b",", b":", b"null", b"1e999", b"-1", b"\xff", b"\\ud800")


def _damaged(frame: bytes, chance: random.Random) -> bytes:
    """One to three slips: a byte changed, a piece put in, cut out, doubled or moved."""
    data = bytearray(frame)
    for _ in range(chance.randint(1, 3)):
        at, end = sorted((chance.randrange(len(data) + 1), chance.randrange(len(data) + 1)))
        end = min(end, at + chance.choice((1, 4, 40)))
        match chance.randrange(7):
            case 0:
                data[at:end] = b""
            case 1:
                data[at:at] = data[at:end]
            case 2:
                data[at:at] = chance.choice(PIECES)
            case 3:
                data[at:end] = chance.choice(PIECES)
            case 4 if data:
                data[chance.randrange(len(data))] = chance.randrange(256)
            case 5 if data:
                data[chance.randrange(len(data))] = chance.choice(b"0123456789eE.+-")
            case _:
                data[at:at] = chance.choice(PIECES) * chance.choice((1, 2, 2000))
    return bytes(data)
