"""Real components for tests, on loopback and ports of their own: TimescaleDB and Mosquitto.

Beside them libfaketime, for the agent without a clock, and stm32flash, a host for loaders
that is not ours.

`start` makes them ready (idempotent), `stop` ends what was started here, `forget` also removes its
data, `status` tells, `run -- COMMAND` wraps a command in them; `--in-memory` makes a TimescaleDB
for that run alone, whose files a disk would only slow down. Standard library only; Mosquitto's
certificate and accounts are made by karvon's own code, so it is started with karvon's environment.

The packages come from Debian trixie in a folder of their own (debootstrap), so that the host's
suite does not matter. One user's checkouts share that folder (`KARVON_SERVICES_DIR`, by default
the user's cache). What runs from this checkout stands in `.services/run/services.json`. What cannot
be had here (no root, no network) is said loudly and listed under `left_out`; tests report it again.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
RUN = PROJECT / ".services" / "run"
STATE = RUN / "services.json"
CACHE = Path(
    os.environ.get("KARVON_SERVICES_DIR")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "karvon" / "services"
)
TRIXIE = CACHE / "trixie"
RECIPE = {"version": 3, "packages": ["postgresql-17-timescaledb", "mosquitto"]}
CLOUD_USER = "karvon-cloud"
STOPPED_BY = {"timescale": signal.SIGINT, "mosquitto": signal.SIGTERM}
PG_BIN = "/usr/lib/postgresql/17/bin"
PG_SETTINGS = {
    "shared_preload_libraries": "timescaledb",
    "timescaledb.license": "apache",
    "timescaledb.telemetry_level": "off",
    "timescaledb.max_background_workers": "0",
    "jit": "off",
    "max_connections": "200",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
MEMORY = "4g"
ENOUGH_KIB = 8 << 20
IN_MEMORY = {"max_wal_size": "256MB"}


class LeftOutError(Exception):
    """A component cannot be had on this machine; says why and what to do."""


def say(text: str) -> None:
    sys.stderr.write(f"services: {text}\n")
    sys.stderr.flush()


def run(*command: str, env: dict[str, str] | None = None) -> str:
    """The command's output; LeftOutError with its last lines when it fails."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C", **(env or {})},
    )
    if done.returncode:
        tail = "\n  ".join(done.stdout.strip().splitlines()[-5:])
        raise LeftOutError(f"`{' '.join(command[:4])} ...` failed:\n  {tail}")
    return done.stdout


# -- the trixie root ------------------------------------------------------------------------------


def apt_mirror() -> str:
    """The Debian mirror that this machine's own apt uses (sources.list or deb822)."""
    folder = Path("/etc/apt")
    entries = [
        *deb822_entries([*sorted(folder.glob("sources.list.d/*.sources"))]),
        *one_line_entries([folder / "sources.list", *sorted(folder.glob("sources.list.d/*.list"))]),
    ]
    for uri, suites in entries:
        if any(
            re.fullmatch(r"(bullseye|bookworm|trixie|forky|sid|stable|testing)", s) for s in suites
        ):
            return uri.rstrip("/")
    raise LeftOutError("no Debian mirror in this machine's apt sources; it needs a Debian host")


def deb822_entries(paths: list[Path]) -> Iterator[tuple[str, list[str]]]:
    for path in paths:
        for stanza in re.split(r"\n\s*\n", path.read_text()):
            fields = dict(
                re.findall(r"^([A-Za-z-]+):[ \t]*(.*(?:\n[ \t].*)*)", stanza, re.MULTILINE)
            )
            if "deb" in fields.get("Types", "").split() and fields.get("Enabled", "yes") != "no":
                yield from ((uri, fields["Suites"].split()) for uri in fields["URIs"].split())


def one_line_entries(paths: list[Path]) -> Iterator[tuple[str, list[str]]]:
    for path in paths:
        text = path.read_text() if path.exists() else ""
        for uri, suite in re.findall(r"^deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)", text, re.MULTILINE):
            yield uri, [suite]


