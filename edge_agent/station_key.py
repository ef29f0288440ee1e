"""The controller's own key, made here and never sent anywhere, and the cloud's certificate of it.

Both lie in one file of the agent's user only, so that they always fit each other; lines before the
first block, which TLS libraries pass over, say whose it is and until when. `cryptography` is loaded
only to make a key or to read a new certificate.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from edge_agent.private import write_private

NAME: Final = "station.pem"
"""Beside the credentials: key and certificate."""
DRAFT: Final = "station.key.new"
"""A key whose certificate has not come yet; kept so that the same claim can be repeated."""
LONGEST_HEAD: Final = 400


class KeyFileError(Exception):
    """What should be a key or a certificate is not; the text says which file."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A private key and the request to have it certified, both PEM."""

    key: bytes
    request: str


@dataclass(frozen=True, slots=True)
class Held:
    """What a station's file says of itself."""

    station: str
    issued: datetime
    until: datetime

    def is_due(self, now: datetime) -> bool:
        """In the last third of its life, a new one is asked for."""
        return now >= self.until - (self.until - self.issued) / 3


def kept_pair(folder: Path, identity: str) -> Pair:
    """The key that waits for its certificate; made, and on disk before it is used.

    Raises OSError.
    """
    draft = folder / DRAFT
    try:
        return _pair(draft.read_bytes(), identity)
    except (OSError, ValueError, TypeError):
        made = _pair(_new_key(), identity)
        folder.mkdir(parents=True, exist_ok=True)
        write_private(draft, made.key)
        return made


def keep_certificate(folder: Path, pair: Pair, certificate: str) -> Held:
    """Put key and certificate in place, as a whole. Raises KeyFileError, OSError."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.x509.oid import NameOID

    try:
        chain = x509.load_pem_x509_certificates(certificate.encode())
        own = serialization.load_pem_private_key(pair.key, None).public_key()
    except (ValueError, TypeError) as error:
        raise KeyFileError(f"the cloud sent no certificate that can be read ({error})") from None
    leaf = chain[0]
    if leaf.public_key() != own:
        raise KeyFileError("the cloud sent a certificate for another key; claim with a new code")
    names = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    held = Held(
        str(names[0].value) if names else "", leaf.not_valid_before_utc, leaf.not_valid_after_utc
    )
    head = (
        f"station: {held.station}\nissued: {held.issued.isoformat()}\n"
        f"until: {held.until.isoformat()}\n"
    )
    write_private(folder / NAME, head.encode() + pair.key + certificate.encode())
    (folder / DRAFT).unlink(missing_ok=True)
    return held


def held_in(folder: Path) -> Held | None:
    """What the station's file says; None where there is none. Raises KeyFileError."""
    path = folder / NAME
    try:
        with path.open("rb") as file:
            head = file.read(LONGEST_HEAD).decode("ascii", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read ({error.strerror})") from error
    told = dict(line.split(": ", 1) for line in head.splitlines()[:3] if ": " in line)
    try:
        return Held(
            told["station"],
            datetime.fromisoformat(told["issued"]).astimezone(UTC),
            datetime.fromisoformat(told["until"]).astimezone(UTC),
        )
    except (KeyError, ValueError) as error:
        raise KeyFileError(f"{path} is no station's file; claim with a new code") from error


def _new_key() -> bytes:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _pair(key: bytes, identity: str) -> Pair:
    """Raises ValueError, TypeError for what is no key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    private = serialization.load_pem_private_key(key, None)
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise TypeError("the key is of another kind")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    signed = request.sign(private, hashes.SHA256())
    return Pair(key, signed.public_bytes(serialization.Encoding.PEM).decode())
