"""Certificates for stations, and the TLS port that asks for them, over real sockets."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloud.communication.admission import (
    Admit,
    Check,
    ClientCertificate,
    Policy,
    Profile,
    Reason,
    Refuse,
    Request,
    StationFacts,
    decide,
)
from cloud.communication.api import LONGEST_CSR, CertificateRefused
from cloud.communication.pki import Pki, PkiSettings
from cloud.communication.tls import client_certificate, load_server_certificate, server_context
from cloud.kernel.embedded.tls import AuthorityFiles

NOW = datetime.now(UTC)


def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def pem_key(private: Any) -> bytes:
    return bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def csr(*names: str, private: Any = None) -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    made = builder.sign(private or key(), hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


def settings(folder: Path, **other: Any) -> PkiSettings:
    return PkiSettings(folder, ["localhost"], "Registan Energy", **other)


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    Pki.open(settings(tmp_path / "pki"), NOW - timedelta(days=500))
    return Pki.open(settings(tmp_path / "pki"), NOW)


def why(pki: Pki, request: str, identity: str = "CP-1") -> str:
    with pytest.raises(CertificateRefused) as refused:
        pki.authority.sign(request, identity, NOW)
    return str(refused.value.params["why"])


# --------------------------------------------------------------------------- signing


def test_a_request_in_the_stations_name_is_signed_for_a_year(pki: Pki) -> None:
    private = key()
    signed = pki.authority.sign(csr("CP-1", private=private), "CP-1", NOW)
    (certificate,) = x509.load_pem_x509_certificates(signed.pem.encode())
    root = x509.load_pem_x509_certificate(pki.authority.pem.encode())
    certificate.verify_directly_issued_by(root)
    names = {attribute.oid: attribute.value for attribute in certificate.subject}
    assert names == {NameOID.COMMON_NAME: "CP-1", NameOID.ORGANIZATION_NAME: "Registan Energy"}
    assert certificate.public_key() == private.public_key()
    assert signed.not_after - NOW == pytest.approx(timedelta(days=365), abs=timedelta(seconds=1))
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert signed.serial != pki.authority.sign(csr("CP-1"), "CP-1", NOW).serial


def test_a_request_for_another_stations_name_is_refused(pki: Pki) -> None:
    for names in (("CP-2",), ("CP-1", "CP-2"), ("CP-2", "CP-1"), (), ("cp-1",), ("CP-1 ",)):
        assert why(pki, csr(*names)) == "name", names


def test_weak_keys_and_broken_requests_are_refused(pki: Pki) -> None:
    weak = rsa.generate_private_key(65537, 1024)
    assert why(pki, csr("CP-1", private=weak)) == "key"
    assert why(pki, csr("CP-1", private=ec.generate_private_key(ec.SECP192R1()))) == "key"
    edwards = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CP-1")])
    ).sign(ed25519.Ed25519PrivateKey.generate(), None)  # fmt: skip
    pem = edwards.public_bytes(serialization.Encoding.PEM).decode()
    assert why(pki, pem) in {"digest", "key"}
    good = csr("CP-1")
    assert why(pki, "") == why(pki, good[: len(good) // 2]) == "unreadable"
    assert why(pki, good + " " * LONGEST_CSR) == "length"
    der = bytearray(x509.load_pem_x509_csr(good.encode()).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    bent = ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", "CERTIFICATE REQUEST")
    assert why(pki, bent) == "signature"


def test_an_rsa_key_of_2048_bits_is_good(pki: Pki) -> None:
    private = rsa.generate_private_key(65537, 2048)
    pki.authority.sign(csr("Зарядка", private=private), "Зарядка", NOW)


def test_the_key_is_private_and_the_authority_stays(tmp_path: Path) -> None:
    first = Pki.open(settings(tmp_path), NOW)
    assert (tmp_path / "ca.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "server.key").stat().st_mode & 0o777 == 0o600
    again = Pki.open(settings(tmp_path), NOW + timedelta(days=380))
    assert again.authority.pem == first.authority.pem
    server = x509.load_pem_x509_certificate(again.tls.certificate.read_bytes())
    assert server.not_valid_after_utc > NOW + timedelta(days=700)
    assert server.subject.rfc4514_string() == "CN=localhost"


def sub_authority(folder: Path) -> AuthorityFiles:
    """An operator's: RSA, below a root of its own."""
    root_key, private = key(), rsa.generate_private_key(65537, 2048)
    chain = []
    for name, owner, issuer, signer in (
        ("sub", private, "root", root_key), ("root", root_key, "root", root_key),
    ):  # fmt: skip
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(owner.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(days=1))
            .not_valid_after(NOW + timedelta(days=200))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        )
        chain.append(builder.sign(signer, hashes.SHA256()))
    files = AuthorityFiles(folder / "sub.pem", folder / "sub.key")
    pems = [one.public_bytes(serialization.Encoding.PEM) for one in chain]
    files.certificate.write_bytes(b"".join(pems))
    files.key.write_bytes(pem_key(private))
    (folder / "root.pem").write_bytes(pems[1])
    return files