def ensure_root() -> Path:
    """The folder with trixie's packages, built when its stamp is missing or of another recipe."""
    if root_is_current():
        return TRIXIE
    if os.geteuid() != 0:
        raise LeftOutError(
            f"building {TRIXIE} needs root; run `make services` once as root, or set "
            "KARVON_SERVICES_DIR to a folder where root has built it"
        )
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root_is_current():
            build_root()
    return TRIXIE


def install(package: str) -> None:
    """A Debian package of this machine's own suite. Raises LeftOutError."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise LeftOutError(f"it is not installed; as root: apt-get install {package}")
    say(f"installing {package}")
    run("apt-get", "update", "-qq")
    run("apt-get", "install", "-y", "-qq", "--no-install-recommends", package)


def ensure_faketime() -> Path:
    """The library that shows an agent another time; it must suit this machine's own C library."""
    for attempt in ("look", "install"):
        for folder in (*Path("/usr/lib").glob("*-linux-gnu"), Path("/usr/lib")):
            if (library := folder / "faketime" / "libfaketime.so.1").exists():
                return library
        if attempt == "look":
            install("libfaketime")
    raise LeftOutError("libfaketime is installed, but its library is not where it should be")


def ensure_stm32flash() -> str:
    """The program that our simulated loaders must please. Raises LeftOutError."""
    if not shutil.which("stm32flash"):
        install("stm32flash")
    found = shutil.which("stm32flash")
    if found is None:
        raise LeftOutError("stm32flash is installed, but not in PATH")
    return found


def root_is_current() -> bool:
    try:
        return bool(json.loads((TRIXIE / "karvon-stamp.json").read_text())["recipe"] == RECIPE)
    except (OSError, ValueError, KeyError):
        return False


