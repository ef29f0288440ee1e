"""From release keys to a running campaign with the commands alone, against a real server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from karvon.release import keys as release_keys
from karvon.release.cli import app as release_app
from karvon.release.workshop import Workshop
from karvon.remote.cli import app
from protocols.release import Encoding, Kind, Release

pytestmark = pytest.mark.system
SECRET = b"a passphrase for tests"
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("cloud")
    folder.chmod(0o755)
    command = [sys.executable, "-m", "karvon", "cloud", "serve", "--json", "--http-port", "0"]
    command += ["--data-dir", str(folder / "data"), "--admin-key-file", str(folder / "key")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, (folder / "log").read_text()
    yield {"KARVON_URL": json.loads(line)["ready"], "KARVON_API_KEY_FILE": str(folder / "key")}
    process.terminate()
    process.wait(30)
    process.stdout.close()


@pytest.fixture
def ask(serving: dict[str, str]) -> Ask:
    def run(*arguments: object, code: int = 0, **environment: str) -> Any:
        runner = CliRunner(env={**serving, "TZ": "UTC", "COLUMNS": "200", **environment})
        result = runner.invoke(app, [*map(str, arguments), "--json"])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if not code else result.stderr

    return run


def bring(serving: dict[str, str], repo: Path, code: int = 0) -> str:
    """`karvon release publish --to`; what it says."""
    arguments = ["publish", str(repo), "--to", serving["KARVON_URL"]]
    arguments += ["--key-file", serving["KARVON_API_KEY_FILE"]]
    result = CliRunner().invoke(release_app, arguments)
    assert result.exit_code == code, result.output
    return result.stderr if code else result.stdout


class Maker:
    """The people who hold the release keys."""

    def __init__(self, folder: Path) -> None:
        self.repo, self.keys = folder / "repo", folder / "keys"
        self.workshop = Workshop(self.repo)
        for role, (_, count) in release_keys.SETS.items():
            for number in range(count if role not in release_keys.ONLINE else 0):
                release_keys.create(self.keys, f"{role}-{number + 1}", SECRET)

    def start(self) -> None:
        self.workshop.start(
            {
                role: [release_keys.public(self.keys / f"{role}-{n + 1}.pub") for n in range(count)]
                for role, (_, count) in release_keys.SETS.items()
            }
        )

    def release(self, version: str, image: bytes) -> None:
        release = Release(
            kind=Kind.BOARD, name="terra", version=version, release_counter=0,
            hw_ids=("terra-54",), raw_sha256="", raw_length=0, encoding=Encoding.RAW,
        )  # fmt: skip
        self.workshop.add(image, release)

    def sign(self, *names: str) -> None:
        for name in names:
            self.workshop.sign(release_keys.signer(self.keys / f"{name}.key", SECRET))


def test_what_is_signed_offline_is_published_and_rolled_out(
    ask: Ask, serving: dict[str, str], tmp_path: Path
) -> None:
    maker = Maker(tmp_path)
    assert ask("releases", "keys", maker.keys)["done"]
    maker.start()
    maker.release("1.0", b"an image " * 1_000_000)
    maker.sign("root-1", "root-2", "targets-1", "targets-3", "board-1")
    few = ask("releases", "publish", maker.repo, code=2)
    assert "signed by" in few
    maker.sign("board-2", "agent-1", "agent-2", "settings-1", "settings-2")
    (made,) = ask("releases", "publish", maker.repo)["releases"]
    assert (made["kind"], made["version"]) == ("board", "1.0")
    assert ask("releases", "publish", maker.repo)["releases"] == []
    maker.release("1.1", b"another image")
    maker.sign("board-1", "board-2")
    (second,) = ask("releases", "publish", maker.repo)["releases"]
    assert ask("releases", "list", "--kind", "board", "--sort", "counter") == [
        {name: one[name] for name in one if name != "files"} for one in (made, second)
    ]
    maker.release("1.2", b"a third image")
    maker.sign("board-1")
    assert "signed by" in bring(serving, maker.repo, code=2)
    maker.sign("board-2")
    url = serving["KARVON_URL"]
    assert bring(serving, maker.repo) == f"published to {url}: terra 1.2 (release 3)\n"
    assert bring(serving, maker.repo) == f"published to {url}: nothing new\n"
    ask("releases", "roots", tmp_path / "trust")
    assert json.loads((tmp_path / "trust" / "images.root.json").read_text())["signed"]
    assert json.loads((tmp_path / "trust" / "director.root.json").read_text())["signed"]


def test_a_campaign_from_the_command_line(ask: Ask, tmp_path: Path) -> None:
    release = ask("releases", "list", "--kind", "board", "--sort", "-counter")[0]["id"]
    ask("stations", "add", "CP-1")
    cohort = ask("cohorts", "add", "pilot", "--tags", "pilot, first", "--percent", 50)
    assert (cohort["tags"], cohort["percent"]) == (["pilot", "first"], 50)
    window = json.dumps({"start": "01:00", "end": "05:00", "time_zone": "Asia/Tashkent"})
    made = ask(
        "campaigns", "add", "Boards", "--release", release, "--cohort", cohort["id"],
        "--waves", "5,25", "--window", window,
    )  # fmt: skip
    assert (made["waves"], made["stage"]) == ([5, 25, 100], "draft")
    assert "by somebody else" in ask("campaigns", "approve", made["id"], code=1)
    key = ask("keys", "add", "second", "--role", "operator")["key"]
    file = tmp_path / "second.key"
    file.write_text(key)
    nobody = ask("campaigns", "approve", made["id"], code=1, KARVON_API_KEY_FILE=str(file))
    assert "can take release" in nobody
    assert ask("campaigns", "devices", made["id"]) == []
    assert [one["what"] for one in ask("campaigns", "audit", made["id"])] == ["created"]
    assert ask("campaigns", "abort", made["id"])["stage"] == "aborted"
    assert "no station" in ask("campaigns", "history", made["id"], "CP-1", code=1)
    assert "is no waves" in ask("campaigns", "add", "x", "--waves", "a", code=2)
