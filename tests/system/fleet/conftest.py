"""Debian roots that the playbooks install into, and their units started as systemd would."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from karvon.demo.lines import ask
from karvon.demo.process import Child, free_port, wait_for

PROJECT: Final = Path(__file__).resolve().parents[3]
ANSIBLE: Final = PROJECT / "ansible"
PLAY_S: Final = 1200
PATIENCE_S: Final = 180
RECAP: Final = re.compile(r"^\S+ +: (ok=\d+ .*)$", re.MULTILINE)
INSIDE: Final = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
Ran = subprocess.CompletedProcess[str]
SECONDS: Final = {"": 1, "s": 1, "min": 60}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(2400))


@dataclass(frozen=True)
class Fleet:
    """What tools/fleet.py has made ready."""

    programs: Path
    collections: Path
    base: Path
    hardware: str
    wheels: Path
    """Of what an agent needs."""

    def run(self, *command: str | Path, roots: Sequence[Path] = ()) -> Ran:
        """One of Ansible's programs, beside the playbooks; these roots have their /proc."""
        program, *rest = map(str, command)
        bound = "".join(f'mount --bind /proc "{root}/proc" && ' for root in roots)
        within = ["unshare", "--mount", "sh", "-c", f'{bound}exec "$@"', "sh"] if roots else []
        return subprocess.run(
            [*within, str(self.programs / program), *rest],
            cwd=ANSIBLE,
            env={
                **{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
                "PATH": f"{self.programs}:{os.environ['PATH']}",
                "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"),
                "ANSIBLE_COLLECTIONS_PATH": str(self.collections),
                "ANSIBLE_NOCOLOR": "1",
                "NO_COLOR": "1",
                "LC_ALL": "C.UTF-8",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PLAY_S,
            check=False,
        )


def made_ready(*extras: str) -> Fleet:
    """With wheels for karvon with these extras; skips the test, loudly, where that cannot be."""
    tool = [sys.executable, PROJECT / "tools" / "fleet.py", *extras]
    done = subprocess.run(tool, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"NOT RUN: the fleet's installation: {done.stderr.strip()}")
    if subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("NOT RUN: the fleet's installation: this machine lets nobody mount /proc")
    where = json.loads(done.stdout)
    hardware = where.pop("hardware")
    return Fleet(hardware=hardware, **{name: Path(path) for name, path in where.items()})


@pytest.fixture(scope="session")
def fleet() -> Fleet:
    return made_ready("edge")


@pytest.fixture(scope="session")
def cloud_wheels() -> Path:
    return made_ready("edge", "cloud").wheels


@dataclass(frozen=True)
class Played:
    """How a playbook ended."""

    counts: dict[str, int]
    text: str

    @property
    def changed(self) -> list[str]:
        """The tasks that have changed something."""
        found, task = [], ""
        for line in self.text.splitlines():
            if line.startswith(("TASK [", "RUNNING HANDLER [")):
                task = line.partition("[")[2].partition("]")[0]
            elif line.startswith("changed:"):
                found.append(task)
        return found


class Root:
    """A Debian that does not run, and a folder for what belongs to it outside."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self.fleet = fleet
        self.folder = folder
        self.path = folder / "root"
        subprocess.run(["cp", "-a", "--reflink=auto", fleet.base, self.path], check=True)

    def play(
        self,
        playbook: str,
        group: str,
        *extra: str,
        code: int = 0,
        beside: tuple[str, Root] | None = None,
        **variables: Any,
    ) -> Played:
        """As an operator does, but for the way in; `beside`: another group's only host."""
        children, roots = {group: self.inventory(**variables)}, [self.path]
        if beside is not None:
            other, root = beside
            children[other] = root.inventory()
            roots.append(root.path)
        inventory = self.folder / "hosts.json"
        inventory.write_text(json.dumps({"all": {"children": children}}))
        done = self.fleet.run("ansible-playbook", "-i", inventory, playbook, *extra, roots=roots)
        (self.folder / "play.log").write_text(done.stdout)
        assert done.returncode == code, done.stdout[-6000:]
        counts: Counter[str] = Counter()
        for recap in RECAP.findall(done.stdout):
            for pair in recap.split():
                name, count = pair.split("=")
                counts[name] += int(count)
        return Played(counts, done.stdout)

    def inventory(self, **variables: Any) -> dict[str, Any]:
        """A group with this root as its only host."""
        host = {
            "ansible_connection": "community.general.chroot",
            "ansible_host": str(self.path),
            "ansible_become": False,
            "ansible_python_interpreter": "/usr/bin/python3",
            **variables,
        }
        return {"hosts": {self.folder.name: host}}

    def run(self, *command: str, user: str = "root", code: int = 0) -> str:
        """A command in it; its output."""
        done = subprocess.run(
            [*self.inside(user), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=INSIDE,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == code, f"{command}\n{done.stdout}"
        return done.stdout

    def inside(self, user: str) -> list[str]:
        """What is put before a command; ends with whoever started it."""
        within = f'mount --bind /proc "{self.path}/proc" && exec chroot "{self.path}" "$@"'
        become = ["setpriv", "--reuid", user, "--regid", user, "--init-groups"]
        return [
            "unshare",
            "--mount",
            "sh",
            "-c",
            within,
            "sh",
            *become,
            "--pdeathsig",
            "KILL",
            "--",
        ]

    def there(self, path: str) -> Path:
        return self.path / path.lstrip("/")

    def unit(self, name: str) -> Unit:
        """As systemd would find it, with its drop-ins."""
        stem, _, kind = name.rpartition(".")
        template, at, instance = stem.partition("@")
        file = f"{template}{at}.{kind}"
        folders = ("etc/systemd/system", "usr/lib/systemd/system")
        found = next(place for one in folders if (place := self.path / one / file).exists())
        text = found.read_text()
        for more in sorted((self.path / "etc/systemd/system" / f"{file}.d").glob("*.conf")):
            text += more.read_text()
        return Unit(self, text.replace("%i", instance))

    def wipe(self) -> None:
        subprocess.run(["rm", "-rf", "--one-file-system", self.folder], check=False)


class Unit:
    """One service: what its unit says, done by hand."""

    def __init__(self, root: Root, text: str) -> None:
        self.root = root
        self.says: dict[str, list[str]] = defaultdict(list)
        for line in text.replace("\\\n", " ").splitlines():
            key, equals, value = line.partition("=")
            if equals and not line.startswith(("#", ";")):
                self.says[key.strip()].append(value.strip())

    @property
    def user(self) -> str:
        return self.says["User"][-1] if self.says["User"] else "root"

    def environment(self) -> dict[str, str]:
        found = dict(INSIDE)
        for name in self.says["EnvironmentFile"]:
            file = self.root.there(name.removeprefix("-"))
            if file.exists() or not name.startswith("-"):
                lines = [line for line in file.read_text().splitlines() if "=" in line]
                found |= dict(line.split("=", 1) for line in lines if not line.startswith("#"))
        for line in self.says["Environment"]:
            found |= dict(word.split("=", 1) for word in shlex.split(line))
        return found

    def prepare(self) -> None:
        """The folders that systemd makes before a start."""
        for key, above in (("StateDirectory", "var/lib"), ("RuntimeDirectory", "run")):
            for name in " ".join(self.says[key]).split():
                place = self.root.path / above / name
                if not place.exists():
                    place.mkdir(parents=True)
                    owner = self.root.run("sh", "-c", f"id -u {self.user}; id -g {self.user}")
                    os.chown(place, *map(int, owner.split()))

    def once(self) -> str:
        """A unit that ends by itself; what it said."""
        self.prepare()
        said = ""
        for line in self.says["ExecStart"]:
            user = "root" if line.startswith("+") else self.user
            variables = [f"{name}={value}" for name, value in self.environment().items()]
            command = shlex.split(line.lstrip("+-"))
            said += self.root.run("env", "-i", *variables, *command, user=user)
        return said

    def start(self, log: Path, *command: str) -> Service:
        return Service(self, log, command)


class Service:
    """A unit's ExecStart in its root, as its user; a notify socket where it wants one."""

    def __init__(self, unit: Unit, log: Path, command: tuple[str, ...] = ()) -> None:
        """`command` stands for one that would go into the background."""
        unit.prepare()
        for line in unit.says["ExecStartPre"]:
            unit.root.run(*shlex.split(line))
        self.log = log
        self.told = ""
        self.stopped_by = signal.SIGTERM
        environment = unit.environment()
        self._socket: socket.socket | None = None
        if unit.says["Type"] == ["notify"]:
            place = unit.root.there(f"/run/notify-{log.stem}")
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.bind(str(place))
            place.chmod(0o777)
            self._socket.setblocking(False)
            environment["NOTIFY_SOCKET"] = f"/run/{place.name}"
        for value in unit.says["WatchdogSec"]:
            number, name = re.findall(r"(\d+)(\w*)", value)[0]
            environment["WATCHDOG_USEC"] = str(int(number) * SECONDS[name] * 1_000_000)
        words = command or shlex.split(unit.says["ExecStart"][-1])
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [*unit.root.inside(unit.user), *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=environment,
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def hears(self, word: str) -> bool:
        """Whether it has told the service manager this."""
        assert self.alive, self.log.read_text()[-3000:]
        try:
            while self._socket is not None:
                self.told += self._socket.recv(4096).decode() + "\n"
        except BlockingIOError:
            pass
        return word in self.told.splitlines()

    def wait(self, word: str) -> None:
        wait_for(lambda: self.hears(word), PATIENCE_S, f"{word}; its log: {self.log}")

    def end(self) -> int:
        """As systemd stops it; its exit code."""
        if self.alive:
            self._process.send_signal(self.stopped_by)
        try:
            return self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            if self._socket is not None:
                self._socket.close()


@pytest.fixture
def make_root(fleet: Fleet) -> Iterator[Callable[[], Root]]:
    made: list[Root] = []

    def make() -> Root:
        made.append(Root(fleet, Path(tempfile.mkdtemp(prefix="karvon-fleet-"))))
        made[-1].folder.chmod(0o755)
        return made[-1]

    yield make
    for one in made:
        one.wipe()


@pytest.fixture
def root(make_root: Callable[[], Root]) -> Root:
    return make_root()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Karvon itself, built from what git knows; from a copy, as a build leaves things behind."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, check=True, text=True
    ).stdout
    for name in filter(None, tracked.split("\0")):
        if (PROJECT / name).is_file() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PROJECT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out), str(source)]
    subprocess.run(command, check=True, cwd=out)
    return next(out.glob("karvon-*.whl"))


class Charger:
    """A simulated one, on loopback as the root's processes see it."""

    def __init__(self, folder: Path) -> None:
        self.port, self.control = free_port(), free_port()
        arguments = [
            *("sim", "charger", "--profile", "abb_terra_ac", "--json"),
            *("--tcp", f"127.0.0.1:{self.port}", "--control", f"127.0.0.1:{self.control}"),
        ]
        self.child = Child("charger", arguments, folder)
        self.child.start()
        self.child.ready()

    def do(self, what: str, **arguments: Any) -> dict[str, Any]:
        return ask(self.control, {"do": what, **arguments})


@pytest.fixture
def charger(tmp_path: Path) -> Iterator[Charger]:
    made = Charger(tmp_path)
    try:
        yield made
    finally:
        made.child.stop()
