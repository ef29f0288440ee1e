from __future__ import annotations

import http.server
import json
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from edge_agent.agent import Agent, Inbox
from edge_agent.cli import checking, looking
from edge_agent.cli.main import app
from edge_agent.control import Control
from edge_agent.journal import Journal, JournalBudget
from edge_agent.main import read_credentials

Rig = Any  # the fixture's class lives in conftest, which cannot be imported
RUNNER = CliRunner()
CONFIG = """
station = "TAS-1"
[journal]
folder = "journal"
telemetry_mib = 1
[uplink]
[[boards]]
name = "left"
profile = "abb_terra_ac"
link = { kind = "tcp", host = "127.0.0.1", port = 1, timeout_s = 0.2 }
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(CONFIG)
    return path


def call(*args: str) -> tuple[int, str, str]:
    result = RUNNER.invoke(app, list(args))
    return result.exit_code, result.stdout, result.stderr


def journal_in(config: Path) -> Journal:
    folder = config.with_name("journal")
    return Journal.open(folder, station="TAS-1", boot=uuid4(), budget=JournalBudget())


async def a_session(make_rig: Callable[..., Rig], journal: Journal) -> Rig:
    rig = make_rig(store=journal)
    rig.station.authorizer.policy = type(rig.policy)(allow_unknown=True)
    await rig.charge(60)
    rig.board.unplug()
    await rig.seconds(2)
    return rig


@pytest.mark.parametrize(
    "command", ["run", "check", "status", "sessions", "queue", "read", "watch"]
)
def test_a_wrong_configuration_is_exit_code_2_with_the_reason(command: str, tmp_path: Path) -> None:
    code, _, complaint = call(command, "--config", str(tmp_path / "none.toml"))
    assert code == 2
    assert "none.toml: cannot be read" in complaint


@pytest.mark.parametrize(
    "args", [["status"], ["sessions"], ["queue"], ["watch"], ["token", "CARD"]]
)
def test_without_agent_and_journal_the_exit_code_is_3(args: list[str], config: Path) -> None:
    code, _, complaint = call(*args, "--config", str(config))
    assert code == 3
    assert complaint.startswith("karvon agent: ")


async def test_sessions_and_queue_are_read_beside_a_running_agent(
    make_rig: Callable[..., Rig], config: Path
) -> None:
    with closing(journal_in(config)) as journal:
        rig = await a_session(make_rig, journal)
        code, out, _ = call("sessions", "--json", "--config", str(config))
        (session,) = json.loads(out)
        assert code == 0
        assert session["energy_wh"] == pytest.approx(rig.board.true_energy(), abs=1)
        assert session["reason"] == "EVDisconnected"
        code, out, _ = call("sessions", "--config", str(config))
        assert "EVDisconnected" in out
        _, out, _ = call("queue", "--json", "--config", str(config))
        assert json.loads(out)["billing_facts"] >= 2


async def test_status_without_an_agent_tells_what_the_journal_knows(
    make_rig: Callable[..., Rig], config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(journal_in(config)) as journal:
        rig = make_rig(store=journal)
        rig.station.authorizer.policy = type(rig.policy)(allow_unknown=True)
        await rig.charge(60)
    assert await looking.status(config, as_json=True) == 3
    shown = capsys.readouterr()
    assert "karvon agent run" in shown.err
    known = json.loads(shown.out)
    assert (known["running"], len(known["open_transactions"])) == (False, 1)


async def test_status_and_token_speak_with_the_running_agent(
    make_rig: Callable[..., Rig], config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(journal_in(config)) as journal:
        rig = make_rig(store=journal)
        rig.station.authorizer.policy = type(rig.policy)(allow_unknown=True)
        agent = Agent(
            loop=rig.loop,
            desk=rig.desk,
            journal=journal,
            inbox=Inbox(),
            version="1",
            on_journal_error="continue",
        )
        control = Control(
            status=agent.status,
            present=agent.desk.present,
            read=dict,
            watch=agent.watch,
            recover=agent.desk.recover,
        )
        rig.board.plug()
        await rig.seconds(2)
        async with control.served(journal.folder):
            assert await looking.token(config, "CARD", "ISO14443", 1, as_json=False) == 0
            assert "EVSE 1: accepted; starting" in capsys.readouterr().out
            assert await looking.token(config, "CARD", "ISO14443", 7, as_json=False) == 1
            assert "there is no EVSE 7" in capsys.readouterr().err
            await rig.seconds(3)
            assert await looking.status(config, as_json=False) == 0
            assert "Charging" in capsys.readouterr().out
            rig.board.fault()
            await rig.seconds(2)
            assert await looking.status(config, as_json=True) == 1
            shown = json.loads(capsys.readouterr().out)
            assert shown["evses"][0]["status"] == "Faulted"
            assert await checking.check(config, as_json=True) == 1
            found = {f["what"]: f for f in json.loads(capsys.readouterr().out)}
            assert found["board left"]["well"] is False
            assert await looking.recover(config, None, as_json=False) == 1
            assert "all are in service" in capsys.readouterr().err


def test_check_tells_everything_that_is_wrong_at_once(config: Path) -> None:
    code, out, _ = call("check", "--json", "--config", str(config))
    found = {finding["what"]: finding for finding in json.loads(out)}
    assert code == 1
    assert found["configuration"]["well"]
    assert not found["board left"]["well"]
    assert "karvon agent claim" in found["uplink"]["text"]
    assert not config.with_name("journal").exists()


LEADER = """
[site]
role = "leader"
limit_ma = 40000
share_ma = 12000
members = [{ station = "TAS-2", share_ma = 12000 }]
"""


def found_by_check(config: Path) -> dict[str, Any]:
    _, out, _ = call("check", "--json", "--config", str(config))
    return {finding["what"]: finding for finding in json.loads(out)}


def test_check_wants_a_key_that_only_the_agent_can_read(config: Path) -> None:
    config.write_text(CONFIG.replace("[uplink]", LEADER))
    assert "head -c 32 /dev/urandom" in found_by_check(config)["site"]["text"]
    key = config.with_name("site.key")
    key.write_text("short")
    key.chmod(0o600)
    assert "less than 32" in found_by_check(config)["site"]["text"]
    key.write_text("k" * 44)
    key.chmod(0o644)
    assert "chmod 600" in found_by_check(config)["site"]["text"]
    key.chmod(0o600)
    found = found_by_check(config)["site"]
    assert found["well"]
    assert found["text"].endswith("safe shares 12000 + 12000 = 24000 of 40000 mA")


def test_check_refuses_shares_that_do_not_fit_and_shows_the_sum(config: Path) -> None:
    config.write_text(CONFIG.replace("[uplink]", LEADER.replace("40000", "20000")))
    code, _, complaint = call("check", "--config", str(config))
    assert code == 2
    assert "12000 (TAS-1) + 12000 (TAS-2) = 24000 mA" in complaint


def test_status_shows_who_leads_and_what_there_is() -> None:
    site = {
        "limit_ma": [40_000, 40_000, 35_000],
        "measured_ma": [20_000, 20_000, 20_000],
        "measured_age_ms": 1_000,
        "own_ma": [6_000, 6_000, 6_000],
        "held_ma": [6_500, 6_500, 6_500],
        "room_ma": [8_000, 8_000, 8_000],
        "why": "A leads: no site meter",
        "neighbours": {
            "role": "follower",
            "leader": "A",
            "leader_heard_ms": 400,
            "lease_ma": [8_000, 8_000, 8_000],
            "lease_left_ms": 9_100,
        },
    }
    assert looking._site_lines(site) == [
        "site: at most 40.0 40.0 35.0 A (L1 L2 L3)",
        "site meter: 20.0 A, 1 s ago",
        "vehicles here: 6.0 A; reserved 6.5 A",
        "room for them: 8.0 A (A leads: no site meter)",
        "leader: A, heard 0 s ago; lease of 8.0 A, 9 s left",
    ]
    member = {
        "station": "B",
        "heard_ms": None,
        "granted_ma": [0, 0, 0],
        "measured_ma": None,
        "counts_for_ma": None,
    }
    site["neighbours"] = {"role": "leader", "members": [member]}
    assert looking._site_lines(site)[-1] == (
        "member B: heard never, granted 0.0 A, takes unknown, counts for everything"
    )


def test_check_names_a_profile_that_does_not_exist(config: Path) -> None:
    config.write_text(CONFIG.replace("abb_terra_ac", "abb_tera"))
    code, _, complaint = call("check", "--config", str(config))
    assert code == 2
    assert "no profile 'abb_tera'" in complaint
    assert "eastron_sdm630" in complaint


def test_read_without_a_device_is_exit_code_3_and_says_why(config: Path) -> None:
    code, out, complaint = call("read", "--json", "--config", str(config))
    assert code == 3
    assert all(one["raw"] == "" and one["note"] for one in json.loads(out))
    assert "no device answered" in complaint


class FakeCloud(http.server.BaseHTTPRequestHandler):
    """Answers a claim: the code GOOD is right, any other is refused."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        wanted = {"station": "TAS-1", "code": "GOOD", "csr": asked.get("csr")}
        good = self.path == "/api/v1/claims" and asked == wanted
        answer: dict[str, Any] = {"title": "Refused", "detail": "the code was used already"}
        if good:
            answer = {
                "station": "TAS-1",
                "mqtt_url": "mqtts://broker.example:8883",
                "username": "TAS-1",
                "password": "secret",
                "ca_pem": "PEM",
            }
        body = json.dumps(answer).encode()
        self.send_response(200 if good else 409)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """A test's output stays quiet."""


