"""The controller's own key, its renewal in time, and that secrets go for good."""

from __future__ import annotations

import asyncio
import ssl
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import pulse, station_key
from edge_agent.joining import Credentials, JoinError
from edge_agent.private import wipe
from edge_agent.pulse import Pulse
from edge_agent.renewing import Renewing
from edge_agent.station_key import Held, KeyFileError, keep_certificate, kept_pair
from edge_agent.uplink.mqtt import MqttSettings, tls_context
from protocols.agent_link import ClockQuality, Stamp
from protocols.quantities import Milliseconds

NOW = datetime(2026, 6, 1, tzinfo=UTC)
YEAR = timedelta(days=365)
Sign = Callable[..., str]


@pytest.fixture(scope="module")
def authority() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - YEAR)
        .not_valid_after(NOW + 10 * YEAR)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key, made


@pytest.fixture
def sign(authority: tuple[ec.EllipticCurvePrivateKey, x509.Certificate]) -> Sign:
    """A certificate for a request, as the cloud makes one."""
    key, issuer = authority

    def certificate(request: str, at: datetime = NOW) -> str:
        csr = x509.load_pem_x509_csr(request.encode())
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
        made = (
            x509.CertificateBuilder()
            .subject_name(csr.subject)
            .issuer_name(issuer.subject)
            .public_key(csr.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(at)
            .not_valid_after(at + YEAR)
            .add_extension(identifier, critical=False)
            .sign(key, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM).decode()

    return certificate


def test_a_key_stays_the_same_until_its_certificate_is_there(tmp_path: Path, sign: Sign) -> None:
    first, again = kept_pair(tmp_path, "TAS-1"), kept_pair(tmp_path, "TAS-1")
    assert first.key == again.key
    assert stat.S_IMODE((tmp_path / station_key.DRAFT).stat().st_mode) == 0o600
    held = keep_certificate(tmp_path, first, sign(first.request))
    assert held == Held("TAS-1", NOW, NOW + YEAR)
    assert station_key.held_in(tmp_path) == held
    assert not (tmp_path / station_key.DRAFT).exists()
    assert stat.S_IMODE((tmp_path / station_key.NAME).stat().st_mode) == 0o600
    assert kept_pair(tmp_path, "TAS-1").key != first.key


def test_a_certificate_for_another_key_is_refused_and_the_old_one_stays(
    tmp_path: Path, sign: Sign
) -> None:
    old = kept_pair(tmp_path, "TAS-1")
    keep_certificate(tmp_path, old, sign(old.request))
    before = (tmp_path / station_key.NAME).read_bytes()
    other = kept_pair(tmp_path / "other", "TAS-1")
    with pytest.raises(KeyFileError, match="another key"):
        keep_certificate(tmp_path, kept_pair(tmp_path, "TAS-1"), sign(other.request))
    assert (tmp_path / station_key.NAME).read_bytes() == before


def test_a_damaged_file_is_told_and_no_file_is_none(tmp_path: Path) -> None:
    assert station_key.held_in(tmp_path) is None
    (tmp_path / station_key.NAME).write_text("station: TAS-1\nuntil: soon\n")
    with pytest.raises(KeyFileError, match="claim with a new code"):
        station_key.held_in(tmp_path)


@given(st.integers(0, 2 * 365))
def test_it_is_due_in_the_last_third_of_its_life(day: int) -> None:
    held = Held("TAS-1", NOW, NOW + YEAR)
    assert held.is_due(NOW + timedelta(days=day)) == (day * 3 >= 2 * 365)


class StandingClock:
    def __init__(self, at: datetime, quality: ClockQuality = ClockQuality.SYNCED) -> None:
        self.at, self.quality = at, quality

    def now(self) -> Stamp:
        wall = Milliseconds(round(self.at.timestamp() * 1000))
        zero = Milliseconds(0)
        return msgspec.convert(
            {"mono_ms": zero, "boot": "0" * 32, "wall_ms": wall, "quality": self.quality}, Stamp
        )


async def test_only_a_certificate_that_is_due_is_renewed_and_only_by_a_clock_that_is_set(
    tmp_path: Path, sign: Sign
) -> None:
    pair = kept_pair(tmp_path, "TAS-1")
    keep_certificate(tmp_path, pair, sign(pair.request))
    credentials = tmp_path / "credentials.json"
    known = Credentials(password="s3cret", username="TAS-1", station="TAS-1", cloud="https://x")
    credentials.write_bytes(msgspec.json.encode(known))
    late = NOW + timedelta(days=300)
    for clock in (StandingClock(NOW), StandingClock(late, ClockQuality.UNSET)):
        assert not await Renewing(credentials, clock).look()
    refusing = Renewing(credentials, StandingClock(late), renew=_refused)
    assert not await refusing.look()
    assert "was not renewed: the cloud is away" in refusing.trouble
    before = (tmp_path / station_key.NAME).read_bytes()

    def renewed(by: Credentials, folder: Path) -> str:
        assert by == known
        pair = kept_pair(folder, by.station)
        return keep_certificate(folder, pair, sign(pair.request, late)).until.isoformat()

    renewing = Renewing(credentials, StandingClock(late), renew=renewed)
    assert await renewing.look()
    assert renewing.trouble == ""
    assert (tmp_path / station_key.NAME).read_bytes() != before
    assert station_key.held_in(tmp_path) == Held("TAS-1", late, late + YEAR)
    assert not await renewing.look()


def _refused(_: Credentials, __: Path) -> str:
    raise JoinError("the cloud is away", 3)


async def test_a_broker_that_asks_for_a_certificate_gets_the_stations(
    tmp_path: Path,
    sign: Sign,
    authority: tuple[ec.EllipticCurvePrivateKey, x509.Certificate],
) -> None:
    """A TLS server that lets nobody in without one; its own comes from the same authority."""
    now = datetime.now(UTC) - timedelta(days=1)
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority[1].public_bytes(serialization.Encoding.PEM))
    for folder in ("server", "station"):
        pair = kept_pair(tmp_path / folder, "localhost")
        keep_certificate(tmp_path / folder, pair, sign(pair.request, now))
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(ca))
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_cert_chain(tmp_path / "server" / station_key.NAME)
    shown: asyncio.Queue[object] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        shown.put_nowait(writer.get_extra_info("peercert"))
        writer.write(await reader.read(1))
        writer.close()

    settings = MqttSettings(
        host="localhost",
        ca_file=ca,
        certificate_file=tmp_path / "station" / station_key.NAME,
    )
    context = tls_context(settings)
    assert context is not None
    context.check_hostname = False
    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server) as listening:
        port = listening.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        writer.close()
        certificate = await shown.get()
    assert isinstance(certificate, dict)
    assert certificate["subject"] == ((("commonName", "localhost"),),)


def test_a_secret_is_overwritten_before_it_goes(tmp_path: Path) -> None:
    secret, witness = tmp_path / "secret", tmp_path / "witness"
    secret.write_bytes(b"s3cret" * 100)
    witness.hardlink_to(secret)  # the same cells under another name
    assert wipe(secret)
    assert not secret.exists()
    assert b"s3cret" not in witness.read_bytes()
    assert len(witness.read_bytes()) == 600
    assert not wipe(secret)


async def test_looking_seldom_is_not_hanging(tmp_path: Path) -> None:
    """Six hours lie between two looks; the supervision waits for them, and no longer."""
    now = [0.0]
    hearts = Pulse(lambda: now[0])
    beat = hearts.of("certificate", 60)
    renewing = Renewing(tmp_path / "credentials.json", StandingClock(NOW), first_s=6 * 3600.0)

    async def loop() -> None:
        pulse.adopt(beat)
        await renewing.run()

    task = asyncio.create_task(loop())
    await asyncio.sleep(0)  # the task's first step
    now[0] = 6 * 3600.0
    assert hearts.overdue() == []
    now[0] += 61
    assert hearts.overdue() == ["certificate"]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
