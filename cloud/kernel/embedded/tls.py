"""A certificate authority of our own, for a broker that nobody else has given a certificate.

Agents trust `ca.pem`, which they get when they are commissioned; it lives ten years. The server's
certificate lives 397 days and is renewed a month before its end or when the host names change.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_LIFE: Final = timedelta(days=3650)
SERVER_LIFE: Final = timedelta(days=397)
RENEW_BEFORE: Final = timedelta(days=30)
CLOCK_SLACK: Final = timedelta(days=1)


@dataclass(frozen=True)
class TlsFiles:
    """Where a server's certificate, its private key (0600) and the authority's certificate lie."""

    ca: Path
    certificate: Path
    key: Path


def ensure_certificates(folder: Path, hostnames: Sequence[str], now: datetime) -> TlsFiles:
    """Make or renew what is missing, near its end, or made for other names."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = TlsFiles(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    ca_key_file = folder / "ca.key"
    if not (files.ca.exists() and ca_key_file.exists()):
        key = ec.generate_private_key(ec.SECP256R1())
        _write_key(ca_key_file, key)
        _write(files.ca, _authority(key, now).public_bytes(serialization.Encoding.PEM))
    names = [*dict.fromkeys(["localhost", "127.0.0.1", *hostnames])]
    if _needs_renewal(files, names, now):
        ca = x509.load_pem_x509_certificate(files.ca.read_bytes())
        ca_key = serialization.load_pem_private_key(ca_key_file.read_bytes(), None)
        assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _server(ca, ca_key, key, names, now)
        _write_key(files.key, key)
        _write(files.certificate, certificate.public_bytes(serialization.Encoding.PEM))
    return files


def _needs_renewal(files: TlsFiles, names: list[str], now: datetime) -> bool:
    if not (files.certificate.exists() and files.key.exists()):
        return True
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    authority = x509.load_pem_x509_certificate(files.ca.read_bytes())
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return (
        certificate.not_valid_after_utc - now < RENEW_BEFORE
        or certificate.issuer != authority.subject
        or certificate.public_key() != key.public_key()  # the run before ended between two writes
        or list(alternative.value) != [_general_name(name) for name in names]
    )


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
    ca_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePrivateKey,
    names: list[str],
    now: datetime,
) -> x509.Certificate:
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
    server_auth = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    return (
        _builder(ca.subject, _name("Karvon broker"), key.public_key(), now, SERVER_LIFE)
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
    write_private(path, content)
    if path.suffix == ".pem":
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
