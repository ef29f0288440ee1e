"""Stations' certificates: signed for the station that asks, never for another one's name.

The authority is made at first use and lies in the data folder, or is an operator's own. What it has
signed stands in a ledger (`security_store`), which is what revocation goes by: a station's
certificate is judged at each connection, so that nobody need fetch a list.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloud.communication.api import LONGEST_CSR, CertificateRefused
from cloud.kernel.config import CloudConfig
from cloud.kernel.embedded.tls import (
    CLOCK_SLACK,
    AuthorityFiles,
    SigningKey,
    TlsFiles,
    ensure_certificates,
    pem_chain,
    signing_key,
)

RSA_BITS: Final = (2048, 8192)
_DIGESTS: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


@dataclass(frozen=True)
class Signed:
    """A station's certificate; `pem` goes on to the one below the root's."""

    serial: str
    fingerprint: str
    pem: str
    not_before: datetime
    not_after: datetime


class CertificateAuthority:
    """Signs for stations. Raises OSError and ValueError when the files are not an authority's."""

    def __init__(
        self, files: AuthorityFiles, organization: str, life: timedelta = timedelta(days=365)
    ) -> None:
        self._chain = x509.load_pem_x509_certificates(files.certificate.read_bytes())
        self._key: SigningKey = signing_key(files.key)
        if self._chain[0].public_key() != self._key.public_key():
            raise ValueError(f"{files.key} is not the key of {files.certificate}")
        self._organization = organization
        self._life = life

    @property
    def pem(self) -> str:
        """What stations have to trust: the authority's certificate and those above it."""
        encoding = serialization.Encoding.PEM
        return b"".join(one.public_bytes(encoding) for one in self._chain).decode()

    def sign(self, csr_pem: str, identity: str, now: datetime) -> Signed:
        """A certificate for the request's key in the station's name. Raises CertificateRefused.

        The subject is made by us: what else a request asks for (other names, uses, a longer life)
        is not granted.
        """
        key = requested_key(csr_pem, identity)
        issuer = self._chain[0]
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, self._organization),
                x509.NameAttribute(NameOID.COMMON_NAME, identity),
            ]
        )
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        above = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = (
            x509.CertificateBuilder()
            .issuer_name(issuer.subject)
            .subject_name(subject)
            .public_key(key)
            .serial_number(secrets.randbits(127) | 1 << 126)
            .not_valid_before(max(now - CLOCK_SLACK, issuer.not_valid_before_utc))
            .not_valid_after(min(now + self._life, issuer.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(key), critical=True)
            .add_extension(usage, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(above, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Signed(
            serial=f"{certificate.serial_number:x}",
            fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
            pem=pem_chain([certificate, *self._chain]).decode(),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
        )


def requested_key(csr_pem: str, identity: str) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    """The key of a request that the station may make. Raises CertificateRefused."""
    if len(csr_pem) > LONGEST_CSR:
        raise _refused("length", f"a request has at most {LONGEST_CSR} characters")
    try:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        proven, digest = csr.is_signature_valid, csr.signature_hash_algorithm
        names = [name.value for name in csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        key = csr.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _refused("unreadable", "this is no PEM certificate signing request") from None
    if not proven:
        raise _refused("signature", "the request is not signed with the key that it names")
    if not isinstance(digest, _DIGESTS):
        raise _refused("digest", "the request is signed over a digest weaker than SHA-256")
    if names != [identity]:
        told = ", ".join(repr(name) for name in names) or "nobody"
        raise _refused("name", f"the request names {told}; its common name must be {identity!r}")
    if isinstance(key, rsa.RSAPublicKey) and RSA_BITS[0] <= key.key_size <= RSA_BITS[1]:
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVES):
        return key
    raise _refused("key", "the key must be RSA of 2048 bits or more, or on P-256, P-384 or P-521")


def key_digest(csr_pem: str, identity: str) -> bytes:
    """SHA-256 of the key that a request names and is signed with. Raises CertificateRefused."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    spki = requested_key(csr_pem, identity).public_bytes(serialization.Encoding.DER, form)
    return hashlib.sha256(spki).digest()


def _refused(why: str, detail: str) -> CertificateRefused:
    return CertificateRefused(detail, why=why)


def _usage(key: object) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_encipherment=isinstance(key, rsa.RSAPublicKey),
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


# --------------------------------------------------------------------------- its files


@dataclass(frozen=True)
class PkiSettings:
    """Where the files lie; what is None is made by us in the folder."""

    folder: Path
    hostnames: Sequence[str]
    organization: str
    life: timedelta = timedelta(days=365)
    authority: AuthorityFiles | None = None
    server: AuthorityFiles | None = None
    """The TLS port's own certificate, with its chain, and its key."""

    @classmethod
    def of(cls, config: CloudConfig) -> Self | None:
        """None in one process of several that was given no authority: each would make its own."""
        authority = _pair(config.ocpp_ca_file, config.ocpp_ca_key_file)
        if authority is None and config.role != "all":
            return None
        return cls(
            folder=config.data_dir / "ocpp-tls",
            hostnames=[config.reachable_host],
            organization=config.ocpp_organization,
            life=timedelta(days=config.ocpp_certificate_days),
            authority=authority,
            server=_pair(config.ocpp_certificate_file, config.ocpp_key_file),
        )


def _pair(certificate: Path | None, key: Path | None) -> AuthorityFiles | None:
    return None if certificate is None or key is None else AuthorityFiles(certificate, key)


@dataclass(frozen=True)
class Pki:
    authority: CertificateAuthority
    tls: TlsFiles
    """`ca` is what clients' certificates are verified by."""

    @classmethod
    def open(cls, settings: PkiSettings, now: datetime) -> Self:
        """Make or renew what is missing. Raises OSError and ValueError."""
        files = ensure_certificates(
            settings.folder,
            settings.hostnames,
            now,
            common_name=settings.hostnames[0] if settings.hostnames else "localhost",
            authority=settings.authority,
        )
        signer = settings.authority or AuthorityFiles(files.ca, settings.folder / "ca.key")
        if settings.server is not None:
            files = TlsFiles(files.ca, settings.server.certificate, settings.server.key)
        return cls(CertificateAuthority(signer, settings.organization, settings.life), files)