def test_an_operators_authority_signs_and_its_end_is_the_last(tmp_path: Path) -> None:
    pki = Pki.open(settings(tmp_path / "pki", authority=sub_authority(tmp_path)), NOW)
    signed = pki.authority.sign(csr("CP-1"), "CP-1", NOW)
    assert signed.pem.count("BEGIN CERTIFICATE") == 1 + 1, "the root is the station's own"
    assert signed.not_after < NOW + timedelta(days=201)
    other = AuthorityFiles(tmp_path / "sub.pem", tmp_path / "pki" / "server.key")
    with pytest.raises(ValueError, match="is not the key of"):
        Pki.open(settings(tmp_path / "pki", authority=other), NOW)


# --------------------------------------------------------------------------- the TLS port


@dataclass
class Port:
    number: int
    context: ssl.SSLContext
    ca: str
    met: list[ClientCertificate | None] = field(default_factory=list)


@asynccontextmanager
async def serving(pki: Pki) -> AsyncIterator[Port]:
    """Answers each connection with the name that it has proven."""
    context = server_context(pki.tls)
    port = Port(0, context, pki.authority.pem)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met = client_certificate(writer.get_extra_info("ssl_object"))
        port.met.append(met)
        writer.write(f"{met.common_name if met else '-'}\n".encode())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    port.number = server.sockets[0].getsockname()[1]
    async with server:
        yield port


@pytest.fixture
async def port(pki: Pki) -> AsyncIterator[Port]:
    async with serving(pki) as made:
        yield made


def client(port: Port, *files: Path, **versions: Any) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=port.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for name, value in versions.items():
        setattr(context, name, value)
    if files:
        context.load_cert_chain(*files)
    return context


async def told(port: Port, context: ssl.SSLContext) -> str:
    """The server's answer; in TLS 1.3 a refusal comes in its place."""
    reader, writer = await asyncio.open_connection("localhost", port.number, ssl=context)
    try:
        line = (await reader.readline()).decode().strip()
        if not line:
            raise ConnectionError("closed without an answer")
        return line
    finally:
        writer.transport.abort()


def holding(folder: Path, pem: str, private: Any) -> tuple[Path, Path]:
    files = folder / "client.pem", folder / "client.key"
    files[0].write_text(pem)
    files[1].write_bytes(pem_key(private))
    return files


def station(folder: Path, pki: Pki, at: datetime = NOW) -> tuple[Path, Path]:
    private = key()
    signed = pki.authority.sign(csr("CP-1", private=private), "CP-1", at)
    return holding(folder, signed.pem, private)


TLS_1_2 = {"maximum_version": ssl.TLSVersion.TLSv1_2}
TLS_1_3 = {"minimum_version": ssl.TLSVersion.TLSv1_3}
BOTH = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3], ids=["1.2", "1.3"])


@BOTH
async def test_a_certificate_is_asked_for_but_not_demanded(
    port: Port, pki: Pki, tmp_path: Path, version: dict[str, Any]
) -> None:
    assert await told(port, client(port, **version)) == "-"
    files = station(tmp_path, pki)
    assert await told(port, client(port, *files, **version)) == "CP-1"
    (certificate,) = [met for met in port.met if met]
    assert certificate.organization == "Registan Energy"
    leaf = x509.load_pem_x509_certificate(files[0].read_bytes())
    assert certificate.fingerprint == leaf.fingerprint(hashes.SHA256()).hex()


