"""How answers look to people: values, times, pictures of a station, verdicts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from karvon.remote import tasks
from karvon.remote.call import Call, moment
from karvon.remote.client import FAILED, Remote, RemoteError, Sent, Target
from karvon.remote.show import at_path, harmless, plain
from karvon.remote.watching import Picture

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.fixture
def tashkent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Asia/Tashkent")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        ("", "-"),
        (True, "yes"),
        (0, "0"),
        ([1, "a"], "1, a"),
        ([], "-"),
        ({"status": "Faulted", "error": None}, "status Faulted"),
        ("2026-05-01T12:00:00.123456Z", "2026-05-01 17:00:00"),
        ("2026-05-01 is a day", "2026-05-01 is a day"),
    ],
)
@pytest.mark.usefixtures("tashkent")
def test_values_are_written_for_people(value: Any, text: str) -> None:
    assert plain(value) == text


@pytest.mark.usefixtures("tashkent")
def test_times_are_local_unless_they_say_otherwise() -> None:
    assert moment("2026-05-01T17:00") == NOON.isoformat()
    assert moment("2026-05-01T12:00Z") == NOON.isoformat()
    assert moment("2026-05-01") == "2026-04-30T19:00:00+00:00"
    ago = datetime.now(UTC) - datetime.fromisoformat(moment("2h"))
    assert 7199 < ago.total_seconds() < 7260


@pytest.mark.parametrize("text", ["", "yesterday", "2x", "h", "-1h", "2026-13-01"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(RemoteError, match="is no time"):
        moment(text)


def test_a_value_that_is_not_there_is_none() -> None:
    item = {"agent": {"version": "1"}, "state": None}
    assert at_path(item, "agent.version") == "1"
    assert at_path(item, "state.value.status") is None
    assert at_path(item, "nothing") is None


def test_texts_cannot_steer_a_terminal() -> None:
    assert harmless("a\x1b[2J\u202eb") == "a\ufffd[2J\ufffdb"


# --------------------------------------------------------------------------- a picture


def sent(event: str, **data: Any) -> Sent:
    return Sent(event, json.dumps(data), None)


def test_a_picture_joins_states_and_samples() -> None:
    picture = Picture()
    value = {
        "status": "Occupied",
        "charging_state": "Charging",
        "offered_ma": 16000,
        "limited_by": "site",
        "error": "",
    }
    evse = {"evse": 1, "state": {"value": value, "stale": True}}
    picture.take(sent("station", station="CP-1", online=False, evses=[evse]))
    picture.take(sent("sample", evse=1, at="2026-05-01T11:59:58Z", power_w=7210, energy_wh=1234))
    picture.take(sent("sample", evse=0, at="2026-05-01T11:59:50Z", current_l1_ma=31000))
    picture.take(sent("watch", status="rejected", result="upgrade it"))
    site, one = picture.rows(NOON)
    assert one[:4] == ["1", "Occupied?", "Charging", "16.0"]
    assert one[7:] == ["7.21", "1.234", "site", "-", "2 s ago"]
    assert (site[0], site[4], site[-1]) == ("site", "31.0", "10 s ago")
    assert "OFFLINE" in picture.head()
    assert "upgrade it" in picture.head()


# --------------------------------------------------------------------------- what became of it


def call(*answers: dict[str, Any]) -> Call:
    left = list(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=left.pop(0))

    transport = httpx.MockTransport(answer)
    remote = Remote(Target("http://127.0.0.1:1", "kv_x"), transport=transport)
    return Call(remote, as_json=True, as_csv=False)


GIVEN = {"command": "c1", "status_url": "/api/v1/commands/c1"}


def test_a_command_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    done = {"status": "executed", "result": "", "id": "c1"}
    tasks._limit(
        call(GIVEN, done), station="A", milliamperes="off", evse=0, valid="1h", no_wait=False
    )
    assert json.loads(capsys.readouterr().out) == done


@pytest.mark.parametrize(
    ("status", "word"), [("rejected", "no such EVSE"), ("expired", "look whether it is online")]
)
def test_a_command_that_was_not_done_fails(status: str, word: str) -> None:
    result = "no such EVSE" if status == "rejected" else ""
    told = call(GIVEN, {"status": status, "result": result, "id": "c1"})
    with pytest.raises(RemoteError, match=word) as failed:
        tasks._availability(told, station="A", state="off", evse=9, no_wait=False)
    assert failed.value.code == FAILED


def test_several_open_transactions_want_a_name() -> None:
    several = call({"items": [{"transaction": "a"}, {"transaction": "b"}], "next": None})
    with pytest.raises(RemoteError, match="--transaction"):
        tasks._stop(several, station="A", transaction=None, no_wait=True)
