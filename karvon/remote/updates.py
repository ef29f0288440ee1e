"""More of `karvon cloud releases` and `campaigns`: bringing what was signed, and looking closer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import typer

from karvon.remote.call import Call, Option, command
from karvon.remote.client import FAILED, USAGE, Remote, RemoteError, at
from karvon.remote.show import Column
from karvon.remote.tasks import STATION

PART: Final = 4 * 1024 * 1024
ROLES: Final = ("targets", "agent", "board", "settings")
ONLINE: Final = ("snapshot", "timestamp")
STEPS: Final = (Column("at"), Column("what"), Column("reason"))


def add_publishing(branch: typer.Typer) -> None:
    """`releases publish` and `releases keys`."""
    folder = Option("repo", Path, ..., "The folder in which releases are made.", argument=True)
    about = "Bring what is signed there to the cloud: images first, then everything at once."
    command(branch, "publish", _publish, about, [folder])
    keys = Option("keys", Path, ..., "The folder of the release keys.", argument=True)
    about = (
        "Put the cloud's public keys among the release keys, as snapshot-1.pub and timestamp-1.pub,"
        " before the repository is started: its root lets the cloud sign freshness."
    )
    command(branch, "keys", _keys, about, [keys])
    command(branch, "roots", _roots, "Write the roots that stations are commissioned with.", [keys])


def add_history(branch: typer.Typer, campaign: Option) -> None:
    about = "What a station went through, from the beginning."
    command(branch, "history", _history, about, [campaign, STATION])


def _history(call: Call, *, campaign: str, station: str) -> None:
    path = at("/campaigns/{campaign}/devices/{station}/history", campaign=campaign, station=station)
    call.rows(STEPS, list(call.cloud.items(path, {}, None)))


def _keys(call: Call, *, keys: Path) -> None:
    told = json.dumps(call.cloud.get("/release-trust")["online"], indent=1) + "\n"
    for role in ONLINE:
        _write(keys / f"{role}-1.pub", told)
    call.done(f"{keys}: snapshot-1.pub and timestamp-1.pub are the cloud's", folder=str(keys))


def _roots(call: Call, *, keys: Path) -> None:
    trust = call.cloud.get("/release-trust")
    if trust["root"] is None:
        raise RemoteError(FAILED, "no root was published yet; publish a repository first")
    _write(keys / "images.root.json", trust["root"])
    _write(keys / "director.root.json", trust["director_root"])
    call.done(f"{keys}: images.root.json and director.root.json", folder=str(keys))


def _write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RemoteError(FAILED, f"{file}: {error.strerror}; free or allow it, again") from None


# --------------------------------------------------------------------------- publishing


def _publish(call: Call, *, repo: Path) -> None:
    answer = publish(call.cloud, repo)
    if call.as_json:
        call.json(answer)
    else:
        call.done(f"published: {', '.join(new_of(answer)) or 'nothing new'}")


def publish(cloud: Remote, repo: Path) -> dict[str, Any]:
    """Bring what is signed in the folder to the cloud; returns what that made of it.

    Raises RemoteError; what was uploaded by then is not uploaded again.
    """
    documents = [("root", file) for file in _roots_in(repo)]
    documents += [(role, file) for role in ROLES if (file := _newest(repo, role)) is not None]
    if not documents:
        raise RemoteError(USAGE, f"{repo}: no metadata there; is it the folder of a release?")
    read = [(role, _read(file)) for role, file in documents]
    for role, text in read:
        for path, digest in _named(role, text).items():
            _upload(cloud, repo / "targets" / path, digest)
    body = {"metadata": [{"role": role, "body": text} for role, text in read]}
    answer: dict[str, Any] = cloud.ask("POST", "/releases", body=body).json()
    _settle(repo)
    return answer


def new_of(answer: Mapping[str, Any]) -> list[str]:
    """The releases that were not there before, for people."""
    return [f"{one['name']} {one['version']} (release {one['id']})" for one in answer["releases"]]


def _roots_in(repo: Path) -> Iterator[Path]:
    """Every root from the first on: the cloud takes those that it does not have."""
    published = (repo / "metadata").glob("*.root.json")
    yield from sorted(published, key=lambda file: int(file.name.split(".")[0]))
    staged = repo / "staged" / "root.json"
    if staged.exists():
        yield staged


def _newest(repo: Path, role: str) -> Path | None:
    staged = repo / "staged" / f"{role}.json"
    if staged.exists():
        return staged
    found = (repo / "metadata").glob(f"*.{role}.json")
    return max(found, key=lambda file: int(file.name.split(".")[0]), default=None)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RemoteError(USAGE, f"{file} cannot be read: {error}") from None


def _named(role: str, text: str) -> dict[str, str]:
    """The files that a delegated role names, with their SHA-256."""
    if role in {"root", "targets"}:
        return {}
    try:
        targets = json.loads(text)["signed"]["targets"]
        return {path: target["hashes"]["sha256"] for path, target in targets.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RemoteError(USAGE, f"{role} is no TUF metadata: {error}") from None


def _upload(cloud: Remote, file: Path, digest: str) -> None:
    """What the cloud does not have of it yet."""
    path = at("/release-files/{digest}", digest=digest)
    offset = _received(cloud, path)
    try:
        with file.open("rb") as image:
            if hashlib.file_digest(image, "sha256").hexdigest() != digest:
                raise RemoteError(FAILED, f"{file} is not what was signed; build it again")
            image.seek(offset)
            while part := image.read(PART):
                answer = cloud.ask("PUT", path, {"offset": offset}, content=part)
                offset = answer.json()["received"]
                image.seek(offset)
    except OSError as error:
        raise RemoteError(USAGE, f"{file} cannot be read: {error.strerror}") from None


def _received(cloud: Remote, path: str) -> int:
    try:
        return int(cloud.get(path)["received"])
    except RemoteError as error:
        if error.problem.get("code") == "release_file.not_found":
            return 0
        raise


def _settle(repo: Path) -> None:
    """What was staged is published: the next version follows it."""
    for role in ("root", *ROLES):
        staged = repo / "staged" / f"{role}.json"
        if staged.exists():
            version = json.loads(_read(staged))["signed"]["version"]
            (repo / "metadata").mkdir(exist_ok=True)
            staged.replace(repo / "metadata" / f"{version}.{role}.json")
