"""`karvon release`: make keys, build images, sign them apart from each other, publish.

Exit codes: 0 done, 1 not done, 2 wrong usage. The passphrase of the keys is read from the file
named by --passphrase-file, or else from KARVON_RELEASE_PASSPHRASE.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from karvon.release import building, bundling, checking, keys
from karvon.release.keys import ONLINE, SETS, ReleaseProblem
from karvon.release.workshop import Workshop
from protocols.release import Encoding, Kind, Release, Requires

app = typer.Typer(
    help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
)
key_app = typer.Typer(help="Make, show, rotate and revoke signing keys.", no_args_is_help=True)
build_app = typer.Typer(help="Build an image and stage it for signing.", no_args_is_help=True)
app.add_typer(key_app, name="keys")
app.add_typer(build_app, name="build")

Repo = Annotated[Path, typer.Argument(help="The folder in which releases are made.")]
Keys = Annotated[Path, typer.Argument(help="The folder of the keys.")]
Secret = Annotated[
    Path | None, typer.Option("--passphrase-file", help="The file with the keys' passphrase.")
]
Version = Annotated[str, typer.Option("--version", help="As people see it: 1.4.0.")]
Counter = Annotated[
    int, typer.Option("--counter", min=0, help="Release counter; 0: one more than the last.")
]
DeltaFrom = Annotated[
    list[str] | None,
    typer.Option("--delta-from", help="Also a delta from this version; may be repeated."),
]
HardwareIds = Annotated[list[str], typer.Option("--hw-id", help="Hardware that it is for.")]
Raw = Annotated[
    bool,
    typer.Option("--raw", help="Sent as it is, not packed: stations that speak OCPP want it so."),
]
NeedsAgent = Annotated[
    str, typer.Option("--requires-agent", help="The least agent version that may install it.")
]


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except ReleaseProblem as problem:
        sys.stderr.write(f"karvon release: {problem}\n")
        raise typer.Exit(1) from None


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


# --------------------------------------------------------------------------- keys


@key_app.command("create")
def create(
    folder: Keys,
    name: Annotated[
        str | None, typer.Argument(help="<role>-<number>; without it the whole first set is made.")
    ] = None,
    passphrase_file: Secret = None,
) -> None:
    """Make a key, or all that a repository starts with."""
    with _told():
        secret = keys.passphrase(passphrase_file)
        names = [name] if name else keys.create_all(folder, secret)
        if name:
            keys.create(folder, name, secret)
        _say(*(f"{folder / each}.key" for each in names))


@key_app.command("show")
def show(folder: Keys) -> None:
    """List the public keys of a folder with their key ids."""
    with _told():
        for path in sorted(folder.glob("*.pub")):
            _say(f"{path.stem}  {keys.public(path).keyid}")


@key_app.command("start")
def start(repo: Repo, folder: Keys) -> None:
    """Begin a repository with the public keys of a folder; root and targets wait for signatures."""
    with _told():
        found = {
            role: [keys.public(path) for path in sorted(folder.glob(f"{role}-*.pub"))]
            for role in SETS
        }
        Workshop(repo).start(found)
        _waiting(repo)


@key_app.command("rotate")
def rotate(
    repo: Repo,
    role: Annotated[str, typer.Argument(help="root, targets, agent, board, …")],
    old: Annotated[str, typer.Option("--old", help="The key id that goes.")],
    new: Annotated[Path, typer.Option("--new", help="The public key that comes.")],
) -> None:
    """Put another key in the place of one; waits for signatures, root by both old and new."""
    with _told():
        Workshop(repo).rotate(role, old, keys.public(new))
        _waiting(repo)


@key_app.command("revoke")
def revoke(
    repo: Repo,
    role: Annotated[str, typer.Argument(help="root, targets, agent, board, …")],
    old: Annotated[str, typer.Option("--old", help="The key id that goes.")],
) -> None:
    """Take a key away without another in its place."""
    with _told():
        Workshop(repo).revoke(role, old)
        _waiting(repo)


# --------------------------------------------------------------------------- building


@build_app.command("agent")
def build_agent(
    repo: Repo,
    wheels: Annotated[Path, typer.Option("--wheels", help="Folder with karvon and all it needs.")],
    version: Version,
    hw_id: Annotated[str, typer.Option("--hw-id", help="linux-aarch64-cp311, linux-x86_64-cp311…")],
    name: Annotated[str, typer.Option("--name")] = "karvon-agent",
    counter: Counter = 0,
    delta_from: DeltaFrom = None,
    requires_agent: NeedsAgent = "",
    raw: Raw = False,
) -> None:
    """The controller's software, from a set of wheels."""

    def made() -> bytes:
        return building.agent_image(wheels, name=name, version=version, hw_id=hw_id)

    release = _release(Kind.AGENT, name, version, counter, [hw_id], Requires(agent=requires_agent))
    _add(repo, made, _sent(release, raw=raw), delta_from)


