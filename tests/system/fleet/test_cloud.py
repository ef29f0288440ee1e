"""The playbook of the cloud, into a Debian root; then what it has installed takes a session."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from karvon.demo.lines import ask
from karvon.demo.process import ROOT, Child, free_port, wait_for

NAME = "localhost"
SERVER = "/etc/karvon/tls/server.pem"
CARD = "04A2B3C4D5E6F7"
AGENT = """
station = "{station}"
[journal]
folder = "journal"
[uplink]
[[boards]]
name = "left"
profile = "abb_terra_ac"
link = {{ kind = "tcp", host = "127.0.0.1", port = {port} }}
"""
ROLES = ("api", "ingest", "gateway")
VERSION = "0.1.0"
PATIENCE_S = 180
UNITS = (
    *(f"karvon-cloud@{role}.service" for role in ROLES),
    "karvon-cloud-database.service",
    "karvon-cloud-migrate.service",
    "karvon-backup.service",
    "karvon-backup.timer",
    "karvon-certificates.service",
    "karvon-certificates.timer",
    "mosquitto-accounts.path",
    "mosquitto-accounts.service",
)
Fleet = Any  # the fixtures' classes live in conftest, which cannot be imported
Root = Any
Service = Any


@pytest.fixture(autouse=True, scope="module")
def _only_at_full_counts(sample_size: Callable[[int, int], int]) -> None:
    if not sample_size(0, 1):
        pytest.skip("the cloud's installation takes two minutes: make torture")


@pytest.fixture
def given(cloud_wheels: Path, wheel: Path, tmp_path: Path) -> dict[str, Any]:
    """An operator's variables, on ports that are free here."""
    wheels = tmp_path / "cloud.tar"
    with tarfile.open(wheels, "w") as tar:
        for path in [*cloud_wheels.glob("*.whl"), wheel]:
            tar.add(path, path.name)
    return {
        "karvon_cloud_name": NAME,
        "karvon_cloud_version": VERSION,
        "karvon_cloud_wheels": str(wheels),
        "karvon_cloud_mqtt_port": free_port(),
        "karvon_cloud_https_port": free_port(),
        "karvon_cloud_ocpp_tls_port": free_port(),
        "karvon_cloud_http_ports": {role: free_port() for role in ROLES},
        "karvon_cloud_shared_buffers": "64MB",
        "karvon_cloud_settings": {"KARVON_TELEMETRY_DAYS": 30},
    }


class Machine:
    """The installed cloud, its services started in the order that their units ask for."""

    def __init__(self, root: Root, given: dict[str, Any]) -> None:
        self.root = root
        self._given = given
        self._running: list[Service] = []
        self._roles: dict[str, Service] = {}
        self._accounts = b""
        self.url = f"https://{NAME}:{given['karvon_cloud_https_port']}"
        self.trust = root.there("/etc/karvon/tls/trust.pem")

    def start(self) -> None:
        root = self.root
        database = root.unit("postgresql@17-main.service")
        database.says["User"] = ["postgres"]  # whom pg_ctlcluster becomes
        command = ("pg_ctlcluster", "17", "main", "start", "--foreground")
        self._running.append(database.start(root.folder / "postgresql.log", *command))
        self._running[-1].stopped_by = signal.SIGINT  # its fast shutdown
        socket = root.there("/run/postgresql/.s.PGSQL.5432")
        wait_for(socket.exists, PATIENCE_S, "PostgreSQL's socket")
        root.unit("karvon-cloud-database.service").once()
        root.unit("karvon-cloud-migrate.service").once()
        self.mosquitto = self.run("mosquitto.service")
        self.mosquitto.wait("READY=1")
        self.proxy = self.run("nginx.service", "nginx", "-g", "daemon off;")
        self.start_cloud()

    def start_cloud(self) -> None:
        for role in ROLES:
            service = self._roles[role] = self.run(f"karvon-cloud@{role}.service")
            port = self._given["karvon_cloud_http_ports"][role]
            wait_for(lambda port=port: healthy(port), PATIENCE_S, f"{role}; its log: {service.log}")
            self.tell_mosquitto()

    def run(self, unit: str, *command: str) -> Service:
        log = self.root.folder / f"{unit.removesuffix('.service')}.log"
        service = self.root.unit(unit).start(log, *command)
        self._running.append(service)
        return service

    def tell_mosquitto(self) -> None:
        """As mosquitto-accounts.path does when the file has changed."""
        unit = self.root.unit("mosquitto-accounts.path")
        (watched,) = unit.says["PathChanged"]
        accounts = self.root.there(watched).read_bytes()
        if accounts != self._accounts:
            self._accounts = accounts
            (asked,) = self.root.unit("mosquitto-accounts.service").says["ExecStart"]
            assert asked == "/usr/bin/systemctl kill --signal=HUP mosquitto.service"
            os.kill(self.mosquitto.pid, signal.SIGHUP)

    def restart_cloud(self) -> None:
        """As the playbook's handler does where systemd runs: it hands out the trust it read."""
        for service in self._roles.values():
            self._running.remove(service)
            service.end()
        self.start_cloud()

    def reload(self) -> None:
        """As the other handlers do."""
        for service in (self.mosquitto, self.proxy):
            os.kill(service.pid, signal.SIGHUP)
        wait_for(
            lambda: self.served() == self.root.there(SERVER).read_text(), PATIENCE_S, "the reload"
        )

    def served(self) -> str:
        """The certificate that the proxy and the broker show; empty: not the same."""
        ports = [self._given[f"karvon_cloud_{name}_port"] for name in ("mqtt", "https")]
        shown = {ssl.get_server_certificate(("127.0.0.1", port)) for port in ports}
        return shown.pop() if len(shown) == 1 else ""

    def end(self) -> None:
        while self._running:
            self._running.pop().end()

    # ------------------------------------------------------------------ over the proxy

    def ask(self, path: str, body: Any = None) -> Any:
        key = self.root.there("/var/lib/karvon/api/admin.key").read_text().strip()
        request = urllib.request.Request(  # loopback
            f"{self.url}/api/v1{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        )
        trust = ssl.create_default_context(cafile=self.trust)
        with urllib.request.urlopen(request, context=trust, timeout=30) as answer:
            return json.load(answer)


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == HTTPStatus.OK)
    except OSError:
        return False


