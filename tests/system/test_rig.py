"""The whole fleet at once: a cloud, agents in their slots, boards behind loaders, people charging.

Releases are signed offline, published with the command, and rolled out by campaigns that a second
person approves, while vehicles come and go everywhere. A good one reaches everybody; a bad one of
the agent, and a bad one of the boards, halt their campaigns by themselves and are gone again
without anybody's hand. In the end every session is in the cloud once, with the energy that flowed,
and nobody left with less than was wanted.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from ota_real import Service, real_image
from ota_world import HARDWARE, NAME
from securesystemslib.signer import CryptoSigner
from typer.testing import CliRunner

from edge_agent.rules.update import STEADY_MS
from edge_agent.updates import launcher, slots
from edge_agent.updates.archive import Entry, pack, sha256
from firmware_bridge.simulator.flash import make_image
from karvon.demo.drivers import Driver, Habits
from karvon.demo.places import TASHKENT, Plan
from karvon.demo.process import ROOT, Child, DemoError
from karvon.demo.rest import Rest
from karvon.demo.session import TOKEN
from karvon.demo.station import Station
from karvon.release import keys
from karvon.release.workshop import Workshop
from karvon.remote.cli import app
from protocols.release import Encoding, Kind, Release

CHIP: Final = "KPB-SIM"
STAGE: Final = "power-stage"
STAGE_BYTES: Final = 6000
OURS: Final = "own-board"
UPDATES: Final = """
[updates]
url = "{url}"
hardware = "{hardware}"
images_root = "{roots}/images.root.json"
director_root = "{roots}/director.root.json"
"""
OWN_BOARD: Final = f"""kind = "serial_board"
firmware = {{ name = "{STAGE}", loader = "stm32", hw_ids = ["{CHIP}"] }}
"""
DIES: Final = """
import os, sys, threading
if "run" in sys.argv:
    dies = threading.Timer(3.0, os._exit, (9,))
    dies.daemon = True
    dies.start()
"""
"""A version that passes its self-test, runs, even lets people charge, and falls over."""
UNHURRIED: Final = Habits(
    away_s=(0.5, 2.0),
    card_s=(0.2, 0.8),
    linger_s=(0.3, 1.0),
    patience_s=300.0,
    want_wh=(80, 250),
    max_ma=(16_000, 32_000),
)
"""Nobody leaves before the vehicle is full."""
AGAIN_S: Final = 10.0
"""So long a person waits before holding the card up again: a second time may mean stop."""
RULES: Final = "edge_agent/rules/update.py"
HASTY_MS: Final = 2_000
"""How long the sample's good version wants to be well before it confirms itself."""
DEADLINE_S: Final = 1200.0
"""Twenty agents that make slots share two cores, behind everything that charges."""


class Launched(Child):
    """The agent as a controller runs it: by the launcher, started again whenever it has ended."""

    def __init__(self, folder: Path, root: Path) -> None:
        super().__init__(f"agent-{folder.name}", (), folder)
        self.root = root
        self._service = Service(folder, root)

    @property
    def log(self) -> Path:
        return self._service.log

    @property
    def alive(self) -> bool:
        return self._service.starts > 0

    def start(self, env: Any = None) -> None:
        assert env is None
        self._service.start()

    def signal(self, number: int) -> None:
        """They are ended by `stop`."""

    def stop(self, deadline_s: float = 15.0) -> None:
        if self._service.starts:
            self._service.end()

    def tail(self, lines: int = 12) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Slotted(Station):
    """A station whose agent lives in slots; with `serial`, on a board of our own with a loader."""

    def __init__(self, plan: Plan, folder: Path, **given: Any) -> None:
        super().__init__(plan, folder, **given)
        self.root = folder / "karvon"
        self.agent = Launched(folder, self.root)
        self.updates = ""
        self.wanted: list[int] = []

    def _sim_args(self) -> list[str]:
        if self.line is None:
            return super()._sim_args()
        return [
            *("sim", "board", "--json", "--pty", str(self.line)),
            *("--control", f"127.0.0.1:{self.control_port}", "--speed", str(self.speed)),
            *("--flash", str(self.folder / "flash.bin")),
        ]

    def write_config(self) -> None:
        super().write_config()
        text = self.config.read_text()
        if self.line is not None:
            text = text.replace('profile = "abb_terra_ac"\n', OWN_BOARD)
            text = text.replace('kind = "rtu"', 'kind = "serial"')
        self.config.write_text(text + self.updates)

    def shows(self) -> dict[str, Any]:
        """What the agent says of itself and its updates; empty while none answers."""
        try:
            return self.agent_status()
        except DemoError:
            return {}

    def version(self) -> str:
        return str(self.shows().get("status", {}).get("agent_version", ""))

    def board_version(self) -> str:
        return str(self.shows().get("updates", {}).get("board", {}).get("board", ""))

    def common_settings(self) -> str:
        """The image of the settings release that holds."""
        return str(self.shows().get("updates", {}).get("settings", {}).get("release", ""))

    def confirmed(self) -> str:
        record = launcher.read(self.root)
        return "" if record is None or record.trial else record.confirmed