@build_app.command("board")
def build_board(
    repo: Repo,
    image: Annotated[Path, typer.Option("--image", help="The firmware as the board holds it.")],
    name: Annotated[str, typer.Option("--name", help="The firmware's name.")],
    version: Version,
    hw_id: HardwareIds,
    counter: Counter = 0,
    delta_from: DeltaFrom = None,
    requires_agent: NeedsAgent = "",
    protocol: Annotated[
        str, typer.Option("--board-protocol", help="The protocol it speaks with the agent: 2.1.")
    ] = "",
    raw: Raw = False,
) -> None:
    """A power board's firmware."""
    requires = Requires(agent=requires_agent, board_protocol=protocol)
    release = _release(Kind.BOARD, name, version, counter, hw_id, requires)
    _add(repo, lambda: _read(image), _sent(release, raw=raw), delta_from)


@build_app.command("settings")
def build_settings(
    repo: Repo,
    folder: Annotated[
        Path, typer.Option("--folder", help="With settings.toml, profiles/NAME.yaml, or both.")
    ],
    version: Version,
    hw_id: HardwareIds,
    name: Annotated[
        str, typer.Option("--name", help="As updates.settings of the agents it is for.")
    ] = "settings",
    counter: Counter = 0,
    requires_agent: NeedsAgent = "",
) -> None:
    """Settings of agents, and device profiles."""
    requires = Requires(agent=requires_agent)
    release = _release(Kind.SETTINGS, name, version, counter, hw_id, requires)
    _add(repo, lambda: building.settings_image(folder), release, None)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ReleaseProblem(f"{path}: {error.strerror}") from error


def _release(
    kind: Kind, name: str, version: str, counter: int, hw_ids: list[str], requires: Requires
) -> Release:
    return Release(
        kind=kind,
        name=name,
        version=version,
        release_counter=counter,
        hw_ids=tuple(hw_ids),
        raw_sha256="",
        raw_length=0,
        encoding=Encoding.ZSTD,
        requires=requires,
    )


def _sent(release: Release, *, raw: bool) -> Release:
    return msgspec.structs.replace(release, encoding=Encoding.RAW) if raw else release


def _add(
    repo: Path, image: Callable[[], bytes], release: Release, delta_from: list[str] | None
) -> None:
    with _told():
        workshop = Workshop(repo)
        for path in workshop.add(image(), release, delta_from or ()):
            size = (repo / "targets" / path).stat().st_size
            _say(f"{path}  {size} bytes")
        _waiting(repo)


# --------------------------------------------------------------------------- signing, publishing


@app.command()
def sign(
    repo: Repo,
    key: Annotated[list[Path], typer.Option("--key", help="A .key file; may be repeated.")],
    passphrase_file: Secret = None,
) -> None:
    """Sign whatever is staged and these keys sign; each signer does it where the key is."""
    with _told():
        secret = keys.passphrase(passphrase_file)
        for path in key:
            signed = Workshop(repo).sign(keys.signer(path, secret))
            _say(f"{path.stem} signed {', '.join(signed) or 'nothing: nothing waits for it'}")
        _waiting(repo)


@app.command()
def renew(repo: Repo, role: Annotated[list[str], typer.Argument()]) -> None:
    """Stage roles unchanged, with a later expiry, for signing."""
    with _told():
        for each in role:
            Workshop(repo).renew(each)
        _waiting(repo)


