"""A certificate authority of our own, for servers that nobody else has given a certificate.

Agents trust `ca.pem`, which they get when they are commissioned; it lives ten years. The server's
certificate lives 397 days and is renewed a month before its end or when the host names change.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_LIFE: Final = timedelta(days=3650)
SERVER_LIFE: Final = timedelta(days=397)
RENEW_BEFORE: Final = timedelta(days=30)
CLOCK_SLACK: Final = timedelta(days=1)


SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class AuthorityFiles:
    """Somebody's authority: its certificate, behind it those up to the root's, and its key."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class TlsFiles:
    """Where a server's certificate, its private key (0600) and the authority's certificate lie."""

    ca: Path
    certificate: Path
    key: Path


def ensure_certificates(
    folder: Path,
    hostnames: Sequence[str],
    now: datetime,
    *,
    common_name: str = "Karvon broker",
    authority: AuthorityFiles | None = None,
) -> TlsFiles:
    """Make or renew what is missing, near its end, or made for other names.

    One process makes, others that share the folder wait for it. An authority that is given signs
    instead of our own.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        signer = authority or _own_authority(folder, now)
        files = TlsFiles(signer.certificate, folder / "server.pem", folder / "server.key")
        names = [*dict.fromkeys(["localhost", "127.0.0.1", *hostnames])]
        if _needs_renewal(files, names, now):
            chain = x509.load_pem_x509_certificates(signer.certificate.read_bytes())
            key = ec.generate_private_key(ec.SECP256R1())
            made = _server(chain[0], signing_key(signer.key), key, common_name, names, now)
            _write_key(files.key, key)
            _write(files.certificate, pem_chain([made, *chain]))
        return files


def _own_authority(folder: Path, now: datetime) -> AuthorityFiles:
    files = AuthorityFiles(folder / "ca.pem", folder / "ca.key")
    if not (files.certificate.exists() and files.key.exists()):
        key = ec.generate_private_key(ec.SECP256R1())
        _write_key(files.key, key)
        _write(files.certificate, _authority(key, now).public_bytes(serialization.Encoding.PEM))
    return files


def signing_key(file: Path) -> SigningKey:
    """Raises ValueError for a key that is encrypted, or neither ECDSA nor RSA."""
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), None)
    except TypeError:
        raise ValueError(f"{file} is encrypted; give the key without a password") from None
    if not isinstance(key, SigningKey):
        raise ValueError(f"{file} holds neither an ECDSA nor an RSA key")  # noqa: TRY004  # a file's content
    return key


def pem_chain(certificates: Sequence[x509.Certificate]) -> bytes:
    """A certificate and those between it and the root, which the other side has."""
    own, *above = certificates
    between = [one for one in above if one.issuer != one.subject]
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in (own, *between))


def _needs_renewal(files: TlsFiles, names: list[str], now: datetime) -> bool:
    if not (files.certificate.exists() and files.key.exists()):
        return True
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    authority = x509.load_pem_x509_certificate(files.ca.read_bytes())
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return (
        certificate.not_valid_after_utc - now < RENEW_BEFORE
        or not _signed_by(certificate, authority)
        or certificate.public_key() != key.public_key()  # the run before ended between two writes
        or list(alternative.value) != [_general_name(name) for name in names]
    )


def _signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _authority(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    name = _name(f"Karvon local authority {x509.random_serial_number():x}"[:40])
    usage = _key_usage(sign_certificates=True)
    return (
        _builder(name, name, key.public_key(), now, CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )


def _server(
    ca: x509.Certificate,
    ca_key: SigningKey,
    key: ec.EllipticCurvePrivateKey,
    common_name: str,
    names: list[str],
    now: datetime,
) -> x509.Certificate:
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
    server_auth = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    return (
        _builder(ca.subject, _name(common_name[:64]), key.public_key(), now, SERVER_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(sign_certificates=False), critical=True)
        .add_extension(server_auth, critical=False)
        .add_extension(issuer_id, critical=False)
        .add_extension(alternatives, critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _builder(
    issuer: x509.Name,
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    life: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SLACK)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    _write(path, key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain))


def _write(path: Path, content: bytes) -> None:
    if path.suffix == ".pem":
        write_public(path, content)
    else:
        write_private(path, content)


def write_public(path: Path, content: bytes) -> None:
    """As `write_private`, for everybody to read (0644)."""
    write_private(path, content)
    path.chmod(0o644)


def write_private(path: Path, content: bytes) -> None:
    """Replace a file of ours (0600) so that a reader or a crash sees the old one or the new."""
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
