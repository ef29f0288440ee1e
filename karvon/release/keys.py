"""Signing keys as files: the secret half encrypted with a passphrase, the public half beside it.

A key is named `<role>-<number>`: `root-1.key` is secret, `root-1.pub` may be seen by anybody.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, SSlibKey

from edge_agent.private import write_private

PASSPHRASE: Final = "KARVON_RELEASE_PASSPHRASE"  # noqa: S105  # the variable's name
LEAST_PASSPHRASE: Final = 12
SETS: Final = {
    "root": (2, 3),
    "targets": (2, 3),
    "agent": (2, 2),
    "board": (2, 2),
    "settings": (2, 2),
    "snapshot": (1, 1),
    "timestamp": (1, 1),
}
"""How many signatures each role needs, of how many keys."""
ONLINE: Final = ("snapshot", "timestamp")


class ReleaseProblem(Exception):
    """Something about a release cannot be done; the text says what, why, and what to do."""


def passphrase(file: Path | None) -> bytes:
    """From the file, or else the environment. Raises ReleaseProblem."""
    if file is not None:
        try:
            found = file.read_bytes().rstrip(b"\r\n")
        except OSError as error:
            raise ReleaseProblem(f"{file}: {error.strerror}; name the passphrase's file") from error
    else:
        found = os.environ.get(PASSPHRASE, "").encode()
    if len(found) < LEAST_PASSPHRASE:
        raise ReleaseProblem(
            f"a passphrase has at least {LEAST_PASSPHRASE} characters;"
            f" give it with --passphrase-file or in {PASSPHRASE}"
        )
    return found


def create(folder: Path, name: str, secret: bytes) -> SSlibKey:
    """A new key, both halves on disk. Raises ReleaseProblem; never replaces one that is there."""
    path = folder / f"{name}.key"
    if path.exists():
        raise ReleaseProblem(f"{path} is there already; choose another name, or move it away")
    signer = CryptoSigner(Ed25519PrivateKey.generate())
    key = signer.public_key
    if not isinstance(key, SSlibKey):
        raise ReleaseProblem("this securesystemslib makes keys of another kind; use 1.2 or newer")
    pem = signer.private_bytes
    encrypted = load_pem_private_key(pem, None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(secret)
    )
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(path, encrypted)
        public = {"keyid": key.keyid, **key.to_dict()}
        (folder / f"{name}.pub").write_text(json.dumps(public, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ReleaseProblem(f"{path}: {error.strerror}; the key was not kept") from error
    return key


def create_all(folder: Path, secret: bytes) -> list[str]:
    """Every key that a repository starts with; returns their names. Raises ReleaseProblem."""
    names = [f"{role}-{number + 1}" for role, (_, count) in SETS.items() for number in range(count)]
    for name in names:
        create(folder, name, secret)
    return names


def public(path: Path) -> SSlibKey:
    """Raises ReleaseProblem."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return SSlibKey.from_dict(plain.pop("keyid"), plain)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReleaseProblem(f"{path}: not a public key ({error})") from error


def signer(path: Path, secret: bytes) -> CryptoSigner:
    """The key that signs. Raises ReleaseProblem for a wrong passphrase."""
    try:
        return CryptoSigner(load_pem_private_key(path.read_bytes(), secret))
    except OSError as error:
        raise ReleaseProblem(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ReleaseProblem(
            f"{path}: not a key that this passphrase opens; give the one it was made with"
        ) from error
