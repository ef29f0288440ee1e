from __future__ import annotations

import asyncio
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_agent.control import Control, NotRunningError, Request, ask, stream
from edge_agent.rules.station import RefusedError
from protocols.agent_link import IdToken


class Stub:
    """The agent behind the socket: remembers what was presented, and has watchers."""

    def __init__(self) -> None:
        self.presented: list[tuple[IdToken, int | None]] = []
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.watchers = 0

    async def present(self, token: IdToken, evse: int | None) -> str:
        if token.value == "BLOCKED":
            raise RefusedError("this id token is blocked")
        self.presented.append((token, evse))
        return "accepted"

    async def read(self, device: str) -> list[dict[str, int | str]]:
        return [{"value": 7, "device": device}]

    def watch(self) -> tuple[asyncio.Queue[Any], Callable[[], None]]:
        self.watchers += 1

        def done() -> None:
            self.watchers -= 1

        return self.queue, done

    @property
    def control(self) -> Control:
        return Control(
            status=lambda: {"running": True},
            present=self.present,
            read=self.read,
            watch=self.watch,
            again_s=0.01,
        )


async def test_a_technician_asks_and_is_answered(tmp_path: Path) -> None:
    stub = Stub()
    async with stub.control.served(tmp_path):
        assert await ask(tmp_path, Request(do="status")) == {"running": True}
        assert await ask(tmp_path, Request(do="read", device="left")) == [
            {"value": 7, "device": "left"}
        ]
        answer = await ask(tmp_path, Request(do="token", token="CARD", evse=2))
    assert answer == {"text": "accepted"}
    assert stub.presented == [(IdToken("CARD"), 2)]


async def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    async with Stub().control.served(tmp_path):
        refused = await ask(tmp_path, Request(do="token", token="BLOCKED"))
        unknown = await ask(tmp_path, Request(do="dance"))
    assert refused == {"error": "this id token is blocked"}
    assert (
        "ask for status, token, read, write, retry, recover, update, abort, log or watch"
        in unknown["error"]
    )


async def test_a_line_that_is_no_request_does_not_end_the_connection(tmp_path: Path) -> None:
    async with Stub().control.served(tmp_path):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "control.sock"))
        writer.write(b'nonsense\n{"do":"status"}\n')
        first, second = await reader.readline(), await reader.readline()
        writer.close()
        await writer.wait_closed()
    assert b"not a request" in first
    assert second == b'{"running":true}\n'


async def test_watching_goes_on_and_ends_with_the_watcher(tmp_path: Path) -> None:
    stub = Stub()
    async with stub.control.served(tmp_path):
        for value in (1, 2):
            stub.queue.put_nowait({"n": value})
        answers = stream(tmp_path, Request(do="watch"))
        assert [await anext(answers), await anext(answers)] == [{"n": 1}, {"n": 2}]
        await answers.aclose()  # type: ignore[attr-defined]  # an async generator
        while stub.watchers:
            stub.queue.put_nowait({"n": 3})
            await asyncio.sleep(0)
    assert stub.watchers == 0


async def test_a_socket_that_cannot_be_made_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "later"
    async with Stub().control.kept(folder), asyncio.timeout(60):
        while not caplog.records:
            await asyncio.sleep(0.01)
        folder.mkdir()
        while not (folder / "control.sock").exists():
            await asyncio.sleep(0.01)
        assert await ask(folder, Request(do="status")) == {"running": True}
    assert not (folder / "control.sock").exists()
    assert len(caplog.records) == 1


async def test_a_fault_behind_one_request_ends_only_that_client(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stub = Stub()

    def broken() -> None:
        raise ZeroDivisionError

    control = Control(status=broken, present=stub.present, read=stub.read, watch=stub.watch)
    async with control.served(tmp_path):
        with pytest.raises(NotRunningError, match="without an answer"):
            await ask(tmp_path, Request(do="status"))
        assert await ask(tmp_path, Request(do="log")) == []
    assert "a request failed" in caplog.text


async def test_only_the_owner_may_use_the_socket(tmp_path: Path) -> None:
    async with Stub().control.served(tmp_path):
        mode = (tmp_path / "control.sock").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


async def test_a_dead_agents_socket_is_replaced_and_a_long_path_works(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 20) / ("deeper" * 10)
    folder.mkdir(parents=True)
    (folder / "control.sock").touch()
    async with Stub().control.served(folder):
        assert await ask(folder, Request(do="status")) == {"running": True}
    assert not (folder / "control.sock").exists()


@pytest.mark.parametrize("missing", [True, False])
async def test_without_an_agent_the_reason_is_told(tmp_path: Path, missing: bool) -> None:
    folder = tmp_path / "none" if missing else tmp_path
    with pytest.raises(NotRunningError, match="no agent runs on"):
        await ask(folder, Request(do="status"))