class Visitors:
    """Those who come to one station; what they wanted is noted, and what they left with."""

    def __init__(self, station: Slotted) -> None:
        self.station = station
        self.cut_short: list[str] = []
        self._shown_at = 0.0

    def plug(self, want_wh: int, max_ma: int) -> None:
        evses = self.station.agent_status()["evses"]
        if not evses or evses[0]["charging_state"] != "Idle":
            raise DemoError("it does not show that it is free")
        self.station.plug(want_wh, max_ma)

    def present(self, token: str) -> None:
        evses = self.station.agent_status()["evses"]
        self._shown_at = time.monotonic()
        if not evses or not evses[0].get("transaction"):
            self.station.present(token)

    def unplug(self) -> None:
        if not self.station.full():
            self.cut_short.append(f"{self.station.identity}: {self.station.board('status')}")
        self.station.unplug()

    def full(self) -> bool:
        """Who still waits for a first watt holds the card up again.

        An agent that falls over forgets a card whose vehicle it had not seen yet. Where energy has
        flowed nobody does that: a session that ends early shall be found.
        """
        shown = self.station.board("status")
        if not shown["evses"][0]["full"]:
            here = [one["energy_nj"] for one in shown["sessions"] if one["ended_ms"] is None]
            if not any(here) and time.monotonic() - self._shown_at > AGAIN_S:
                with contextlib.suppress(DemoError):  # it is away
                    self.present(TOKEN)
        return bool(shown["evses"][0]["full"])


class Makers:
    """Those who hold the release keys; the cloud holds the two that sign freshness."""

    def __init__(self, folder: Path, ask: Callable[..., Any]) -> None:
        self.folder, self._ask = folder, ask
        self.workshop = Workshop(folder / "repo")
        ask("releases", "keys", folder / "keys")
        self._signers = {
            role: [CryptoSigner.generate_ed25519() for _ in range(count)]
            for role, (_, count) in keys.SETS.items()
            if role not in keys.ONLINE
        }
        public = {role: [one.public_key for one in held] for role, held in self._signers.items()}
        online = {role: [keys.public(folder / "keys" / f"{role}-1.pub")] for role in keys.ONLINE}
        self.workshop.start(public | online)

    def publish(self, kind: Kind, name: str, version: str, hw_id: str, image: bytes) -> int:
        """Sign it and bring it to the cloud; returns its number there."""
        release = Release(
            kind=kind, name=name, version=version, release_counter=0, hw_ids=(hw_id,),
            raw_sha256="", raw_length=0, encoding=Encoding.ZSTD,
        )  # fmt: skip
        self.workshop.add(image, release)
        for role, held in self._signers.items():
            if self.workshop.staged(role) is not None:
                for one in held:
                    self.workshop.sign(one)
        (made,) = self._ask("releases", "publish", self.workshop.folder)["releases"]
        return int(made["id"])