@app.command()
def withdraw(repo: Repo, kind: Kind, version: Version) -> None:
    """Stage a kind without a version: nobody can install it once this is published."""
    with _told():
        _say(*(f"{path} withdrawn" for path in Workshop(repo).withdraw(version, kind)))
        _waiting(repo)


@app.command()
def verify(repo: Repo) -> None:
    """Check staged signatures and images, then the published state as a station would see it."""
    with _told():
        workshop = Workshop(repo)
        workshop.check()
        for path, release in checking.as_a_station(workshop):
            _say(f"{path}  {release.version}  counter {release.release_counter}")


@app.command()
def publish(
    repo: Repo,
    out: Annotated[
        Path | None, typer.Argument(help="Folder that any web server shows, or a stick.")
    ] = None,
    key_folder: Annotated[
        Path | None,
        typer.Option("--keys", help="Folder with snapshot-*.key and timestamp-*.key, for OUT."),
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", help="A cloud's address, which signs freshness itself.")
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option("--key-file", help="File with its API key; default KARVON_API_KEY_FILE."),
    ] = None,
    passphrase_file: Secret = None,
) -> None:
    """Show what is signed: in a folder, signed fresh with the online keys, or --to a cloud.

    A folder is also renewed so without changes. To the cloud images go in parts, and on from where
    they were cut; then everything becomes visible at once. As: karvon cloud releases publish.
    """
    if (out is None and to is None) or (out is None) is not (key_folder is None):
        sys.stderr.write("karvon release: give OUT and --keys for a folder, --to for a cloud\n")
        raise typer.Exit(2)
    if out is not None and key_folder is not None:
        _publish_in(repo, out, key_folder, passphrase_file)
    if to is not None:
        _publish_to(repo, to, key_file)


def _publish_in(repo: Path, out: Path, key_folder: Path, passphrase_file: Path | None) -> None:
    with _told():
        secret = keys.passphrase(passphrase_file)
        workshop = Workshop(repo)
        snapshot, timestamp = (
            keys.signer(_online(workshop, key_folder, role), secret) for role in ONLINE
        )
        number = workshop.publish(out, snapshot, timestamp)
        _say(f"published snapshot {number} in {out}")


def _publish_to(repo: Path, url: str, key_file: Path | None) -> None:
    try:
        from karvon.remote import updates
        from karvon.remote.client import Remote, RemoteError, Target
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"karvon release: the package '{error.name}' is not here; pip install 'karvon[cloud]'\n"
        )
        raise typer.Exit(1) from None
    try:
        with Remote(Target.of(url, key_file)) as cloud:
            new = updates.new_of(updates.publish(cloud, repo))
    except RemoteError as error:
        sys.stderr.write(f"karvon release: {' '.join(error.text.split())}\n")
        raise typer.Exit(error.code) from None
    _say(f"published to {url}: {', '.join(new) or 'nothing new'}")


@app.command()
def bundle(
    repo: Repo,
    out: Annotated[Path, typer.Argument(help="The .tar to write.")],
    hw_id: Annotated[str, typer.Option("--hw-id", help="The kind of controller that it is for.")],
) -> None:
    """Write what a controller without an agent is installed from; it needs nothing else."""
    with _told():
        release = bundling.write(Workshop(repo), hw_id, out)
        _say(f"{out}: {release.name} {release.version} for {hw_id}")


def _online(workshop: Workshop, folder: Path, role: str) -> Path:
    """The folder's key that root names for this role."""
    wanted = workshop.newest("root").signed.roles[role].keyids
    for path in sorted(folder.glob("*.pub")):
        if keys.public(path).keyid in wanted:
            return path.with_suffix(".key")
    raise ReleaseProblem(f"{folder}: no key there that signs {role}; it is {', '.join(wanted)}")


def _waiting(repo: Path) -> None:
    for each in Workshop(repo).waiting():
        state = "complete" if each.have >= each.need else "waits for signatures"
        _say(f"{each.role} version {each.version}: {each.have} of {each.need}, {state}")


def main() -> None:
    app(prog_name="karvon release")
