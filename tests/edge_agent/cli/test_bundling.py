"""The support bundle of a real agent: everything that helps, and no secret."""

from __future__ import annotations

import asyncio
import base64
import json
import stat
import tarfile
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from edge_agent.cli.main import app

Live = Any  # the fixture's class lives in conftest, which cannot be imported
PASSWORD = "pa55-wörd/with+everything"
PEM_LINE = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg"
OCPP = "the-backends-own-password"
CARD = "04A2B3C4D5E6F7"


async def bundle(config: Path, target: Path, *more: str) -> tuple[int, str, str]:
    args = ["bundle", str(target), "--config", str(config), *more]
    result = await asyncio.to_thread(CliRunner().invoke, app, args)
    return result.exit_code, result.stdout, result.stderr


def opened(target: Path) -> dict[str, str]:
    with tarfile.open(target) as tar:
        found = {}
        for member in tar.getmembers():
            file = tar.extractfile(member)
            assert file is not None
            found[member.name.removeprefix("karvon-bundle/")] = file.read().decode()
    return found


def surround_with_secrets(config: Path) -> list[str]:
    """Credentials, a key, and a broker's address with a password in it; returns what may not
    be found afterwards."""
    folder = config.parent
    (folder / "credentials.json").write_text(
        json.dumps({"station": "TAS-1", "username": "TAS-1", "password": PASSWORD})
    )
    (folder / "client.key").write_text(
        f"-----BEGIN PRIVATE KEY-----\n{PEM_LINE}\n-----END PRIVATE KEY-----\n"
    )
    (folder / "ocpp.pw").write_text(f"{OCPP}\n")
    url = "mqtt://someone:url-password@127.0.0.1:1"
    more = '[uplink.ocpp]\nurl = "wss://127.0.0.1:1/ocpp"\npassword = "ocpp.pw"\n'
    more += 'carries = ["status"]\n'
    config.write_text(config.read_text() + f'[uplink]\nurl = "{url}"\n{more}')
    coded = base64.b64encode(f"TAS-1:{PASSWORD}".encode()).decode()
    escaped = json.dumps(PASSWORD)[1:-1]
    return [PASSWORD, escaped, coded, PEM_LINE, "url-password", CARD, OCPP]


async def test_it_has_what_helps_and_no_secret(live: Live, tmp_path: Path) -> None:
    secrets = surround_with_secrets(live.config)
    live.charger.control.execute({"do": "plug", "evse": 1})
    await live.ask("token", token=CARD)
    live.charger.control.execute({"do": "silence", "seconds": 3600})
    await live.until_link("board", "board.silent")
    live.say(f"tried {PASSWORD} and {base64.b64encode(f'TAS-1:{PASSWORD}'.encode()).decode()}")
    live.say(f"{OCPP}, {base64.b64encode(f'TAS-1:{OCPP}'.encode()).decode()}")
    live.say(f"key {PEM_LINE}; id token {CARD}; mqtt://someone:url-password@127.0.0.1:1")
    target = tmp_path / "support.tar.gz"
    code, out, complaint = await bundle(live.config, target)
    assert code == 0, complaint
    assert "look into it before you send it" in out
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    files = opened(target)
    for secret in secrets:
        assert [name for name, text in files.items() if secret in text] == []
    assert set(files) == {
        *("README.txt", "config.json", "versions.json", "status.json", "journal.json"),
        *("profiles.json", "log.txt", "errors.txt"),
    }
    assert json.loads(files["config.json"])["station"] == "TAS-1"
    assert json.loads(files["versions.json"])["libraries"]["pymodbus"][0].isdigit()
    status = json.loads(files["status.json"])
    assert "board.silent" in {link["code"] for link in status["links"]}
    journal = json.loads(files["journal.json"])
    (session,) = journal["sessions"]
    (running,) = status["sessions"]
    assert session["id_token"] == running["transaction"]["id_token"]["value"]
    assert session["id_token"].startswith("token-")
    assert journal["files"]["billing.sqlite"] > 0
    profile = json.loads(files["profiles.json"])["left"]
    assert (profile["profile"], len(profile["sha256"])) == ("abb_terra_ac", 64)
    assert "board left" in files["errors.txt"]
    assert "tried (removed) and" in files["log.txt"]


async def test_without_an_agent_it_says_so_and_has_the_rest(live: Live, tmp_path: Path) -> None:
    live.agent.cancel()
    await asyncio.wait([live.agent])
    target = tmp_path / "support.tar.gz"
    code, out, _ = await bundle(live.config, target, "--json")
    assert code == 0
    assert json.loads(out)["file"] == str(target)
    files = opened(target)
    status = json.loads(files["status.json"])
    assert status["running"] is False
    assert "no agent runs on" in status["why"]
    assert json.loads(files["journal.json"])["queue"]["station"] == "TAS-1"


async def test_a_file_of_the_journal_that_cannot_be_read_takes_nothing_else_with_it(
    live: Live, tmp_path: Path
) -> None:
    live.agent.cancel()
    await asyncio.wait([live.agent])
    for file in (live.config.parent / "journal").glob("telemetry.sqlite*"):
        file.unlink()
    target = tmp_path / "support.tar.gz"
    code, _, complaint = await bundle(live.config, target)
    assert code == 0, complaint
    journal = json.loads(opened(target)["journal.json"])
    assert "telemetry.sqlite does not exist" in journal["queue"]["error"]
    assert (journal["sessions"], journal["open_transactions"]) == ([], [])


async def test_an_existing_file_is_left_alone(live: Live, tmp_path: Path) -> None:
    target = tmp_path / "mine.tar.gz"
    target.write_text("mine")
    code, _, complaint = await bundle(live.config, target)
    assert code == 1
    assert "exists already; give another name" in complaint
    assert target.read_text() == "mine"
    code, _, complaint = await bundle(live.config, tmp_path / "none" / "x.tar.gz")
    assert code == 1
    assert "give a file in a folder of yours" in complaint