def build_root() -> None:
    mirror = apt_mirror()
    if not shutil.which("debootstrap"):
        install("debootstrap")
    say(f"building the trixie root in {CACHE} (about half a minute, 560 MB)")
    fresh = CACHE / "trixie.new"
    shutil.rmtree(fresh, ignore_errors=True)
    run("debootstrap", "--variant=minbase", "trixie", str(fresh), mirror)
    configure_root(fresh)
    inside = ("chroot", str(fresh))
    path = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    packages: list[str] = RECIPE["packages"]  # type: ignore[assignment]  # the recipe is plain JSON
    run(*inside, "apt-get", "update", "-qq", env=path)
    run(*inside, "apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages, env=path)
    run(*inside, "apt-get", "clean", env=path)
    versions = run(*inside, "dpkg-query", "-W", "-f=${Package} ${Version}\n", env=path).splitlines()
    (fresh / "dev" / "shm").chmod(0o1777)
    (fresh / "srv" / "karvon").mkdir(parents=True)
    (fresh / "srv" / "karvon").chmod(0o1777)
    (fresh / "karvon-stamp.json").write_text(json.dumps({"recipe": RECIPE, "versions": versions}))
    shutil.rmtree(TRIXIE, ignore_errors=True)
    fresh.rename(TRIXIE)


def configure_root(root: Path) -> None:
    """No service may start in it, no cluster be made, and no documentation unpacked."""
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    cluster = root / "etc/postgresql-common/createcluster.conf"
    cluster.parent.mkdir(parents=True, exist_ok=True)
    cluster.write_text("create_main_cluster = false\n")
    excludes = "".join(f"path-exclude=/usr/share/{name}/*\n" for name in ("doc", "man", "locale"))
    (root / "etc/dpkg/dpkg.cfg.d/karvon").write_text(excludes)
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    acquire = run("apt-config", "dump", "--format", '%F "%v";%n')
    proxies = [
        line for line in acquire.splitlines() if re.match(r"Acquire::https?::\S*[Pp]roxy", line)
    ]
    (root / "etc/apt/apt.conf.d/90karvon").write_text("\n".join(proxies) + "\n")


# -- TimescaleDB ----------------------------------------------------------------------------------


class Timescale:
    """One cluster per checkout, inside the trixie root, on a loopback port of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        name = hashlib.sha256(f"{PROJECT}:{os.geteuid()}".encode()).hexdigest()[:12]
        self.home = f"/srv/karvon/{name}"
        self.outside = root / self.home.lstrip("/")
        line = next(
            line
            for line in (root / "etc/passwd").read_text().splitlines()
            if line.startswith("postgres:")
        )
        self.uid, self.gid = (int(field) for field in line.split(":")[2:4])

    def inside(self, *command: str) -> list[str]:
        if os.geteuid() == 0:
            return [
                "chroot",
                f"--userspec={self.uid}:{self.gid}",
                "--groups=",
                str(self.root),
                *command,
            ]
        return ["unshare", "--user", f"--map-user={self.uid}", f"--root={self.root}", *command]

    def start(self, *, in_memory: bool = False) -> dict[str, Any]:
        port = free_port()
        settings = PG_SETTINGS | (IN_MEMORY if in_memory else {})
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        command = self.inside(
            f"{PG_BIN}/postgres", "-D", f"{self.home}/data", "-p", str(port), *options
        )
        if in_memory:
            password, command = self.in_memory(command)
        else:
            password = self.initialise()
        log = RUN / "timescale.log"
        child = spawn(command, log)
        probe = self.inside(f"{PG_BIN}/pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port))
        wait_ready(child, log, lambda: subprocess.run(probe, check=False).returncode == 0)
        dsn = f"host=127.0.0.1 port={port} user=postgres password={password} dbname=postgres"
        return {"dsn": dsn, "process": identity(child.pid)}

    def initialise(self) -> str:
        """Make the cluster when it is missing; its superuser's password."""
        secret = self.outside / "password"
        if (self.outside / "data" / "PG_VERSION").exists() and secret.exists():
            return secret.read_text()
        shutil.rmtree(self.outside, ignore_errors=True)
        self.outside.mkdir(mode=0o700)
        self.keep_password(secret)
        if os.geteuid() == 0:
            os.chown(self.outside, self.uid, self.gid)
        run(*self.initdb(f"{self.home}/password"))
        return secret.read_text()

    def in_memory(self, command: list[str]) -> tuple[str, list[str]]:
        """The password of a cluster in memory, and the command that makes and runs it.

        Its file system is mounted for that process alone and goes with it.
        """
        self.outside.mkdir(mode=0o700, exist_ok=True)
        secret = self.outside.with_suffix(".password")
        self.keep_password(secret)
        options = f"size={MEMORY},mode=0700,uid={self.uid},gid={self.gid}"
        script = [
            ["mount", "-t", "tmpfs", "-o", options, "karvon", str(self.outside)],
            self.initdb(f"{self.home}.password"),
            ["rm", str(secret)],
            ["exec", *command],
        ]
        text = "\n".join(map(shlex.join, script))
        return secret.read_text(), ["unshare", "--mount", "sh", "-ec", text]

    def keep_password(self, secret: Path) -> None:
        secret.touch(mode=0o600)
        secret.write_text(secrets.token_urlsafe(24))
        if os.geteuid() == 0:
            os.chown(secret, self.uid, self.gid)

    def initdb(self, secret: str) -> list[str]:
        locale = (
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
        )
        login = ("-U", "postgres", "-A", "scram-sha-256", f"--pwfile={secret}")
        return self.inside(f"{PG_BIN}/initdb", "-D", f"{self.home}/data", *locale, *login)


# -- Mosquitto ------------------------------------------------------------------------------------


def mosquitto_command(root: Path | None) -> list[str]:
    """How to run Mosquitto here: the host's own, or trixie's through its own loader."""
    host = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if host:
        return [host]
    if root is None:
        raise LeftOutError("no mosquitto on this machine; as root: apt-get install mosquitto")
    loader = next(root.glob("lib64/ld-linux-*.so.*"), None) or next(
        root.glob("lib/ld-linux-*.so.*")
    )
    libraries = [str(path) for path in (*root.glob("usr/lib/*-linux-gnu"), root / "usr/lib")]
    return [str(loader), "--library-path", ":".join(libraries), str(root / "usr/sbin/mosquitto")]


def start_mosquitto(command: list[str]) -> dict[str, Any]:
    """TLS with our shipped settings and ACL file; a cloud user and two devices to log in as."""
    if not all(map(importlib.util.find_spec, ("bcrypt", "cryptography"))):
        raise LeftOutError("this Python lacks karvon's dependencies; run `make services` instead")
    folder = RUN / "mosquitto"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    port = free_port()
    devices = {name: secrets.token_urlsafe(32) for name in ("EXAMPLE-1", "EXAMPLE-2")}
    cloud_secret = secrets.token_urlsafe(32)
    accounts = {"PYTHONPATH": str(PROJECT)}
    accounts["KARVON_ACCOUNTS"] = json.dumps({CLOUD_USER: cloud_secret, **devices})
    writer = Path(__file__).with_name("mosquitto_files.py")
    run(sys.executable, str(writer), str(folder), str(port), env=accounts)
    log = folder / "mosquitto.log"
    child = spawn([*command, "-c", str(folder / "mosquitto.conf")], log)
    wait_ready(child, log, lambda: " running" in log.read_text())
    return {
        "host": "localhost",
        "port": port,
        "ca_file": str(folder / "tls" / "ca.pem"),
        "cloud_user": CLOUD_USER,
        "cloud_secret": cloud_secret,
        "devices": devices,
        "folder": str(folder),
        "shipped": shipped_settings(),
        "process": identity(child.pid),
    }


def shipped_settings() -> str:
    """A fingerprint, so that a changed ACL file is never tested with a Mosquitto that lacks it."""
    folder = PROJECT / "cloud" / "deploy" / "mosquitto"
    files = b"".join((folder / name).read_bytes() for name in ("mosquitto.conf", "acl"))
    return hashlib.sha256(files).hexdigest()


# -- processes ------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def spawn(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
        )