class Rig:
    """The fleet, its visitors, and its operators."""

    def __init__(
        self, world: Any, folder: Path, count: int, boards: int, steady_ms: int = STEADY_MS
    ) -> None:
        self.world, self.network = world, world.network
        self.makers = Makers(folder, self._ask)
        rest = self.network.rest
        second = rest.post("/api-keys", {"name": "second person", "role": "operator"})
        self._second = Rest(rest.base, second["key"])
        rules = (ROOT / RULES).read_text()
        hasty = rules.replace("STEADY_MS: Final = 10_000", f"STEADY_MS: Final = {steady_ms}")
        self.images = {"1.0.0": real_image("1.0.0"), "1.1.0": real_image("1.1.0", **{RULES: hasty})}
        dies = (ROOT / "karvon" / "__init__.py").read_text() + DIES
        self.images["1.2.0"] = real_image("1.2.0", **{"karvon/__init__.py": dies})
        self.makers.publish(Kind.AGENT, NAME, "1.0.0", HARDWARE, self.images["1.0.0"])
        self._ask("releases", "roots", folder / "trust")
        self._factory = folder / "first"
        self.stations = [self._station(number, own=number < boards) for number in range(count)]
        self.own = self.stations[:boards]
        self.others = self.stations[boards:]
        self.visitors = [Visitors(one) for one in self.stations]
        self.drivers: list[Driver] = []
        self._gone, self._over = threading.Event(), threading.Event()
        self._people = threading.Thread(target=self._come_and_go, name="people", daemon=True)

    def _ask(self, *arguments: object) -> Any:
        """`karvon cloud …`."""
        told = {
            "KARVON_URL": self.network.rest.base.removesuffix("/api/v1"),
            "KARVON_API_KEY_FILE": str(self.network.key_file),
        }
        result = CliRunner(env=told).invoke(app, [*map(str, arguments), "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    # ------------------------------------------------------------------ the fleet

    def _station(self, number: int, *, own: bool) -> Slotted:
        plan = Plan(f"RIG-{number:02}", f"Rig {number}", TASHKENT)
        station: Slotted = self.network.add_station(plan, serial=own, kind=Slotted)
        station.updates = UPDATES.format(
            url=self.network.rest.base.removesuffix("/api/v1"),
            hardware=HARDWARE,
            roots=self.makers.folder / "trust",
        )
        station.poll_s = 1.0
        station.write_config()
        tag = OURS if own else "bought-board"
        self.network.rest.put(f"/stations/{station.identity}/tags", {"tags": [tag]})
        self._install_first(station)
        return station

    def _install_first(self, station: Slotted) -> None:
        """Made once; the others get the same files under names of their own."""
        if not self._factory.exists():
            (self._factory / launcher.SLOTS).mkdir(parents=True)
            tried = ["agent", "selftest", "--config", str(station.config)]
            slots.prepare(self._factory, self.images["1.0.0"], selftest=tried)
        shutil.copytree(self._factory, station.root, symlinks=True, copy_function=os.link)
        (first,) = launcher.slots(station.root)
        launcher.write(station.root, launcher.Record(confirmed=first))

    def start(self) -> None:
        for station in self.stations:
            station.sim.start()
        for station in self.stations:
            station.sim.ready()
            station.agent.start()
        self.until(lambda: all(map(self._ready, self.stations)), "the fleet to be ready")
        chance = random.Random(7)
        self.drivers = [
            Driver(one, TOKEN, random.Random(chance.random()), UNHURRIED) for one in self.visitors
        ]
        self._people.start()

    @staticmethod
    def _ready(station: Slotted) -> bool:
        shows = station.shows()
        listed = shows.get("status", {}).get("local_list_version", 0) > 0
        return listed and [one["status"] for one in shows["evses"]] == ["Available"]

    def _come_and_go(self) -> None:
        """Until the rig closes: whoever is there then, leaves with a full battery."""
        while not self._over.is_set() and not (
            self._gone.is_set() and all(one.stage == "away" for one in self.drivers)
        ):
            for driver in self.drivers:
                if not (self._gone.is_set() and driver.stage == "away"):
                    driver.step(time.monotonic())
            time.sleep(0.2)  # the pace of people

    def close_gates(self) -> None:
        """Nobody new comes; those who charge go when they are full."""
        self._gone.set()
        self._people.join(DEADLINE_S)
        assert not self._people.is_alive(), [one.stage for one in self.drivers]

    def end(self) -> None:
        self._over.set()
        if self._people.is_alive():
            self._people.join()
        threads = [threading.Thread(target=one.stop) for one in self.stations]
        for each in threads:
            each.start()
        for each in threads:
            each.join()

    def sessions(self) -> list[int]:
        return [one.sessions for one in self.drivers]

    # ------------------------------------------------------------------ operators

    def roll_out(self, release: int, tag: str = "", **terms: Any) -> int:
        rest = self.network.rest
        name = f"{release} {tag}"
        tags = [tag] if tag else ["own-board", "bought-board"]
        cohort = rest.post("/cohorts", {"name": name, "tags": tags})["id"]
        body = {"name": name, "release": release, "cohort": cohort, "deadline_s": 3600, **terms}
        made = int(rest.post("/campaigns", body)["id"])
        self._second.post(f"/campaigns/{made}/approval", {})
        return made

    def campaign(self, number: int) -> dict[str, Any]:
        shown: dict[str, Any] = self.network.rest.get(f"/campaigns/{number}")
        return shown

    def counts(self, number: int) -> dict[str, int]:
        """Those that are not nought."""
        return {name: count for name, count in self.campaign(number)["counts"].items() if count}

    def comes_to(self, number: int, stage: str, **counts: int) -> None:
        def there() -> bool:
            return self.campaign(number)["stage"] == stage and self.counts(number) == counts

        def devices() -> list[Any]:
            return list(self.network.rest.items(f"/campaigns/{number}/devices"))

        self.until(there, f"campaign {number} to be {stage} with {counts}", devices)

    def failed(self, number: int) -> Iterator[dict[str, Any]]:
        return self.network.rest.items(f"/campaigns/{number}/devices", standing="failed")

    def until(
        self, look: Callable[[], bool], what: str, evidence: Callable[[], list[Any]] = list
    ) -> None:
        try:
            self.network.wait_for(look, DEADLINE_S, what)
        except DemoError as error:
            shown = [line for one in self.stations for line in (one.shows(), one.agent.tail(15))]
            pytest.fail("\n".join(map(str, [error, *evidence(), *shown])), pytrace=False)

    def runs_everywhere(self, version: str, stations: Sequence[Slotted]) -> None:
        self.until(lambda: all(one.version() == version for one in stations), f"{version} again")


@pytest.fixture
def rig(world: Any, tmp_path: Path, sample_size: Callable[[int, int], int]) -> Iterator[Rig]:
    if not sample_size(0, 1):
        pytest.skip("the whole fleet at once takes two cores for minutes: make torture")
    steady_ms = STEADY_MS if sample_size(0, 1) else HASTY_MS
    made = Rig(world, tmp_path, sample_size(3, 20), sample_size(1, 4), steady_ms)
    try:
        made.start()
        yield made
    finally:
        made.end()


@pytest.mark.timeout(3600)
def test_a_fleet_takes_what_is_good_and_gives_back_what_is_bad(
    rig: Rig, sample_size: Callable[[int, int], int], record_property: Any
) -> None:
    few = sample_size(0, 1) == 0
    fleet, own = len(rig.stations), len(rig.own)
    others = fleet - own
    publish = rig.makers.publish

    good = publish(Kind.AGENT, NAME, "1.1.0", HARDWARE, rig.images["1.1.0"])
    number = rig.roll_out(good, waves=[] if few else [10, 50])
    rig.comes_to(number, "finished", succeeded=fleet)
    rig.runs_everywhere("1.1.0", rig.stations)
    confirmed = {one.confirmed() for one in rig.stations}
    assert confirmed == {sha256(rig.images["1.1.0"])}
    between = rig.sessions()

    common = pack([Entry("settings.toml", b"[times]\nevent_s = 75\n")])
    settings = publish(Kind.SETTINGS, "settings", "1.0.0", HARDWARE, common)
    rig.comes_to(rig.roll_out(settings), "finished", succeeded=fleet)
    rig.until(lambda: {one.common_settings() for one in rig.stations} == {sha256(common)}, "them")

    first = 1 if few else 4
    bad = publish(Kind.AGENT, NAME, "1.2.0", HARDWARE, rig.images["1.2.0"])
    terms = {"error_percent": 50, "min_sample": 1}
    agents = rig.roll_out(bad, "bought-board", waves=[100 * first // others], **terms)

    board = publish(Kind.BOARD, STAGE, "1.1.0", CHIP, make_image(STAGE_BYTES, "1.1.0", hw_id=CHIP))
    rig.comes_to(rig.roll_out(board, OURS), "finished", succeeded=own)
    rig.until(lambda: {one.board_version() for one in rig.own} == {"1.1.0"}, "boards to tell so")
    ill = make_image(STAGE_BYTES, "1.2.0", hw_id=CHIP, healthy=False)
    ill_board = publish(Kind.BOARD, STAGE, "1.2.0", CHIP, ill)
    boards = rig.roll_out(ill_board, OURS, waves=[50], **terms)
    tried = -(-own // 2)
    untouched = {"waiting": own - tried} if own > tried else {}
    rig.comes_to(boards, "halted", failed=tried, **untouched)
    rig.comes_to(agents, "halted", failed=first, waiting=others - first)

    half = -(-first // 2)
    assert rig.campaign(agents)["reason"] == f"{half} of {first} devices of wave 1 failed"
    for one in rig.failed(agents):
        assert "rolled back" in one["reason"], one
    for one in rig.failed(boards):
        assert "self-test fails" in one["reason"], one
    rig.runs_everywhere("1.1.0", rig.stations)
    rig.until(lambda: {one.board_version() for one in rig.own} == {"1.1.0"}, "boards' way back")
    rig.until(lambda: {one.confirmed() for one in rig.stations} == confirmed, "the records")

    rig.until(lambda: all(map(int.__lt__, between, rig.sessions())), "sessions after all that")
    rig.close_gates()
    rig.world.agree(*rig.stations)
    assert not [line for one in rig.visitors for line in one.cut_short]
    record_property("agents", fleet)
    record_property("boards with a loader", own)
    record_property("sessions", sum(len(one.truth()) for one in rig.stations))
    record_property("agents rolled back", first)
    record_property("boards gone back", tried)