async def test_a_good_certificate_is_good_for_its_own_station_only(
    port: Port, pki: Pki, tmp_path: Path
) -> None:
    await told(port, client(port, *station(tmp_path, pki)))
    (certificate,) = port.met
    facts = StationFacts(1, 1, profile=Profile.MUTUAL_TLS)

    def judged(identity: str) -> Admit | Refuse | Check:
        asked = Request(identity, "::1", ("ocpp2.0.1",), tls=True, certificate=certificate)
        return decide(asked, facts, Policy(organization="Registan Energy"), NOW)

    assert judged("CP-2") == Refuse(401, Reason.CERTIFICATE_NAME)
    admitted = judged("CP-1")
    assert isinstance(admitted, Admit)
    assert admitted.profile is Profile.MUTUAL_TLS


def expired(folder: Path, pki: Pki) -> tuple[Path, Path]:
    return station(folder, pki, NOW - timedelta(days=400))


def foreign(folder: Path, pki: Pki) -> tuple[Path, Path]:
    return station(folder, Pki.open(settings(folder / "foreign"), NOW))


def self_signed(folder: Path, pki: Pki) -> tuple[Path, Path]:
    private = key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CP-1")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(1)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=1))
        .sign(private, hashes.SHA256())
    )
    return holding(folder, made.public_bytes(serialization.Encoding.PEM).decode(), private)


def for_servers(folder: Path, pki: Pki) -> tuple[Path, Path]:
    """The server's own certificate, by the same authority: stolen, it is no station's."""
    return pki.tls.certificate, pki.tls.key


@BOTH
@pytest.mark.parametrize("bad", [expired, foreign, self_signed, for_servers])
async def test_a_bad_certificate_fails_in_tls(
    port: Port,
    pki: Pki,
    tmp_path: Path,
    version: dict[str, Any],
    bad: Callable[[Path, Pki], tuple[Path, Path]],
) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await told(port, client(port, *bad(tmp_path, pki), **version))
    assert port.met == []


async def test_a_cousin_of_the_operators_root_is_no_station(tmp_path: Path) -> None:
    authority = sub_authority(tmp_path)
    pki = Pki.open(settings(tmp_path / "pki", authority=authority), NOW)
    async with serving(pki) as port:
        port.ca = (tmp_path / "root.pem").read_text()
        assert await told(port, client(port, *station(tmp_path, pki))) == "CP-1"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
async def test_old_versions_are_refused(port: Port, version: ssl.TLSVersion) -> None:
    context = client(port)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = version
    context.maximum_version = version
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await told(port, context)


@pytest.mark.parametrize(
    "cipher",
    ["ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305"],
)
async def test_only_the_named_suites_are_spoken(port: Port, cipher: str) -> None:
    context = client(port, **TLS_1_2)
    context.set_ciphers(f"{cipher}:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await told(port, context)
    for good in ("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384"):
        context.set_ciphers(good)
        assert await told(port, context) == "-"


async def test_tls_1_3_is_what_is_spoken_if_both_can(port: Port) -> None:
    _, writer = await asyncio.open_connection("localhost", port.number, ssl=client(port))
    assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
    writer.transport.abort()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="NOT RUN: there is no openssl")
async def test_a_resumed_session_still_says_who_it_is(port: Port, pki: Pki, tmp_path: Path) -> None:
    certificate, private = station(tmp_path, pki)
    for option in (["-sess_out", "session"], ["-sess_in", "session"]):
        command = [
            "openssl", "s_client", "-connect", f"127.0.0.1:{port.number}", "-tls1_2", "-cert",
            str(certificate), "-key", str(private), *option,
        ]  # fmt: skip
        done = await asyncio.to_thread(
            subprocess.run, command, cwd=tmp_path, capture_output=True, input=b"", check=False
        )
    assert b"Reused" in done.stdout, done.stderr
    assert [met.common_name for met in port.met if met] == ["CP-1", "CP-1"]


async def test_a_new_server_certificate_serves_without_a_restart(
    port: Port, pki: Pki, tmp_path: Path
) -> None:
    later = Pki.open(settings(tmp_path / "pki"), NOW + timedelta(days=380))
    load_server_certificate(port.context, later.tls)
    context = client(port)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    _, writer = await asyncio.open_connection("localhost", port.number, ssl=context)
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    served = x509.load_pem_x509_certificate(later.tls.certificate.read_bytes())
    assert shown == served.public_bytes(serialization.Encoding.DER)
