"""`karvon cloud certificates`: an authority of one's own for the servers beside the cloud.

| file               | what                                             |
|--------------------|--------------------------------------------------|
| ca.pem, ca.key     | the authority that signs                         |
| next/              | the one that will sign, once everybody trusts it |
| old-ca.pem         | the one that signed before                       |
| trust.pem          | all of these, for clients                        |
| server.pem, .key   | the server's own                                 |
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from cryptography import x509

from cloud.kernel.embedded.tls import TlsFiles, ensure_certificates, write_public
from cloud.shell import Json, fail

NEXT: Final = "next"
OLD: Final = "old-ca.pem"
TRUST: Final = "trust.pem"
app = typer.Typer(
    help="Certificates of the broker and proxy beside the cloud, by an authority of one's own.",
    no_args_is_help=True,
)
Folder = Annotated[Path, typer.Argument(help="Where they lie; ca.key never leaves it.")]
Names = Annotated[
    list[str], typer.Option("--name", help="What clients reach the server by; repeatable.")
]


@app.command()
def ensure(
    folder: Folder,
    name: Names,
    renew: Annotated[
        bool, typer.Option("--renew", help="Also when it is not near its end.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make the authority and the server's certificate, or renew it in its last month."""
    with _told():
        _tell(folder, _ensured(folder, name, renew=renew), as_json=as_json)


@app.command()
def announce(folder: Folder, as_json: Json = False) -> None:
    """Make the next authority; clients have to get trust.pem before it signs anything."""
    with _told():
        _has_begun(folder)
        before = _trust(folder)
        ensure_certificates(folder / NEXT, [], datetime.now(UTC))
        _write_trust(folder)
        _tell(folder, before != _trust(folder), as_json=as_json)


@app.command()
def switch(folder: Folder, name: Names, as_json: Json = False) -> None:
    """Let the announced authority sign from now on; the one before stays in trust.pem."""
    with _told():
        coming = folder / NEXT
        if not (coming / "ca.pem").exists():
            if not (folder / OLD).exists():
                fail(1, f"{folder}: no authority was announced; begin with: certificates announce")
            _tell(folder, _ensured(folder, name), as_json=as_json)
            return
        if (coming / "ca.key").exists():  # else this was ended between the two
            write_public(folder / OLD, (folder / "ca.pem").read_bytes())
            (coming / "ca.key").replace(folder / "ca.key")
        (coming / "ca.pem").replace(folder / "ca.pem")
        shutil.rmtree(coming)
        _tell(folder, _ensured(folder, name, renew=True), as_json=as_json)


@app.command()
def forget(folder: Folder, as_json: Json = False) -> None:
    """Take the authority before the last switch out of trust.pem."""
    with _told():
        there = (folder / OLD).exists()
        (folder / OLD).unlink(missing_ok=True)
        _write_trust(folder)
        _tell(folder, there, as_json=as_json)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        fail(3, f"{error}; run it as the folder's owner, or mend what is there")


def _has_begun(folder: Path) -> None:
    if not (folder / "ca.pem").exists():
        fail(1, f"{folder}: there is no authority yet; begin with: certificates ensure")


def _ensured(folder: Path, names: list[str], *, renew: bool = False) -> bool:
    """Whether anything is new."""
    files = TlsFiles(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    before = [_content(files.ca), _content(files.certificate), _trust(folder)]
    if renew:
        files.certificate.unlink(missing_ok=True)
    ensure_certificates(folder, names, datetime.now(UTC), common_name=names[0])
    _write_trust(folder)
    return before != [_content(files.ca), _content(files.certificate), _trust(folder)]


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _trust(folder: Path) -> bytes:
    return _content(folder / TRUST)


def _write_trust(folder: Path) -> None:
    """The authorities in the order of their time, so that a switch changes nothing here."""
    trusted = [folder / OLD, folder / "ca.pem", folder / NEXT / "ca.pem"]
    content = b"".join(_content(path) for path in trusted)
    if content != _trust(folder):
        write_public(folder / TRUST, content)


def _tell(folder: Path, changed: bool, *, as_json: bool) -> None:
    server = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
    until = server.not_valid_after_utc
    told: dict[str, Any] = {"changed": changed, "until": until.isoformat()}
    what = "changed" if changed else "unchanged"
    text = f"{what}; {folder / 'server.pem'} holds until {until:%Y-%m-%d}"
    sys.stdout.write(f"{json.dumps(told)}\n" if as_json else f"{text}\n")
