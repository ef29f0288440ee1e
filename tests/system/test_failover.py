"""A controller with a cable and a modem, each a real interface in a network namespace of its own.

The cloud is reached at an address in a second namespace, over either link, as through the internet.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import subprocess
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from karvon.demo.faults import FaultProxy
from karvon.demo.process import DemoError

pytestmark = pytest.mark.timeout(1200)  # several changes, each of which takes its time
CLONE_NEWNET: Final = 0x40000000
CLOUD: Final = "198.51.100.1"
CABLE: Final = ("eth0", "192.0.2", 100)
MODEM: Final = ("wwan0", "203.0.113", 700)
CHANGE_S: Final = 240.0
IN_NAMESPACE: Final = 'mount --bind "$0" /etc/hosts && exec "$@"'
LINKS: Final = """\
links = [{ interface = "eth0" }, { interface = "wwan0", metered = true }]
monthly_mib = 4
longest_retry_s = 4
"""
Sizes = Callable[[int, int], int]
Proven = Callable[[str, int], None]
MIB: Final = 1024 * 1024
NEARLY_USED_UP: Final = 3900 * 1024


def _run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


class Roads:
    """Two links between a controller and the street; each can be pulled or swallow everything."""

    def __init__(self) -> None:
        self.controller = f"karvon-c-{os.getpid()}"
        self.street = f"karvon-s-{os.getpid()}"

    def build(self) -> None:
        for name in (self.controller, self.street):
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "-n", self.street, "address", "add", f"{CLOUD}/32", "dev", "lo")
        for link, net, metric in (CABLE, MODEM):
            _run(
                *("ip", "link", "add", link, "netns", self.controller, "type", "veth"),
                *("peer", "name", link, "netns", self.street),
            )
            for name, number in ((self.street, 1), (self.controller, 2)):
                _run("ip", "-n", name, "address", "add", f"{net}.{number}/30", "dev", link)
                _run("ip", "-n", name, "link", "set", link, "up")
            default = ("default", "via", f"{net}.1", "dev", link, "metric", str(metric))
            _run("ip", "-n", self.controller, "route", "add", *default)
            self._known_for_ever(link, f"{net}.1")

    def _known_for_ever(self, link: str, gateway: str) -> None:
        """The router stays in the neighbour table: nothing tells the system that it is dead."""
        told = json.loads(_run("ip", "-n", self.street, "-json", "link", "show", link))
        hardware = told[0]["address"]
        neighbour = (gateway, "lladdr", hardware, "dev", link, "nud", "permanent")
        _run("ip", "-n", self.controller, "neighbour", "replace", *neighbour)

    def remove(self) -> None:
        for name in (self.controller, self.street):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def pull(self, link: str) -> None:
        _run("ip", "-n", self.street, "link", "set", link, "down")

    def plug(self, link: str) -> None:
        _run("ip", "-n", self.street, "link", "set", link, "up")

    def swallow(self, net: str, *, on: bool) -> None:
        """The cable is in and its light is on; what is sent to the controller goes nowhere."""
        what = ("blackhole", f"{net}.2/32")
        _run("ip", "-n", self.street, "route", "add" if on else "delete", *what)

    def in_use_by_default(self) -> str:
        """What the system would use."""
        told = _run("ip", "-n", self.controller, "-json", "route", "get", CLOUD)
        return str(json.loads(told)[0]["dev"])

    def carried(self, link: str) -> int:
        """Bytes both ways, as the kernel counts them."""
        told = json.loads(_run("ip", "-n", self.controller, "-json", "-s", "link", "show", link))
        return sum(told[0]["stats64"][way]["bytes"] for way in ("rx", "tx"))

    def use_up(self, size: int) -> None:
        """Somebody else on the controller sends so much over the modem."""
        with self.socket_in(self.controller, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"wwan0\0")
            for _ in range(size // 1000):
                sender.sendto(bytes(1000), (CLOUD, 9))

    def listener(self) -> socket.socket:
        made = self.socket_in(self.street, socket.SOCK_STREAM)
        made.bind((CLOUD, 0))
        made.listen()
        return made

    def socket_in(self, namespace: str, kind: socket.SocketKind) -> socket.socket:
        """A socket belongs to the namespace that its thread was in when it was made."""
        made: list[socket.socket] = []

        def make() -> None:
            place = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(place, CLONE_NEWNET) == 0:
                    made.append(socket.socket(socket.AF_INET, kind))
            finally:
                os.close(place)

        thread = threading.Thread(target=make, name="in a namespace")
        thread.start()
        thread.join()
        assert made, "this thread may not enter the namespace"
        return made[0]


@pytest.fixture
def roads() -> Iterator[Roads]:
    if os.geteuid() != 0:
        pytest.skip("NOT RUN: network namespaces need root")
    roads = Roads()
    try:
        roads.build()
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        roads.remove()
        pytest.skip(f"NOT RUN: this machine does not let us make network namespaces ({error})")
    yield roads
    roads.remove()


class Controller:
    """A station whose agent lives in the controller's namespace."""

    def __init__(self, world: Any, roads: Roads, station: Any) -> None:
        self.world, self.roads, self.station = world, roads, station

    def settle(self, port: int, folder: Path) -> None:
        hosts = folder / "hosts"
        hosts.write_text(f"{CLOUD} localhost\n")
        inside = ("ip", "netns", "exec", self.roads.controller)
        self.station.agent.before = (*inside, "sh", "-c", IN_NAMESPACE, str(hosts))
        parts = urllib.parse.urlsplit(self.station.mqtt_url)
        self.station.mqtt_url = parts._replace(netloc=f"localhost:{port}").geturl()
        self.station.write_config()
        text = self.station.config.read_text()
        self.station.config.write_text(text.replace("longest_retry_s = 4\n", LINKS))

    def traffic(self) -> dict[str, Any]:
        with contextlib.suppress(DemoError):
            told: dict[str, Any] = self.station.agent_status()["traffic"]
            return told
        return {"in_use": None}

    def told(self) -> dict[str, Any]:
        """What the operator sees."""
        found = self.world.network.rest.get(f"/stations/{self.station.identity}")
        network: dict[str, Any] = (found["agent"] or {}).get("network") or {"in_use": None}
        return network

    def links(self) -> dict[str, str]:
        """What the technician sees: interface -> code."""
        return {
            one["name"]: one["code"]
            for one in self.station.agent_status()["links"]
            if one["kind"] == "network"
        }

    def wait(self, look: Callable[[], Any], what: str) -> None:
        try:
            self.world.network.wait_for(look, CHANGE_S, what)
        except DemoError as error:
            pytest.fail(f"{error}; its agent: {self.station.agent.tail(30)}", pytrace=False)

    def wait_over(self, link: str) -> None:
        """Until the uplink is connected, and goes over this link."""
        self.wait(lambda: self._over(link), f"the uplink to go over {link}")
        self.world.network.wait_online(self.station)

    def _over(self, link: str) -> bool:
        """While it is not connected, the link in use is that of the default route."""
        with contextlib.suppress(DemoError):
            told = self.station.agent_status()
            return bool(told["uplink"] == "connected" and told["traffic"]["in_use"] == link)
        return False

    def wait_fresh(self) -> None:
        since = datetime.now(UTC)
        self.wait(lambda: self.world.newest_sample(self.station, since), "new samples to arrive")


