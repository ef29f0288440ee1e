"""Faults 19 to 25: every way in which a line, a server or a disk lets a download down."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ota_server import Server

from edge_agent.updates import download as module
from edge_agent.updates.archive import sha256
from edge_agent.updates.download import (
    Bucket,
    Download,
    DownloadFailed,
    ImageRefused,
    Pace,
    Resume,
    Wanted,
)
from edge_agent.updates.fetching import HttpSource, SourceError, pool

CONTENT = random.Random(7).randbytes(300_000)
PATH = "agent/x.zst"
WANTED = Wanted(PATH, len(CONTENT), sha256(CONTENT))


class Waits:
    """A clock that only sleeping moves, and what was slept."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    @property
    def pace(self) -> Pace:
        return Pace(clock=lambda: self.now, sleep=self.sleep, chance=lambda: 0.5, tries=4)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("shown")
    place = folder / "targets" / WANTED.location
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    server = Server(folder)
    yield server
    server.close()


@pytest.fixture
def server(shown: Server) -> Server:
    shown.cut_after = shown.status = shown.portal = None
    shown.ignores_range, shown.etag, shown.body = False, '"v1"', lambda content: content
    shown.asked.clear()
    shown.sent = 0
    return shown


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def download(server: Server, folder: Path, waits: Waits | None = None, **more: Any) -> Download:
    source = HttpSource(f"{server.url}/targets", pool())
    pace = (waits or Waits()).pace
    return Download(source, folder, WANTED, pace=pace, **({"spare_bytes": 0} | more))


def test_what_was_signed_gets_its_name(server: Server, tmp_path: Path) -> None:
    path = download(server, tmp_path).run()
    assert path.read_bytes() == CONTENT
    assert names(tmp_path) == [WANTED.sha256]


def test_what_is_there_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    download(server, tmp_path).run()
    server.asked.clear()
    download(server, tmp_path).run()
    assert server.asked == []


def test_ota_f19_cut_every_64_kib_is_resumed_by_range(server: Server, tmp_path: Path) -> None:
    server.cut_after = 64 * 1024
    waits = Waits()
    assert download(server, tmp_path, waits).run().read_bytes() == CONTENT
    assert server.sent == len(CONTENT)
    starts = [wanted for _, wanted, _ in server.asked]
    assert starts == [None, *(f"bytes={n * 65536}-" for n in range(1, 5))]
    assert {condition for _, wanted, condition in server.asked if wanted} == {'"v1"'}


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(kept=st.integers(0, len(CONTENT)), said=st.integers(0, 2 * len(CONTENT)))
def test_ota_f19_power_cut_at_any_byte_resumes_at_what_is_surely_there(
    shown: Server, tmp_path_factory: pytest.TempPathFactory, kept: int, said: int
) -> None:
    """The file may be shorter than its checkpoint, or longer and wrong behind it."""
    folder = tmp_path_factory.mktemp("cut")
    shown.asked.clear()
    one = download(shown, folder)
    rotten = bytes(len(CONTENT) - min(kept, said))
    one.part.write_bytes(CONTENT[: min(kept, said)] + rotten[: kept - min(kept, said)])
    one.resume.write_bytes(msgspec.json.encode(Resume(said, shown.etag)))
    assert one.run().read_bytes() == CONTENT


def test_ota_f20_etag_changed_starts_anew(server: Server, tmp_path: Path) -> None:
    one = download(server, tmp_path)
    one.part.write_bytes(b"x" * 1000)
    one.resume.write_bytes(msgspec.json.encode(Resume(1000, '"v0"')))
    assert one.run().read_bytes() == CONTENT
    assert [wanted for _, wanted, _ in server.asked] == ["bytes=1000-"]
    assert server.sent == len(CONTENT)


def test_ota_f21_range_ignored_starts_anew(server: Server, tmp_path: Path) -> None:
    server.ignores_range = True
    one = download(server, tmp_path)
    one.part.write_bytes(b"x" * 1000)
    one.resume.write_bytes(msgspec.json.encode(Resume(1000, '"v1"')))
    assert one.run().read_bytes() == CONTENT


def test_ota_f21_416_starts_anew(server: Server, tmp_path: Path) -> None:
    server.body = lambda content: content[:500] if len(server.asked) == 1 else content
    one = download(server, tmp_path)
    one.part.write_bytes(CONTENT[:1000])
    one.resume.write_bytes(msgspec.json.encode(Resume(1000, '"v1"')))
    assert one.run().read_bytes() == CONTENT
    assert [wanted for _, wanted, _ in server.asked] == ["bytes=1000-", None]


