"""One connection's calls: each malformed frame's outcome, repeats, pipelines, timeouts, attacks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from protocols.ocpp.events import (
    Answered,
    AnswerRefused,
    CallReceived,
    Close,
    Failed,
    Note,
    Output,
    Refused,
    Send,
    SendReceived,
    TimedOut,
)
from protocols.ocpp.frames import Fault, read
from protocols.ocpp.rpc import Limits, Rpc
from protocols.ocpp.version import Version

V16, V201, V21 = Version


def _rpc(version: Version = V16, **limits: int) -> Rpc:
    return Rpc(version, "k", Limits(**limits))


def _sent(outputs: list[Output]) -> list[Any]:
    return [json.loads(one.frame) for one in outputs if isinstance(one, Send)]


def _notes(outputs: list[Output]) -> list[str]:
    return [one.deviation.name for one in outputs if isinstance(one, Note)]


def _call(frame: str | bytes, version: Version = V16) -> CallReceived:
    (call,) = _rpc(version).receive(frame, 0)
    assert isinstance(call, CallReceived)
    return call


# --------------------------------------------------------------------------- calls of the station


@pytest.mark.parametrize("as_given", [str, str.encode])
def test_a_call_is_received_and_answered(as_given: Callable[[str], str | bytes]) -> None:
    rpc = _rpc()
    (call,) = rpc.receive(as_given('[2,"17","Authorize",{"idTag":"é"}]'), 0)
    assert isinstance(call, CallReceived)
    assert (call.id, call.action) == ("17", "Authorize")
    assert json.loads(bytes(call.payload)) == {"idTag": "é"}
    assert call.deviations == ()
    assert rpc.answer("17", b'{"x":1}') == [Send(b'[3,"17",{"x":1}]')]


def test_a_call_is_refused() -> None:
    rpc = _rpc()
    rpc.receive('[2,"17","Fly",{}]', 0)
    assert _sent(rpc.fail("17", "NotImplemented", "x" * 300, {"a": 1})) == [
        [4, "17", "NotImplemented", "x" * 255, {"a": 1}]
    ]


def test_a_call_is_answered_once() -> None:
    rpc = _rpc()
    rpc.receive('[2,"1","Heartbeat",{}]', 0)
    rpc.answer("1", b"{}")
    assert _notes(rpc.answer("1", b"{}")) == ["repeated_call"]
    assert _sent(rpc.answer("1", b"{}")) == []
    assert _sent(rpc.fail("never", "GenericError", "")) == []


def test_a_repeated_call_gets_the_same_answer() -> None:
    rpc = _rpc()
    frame = '[2,"1","StartTransaction",{"connectorId":1}]'
    rpc.receive(frame, 0)
    again = rpc.receive(frame, 1)
    assert (_sent(again), _notes(again)) == ([], ["repeated_call"])
    answer = rpc.answer("1", b'{"transactionId":7}')
    again = rpc.receive(frame, 2)
    assert again[0] == answer[0]
    assert _notes(again) == ["repeated_call"]
    assert len(again) == 2


def test_a_known_id_with_another_text_is_a_new_call() -> None:
    rpc = _rpc()
    rpc.receive('[2,"1","Heartbeat",{}]', 0)
    rpc.answer("1", b'{"first":1}')
    (call,) = rpc.receive('[2,"1","StopTransaction",{}]', 0)
    assert isinstance(call, CallReceived)
    assert _sent(rpc.answer("1", b'{"second":2}')) == [[3, "1", {"second": 2}]]
    assert _sent(rpc.receive('[2,"1","StopTransaction",{}]', 0)) == [[3, "1", {"second": 2}]]


def test_one_call_is_open_and_others_wait_behind_it() -> None:
    rpc = _rpc(pipelined=2)
    rpc.receive('[2,"1","A",{}]', 0)
    assert _notes(rpc.receive('[2,"2","B",{}]', 0)) == ["pipelined_call"]
    assert _notes(rpc.receive('[2,"2","C",{}]', 0)) == ["pipelined_call"]
    assert _notes(rpc.receive('[2,"2","C",{}]', 0)) == ["repeated_call"]
    refused = rpc.receive('[2,"3","D",{}]', 0)
    assert _sent(refused)[0][:3] == [4, "3", "GenericError"]
    sent, call = rpc.answer("1", b"{}")
    assert sent == Send(b'[3,"1",{}]')
    assert isinstance(call, CallReceived)
    assert call.action == "B"
    assert [type(one) for one in rpc.answer("2", b"{}")] == [Send, CallReceived]
    assert rpc.answer("2", b"{}") == [Send(b'[3,"2",{}]')]


def test_kept_answers_are_bounded_in_number_and_bytes() -> None:
    rpc = _rpc(answers=3, answer_bytes=4096)
    for number in range(10):
        rpc.receive(f'[2,"{number}","A",{{}}]', 0)
        rpc.answer(str(number), b"{}")
    assert _sent(rpc.receive('[2,"9","A",{}]', 0))
    (call,) = rpc.receive('[2,"1","A",{}]', 0)
    assert isinstance(call, CallReceived)
    rpc.answer("1", b'{"x":"' + b"x" * 5000 + b'"}')
    assert isinstance(rpc.receive('[2,"9","A",{}]', 0)[0], CallReceived)


# --------------------------------------------------------------------------- what is malformed

DEEP = "[" * 100_000

UNREADABLE: dict[str, tuple[str | bytes, Any, Any]] = {
    # name: frame, answer in 1.6, answer in 2.x (code by id; None: no answer)
    "nothing": ("", None, ("-1", "RpcFrameworkError")),
    "no JSON": ("hello", None, ("-1", "RpcFrameworkError")),
    "a number": ("5", None, ("-1", "RpcFrameworkError")),
    "an object": ('{"a":1}', None, ("-1", "RpcFrameworkError")),
    "an empty list": ("[]", None, ("-1", "MessageTypeNotSupported")),
    "cut off": ('[2,"1","Heartbe', ("1", "FormationViolation"), ("1", "FormatViolation")),
    "cut off early": ('[2,"1', None, ("-1", "RpcFrameworkError")),
    "not a number": (
        '[2,"1","A",{"a":NaN}]',
        ("1", "FormationViolation"),
        ("1", "FormatViolation"),
    ),
    "deep": (f'[2,"1","A",{DEEP}', ("1", "FormationViolation"), ("1", "FormatViolation")),
    "deep alone": (DEEP, None, ("-1", "RpcFrameworkError")),
    "a lone surrogate": (
        r'[2,"1","A",{"a":"\ud800"}]',
        ("1", "FormationViolation"),
        ("1", "FormatViolation"),
    ),
    "a lone surrogate as id": (r'[2,"\ud800","A",{}]', None, ("-1", "RpcFrameworkError")),
    "no id": ("[2]", None, ("-1", "RpcFrameworkError")),
    "id null": ('[2,null,"A",{}]', None, ("-1", "RpcFrameworkError")),
    "id true": ('[2,true,"A",{}]', None, ("-1", "RpcFrameworkError")),
    "id of decimals": ('[2,1.5,"A",{}]', None, ("-1", "RpcFrameworkError")),
    "id of many digits": (f'[2,{"9" * 40},"A",{{}}]', None, ("-1", "RpcFrameworkError")),
    "id of 5000 digits": (f'[2,{"9" * 5000},"A",{{}}]', None, ("-1", "RpcFrameworkError")),
    "id too long": (f'[2,"{"9" * 129}","A",{{}}]', None, ("-1", "RpcFrameworkError")),
    "no action": ('[2,"1"]', ("1", "ProtocolError"), ("1", "RpcFrameworkError")),
    "action a number": ('[2,"1",7,{}]', ("1", "ProtocolError"), ("1", "RpcFrameworkError")),
    "action an object": ('[2,"1",{},{}]', ("1", "ProtocolError"), ("1", "RpcFrameworkError")),
    "five elements": ('[2,"1","A",{},1]', ("1", "ProtocolError"), ("1", "RpcFrameworkError")),
    "payload a text": ('[2,"1","A","x"]', ("1", "FormationViolation"), ("1", "FormatViolation")),
    "payload a number": ('[2,"1","A",5]', ("1", "FormationViolation"), ("1", "FormatViolation")),
    "payload a list": ('[2,"1","A",[1]]', ("1", "FormationViolation"), ("1", "FormatViolation")),
    "type a text": ('["2","1","A",{}]', None, ("1", "MessageTypeNotSupported")),
    "type true": ('[true,"1","A",{}]', None, ("1", "MessageTypeNotSupported")),
    "type null": ('[null,"1"]', None, ("1", "MessageTypeNotSupported")),
    "type 1": ('[1,"1","A",{}]', None, ("1", "MessageTypeNotSupported")),
    "type 99": ('[99,"1","A",{}]', None, ("1", "MessageTypeNotSupported")),
    "type of many digits": (f'[{"9" * 400},"1"]', None, ("1", "MessageTypeNotSupported")),
    "an answer without id": ("[3]", None, None),
    "an answer cut off": ('[3,"1",{"a"', None, None),
    "an answer of text": ('[3,"1","x"]', None, None),
    "zero bytes alone": (b"\0\0", None, ("-1", "RpcFrameworkError")),
    "UTF-16": ('[2,"1","A",{}]'.encode("utf-16"), None, ("-1", "RpcFrameworkError")),
    "lone surrogates": ('[2,"1","\ud800"', ("1", "FormationViolation"), ("1", "FormatViolation")),
}


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("version", Version)
def test_what_cannot_be_read_has_one_outcome(version: Version, name: str) -> None:
    frame, in_16, in_2 = UNREADABLE[name]
    rpc = _rpc(version)
    began = time.process_time()
    outputs = rpc.receive(frame, 0)
    assert time.process_time() - began < 0.05
    due = in_16 if version is V16 else in_2
    answers = _sent(outputs)
    assert [(answer[0], answer[1], answer[2]) for answer in answers] == ([(4, *due)] if due else [])
    assert all(answer[3].isprintable() and answer[4] == {} for answer in answers)
    assert _notes(outputs) in (["unreadable_frame"], ["unknown_message_type"])
    assert isinstance(rpc.receive('[2,"after","Heartbeat",{}]', 0)[0], CallReceived)


@pytest.mark.parametrize(
    ("frame", "deviations"),
    [
        (b'\xef\xbb\xbf[2,"1","A",{}]', ["byte_order_mark"]),
        ('\ufeff[2,"1","A",{}]', ["byte_order_mark"]),
        (b'[2,"1","A",{}]\0\0', ["trailing_bytes"]),
        (b'[2,"1","\xff",{}]', ["invalid_utf8"]),
        ('[2,1,"A",{}]', ["numeric_message_id"]),
        (f'[2,"{"x" * 40}","A",{{}}]', ["long_message_id"]),
        ('[2,"1","A"]', ["missing_payload"]),
        ('[2,"1","A",null]', ["payload_not_object"]),
        ('[2,"1","A",[ ]]', ["payload_not_object"]),
        ('[2,"1","A",""]', ["payload_not_object"]),
        (' [ 2 , "1" , "A" , { } ] ', []),
    ],
)
def test_what_is_clear_is_taken(frame: str | bytes, deviations: list[str]) -> None:
    call = _call(frame)
    assert [one.name for one in call.deviations] == deviations
    assert json.loads(bytes(call.payload)) == {}


def test_a_number_as_id_comes_back_as_one() -> None:
    rpc = _rpc()
    rpc.receive('[2,17,"A",{}]', 0)
    assert rpc.answer(17, b"{}") == [Send(b"[3,17,{}]")]
    (call,) = rpc.receive('[2,"17","A",{}]', 0)
    assert isinstance(call, CallReceived)
    assert rpc.answer("17", b"{}") == [Send(b'[3,"17",{}]')]


@pytest.mark.parametrize("kind", [str, str.encode])
def test_a_zero_in_a_text_is_taken_for_the_unknown_character(kind: Callable[[str], Any]) -> None:
    """Firmware written in C pads its texts, and no column of a database holds a zero."""
    rpc = _rpc()
    frame = kind(r'[2,"1","A",{"a":"x\u0000\u0000","b":"\\\u0000","c":"\\u0000"}]')
    note, call = rpc.receive(frame, 0)
    assert _notes([note]) == ["zero_in_text"]
    assert isinstance(call, CallReceived)
    assert json.loads(bytes(call.payload)) == {
        "a": "x\ufffd\ufffd",
        "b": "\\\ufffd",
        "c": "\\u0000",
    }
    rpc.answer("1", b"{}")
    (call,) = rpc.receive(kind(r'[2,"2","A",{"a":"\\u0000"}]'), 0)
    assert isinstance(call, CallReceived), "that one is text about a zero"


def test_an_unreadable_repeat_does_not_answer_what_is_open() -> None:
    rpc = _rpc()
    rpc.receive('[2,"1","A",{}]', 0)
    assert _sent(rpc.receive('[2,"1","A",{]', 0)) == []
    assert _sent(rpc.answer("1", b"{}")) == [[3, "1", {}]]


# --------------------------------------------------------------------------- our calls


def _ask(rpc: Rpc, now: float = 0, timeout: float = 10) -> tuple[str, list[Output]]:
    return rpc.call("Reset", b'{"type":"Soft"}', now, timeout)


def test_our_calls_go_one_by_one() -> None:
    rpc = _rpc()
    first, outputs = _ask(rpc)
    assert _sent(outputs) == [[2, first, "Reset", {"type": "Soft"}]]
    second, outputs = _ask(rpc)
    assert outputs == []
    assert first != second
    answered, sent = rpc.receive(f'[3,"{first}",{{"status":"Accepted"}}]', 1)
    assert isinstance(answered, Answered)
    assert (answered.id, bytes(answered.payload)) == (first, b'{"status":"Accepted"}')
    assert _sent([sent])[0][1] == second
    (failed,) = rpc.receive(f'[4,"{second}","NotSupported","no",{{"why":1}}]', 1)
    assert isinstance(failed, Failed)
    assert (failed.id, failed.code, failed.text) == (second, "NotSupported", "no")
    assert bytes(failed.details) == b'{"why":1}'
    assert rpc.next_deadline is None


def test_calls_in_both_directions_do_not_wait_for_each_other() -> None:
    rpc = _rpc()
    rpc.receive('[2,"1","A",{}]', 0)
    ours, outputs = _ask(rpc)
    assert len(_sent(outputs)) == 1
    assert isinstance(rpc.receive(f'[3,"{ours}",{{}}]', 0)[0], Answered)
    assert _sent(rpc.answer("1", b"{}")) == [[3, "1", {}]]


@pytest.mark.parametrize(
    ("rest", "code", "deviations"),
    [
        ("", "GenericError", ["missing_error_text"]),
        (',"Odd"', "Odd", ["missing_error_text"]),
        (',"Odd",null,null', "Odd", ["missing_error_text"]),
        (',7,"text",{}', "GenericError", ["missing_error_text"]),
        (',"","text",{}', "GenericError", []),
        (',"Odd","text",[],1', "Odd", ["missing_error_text"]),
    ],
)
def test_an_error_ends_a_call_whatever_it_lacks(
    rest: str, code: str, deviations: list[str]
) -> None:
    rpc = _rpc()
    ours, _ = _ask(rpc)
    (failed,) = rpc.receive(f'[4,"{ours}"{rest}]', 0)
    assert isinstance(failed, Failed)
    assert (failed.code, [one.name for one in failed.deviations]) == (code, deviations)
    assert bytes(failed.details) == b"{}"


@pytest.mark.parametrize(
    ("rest", "deviations"),
    [
        ("", ["missing_payload"]),
        (",null", ["payload_not_object"]),
        (",{},1", ["surplus_elements"]),
    ],
)
def test_an_answer_is_taken_with_deviations(rest: str, deviations: list[str]) -> None:
    rpc = _rpc()
    ours, _ = _ask(rpc)
    (answered,) = rpc.receive(f'[3,"{ours}"{rest}]', 0)
    assert isinstance(answered, Answered)
    assert [one.name for one in answered.deviations] == deviations


@pytest.mark.parametrize("version", Version)
@pytest.mark.parametrize("rest", [',"text"]', ',{"a":NaN}]', ',{"a"'])
def test_an_unreadable_answer_fails_the_call(version: Version, rest: str) -> None:
    rpc = _rpc(version)
    ours, _ = _ask(rpc)
    _ask(rpc)
    failed, *others = rpc.receive(f'[3,"{ours}"{rest}', 0)
    assert isinstance(failed, Failed)
    assert failed.code == ("FormationViolation" if version is V16 else "FormatViolation")
    kinds = [frame[0] for frame in _sent(others)]
    assert kinds == ([5, 2] if version is V21 else [2])


def test_an_unreadable_error_fails_the_call_and_is_not_answered() -> None:
    rpc = _rpc(V21)
    ours, _ = _ask(rpc)
    (failed,) = rpc.receive(f'[4,"{ours}","Odd","\\ud800",{{}}]', 0)
    assert isinstance(failed, Failed)
    assert failed.code == "FormatViolation"


def test_answers_to_what_was_not_asked_are_ignored() -> None:
    """A20."""
    rpc = _rpc()
    for frame in ('[3,"k1",{}]', '[3,"x",{}]', '[4,"x","GenericError","",{}]', "[3,1,{}]"):
        outputs = rpc.receive(frame, 0)
        assert (_notes(outputs), len(outputs)) == (["unasked_answer"], 1)
    ours, _ = _ask(rpc)
    assert _notes(rpc.receive('[3,"x",{}]', 0)) == ["unasked_answer"]
    assert isinstance(rpc.receive(f'[3,"{ours}",{{}}]', 0)[0], Answered)
    assert _notes(rpc.receive(f'[3,"{ours}",{{}}]', 0)) == ["unasked_answer"]


def test_a_call_times_out_and_the_next_has_its_own_time() -> None:
    rpc = _rpc()
    first, _ = _ask(rpc, 0, 10)
    second, _ = _ask(rpc, 5, 10)
    third, _ = _ask(rpc, 6, 3)
    assert rpc.next_deadline == 9
    assert rpc.tick(8.9) == []
    assert rpc.tick(9) == [TimedOut(third, sent=False)]
    timed_out, sent = rpc.tick(10)
    assert timed_out == TimedOut(first, sent=True)
    assert _sent([sent])[0][1] == second
    assert rpc.next_deadline == 20
    assert _notes(rpc.receive(f'[3,"{first}",{{}}]', 11)) == ["late_answer"]
    assert rpc.tick(20) == [TimedOut(second, sent=True)]


def test_the_oldest_waiting_call_is_refused_when_too_many_wait() -> None:
    rpc = _rpc(waiting=2)
    ids = [_ask(rpc)[0] for _ in range(3)]
    last, outputs = _ask(rpc)
    (refused,) = outputs
    assert isinstance(refused, Refused)
    assert (refused.id, refused.sent) == (ids[1], False)
    assert "2 calls waited" in refused.text
    ended = rpc.lost()
    assert [(one.id, one.sent) for one in ended] == [(ids[0], True), (ids[2], False), (last, False)]
    assert rpc.lost() == []


# --------------------------------------------------------------------------- 2.1


def test_events_are_sent_without_answers() -> None:
    (told,) = _rpc(V21).receive('[6,"1","NotifyPeriodicEventStream",{"id":1}]', 0)
    assert isinstance(told, SendReceived)
    assert (told.id, told.action) == ("1", "NotifyPeriodicEventStream")
    assert _sent(_rpc(V21).send("Notify", b"{}")) == [[6, "k1", "Notify", {}]]
    assert _sent(_rpc(V201).receive('[6,"1","A",{}]', 0))[0][:3] == [
        4,
        "1",
        "MessageTypeNotSupported",
    ]
    with pytest.raises(ValueError, match="has no SEND"):
        _rpc(V201).send("Notify", b"{}")


def test_a_refused_answer_is_told() -> None:
    rpc = _rpc(V21)
    rpc.receive('[2,"1","A",{}]', 0)
    rpc.answer("1", b"{}")
    assert rpc.receive('[5,"1","FormatViolation","odd",{}]', 0) == [
        AnswerRefused("1", "FormatViolation", "odd")
    ]
    assert _notes(rpc.receive('[5,"2","FormatViolation","odd",{}]', 0)) == ["unasked_answer"]


# --------------------------------------------------------------------------- attacks


@pytest.mark.parametrize("version", Version)
def test_a_frame_of_10_mib_closes_and_is_not_looked_at(version: Version) -> None:
    """A16."""
    rpc = _rpc(version)
    frame = b'[2,"1","A",{"a":"' + b"x" * (10 << 20) + b'"}]'
    began = time.process_time()
    (close,) = rpc.receive(frame, 0)
    assert time.process_time() - began < 0.01
    assert isinstance(close, Close)
    assert close.status == 1009
    assert rpc.receive(frame, 0) == []
    assert rpc.receive('[2,"1","A",{}]', 0) == []
    assert rpc.receive("nonsense", 0) == []


def test_a_run_of_nonsense_closes() -> None:
    rpc = _rpc(strikes=5)
    for _ in range(4):
        assert not any(isinstance(one, Close) for one in rpc.receive("x", 0))
    assert isinstance(rpc.receive("x", 0)[-1], Close)


def test_nonsense_between_messages_does_not_close() -> None:
    rpc = _rpc(strikes=3)
    for number in range(20):
        rpc.receive("x", 0)
        rpc.receive(f'[2,"{number}","A",{{}}]', 0)
        rpc.answer(str(number), b"{}")


def test_a_flood_of_calls_is_refused_then_closed() -> None:
    """A18, as far as one connection's protocol goes."""
    rpc = _rpc(pipelined=4, strikes=10)
    outputs = [one for n in range(10_000) for one in rpc.receive(f'[2,"{n}","A",{{}}]', 0)]
    assert sum(isinstance(one, CallReceived) for one in outputs) == 1
    assert isinstance(outputs[-1], Close)
    assert len(outputs) < 50


def test_the_text_of_a_fault_is_one_line() -> None:
    """A25."""
    for frame in ('[2,"1","A",{"a":\r\n\x1b[31m}]', '["\\r\\n\\u001b[31m","1"]'):
        fault = read(frame, V201)
        assert isinstance(fault, Fault)
        assert fault.text.isprintable()