def wait_ready(child: subprocess.Popen[bytes], log: Path, ready: Callable[[], bool]) -> None:
    for _ in range(600):
        if child.poll() is not None:
            raise LeftOutError(f"it ended at once:\n{log.read_text()[-500:]}")
        if ready():
            return
        time.sleep(0.1)
    end(identity(child.pid), signal.SIGTERM)
    raise LeftOutError(f"it was not ready within a minute and was stopped; see {log}")


def identity(pid: int) -> dict[str, int]:
    return {"pid": pid, "started": start_ticks(pid)}


def start_ticks(pid: int) -> int:
    """When the kernel started it, so that a reused pid is never taken for ours; 0: gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])


def alive(process: dict[str, int]) -> bool:
    return start_ticks(process["pid"]) == process["started"] != 0


def end(process: dict[str, int], how: signal.Signals) -> None:
    for attempt in (how, signal.SIGQUIT, signal.SIGKILL):
        if alive(process):
            os.kill(process["pid"], attempt)
        deadline = time.monotonic() + 20
        while alive(process) and time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process["pid"], os.WNOHANG)
            time.sleep(0.05)


# -- commands -------------------------------------------------------------------------------------


def load() -> dict[str, Any]:
    try:
        return dict(json.loads(STATE.read_text()))
    except (OSError, ValueError):
        return {}


def store(state: dict[str, Any]) -> None:
    fresh = STATE.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_text(json.dumps(state, indent=2) + "\n")
    fresh.replace(STATE)


def running(state: dict[str, Any]) -> list[str]:
    return [name for name in STOPPED_BY if name in state and alive(state[name]["process"])]


def start(*, in_memory: bool = False) -> list[str]:
    """Make everything ready; the names of what was started now."""
    RUN.mkdir(parents=True, exist_ok=True)
    RUN.chmod(0o700)
    with (RUN / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if load().get("mosquitto", {}).get("shipped") != shipped_settings():
            stop(["mosquitto"])
        state = load()
        kept = running(state)
        if len(kept) == len(STOPPED_BY) and {"faketime", "stm32flash"} <= state.keys():
            return []
        state = {"left_out": [], **{name: state[name] for name in kept}}
        start_missing(state, in_memory=in_memory and memory_serves())
        store(state)
    announce(state)
    return [name for name in running(state) if name not in kept]


def memory_serves() -> bool:
    """Whether there is room for a database in memory, and the right to mount it."""
    available = re.search(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())
    if available is None or int(available[1]) < ENOUGH_KIB or os.geteuid() != 0:
        return False
    try_it = ["unshare", "--mount", "mount", "-t", "tmpfs", "karvon", str(RUN)]
    return subprocess.run(try_it, capture_output=True, check=False).returncode == 0


def start_missing(state: dict[str, Any], *, in_memory: bool) -> None:
    part(state, "faketime", ensure_faketime)
    part(state, "stm32flash", ensure_stm32flash)
    root = part(state, "trixie", ensure_root)
    state.pop("trixie", None)
    if "mosquitto" not in state:
        part(state, "mosquitto", lambda: start_mosquitto(mosquitto_command(root)))
    if root is None:
        state["left_out"].append("TimescaleDB: it comes with the trixie root")
    elif "timescale" not in state:
        timescale = Timescale(root)
        part(state, "timescale", lambda: timescale.start(in_memory=in_memory))


def part(state: dict[str, Any], name: str, make: Any) -> Any:
    try:
        made = make()
    except LeftOutError as reason:
        state["left_out"].append(f"{name}: {reason}")
        return None
    state[name] = made if isinstance(made, dict) else str(made)
    return made


def announce(state: dict[str, Any]) -> None:
    for name in running(state):
        say(f"{name} runs as pid {state[name]['process']['pid']}; see {STATE}")
    if state["left_out"]:
        lines = "\n".join(f"  * {reason}" for reason in state["left_out"])
        rule = "!" * 78
        heading = "LEFT OUT on this machine; the tests that need it will NOT RUN:"
        say(f"\n{rule}\n{heading}\n{lines}\n{rule}")


def stop(names: Iterable[str] = tuple(STOPPED_BY)) -> None:
    state = load()
    for name in names:
        process = state.pop(name, {}).get("process")
        if process and alive(process):
            end(process, STOPPED_BY[name])
            say(f"stopped {name}")
    if running(state):
        store(state)
    else:
        STATE.unlink(missing_ok=True)


def forget() -> None:
    """Stop, and remove this checkout's cluster; the packages stay for other checkouts."""
    stop()
    if root_is_current():
        shutil.rmtree(Timescale(TRIXIE).outside, ignore_errors=True)


def wrap(command: list[str], *, in_memory: bool) -> int:
    """Run the command with the services up; stop them again when this started them."""
    started = start(in_memory=in_memory)
    try:
        return subprocess.run(command, check=False).returncode
    finally:
        if started:
            stop(started)


def status() -> int:
    state = load()
    up = len(running(state)) == len(STOPPED_BY)
    sys.stdout.write(json.dumps({"up": up, **state}, indent=2) + "\n")
    return 0 if up else 1


def main() -> int:
    parser = argparse.ArgumentParser(description="real components for tests")
    parser.add_argument(
        "--in-memory",
        action="store_true",
        help="for run: TimescaleDB's files in memory where there is room; not for measuring",
    )
    parser.add_argument("verb", choices=["start", "stop", "status", "forget", "run"])
    parser.add_argument("command", nargs=argparse.REMAINDER, help="for run: -- COMMAND ...")
    args = parser.parse_args()
    match args.verb:
        case "run":
            command = args.command[args.command[:1] == ["--"] :]
            return wrap(command, in_memory=args.in_memory)
        case "status":
            return status()
        case "start":
            start()
        case "stop":
            stop()
        case "forget":
            forget()
    return 0


if __name__ == "__main__":
    sys.exit(main())