def spoken(port: int, trust: Path, most: ssl.TLSVersion) -> str:
    """The TLS version that a port agrees to; empty: none."""
    context = ssl.create_default_context(cafile=trust)
    context.maximum_version = most
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=NAME) as line,
        ):
            return str(line.version())
    except ssl.SSLError:
        return ""


@pytest.fixture
def machine(root: Root, given: dict[str, Any]) -> Iterator[Machine]:
    made = Machine(root, given)
    try:
        yield made
    finally:
        made.end()


def test_a_cloud_is_installed_and_an_agents_session_arrives(
    machine: Machine,
    controller: Root,
    given: dict[str, Any],
    charger: Any,
    tmp_path: Path,
) -> None:
    root = machine.root
    first = root.play("cloud.yml", "cloud", **given)
    assert first.counts["changed"] > 20
    second = root.play("cloud.yml", "cloud", **given)
    assert (second.counts["changed"], second.changed) == (0, [])
    assert root.run("systemd-analyze", "verify", *UNITS) == ""
    wanted = root.there("/etc/systemd/system/multi-user.target.wants")
    assert {f"karvon-cloud@{role}.service" for role in ROLES} <= {
        one.name for one in wanted.iterdir()
    }

    machine.start()
    for name in ("https", "mqtt"):
        port = given[f"karvon_cloud_{name}_port"]
        assert spoken(port, machine.trust, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
        assert spoken(port, machine.trust, ssl.TLSVersion.TLSv1_2) == ""
    stations = root.there("/etc/karvon/stations/ca.pem")
    assert spoken(given["karvon_cloud_ocpp_tls_port"], stations, ssl.TLSVersion.TLSv1_3)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(  # loopback
            f"{machine.url}/metrics", context=ssl.create_default_context(cafile=machine.trust)
        )
    one_session(machine, charger, tmp_path, "TAS-0042")

    rotate(machine, controller, given)
    one_session(machine, charger, tmp_path, "TAS-0043")

    root.unit("karvon-backup.service").once()
    (backup,) = root.there("/var/backups/karvon").glob("karvon-*.tar")
    kept = f"/var/backups/karvon/{backup.name}"
    assert "is whole" in root.run("karvon", "cloud", "backup", "--verify", kept, user="karvon")
    (keys,) = root.there("/var/backups/karvon").glob("keys-*.tar.gz")
    with tarfile.open(keys) as tar:
        names = tar.getnames()
    assert {"etc/karvon/tls/ca.key", "etc/karvon/mqtt.url"} <= set(names)
    assert any(name.endswith("ota/director.pem") for name in names)


@pytest.fixture
def controller(fleet: Fleet, make_root: Callable[[], Root]) -> Root:
    """A controller, as far as its trust is concerned."""
    made = make_root()
    made.run("apt-get", "install", "-qq", "--no-install-recommends", "ca-certificates")
    made.run("useradd", "--system", "karvon")
    made.there("/etc/karvon").mkdir()
    unit = ROOT / "ansible/roles/karvon_agent/files/karvon-agent.service"
    shutil.copy(unit, made.there("/etc/systemd/system"))
    return made


def rotate(machine: Machine, controller: Root, given: dict[str, Any]) -> None:
    """A new certificate, then a new authority: a controller is never locked out."""
    root, port = machine.root, given["karvon_cloud_mqtt_port"]
    old = machine.root.folder / "old.pem"
    old.write_bytes(machine.trust.read_bytes())
    known = controller.there("/etc/karvon/ca.pem")
    known.write_bytes(old.read_bytes())

    def played(what: str) -> Any:
        before = machine.served()
        extra = ("--extra-vars", f"rotate={what}")
        found = root.play(
            "rotate-certificates.yml", "cloud", *extra, beside=("agents", controller), **given
        )
        machine.reload()
        if "Restart the cloud" in found.text:
            machine.restart_cloud()
        assert (machine.served() != before) is (what != "forget")
        assert spoken(port, known, ssl.TLSVersion.TLSv1_3)
        return found

    played("server")
    assert known.read_bytes() == old.read_bytes()
    played("authority")
    assert known.read_bytes() == machine.trust.read_bytes()
    assert known.read_bytes().count(b"BEGIN CERTIFICATE") == 2
    assert spoken(port, old, ssl.TLSVersion.TLSv1_3) == ""
    systems = controller.there("/usr/local/share/ca-certificates")
    assert len(list(systems.iterdir())) == 2
    played("forget")
    assert known.read_bytes().count(b"BEGIN CERTIFICATE") == 1
    assert [one.name for one in systems.iterdir()] == ["karvon.crt"]
    by_hash = ("-CApath", "/etc/ssl/certs", "-no-CAfile")
    controller.run("openssl", "verify", *by_hash, "/etc/ssl/certs/karvon.pem")
    refused = ("--extra-vars", "rotate=everything")
    text = root.play(
        "rotate-certificates.yml", "cloud", *refused, code=2, beside=("agents", controller), **given
    ).text
    assert "not everything" in text


def one_session(machine: Machine, charger: Any, folder: Path, station: str) -> None:
    """An agent is claimed through the proxy, and what it books arrives."""
    folder /= station
    folder.mkdir()
    made = machine.ask("/stations", {"station": station, "name": station})
    machine.ask("/id-tokens/import", {"id_tokens": [{"value": CARD}]})
    (folder / "agent.toml").write_text(AGENT.format(station=station, port=charger.port))
    before = len(charger.do("status")["sessions"])
    agent = ["--config", str(folder / "agent.toml")]
    environment = {**os.environ, "SSL_CERT_FILE": str(machine.trust)}
    code = made["claim"]["code"]
    command = ["agent", "claim", "--cloud", machine.url, "--code", code, *agent]
    subprocess.run(
        [sys.executable, "-m", "karvon", *command], env=environment, cwd=ROOT, check=True
    )
    machine.tell_mosquitto()
    child = Child("agent", ["agent", "run", *agent], folder, environment)
    child.start()
    try:
        desk = folder / "journal" / "control.sock"
        wait_for(desk.exists, PATIENCE_S, "the agent's desk to open")

        def listed() -> bool:
            return bool(ask(desk, {"do": "status"})["status"]["local_list_version"])

        wait_for(listed, PATIENCE_S, f"the local list to arrive; the agent's log: {child.log}")
        charger.do("plug", evse=1, wants_wh=15, max_current_ma=16_000)
        ask(desk, {"do": "token", "token": CARD, "evse": 1})
        wait_for(
            lambda: charger.do("status")["evses"][0]["full"], PATIENCE_S, "the vehicle to be full"
        )
        charger.do("unplug", evse=1)

        def ended() -> dict[str, Any] | None:
            items = machine.ask(f"/transactions?station={station}")["items"]
            return next((one for one in items if one["state"] == "ended"), None)

        booked = wait_for(ended, PATIENCE_S, "the session to arrive")
    finally:
        child.stop()
    (truth,) = charger.do("status")["sessions"][before:]
    assert 0 <= truth["energy_wh"] - booked["energy_wh"] < 1