@pytest.fixture
def cloud() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), FakeCloud) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_claim_stores_credentials_for_the_owner_only(config: Path, cloud: str) -> None:
    args = ("claim", "--cloud", cloud, "--code", "GOOD", "--config", str(config))
    code, out, _ = call(*args)
    file = config.with_name("credentials.json")
    assert (code, "is claimed" in out) == (0, True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_credentials(file).password == "secret"
    assert read_credentials(file).mqtt_url == "mqtts://broker.example:8883"
    assert config.with_name("ca.pem").read_text() == "PEM"


@pytest.mark.parametrize(
    ("address", "given", "code", "says"),
    [
        ("", "USED", 1, "409: the code was used already"),
        ("http://127.0.0.1:1", "GOOD", 3, "cannot be reached"),
        ("http://cloud.example", "GOOD", 2, "use https"),
        ("cloud.example", "GOOD", 2, "an address like https://"),
    ],
)
def test_a_claim_that_fails_says_why_and_stores_nothing(
    config: Path, cloud: str, address: str, given: str, code: int, says: str
) -> None:
    found, _, complaint = call(
        "claim", "--cloud", address or cloud, "--code", given, "--config", str(config)
    )
    assert found == code
    assert says in complaint
    assert not config.with_name("credentials.json").exists()


class Backend:
    """An OCPP uplink that only says how its link is."""

    link = "no link to the OCPP backend wss://csms.example/TAS-1"

    async def run(self) -> None: ...

    def wake(self) -> None: ...

    def watch(self, watch: Any) -> None: ...


async def test_what_a_backend_refused_is_shown_and_offered_once_more(
    make_rig: Callable[..., Rig], config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(journal_in(config)) as journal:
        rig = await a_session(make_rig, journal)
        taken = journal.next_fact()
        assert taken is not None
        journal.refuse(taken, "FormationViolation: no such tag", 1_790_000_000_000)
        assert looking.queue(config, as_json=False) == 0
        shown = capsys.readouterr().out
        assert "REFUSED by the OCPP backend: Started of transaction" in shown
        assert "no such tag" in shown
        agent = Agent(
            loop=rig.loop,
            desk=rig.desk,
            journal=journal,
            inbox=Inbox(),
            version="1",
            on_journal_error="continue",
        )
        control = Control(
            status=agent.status,
            present=agent.desk.present,
            read=dict,
            watch=agent.watch,
            retry=agent.retry_refused,
        )
        async with control.served(journal.folder):
            assert await looking.retry(config, as_json=False) == 1
            assert "no OCPP backend is configured" in capsys.readouterr().err
            agent.ocpp = Backend()
            assert await looking.status(config, as_json=False) == 1
            shown = capsys.readouterr().out
            assert "OCPP backend: no link to the OCPP backend wss://csms.example" in shown
            assert "ALARM: the OCPP backend refused 1 facts" in shown
            assert await looking.retry(config, as_json=False) == 0
            assert "1 facts are offered" in capsys.readouterr().out
        assert journal.refused == []


def test_check_looks_at_an_ocpp_backend_and_its_files(config: Path) -> None:
    text = config.read_text().replace("[uplink]", '[uplink.ocpp]\nurl = "ws://127.0.0.1:1/x"')
    config.write_text(text)
    code, out, _ = call("check", "--json", "--config", str(config))
    found = {f["what"]: f for f in json.loads(out)}
    assert code == 1
    assert found["uplink"]["well"]
    assert "127.0.0.1:1 cannot be reached" in found["OCPP backend"]["text"]
    (config.parent / "password").write_text("secret")
    (config.parent / "password").chmod(0o644)
    config.write_text(text.replace('/x"', '/x"\npassword = "password"'))
    _, out, _ = call("check", "--json", "--config", str(config))
    found = {f["what"]: f for f in json.loads(out)}
    assert "others may read" in found["OCPP backend"]["text"]
    assert "chmod 600" in found["OCPP backend"]["text"]
