"""A controller put into service and out of it again, by the command, with a cloud and kills."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from edge_agent import faultpoints, station_key
from edge_agent.commissioning.progress import STEPS
from edge_agent.commissioning.reaching import log_in_to_backend
from edge_agent.config import OcppPart, load
from karvon.demo.lines import ask
from karvon.demo.network import Network
from karvon.demo.process import Child, free_port, wait_for
from karvon.demo.rest import RestError

pytestmark = pytest.mark.system
STATION, OTHER = "TAS-0001", "TAS-0002"
KILLED = -9
KILLS = [
    f"{faultpoints.COMMISSION_NOTED}:1",
    f"{faultpoints.CLAIM_ANSWERED}:1",
    f"{faultpoints.COMMISSION_CLAIMED}:1",
    *(f"{faultpoints.COMMISSION_STEP}:{number}" for number in range(1, len(STEPS) + 1)),
]
LEAVING = [f"{faultpoints.DECOMMISSION_STEP}:{number}" for number in (1, 2, 3)]


def karvon(*args: str, fault: str = "") -> subprocess.CompletedProcess[str]:
    """The command as an installer starts it; `fault` names the instant at which it is killed."""
    env = {name: value for name, value in os.environ.items() if name != "KARVON_FAULT"}
    env |= {"KARVON_FAULT": fault} if fault else {}
    return subprocess.run(  # our own command
        [sys.executable, "-m", "karvon", *args],
        env=env,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with Network(tmp_path_factory.mktemp("commissioning")) as made:
        made.start_cloud({"KARVON_OCPP_TLS_PORT": str(free_port())})
        yield made


class Site:
    """A charger, and a controller that is not in service yet."""

    def __init__(self, network: Network, folder: Path, profile: str = "vestel_evc04") -> None:
        self.network, self.folder, self.profile = network, folder, profile
        self.config = folder / "agent.toml"
        self.port, self.control = free_port(), free_port()
        self.sim = Child(
            "sim",
            [
                *("sim", "charger", "--profile", profile, "--json"),
                *("--tcp", f"127.0.0.1:{self.port}"),
                *("--control", f"127.0.0.1:{self.control}"),
            ],
            folder,
        )
        self.agent = Child("agent", ["agent", "run", "--config", str(self.config)], folder)
        self.cloud = network.rest.base.removesuffix("/api/v1")

    def __enter__(self) -> Self:
        self.sim.start()
        self.sim.ready(60)
        return self

    def __exit__(self, *_: object) -> None:
        self.agent.stop()
        self.sim.stop()

    def commission(self, code: str, fault: str = "") -> subprocess.CompletedProcess[str]:
        args = (
            *("agent", "commission", "--config", str(self.config), "--station", STATION),
            *("--use", f"left={self.profile}@tcp://127.0.0.1:{self.port}/255"),
            *("--fuse", "63", "--failsafe-timeout", "30", "--installer", "A. Karimov"),
            *("--cloud", self.cloud, "--code", code, "--yes", "--json"),
        )
        return karvon(*args, fault=fault)

    def decommission(self, *more: str, fault: str = "") -> subprocess.CompletedProcess[str]:
        args = ("agent", "decommission", "--config", str(self.config), "--yes", "--json", *more)
        return karvon(*args, fault=fault)

    def failsafe(self) -> Any:
        evse = ask(self.control, {"do": "status"})["evses"][0]
        return evse["failsafe_s"], evse["failsafe_ma"]


def code_for(network: Network, station: str) -> str:
    made = network.rest.post("/stations", {"station": station})
    return str(made["claim"]["code"])


def is_gone(network: Network, station: str) -> bool:
    with pytest.raises(RestError) as missing:
        network.rest.get(f"/stations/{station}")
    return missing.value.status == 404


def test_killed_at_every_step_it_goes_on_and_leaves_nothing_behind(
    network: Network, tmp_path: Path, sample_size: Callable[[int, int], int]
) -> None:
    """One claim code and one life of the station, with a kill at each of these instants."""
    count = sample_size(4, len(KILLS))
    chosen = KILLS if count >= len(KILLS) else [*KILLS[:3], KILLS[6]]
    code = code_for(network, STATION)
    with Site(network, tmp_path) as site:
        had = site.failsafe()
        for instant in sorted(chosen, key=KILLS.index):
            killed = site.commission(code, _next(site, instant))
            assert killed.returncode == KILLED, (instant, killed.stdout, killed.stderr)
        done = site.commission(code)
        assert done.returncode == 0, (done.stdout, done.stderr)
        report = json.loads(done.stdout)
        assert report["passed"]
        assert site.failsafe() == (30, 6_000)
        assert {check["what"] for check in report["checks"]} >= {"cloud (MQTT)", "certificate"}
        _is_private(tmp_path / station_key.NAME)
        _is_private(tmp_path / "credentials.json")
        assert not (tmp_path / station_key.DRAFT).exists()

        site.agent.start()
        wait_for(lambda: network.rest.get(f"/stations/{STATION}")["online"], 60, "the agent online")
        refused = site.decommission("--wait", "0")
        assert refused.returncode == 1
        assert "systemctl disable --now karvon-agent" in refused.stderr
        site.agent.stop()

        for instant in LEAVING if count >= len(KILLS) else LEAVING[1:2]:
            left = site.decommission(fault=instant)
            assert left.returncode == KILLED, (instant, left.stdout, left.stderr)
        left = site.decommission()
        assert left.returncode == 0, (left.stdout, left.stderr)
        assert site.failsafe() == had
    assert is_gone(network, STATION)
    for name in ("credentials.json", station_key.NAME, "agent.toml"):
        assert not (tmp_path / name).exists()
    assert json.loads((tmp_path / "decommissioning.json").read_text())["station"] == STATION


def _next(site: Site, instant: str) -> str:
    """A step's number counts from the first that is not done yet."""
    name, _, number = instant.partition(":")
    if name != faultpoints.COMMISSION_STEP:
        return instant
    state = site.folder / "journal" / "commissioning.json"
    done = len(json.loads(state.read_text())["done"]) if state.exists() else 0
    return f"{name}:{max(1, int(number) - done)}"