class Drips:
    """A source that gives one byte in ten seconds, until it is asked the third time."""

    def __init__(self, waits: Waits) -> None:
        self.waits, self.asked = waits, 0

    def get(self, path: str, start: int, etag: str) -> Any:
        from contextlib import nullcontext

        from edge_agent.updates.fetching import Answer

        self.asked += 1
        fast = iter([CONTENT[start:]])
        chunks = self._drip(start) if self.asked < 3 else fast
        return nullcontext(Answer(start, len(CONTENT) - start, "", chunks))

    def _drip(self, start: int) -> Iterator[bytes]:
        for index in range(start, len(CONTENT)):
            self.waits.now += 10
            yield CONTENT[index : index + 1]


def test_ota_f22_slow_drip_is_given_up_and_tried_again_later(tmp_path: Path) -> None:
    waits = Waits()
    source = Drips(waits)
    one = Download(source, tmp_path, WANTED, pace=waits.pace, spare_bytes=0)
    assert one.run().read_bytes() == CONTENT
    assert source.asked == 3
    assert len(waits.slept) == 2


def test_waits_are_spread_by_chance_and_never_too_long() -> None:
    early = Pace(chance=lambda: 0.0)
    late = Pace(chance=lambda: 1.0)
    assert [early.wait_s(n) for n in (1, 2, 3)] == [1.0, 2.0, 4.0]
    assert [late.wait_s(n) for n in (1, 2, 3)] == [2.0, 4.0, 8.0]
    assert late.wait_s(50) == module.LONGEST_WAIT_S


def test_ota_f23_no_room_is_said_before_a_byte_is_fetched(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match="free space"):
        download(server, tmp_path, spare_bytes=2**60).run()
    assert server.asked == []


def test_ota_f23_disk_full_fails_cleanly_and_leaves_the_room_to_sessions(
    server: Server, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Download, "_room", lambda _: None)  # somebody else fills it meanwhile
    with pytest.raises(DownloadFailed, match="No space left"):
        download(server, small_disk).run()
    assert names(small_disk) == []


@pytest.mark.parametrize("status", [500, 404, 302])
def test_ota_f24_retries_end(server: Server, tmp_path: Path, status: int) -> None:
    server.status = status
    waits = Waits()
    with pytest.raises(DownloadFailed, match=f"4 tries without progress.*HTTP {status}"):
        download(server, tmp_path, waits).run()
    assert len(server.asked) == 4
    assert waits.slept == sorted(waits.slept)


def test_tries_count_from_the_last_progress(server: Server, tmp_path: Path) -> None:
    server.cut_after = 10_000
    waits = Waits()
    assert download(server, tmp_path, waits).run().read_bytes() == CONTENT
    assert len(server.asked) == 30


@pytest.mark.parametrize("length", [len(CONTENT), 700])
def test_ota_f25_captive_portal_is_refused_by_its_hash(
    server: Server, tmp_path: Path, length: int
) -> None:
    server.portal = b"<html>log in</html>".ljust(length)
    with pytest.raises((ImageRefused, DownloadFailed)):
        download(server, tmp_path).run()
    assert names(tmp_path) == []
    server.portal = None
    assert download(server, tmp_path).run().read_bytes() == CONTENT


def test_nobody_there_is_said(tmp_path: Path) -> None:
    waits = Waits()
    source = HttpSource("http://127.0.0.1:9/targets", pool())
    with pytest.raises(DownloadFailed, match="without progress"):
        Download(source, tmp_path, WANTED, pace=waits.pace, spare_bytes=0).run()


@given(
    rate=st.integers(100, 10**6), pieces=st.lists(st.integers(1, 70_000), min_size=1, max_size=40)
)
def test_the_rate_is_kept(rate: int, pieces: list[int]) -> None:
    waits = Waits()
    bucket = Bucket(rate, lambda: waits.now, waits.sleep)
    for piece in pieces:
        bucket.take(piece)
    assert waits.now == pytest.approx(sum(pieces) / rate)


def test_without_a_rate_nothing_waits() -> None:
    waits = Waits()
    Bucket(None, lambda: waits.now, waits.sleep).take(10**9)
    assert waits.slept == []


def test_a_source_that_answers_other_bytes_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: Callable[..., None] = server._send

    def shifted(handler: Any, status: int, content: bytes, headers: Any, **more: Any) -> None:
        if status == 206:
            headers = headers | {"Content-Range": f"bytes 5-9/{len(CONTENT)}"}
        answered(handler, status, content, headers, **more)

    monkeypatch.setattr(server, "_send", shifted)
    source = HttpSource(f"{server.url}/targets", pool())
    with pytest.raises(SourceError, match="other bytes"), source.get(WANTED.location, 100, ""):
        pass
