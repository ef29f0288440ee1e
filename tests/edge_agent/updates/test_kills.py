"""Kills at any time of fetching, making a slot and starting it: old or new, never mixed."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from ota_server import Server
from ota_world import World

from edge_agent.updates import launcher, slots
from edge_agent.updates.archive import sha256
from edge_agent.updates.messages import Message, Ready
from edge_agent.updates.service import WORKER

Sizes = Callable[[int, int], int]


@pytest.fixture
def server(world: World) -> Iterator[Server]:
    world.install_running()
    running = Server(world.out)
    yield running
    running.close()


def worker(world: World, server: Server) -> tuple[subprocess.Popen[bytes], float]:
    """The real fetching process, at work."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-B", "-m", WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(world.job(url=server.url)))
    process.stdin.close()
    return process, time.monotonic()


def said(process: subprocess.Popen[bytes]) -> list[Any]:
    assert process.stdout is not None
    with process.stdout:
        lines = process.stdout.read().splitlines()
    process.wait(60)
    return [msgspec.json.decode(line, type=Message) for line in lines if line.endswith(b"}")]


def whole(world: World) -> None:
    """Whatever a launcher could start is exactly what was signed."""
    for name in world.slots():
        if launcher.usable(world.controller.folder, name):
            assert sha256(slots.image_of(world.controller.folder, name)) == name


@pytest.mark.system
def test_ota_f26_kill_of_fetching_at_any_time(
    world: World, server: Server, sample_size: Sizes, kills: Any
) -> None:
    """Also between download and rename, in a half-made slot, and while it compiles."""
    name = world.offer("2.0", files={"bulk.py": f"B = {random.Random(3).randbytes(90_000)!r}\n"})
    whole_run, began = worker(world, server)
    assert isinstance(said(whole_run)[-1], Ready)
    takes = time.monotonic() - began
    count = sample_size(3, 200)
    for number in range(count):
        slots.wipe(world.controller.folder / "slots" / name)
        process, began = worker(world, server)
        until = began + takes * (0.3 + 0.7 * (number + 0.5) / count)
        while time.monotonic() < until and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        said(process)
        kills.count("update.fetching")
        whole(world)
        assert launcher.usable(world.controller.folder, world.running)
    process, _ = worker(world, server)
    result = said(process)[-1]
    assert isinstance(result, Ready)
    assert result.slot == name
    assert world.slots() == sorted([name, world.running])


@pytest.mark.system
def test_ota_f26_kill_of_the_launcher_at_any_time(
    world: World, sample_size: Sizes, kills: Any
) -> None:
    """However often it is killed, tries only go down, and what is left starts."""
    world.install_running()
    new = world.controller.install("2.0")
    began = time.monotonic()
    assert world.controller.start() == 0
    takes = time.monotonic() - began
    count = sample_size(6, 300)
    tries = launcher.TRIES
    for number in range(count):
        if number % 4 == 0:
            world.controller.record(confirmed=world.running, trial=new, tries=launcher.TRIES)
            tries = launcher.TRIES
        process = world.controller.popen()
        time.sleep(takes * (number + 0.5) / count)
        process.kill()
        process.wait()
        kills.count("update.launcher")
        stands = world.controller.stands
        assert stands.confirmed == world.running
        assert (stands.trial, stands.tries) in {
            (new, tries),
            (new, tries - 1),
            ("", 0),
        }
        tries = stands.tries
    world.controller.record(confirmed=world.running)
    world.controller.told.unlink(missing_ok=True)
    assert world.controller.start() == 0
    assert world.controller.versions() == ["1.0"]