def _is_private(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_key_is_made_here_and_proves_the_station_to_whom_trusts_the_clouds_authority(
    network: Network, tmp_path: Path
) -> None:
    from edge_agent import joining

    code = code_for(network, OTHER)
    cloud = network.rest.base.removesuffix("/api/v1")
    credentials = tmp_path / "credentials.json"
    joined = joining.claim(cloud, OTHER, code, credentials)
    assert isinstance(joined, joining.Joined)
    own = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    own.load_cert_chain(tmp_path / station_key.NAME)  # key and certificate fit each other
    first = (tmp_path / station_key.NAME).read_bytes()
    known = json.loads(credentials.read_text())
    renewed = joining.renew(joining.Credentials(**known), tmp_path)
    assert renewed >= (joined.certificate_until or "")
    second = (tmp_path / station_key.NAME).read_bytes()
    assert second != first
    assert _private_part(second) != _private_part(first)
    assert "profile 3" in asyncio.run(_logged_in(network, tmp_path))
    listed = list(network.rest.items("/ocpp-certificates", station=OTHER))
    assert len(listed) == 2
    assert joining.retire(joining.Credentials(**known)) == OTHER
    with pytest.raises(joining.JoinError, match="401"):
        joining.retire(joining.Credentials(**known))
    assert is_gone(network, OTHER)


async def _logged_in(network: Network, folder: Path) -> str:
    """At the cloud's OCPP port, by the certificate alone."""
    part = OcppPart(
        url=f"{_ready(network)['ocpps_url']}",
        certificate=station_key.NAME,
        key=station_key.NAME,
        ca=str(network.data / "ocpp-tls" / "ca.pem"),
    )
    path = folder / "agent.toml"
    text = f'station = "{OTHER}"\njournal = {{ folder = "journal" }}\n'
    board = '[[boards]]\nname = "left"\nprofile = "abb_terra_ac"\nlink = { host = "127.0.0.1" }\n'
    path.write_text(text + board)
    return await log_in_to_backend(load(path), part)


def _ready(network: Network) -> dict[str, Any]:
    """What the cloud said when it was ready."""
    line = network.cloud.ready()
    assert line["ocpps_url"].startswith("wss://")
    return line


def _private_part(pem: bytes) -> bytes:
    return pem[pem.index(b"-----BEGIN PRIVATE KEY") : pem.index(b"-----END PRIVATE KEY")]