@pytest.fixture
def controller(world: Any, roads: Roads, tmp_path: Path) -> Iterator[Controller]:
    station = world.station("W", start=False, serial=True)
    found = Controller(world, roads, station)
    with FaultProxy(world.network.mqtt_port, listener=roads.listener()) as proxy:
        found.settle(proxy.port, tmp_path)
        world.start(station)
        yield found
        station.stop()


def test_a_cable_that_is_pulled_and_put_back(
    controller: Controller, sample_size: Sizes, record_property: Proven
) -> None:
    roads, station, world = controller.roads, controller.station, controller.world
    controller.wait_over("eth0")
    assert controller.links() == {"eth0": "network.in_use", "wwan0": "network.standby"}
    world.begin(station)
    unused = roads.carried("wwan0")

    roads.pull("eth0")
    controller.wait_over("wwan0")
    controller.wait_fresh()
    assert controller.traffic()["troubles"] == {"eth0": "no carrier"}
    assert controller.links()["eth0"] == "network.dead"
    assert roads.carried("wwan0") > unused + 1000

    roads.plug("eth0")
    controller.wait_over("eth0")
    assert controller.links() == {"eth0": "network.in_use", "wwan0": "network.standby"}

    count = sample_size(1, 12)
    for _ in range(count - 1):
        roads.pull("eth0")
        controller.wait_over("wwan0")
        roads.plug("eth0")
        controller.wait_over("eth0")
    record_property("times the cable was pulled", count)
    world.leave(station)
    world.agree(station)


def test_a_router_that_swallows_everything(
    controller: Controller, sample_size: Sizes, record_property: Proven
) -> None:
    """The light at the cable is on and the default route stands; the modem's month is short."""
    if not sample_size(0, 1):
        pytest.skip("to be sure of a router that swallows all takes two minutes: make torture")
    roads, station, world = controller.roads, controller.station, controller.world
    controller.wait_over("eth0")
    world.begin(station)

    count = sample_size(1, 3)
    for _ in range(count - 1):
        roads.swallow(CABLE[1], on=True)
        controller.wait_over("wwan0")
        roads.swallow(CABLE[1], on=False)
        controller.wait_over("eth0")
    record_property("times the router swallowed all", count)
    roads.swallow(CABLE[1], on=True)
    controller.wait_over("wwan0")
    assert roads.in_use_by_default() == "eth0", "the system does not notice"
    assert "time" in controller.traffic()["troubles"]["eth0"], "no answer in time, or timed out"

    roads.use_up(NEARLY_USED_UP - roads.carried("wwan0"))
    controller.wait(lambda: controller.traffic()["level"] == 2, "telemetry to be thinned")
    counted = controller.traffic()
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    assert counted["days"][today]["wwan0"] == counted["today_bytes"]["wwan0"]
    assert 0.9 * 4 * MIB <= counted["today_bytes"]["wwan0"] <= roads.carried("wwan0")
    assert counted["today_bytes"]["eth0"] <= roads.carried("eth0")
    controller.wait(lambda: controller.told().get("level") == 2, "the operator to see it")
    shown = controller.told()
    assert shown["in_use"] == "wwan0"
    assert shown["links"]["wwan0"]["metered"]
    assert shown["links"]["eth0"]["trouble"]
    since = datetime.now(UTC)
    world.leave(station)
    world.agree(station)  # what is billed is not held back
    late = world.newest_sample(station, since)
    assert late is None, "while thinned, one sample is kept in five minutes"

    roads.swallow(CABLE[1], on=False)
    controller.wait_over("eth0")
    controller.wait(lambda: controller.traffic()["level"] == 0, "all telemetry to be sent again")
    controller.wait_fresh()
