"""`karvon release`, from keys to what a station sees, as its makers type it."""

from __future__ import annotations

import base64
import hashlib
import json
import stat
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from edge_agent.hardware.registry import PROFILES
from edge_agent.updates import archive, packing
from edge_agent.updates.archive import ImageError
from karvon.release import building
from karvon.release.cli import app
from karvon.release.keys import ReleaseProblem

SECRET = {"KARVON_RELEASE_PASSPHRASE": "correct horse battery"}
HARDWARE = "linux-x86_64-cp311"


def run(*arguments: object, code: int = 0, env: dict[str, str] | None = None) -> str:
    result: Result = CliRunner().invoke(app, list(map(str, arguments)), env=env or SECRET)
    assert result.exit_code == code, result.output
    return result.output


def wheel(folder: Path, name: str, files: dict[str, str], tag: str = "py3-none-any") -> Path:
    """A wheel as a builder makes it, with a true RECORD."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    contents = files | {f"{info}/WHEEL": f"Wheel-Version: 1.0\nTag: {tag}\n"}
    rows = [f"{path},sha256={digest(text)},{len(text.encode())}" for path, text in contents.items()]
    contents[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"])
    path = folder / f"{name}-1.0-{tag}.whl"
    with zipfile.ZipFile(path, "w") as zipped:
        for place, text in contents.items():
            zipped.writestr(place, text)
    return path


def digest(text: str) -> str:
    raw = hashlib.sha256(text.encode()).digest()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "keys"
    run("keys", "create", folder)
    return folder


def all_sign(repo: Path, keys: Path, *roles: str) -> None:
    for role in roles or ("root", "targets", "agent", "board", "settings"):
        for number in (1, 2):
            run("sign", repo, "--key", keys / f"{role}-{number}.key")


@pytest.fixture
def repo(tmp_path: Path, keys: Path) -> Path:
    run("keys", "start", tmp_path / "repo", keys)
    return tmp_path / "repo"


def test_keys_are_secret_and_never_replaced(keys: Path) -> None:
    secret = keys / "root-1.key"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert b"ENCRYPTED PRIVATE KEY" in secret.read_bytes()
    assert "is there already" in run("keys", "create", keys, "root-1", code=1)
    assert len(run("keys", "show", keys).splitlines()) == 14


def test_a_wrong_or_missing_passphrase_is_said(repo: Path, keys: Path, tmp_path: Path) -> None:
    key = keys / "root-1.key"
    wrong = {"KARVON_RELEASE_PASSPHRASE": "another long one"}
    assert "this passphrase opens" in run("sign", repo, "--key", key, code=1, env=wrong)
    short = {"KARVON_RELEASE_PASSPHRASE": "short"}
    assert "at least 12" in run("sign", repo, "--key", key, code=1, env=short)
    file = tmp_path / "secret"
    file.write_text("correct horse battery\n")
    out = run("sign", repo, "--key", key, "--passphrase-file", file, env=short)
    assert "root-1 signed root" in out


def test_from_wheels_to_what_a_station_sees(repo: Path, keys: Path, tmp_path: Path) -> None:
    bulk = "".join(f"N{number} = {number * 7919 % 10007}\n" for number in range(4000))
    first = tmp_path / "first"
    wheel(first, "karvon", {"karvon/__init__.py": "V = 1\n", "karvon/bulk.py": bulk})
    out = run("build", "agent", repo, "--wheels", first, "--version", "1.0", "--hw-id", HARDWARE)
    assert "agent version 1: 0 of 2, waits for signatures" in out
    second = tmp_path / "second"
    wheel(second, "karvon", {"karvon/__init__.py": "V = 2\n", "karvon/bulk.py": bulk})
    out = run(
        *("build", "agent", repo, "--wheels", second, "--version", "1.1", "--hw-id", HARDWARE),
        *("--delta-from", "1.0"),
    )
    sizes = {line.split()[0]: int(line.split()[1]) for line in out.splitlines()[:2]}
    whole, delta = sizes.values()
    assert delta < whole / 20
    assert "signatures are missing" in run("verify", repo, code=1)
    run("sign", repo, "--key", keys / "agent-1.key")
    assert "agent has 1 of 2" in run("publish", repo, tmp_path / "out", "--keys", keys, code=1)
    all_sign(repo, keys)
    run("publish", repo, tmp_path / "out", "--keys", keys)
    seen = run("verify", repo)
    assert "1.0  counter 1" in seen
    assert "1.1  counter 2" in seen
    shown = tmp_path / "out" / "ota" / "images"
    assert (shown / "metadata" / "timestamp.json").exists()
    assert len(list((shown / "targets" / "agent").iterdir())) == 3


def test_a_bundle_installs_a_controller_that_has_nothing(
    repo: Path, keys: Path, tmp_path: Path
) -> None:
    """What is in it is the published state, and the newest image for that hardware, unpacked."""
    wheels = tmp_path / "wheels"
    bundle = ("bundle", repo, tmp_path / "agent.tar", "--hw-id", HARDWARE)
    for version in ("1.0", "1.1"):
        wheel(wheels, "karvon", {"karvon/__init__.py": f"V = {version!r}\n"})
        options = ("--wheels", wheels, "--version", version, "--hw-id", HARDWARE, "--raw")
        run("build", "agent", repo, *options)
    assert "no agent for linux-x86_64-cp311 is published" in run(*bundle, code=1)
    all_sign(repo, keys)
    run("publish", repo, tmp_path / "out", "--keys", keys)
    assert "karvon-agent 1.1" in run(*bundle)
    there = tmp_path / "bundle"
    there.mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "agent.tar", "-C", there], check=True)
    assert (there / "site-packages" / "karvon" / "__init__.py").read_text() == "V = '1.1'\n"
    first = repo / "metadata" / "1.root.json"
    assert (there / "images.root.json").read_bytes() == first.read_bytes()
    shown = {path.relative_to(there): path.read_bytes() for path in there.glob("ota/**/*.*")}
    out = tmp_path / "out"
    assert shown == {path.relative_to(out): path.read_bytes() for path in out.glob("ota/**/*.*")}
    assert any(archive.sha256(content) in str(path) for path, content in shown.items())
    other = run("bundle", repo, tmp_path / "other.tar", "--hw-id", "linux-armv7l-cp311", code=1)
    assert "no agent for linux-armv7l-cp311 is published" in other
    assert not (tmp_path / "other.tar").exists()


def test_a_bundle_of_a_changed_image_is_not_made(repo: Path, keys: Path, tmp_path: Path) -> None:
    wheel(tmp_path / "wheels", "karvon", {"karvon/__init__.py": ""})
    options = ("--wheels", tmp_path / "wheels", "--version", "1.0", "--hw-id", HARDWARE)
    run("build", "agent", repo, *options)
    all_sign(repo, keys)
    run("publish", repo, tmp_path / "out", "--keys", keys)
    (image,) = (repo / "images").iterdir()
    image.write_bytes(image.read_bytes() + b"more")
    out = run("bundle", repo, tmp_path / "agent.tar", "--hw-id", HARDWARE, code=1)
    assert "build the release anew" in out
    assert not (tmp_path / "agent.tar").exists()


def test_boards_and_settings(repo: Path, keys: Path, tmp_path: Path) -> None:
    image = tmp_path / "fw.bin"
    image.write_bytes(bytes(range(256)) * 40)
    common = ("--version", "3.1", "--hw-id", "pb-a")
    run(
        *("build", "board", repo, "--image", image, "--name", "pb", *common),
        *("--hw-id", "pb-b", "--board-protocol", "2.1"),
    )
    settings = tmp_path / "settings"
    settings.mkdir()
    (settings / "settings.toml").write_text("[times]\nevent_s = 60\n")
    run("build", "settings", repo, "--folder", settings, *common)
    all_sign(repo, keys)
    run("publish", repo, tmp_path / "out", "--keys", keys)
    assert len(run("verify", repo).splitlines()) == 2
    role = json.loads((repo / "metadata" / "1.board.json").read_text())
    (target,) = role["signed"]["targets"].values()
    assert target["custom"]["hw_ids"] == ["pb-a", "pb-b"]
    assert target["custom"]["requires"] == {"board_protocol": "2.1"}


def test_settings_that_no_station_would_take_are_not_released(repo: Path, tmp_path: Path) -> None:
    def refused() -> str:
        common = ("--version", "1.0", "--hw-id", "linux-aarch64-cp311")
        return run("build", "settings", repo, "--folder", tmp_path / "made", *common, code=1)

    (tmp_path / "made" / "profiles").mkdir(parents=True)
    assert "nothing is set" in refused()
    file = tmp_path / "made" / "settings.toml"
    file.write_text("[failsafe]\ntimeout_s = 5\n")
    assert "settings.toml: Object contains unknown field `failsafe`" in refused()
    file.write_text("[times\n")
    assert "settings.toml: not TOML" in refused()
    file.unlink()
    profile = tmp_path / "made" / "profiles" / "abb_terra_ac.yaml"
    profile.write_text((PROFILES / "abb_terra_ac.yaml").read_text().replace("kind: char", "kind: "))
    assert "profiles/abb_terra_ac.yaml:5: " in refused()
    profile.rename(profile.with_name("wrong.yml"))
    assert "'profiles/wrong.yml' has no place" in refused()


def test_a_version_is_released_once_and_counters_never_sink(repo: Path, tmp_path: Path) -> None:
    wheel(tmp_path / "w", "karvon", {"karvon/__init__.py": "V = 1\n"})
    build = ("build", "agent", repo, "--wheels", tmp_path / "w", "--hw-id", HARDWARE, "--version")
    run(*build, "1.0", "--counter", "9")
    assert "stations refuse less" in run(*build, "1.1", "--counter", "8", code=1)
    wheel(tmp_path / "w", "more", {"more.py": "M = 1\n"})
    assert "give the release a new version" in run(*build, "1.0", code=1)
    assert "never released" in run(*build, "1.2", "--delta-from", "0.9", code=1)
    assert "is no name" in run(*build, "../x", code=1)


def test_an_image_that_was_touched_is_not_published(repo: Path, keys: Path, tmp_path: Path) -> None:
    wheel(tmp_path / "w", "karvon", {"karvon/__init__.py": "V = 1\n"})
    run("build", "agent", repo, "--wheels", tmp_path / "w", "--version", "1", "--hw-id", HARDWARE)
    all_sign(repo, keys)
    (image,) = (repo / "targets" / "agent").iterdir()
    image.write_bytes(image.read_bytes() + b"x")
    assert "build it again" in run("publish", repo, tmp_path / "out", "--keys", keys, code=1)


def test_the_drill_of_a_stolen_key(repo: Path, keys: Path, tmp_path: Path) -> None:
    """As docs/releases.md has it: rotate, sign with old and new roots, publish."""
    out = tmp_path / "out"
    all_sign(repo, keys)
    run("publish", repo, out, "--keys", keys)
    spare = tmp_path / "spare"
    for name in ("agent-3", "root-4"):
        run("keys", "create", spare, name)
    ids = dict(line.split() for line in run("keys", "show", keys).splitlines())
    said = run(
        *("keys", "rotate", repo, "agent", "--old", ids["agent-1"]),
        *("--new", spare / "agent-3.pub"),
    )
    assert "targets version 2: 0 of 2" in said
    assert "agent version 2: 0 of 2" in said
    all_sign(repo, keys, "targets")
    run("sign", repo, "--key", keys / "agent-2.key", "--key", spare / "agent-3.key")
    assert "nothing waits" in run("sign", repo, "--key", keys / "agent-1.key")
    run(
        *("keys", "rotate", repo, "root", "--old", ids["root-3"]),
        *("--new", spare / "root-4.pub"),
    )
    all_sign(repo, keys, "root")
    run("sign", repo, "--key", spare / "root-4.key")
    run("publish", repo, out, "--keys", keys)
    run("verify", repo)
    assert "would have 1" in run("keys", "revoke", repo, "agent", "--old", ids["agent-2"], code=1)
    assert "has no key" in run("keys", "revoke", repo, "agent", "--old", "0" * 64, code=1)
    assert "no such role" in run("keys", "revoke", repo, "coffee", "--old", "0" * 64, code=1)


def test_a_withdrawn_version_is_gone(repo: Path, keys: Path, tmp_path: Path) -> None:
    wheel(tmp_path / "w", "karvon", {"karvon/__init__.py": "V = 1\n"})
    run("build", "agent", repo, "--wheels", tmp_path / "w", "--version", "1", "--hw-id", HARDWARE)
    all_sign(repo, keys)
    run("publish", repo, tmp_path / "out", "--keys", keys)
    assert "withdrawn" in run("withdraw", repo, "agent", "--version", "1")
    all_sign(repo, keys)
    run("publish", repo, tmp_path / "out", "--keys", keys)
    assert run("verify", repo) == ""
    assert "has no version" in run("withdraw", repo, "agent", "--version", "1", code=1)


def test_other_online_keys_do_not_publish(repo: Path, keys: Path, tmp_path: Path) -> None:
    all_sign(repo, keys)
    other = tmp_path / "other"
    for name in ("snapshot-1", "timestamp-1"):
        run("keys", "create", other, name)
    out = run("publish", repo, tmp_path / "out", "--keys", other, code=1)
    assert "no key there that signs snapshot" in out


# --------------------------------------------------------------------------- images


def image(folder: Path) -> bytes:
    return building.agent_image(folder, name="karvon-agent", version="1.0", hw_id=HARDWARE)


def test_the_same_wheels_are_the_same_image(tmp_path: Path) -> None:
    for name in ("one", "two"):
        wheel(tmp_path / name, "karvon", {"karvon/__init__.py": "V = 1\n", "a/b.py": ""})
    assert image(tmp_path / "one") == image(tmp_path / "two")


@pytest.mark.parametrize(
    ("tag", "fits"),
    [
        ("py3-none-any", True),
        ("cp311-cp311-manylinux_2_17_x86_64", True),
        ("cp38-abi3-manylinux_2_17_x86_64", True),
        ("cp312-cp312-manylinux_2_17_x86_64", False),
        ("cp312-abi3-manylinux_2_17_x86_64", False),
        ("cp311-cp311-manylinux_2_17_aarch64", False),
    ],
)
def test_wheels_of_other_machines_are_refused(tmp_path: Path, tag: str, *, fits: bool) -> None:
    wheel(tmp_path / "w", "thing", {"thing.py": ""}, tag)
    if fits:
        assert image(tmp_path / "w")
    else:
        with pytest.raises(ReleaseProblem, match="is not for linux-x86_64-cp311"):
            image(tmp_path / "w")


def test_a_wheel_that_was_touched_is_refused(tmp_path: Path) -> None:
    path = wheel(tmp_path / "w", "thing", {"thing.py": "GOOD = 1\n"})
    with zipfile.ZipFile(path) as zipped:
        content = {name: zipped.read(name) for name in zipped.namelist()}
    content["thing.py"] = b"EVIL = 1\n"
    with zipfile.ZipFile(path, "w") as zipped:
        for name, text in content.items():
            zipped.writestr(name, text)
    with pytest.raises(ReleaseProblem, match="not what RECORD says"):
        image(tmp_path / "w")


def test_two_wheels_may_not_bring_different_files_of_one_name(tmp_path: Path) -> None:
    wheel(tmp_path / "w", "one", {"shared.py": "A = 1\n"})
    wheel(tmp_path / "w", "two", {"shared.py": "A = 2\n"})
    with pytest.raises(ReleaseProblem, match="both bring"):
        image(tmp_path / "w")


def test_what_is_no_library_stays_out(tmp_path: Path) -> None:
    files: dict[str, Any] = {
        "x.py": "",
        "thing-1.0.data/scripts/run": "#!python",
        "thing-1.0.data/purelib/lib.py": "L = 1\n",
    }
    wheel(tmp_path / "w", "thing", files)
    import io

    names = [info.name for info, _ in archive.members(io.BytesIO(image(tmp_path / "w")))]
    assert "site-packages/lib.py" in names
    assert not [name for name in names if "scripts" in name]


def test_packed_images_come_back_and_damage_is_said() -> None:
    base, made = b"abc" * 20_000, b"abc" * 19_000 + b"new" * 900
    for packed, prefix in ((packing.compress(made), None), (packing.compress(made, base), base)):
        assert packing.decompress(packed, len(made), prefix) == made
        with pytest.raises(ImageError):
            packing.decompress(packed, len(made) - 1, prefix)
        with pytest.raises(ImageError):
            packing.decompress(packed + b"x", len(made), prefix)
        with pytest.raises(ImageError):
            packing.decompress(packed[:-1], len(made), prefix)
    with pytest.raises(ImageError):
        packing.decompress(packing.compress(made, base), len(made), b"another base")
