"""Attacks on the OCPP gateway, A1 to A25 as far as they concern it, by a charger that means harm.

Beside each attack another station is served all the time; what the gateway logs stays one line a
record and shows no secret.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.frames import Frame, Opcode

from cloud.communication.pki import Pki, PkiSettings
from cloud.main import utc_now
from tests.cloud.ocpp.conftest import Ocpp, Refused, serving
from tests.cloud.ocpp.wire import (
    ENERGY,
    at,
    event_201,
    meter_16,
    moment,
    sample,
    start_16,
    status_16,
    stop_16,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
SECRET = "Zarafshon-1428"  # a test's
CARD = "0011223344"
ELSEWHERE = "127.0.0.9"
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\x9b]")
Folder = pytest.TempPathFactory


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ocpp(house: Ocpp) -> Ocpp:
    """The module's gateway; each test takes stations of its own."""
    await house.token(CARD)
    return house


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def others_are_served(ocpp: Ocpp, request: pytest.FixtureRequest) -> AsyncIterator[None]:
    name = f"honest {abs(hash(request.node.name)) % 10**8}"
    station = await ocpp.booted(name)

    async def live() -> None:
        while True:
            assert "currentTime" in await station.call("Heartbeat", {})
            assert await station.call("StatusNotification", status_16(1, "Available")) == {}
            await asyncio.sleep(0.1)

    living = asyncio.create_task(live())
    yield
    assert not living.done(), "the other station is not served any more"
    living.cancel()
    await asyncio.gather(living, return_exceptions=True)
    assert "currentTime" in await station.call("Heartbeat", {})
    await station.leave()


@pytest.fixture(autouse=True)
def logs_are_safe(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.DEBUG, "cloud"), caplog.at_level(logging.DEBUG, "protocols"):
        yield
    ours = [r for r in caplog.records if r.name.split(".")[0] in {"cloud", "protocols", "asyncio"}]
    for record in ours:
        line = record.getMessage()
        assert not _UNPRINTABLE.search(line), repr(line)
        assert SECRET not in line
        assert record.exc_info is None, record.exc_text


async def refused(ocpp: Ocpp, identity: str, **options: Any) -> int:
    """The status that a connection was refused with."""
    with pytest.raises(InvalidStatus) as found:
        await ocpp.connect(identity, **options)
    body = (found.value.response.body or b"").decode()
    assert "_" not in body, "it does not say what exactly was wrong"
    return found.value.response.status_code


async def guarded(ocpp: Ocpp, identity: str, password: str = SECRET) -> None:
    """A station with a password."""
    assert (await ocpp.api.post("/stations", json={"station": identity})).status_code == 201
    path = f"/stations/{identity}/ocpp-password"
    assert (await ocpp.api.put(path, json={"password": password})).status_code == 200


# --------------------------------------------------------------------------- A1 to A5: who it is


async def test_a01_without_credentials_nothing_is_opened_or_changed(ocpp: Ocpp) -> None:
    await guarded(ocpp, "A1")
    before = await ocpp.get("/stations/A1")
    assert await refused(ocpp, "A1") == 401
    assert await ocpp.get("/stations/A1") == before
    (event,) = await ocpp.events("A1", "ocpp.refused")
    assert (event["data"]["source"], event["data"]["status"]) == ("127.0.0.1", 401)


async def test_a02_guessing_is_slowed_down_and_the_genuine_station_is_not(
    ocpp: Ocpp, house_dsn: str, tmp_path_factory: Folder, sample_size: Callable[[int, int], int]
) -> None:
    await guarded(ocpp, "A2")
    async with serving(house_dsn, tmp_path_factory.mktemp("guessed")) as target:
        genuine = await target.booted("A2", password=SECRET)
        statuses: list[int] = []

        async def guess(number: int) -> None:
            options = {"password": f"guess number {number}", "source": ELSEWHERE}
            statuses.append(await refused(target, "A2", **options))

        count = sample_size(60, 1_000)
        for first in range(0, count, 50):
            await asyncio.gather(*(guess(n) for n in range(first, min(count, first + 50))))
        assert len(statuses) == count
        assert statuses.count(401) <= 20
        assert set(statuses) == {401, 429}
        assert await genuine.call("Heartbeat", {})
        await genuine.leave()
        await target.booted("A2", password=SECRET)
        await target.booted("A2", password=SECRET, source=ELSEWHERE)


async def test_a03_a_user_that_is_not_the_station_is_refused(ocpp: Ocpp) -> None:
    await guarded(ocpp, "A3")
    await guarded(ocpp, "A3-other", "another password")
    assert await refused(ocpp, "A3", user="A3-other", password="another password") == 401
    assert await refused(ocpp, "A3", user="A3-other", password=SECRET) == 401
    assert await refused(ocpp, "A3", user="", password=SECRET) == 401


async def test_a04_a_duplicate_without_credentials_does_not_touch_the_genuine(ocpp: Ocpp) -> None:
    await guarded(ocpp, "A4")
    genuine = await ocpp.booted("A4", password=SECRET)
    for options in ({}, {"password": "wrong one"}, {"version": "ocpp2.0.1"}):
        assert await refused(ocpp, "A4", source=ELSEWHERE, **options) == 401
    assert await genuine.call("Heartbeat", {})
    assert not genuine.over
    (shown,) = (await ocpp.get("/connections", station="A4"))["items"]
    assert (shown["online"], shown["address"]) == (True, "127.0.0.1")


async def test_a05_with_stolen_credentials_one_connection_remains_and_it_is_told(
    ocpp: Ocpp,
) -> None:
    await guarded(ocpp, "A5")
    genuine = await ocpp.booted("A5", password=SECRET)
    thief = await ocpp.booted("A5", password=SECRET, source=ELSEWHERE)
    assert (await genuine.closed())[0] == 1008
    with contextlib.suppress(ConnectionClosed):
        await genuine.send([2, "x", "StartTransaction", start_16(CARD)])
    assert await thief.call("Heartbeat", {})
    assert await ocpp.transactions(station="A5") == []
    came = [one["data"] for one in await ocpp.events("A5", "station.connected")]
    assert [(one["address"], one["replaced"]) for one in came] == [
        ("127.0.0.1", False),
        (ELSEWHERE, True),
    ]
    (alert,) = [one["data"] for one in await ocpp.events("A5", "station.contested")]
    assert (alert["before"], alert["address"]) == ("127.0.0.1", ELSEWHERE)
    back = await ocpp.booted("A5", password=SECRET, source=ELSEWHERE)
    assert await back.call("Heartbeat", {})
    assert len(await ocpp.events("A5", "station.contested")) == 1, "its own second connection"
    change = {"password": "a new password", "keep_earlier": False}
    assert (await ocpp.api.put("/stations/A5/ocpp-password", json=change)).status_code == 200
    assert await refused(ocpp, "A5", password=SECRET, source=ELSEWHERE) == 401


# --------------------------------------------------------------------------- A6 to A11: TLS


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def secure(ocpp: Ocpp, house_dsn: str, tmp_path_factory: Folder) -> AsyncIterator[Ocpp]:
    """A gateway of the same house with the TLS port."""
    folder = tmp_path_factory.mktemp("secure")
    async with serving(house_dsn, folder, ocpp_tls_port=0) as served:
        yield served


Shown = tuple[str, ec.EllipticCurvePrivateKey]
"""A certificate, or a request for one, and its key."""


def asked(name: str) -> Shown:
    """A certificate signing request in that name, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode(), key


async def trusting(ocpp: Ocpp, **settings: Any) -> ssl.SSLContext:
    """A client that trusts the gateway's authority and has no certificate."""
    authority = (await ocpp.api.get("/ocpp-authority")).text
    context = ssl.create_default_context(cadata=authority)
    context.check_hostname = False
    for name, value in settings.items():
        setattr(context, name, value)
    return context


async def showing(ocpp: Ocpp, folder: Path, pem: str, key: Any) -> ssl.SSLContext:
    """A client that shows a certificate."""
    file = folder / "client.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    file.write_bytes(pem.encode() + private)
    context = await trusting(ocpp)
    context.load_cert_chain(file)
    return context


async def certified(ocpp: Ocpp, folder: Path, name: str) -> tuple[ssl.SSLContext, str]:
    """A station of profile 3: what it connects with, and its certificate's serial number."""
    assert (await ocpp.api.post("/stations", json={"station": name})).status_code == 201
    csr, key = asked(name)
    made = await ocpp.api.post(f"/stations/{name}/ocpp-certificates", json={"csr": csr})
    assert made.status_code == 201, made.text
    change = {"security_profile": 3}
    changed = await ocpp.api.patch(f"/stations/{name}/ocpp", json=change)
    assert changed.status_code == 200, changed.text
    return await showing(ocpp, folder, made.json()["pem"], key), made.json()["serial"]


async def test_a06_less_than_a_station_must_prove_is_refused(secure: Ocpp, tmp_path: Path) -> None:
    await guarded(secure, "A6")
    change = {"security_profile": 2}
    assert (await secure.api.patch("/stations/A6/ocpp", json=change)).status_code == 200
    assert await refused(secure, "A6", password=SECRET) == 403
    context = await trusting(secure)
    lowered = {"configurationKey": [{"key": "SecurityProfile", "value": "0", "readonly": False}]}
    answers = {"GetConfiguration": lowered}
    station = await secure.booted("A6", password=SECRET, tls=context, answers=answers)
    await secure.ended(await secure.command("A6", "get-variables", variables=[]))
    assert (await secure.get("/stations/A6/ocpp"))["security_profile"] == 2
    assert await refused(secure, "A6", password=SECRET) == 403
    assert await station.call("Heartbeat", {})
    tls, _ = await certified(secure, tmp_path, "A6-3")
    assert await refused(secure, "A6-3") == 403
    assert await refused(secure, "A6-3", tls=context) == 401
    await secure.booted("A6-3", tls=tls)


async def outdated(secure: Ocpp, name: str) -> Shown:
    csr, key = asked(name)
    second = timedelta(seconds=1)
    settings = PkiSettings(secure.folder / "ocpp-tls", ["127.0.0.1"], "Karvon", life=second)
    pem = Pki.open(settings, utc_now()).authority.sign(csr, name, utc_now()).pem
    await asyncio.sleep(2.1)
    return pem, key


async def foreign(secure: Ocpp, name: str) -> Shown:
    csr, key = asked(name)
    settings = PkiSettings(secure.folder / "foreign", ["127.0.0.1"], "Karvon")
    return Pki.open(settings, utc_now()).authority.sign(csr, name, utc_now()).pem, key


async def self_signed(_: Ocpp, name: str) -> Shown:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = utc_now()
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM).decode(), key


@pytest.mark.parametrize("bad", [outdated, foreign, self_signed])
async def test_a07_certificates_that_are_not_good_fail_in_tls(
    secure: Ocpp, tmp_path: Path, bad: Callable[[Ocpp, str], Awaitable[Shown]]
) -> None:
    name = f"A7-{bad.__name__}"
    await certified(secure, tmp_path, name)
    context = await showing(secure, tmp_path, *await bad(secure, name))
    with pytest.raises((ssl.SSLError, OSError, InvalidHandshake, ConnectionClosed)):
        await secure.connect(name, tls=context)
    assert not (await secure.get(f"/stations/{name}"))["online"]


async def test_a08_a_certificate_is_good_for_its_own_station_only(
    secure: Ocpp, tmp_path: Path
) -> None:
    tls, _ = await certified(secure, tmp_path, "A8")
    (tmp_path / "other").mkdir()
    await certified(secure, tmp_path / "other", "A8-victim")
    assert await refused(secure, "A8-victim", tls=tls) == 401
    await guarded(secure, "A8-basic")
    assert await refused(secure, "A8-basic", tls=tls, password=SECRET) == 401
    await secure.booted("A8", tls=tls)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_a09_old_tls_and_weak_ciphers_are_refused(secure: Ocpp) -> None:
    await secure.api.post("/stations", json={"station": "A9"})
    tls1 = {"minimum_version": ssl.TLSVersion.TLSv1, "maximum_version": ssl.TLSVersion.TLSv1_1}
    old = await trusting(secure, **tls1)
    old.set_ciphers("ALL:@SECLEVEL=0")
    weak = await trusting(secure, maximum_version=ssl.TLSVersion.TLSv1_2)
    weak.set_ciphers("AES256-SHA:ECDHE-RSA-AES128-SHA:ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0")
    for context in (old, weak):
        with pytest.raises((ssl.SSLError, OSError, InvalidHandshake)):
            await secure.connect("A9", tls=context)
    station = await secure.booted("A9", tls=await trusting(secure))
    spoken = station.socket.transport.get_extra_info("ssl_object")
    assert spoken.version() == "TLSv1.3"


async def test_a10_a_revoked_certificate_ends_its_live_connection(
    secure: Ocpp, tmp_path: Path
) -> None:
    tls, serial = await certified(secure, tmp_path, "A10")
    station = await secure.booted("A10", tls=tls)
    path = f"/ocpp-certificates/{serial}/revocation"
    assert (await secure.api.post(path, json={"reason": "stolen"})).status_code == 200
    assert (await station.closed())[0] == 1008
    assert await refused(secure, "A10", tls=tls) == 401


@pytest.mark.parametrize("version", ["ocpp1.6", "ocpp2.0.1"])
async def test_a11_nobody_gets_a_certificate_in_another_stations_name(
    secure: Ocpp, version: str
) -> None:
    await secure.api.post("/stations", json={"station": "A11-victim"})
    name = f"A11-{version}"
    station = await secure.booted(name, version)
    for csr in (asked("A11-victim")[0], asked(f"{name}\0A11-victim")[0], "no CSR at all"):
        assert (await station.call("SignCertificate", {"csr": csr}))["status"] == "Rejected"
    assert (await secure.get("/ocpp-certificates", station="A11-victim"))["items"] == []
    assert (await station.call("SignCertificate", {"csr": asked(name)[0]}))["status"] == "Accepted"
    assert "BEGIN CERTIFICATE" in (await station.was_asked("CertificateSigned"))["certificateChain"]


# --------------------------------------------------------------------------- A15 to A20: the wire


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1/x",
        "http://169.254.169.254/latest/meta-data",
        "ftp://10.0.0.7/firmware.bin",
        "http://[::ffff:10.0.0.7]/x",
        "http://2130706433/x",
        "http://localhost:8080/x",
        "https://firmware.example.com/a/../../etc/passwd",
        "https://firmware.example.com/%2e%2e/%2e%2e/x",
        "file:///etc/passwd",
        "https://firmware.example.com/x\r\nHost: inside",
    ],
)
async def test_a15_stations_are_sent_to_no_inside_address(ocpp: Ocpp, location: str) -> None:
    station = await ocpp.booted("A15")
    update = {"location": location, "retrieve_at": at(0)}
    log = {"location": location, "kind": "diagnostics"}
    for name, body in (("update-firmware", update), ("get-log", log)):
        given = await ocpp.api.post(f"/stations/A15/commands/{name}", json=body)
        assert given.status_code in {403, 409, 422}, given.text
    raw = {"location": location}
    given = await ocpp.api.post("/stations/A15/ocpp/GetDiagnostics", json=raw)
    assert given.status_code in {403, 409, 422}, given.text
    assert station.asked == []


async def test_a16_messages_that_are_too_long_end_their_connection(ocpp: Ocpp) -> None:
    whole = await ocpp.booted("A16")
    with contextlib.suppress(ConnectionClosed):
        await whole.send("x" * 10 * 1024 * 1024)
    assert (await whole.closed())[0] in {1009, 1006}  # cut off in the midst of it
    parts = await ocpp.booted("A16-parts")
    with contextlib.suppress(ConnectionClosed):
        await parts.socket.send("x" * 65_536 for _ in range(160))
    assert (await parts.closed())[0] in {1009, 1006}
    empty = await ocpp.booted("A16-empty")
    protocol = empty.socket.protocol
    protocol.send_frame(Frame(Opcode.TEXT, b"[", fin=False))
    with contextlib.suppress(ConnectionClosed):
        for _ in range(20_000):
            protocol.send_frame(Frame(Opcode.CONT, b"", fin=False))
        empty.socket.send_data()
    assert (await empty.closed())[0] in {1009, 1006}


async def test_a16_nothing_is_ever_inflated(ocpp: Ocpp) -> None:
    station = await ocpp.booted("A16-bomb")
    assert "permessage-deflate" not in str(station.socket.response.headers)  # type: ignore[union-attr]
    compressed = b"\xc1\xc0\0\0\0\0" + b"\xec\xc1\x01\x01" * 16
    station.socket.transport.write(compressed)
    assert (await station.closed())[0] in {1002, 1006}


HUGE = "9" * 400
DEEP = '{"a":' * 5_000 + "1" + "}" * 5_000
START = '[2,"%s","StartTransaction",{"connectorId":1,"idTag":"0011223344","timestamp":"%s",%s}]'


@pytest.mark.parametrize(
    "frame",
    [
        f'[2,"bad","DataTransfer",{{"vendorId":"x","data":{DEEP}}}]',
        "[" * 200_000,
        START % ("bad", at(1), '"meterStart":NaN'),
        START % ("bad", at(1), '"meterStart":1e400'),
        START % ("bad", at(1), f'"meterStart":{HUGE}'),
        START % ("bad", at(1), '"meterStart":1.5e300'),
        START % ("bad", at(1), '"meterStart":true'),
        START % ("bad", at(1), f'"meterStart":"{HUGE}"'),
        '[2,"bad","Heartbeat",{' + ",".join(f'"k{n}":null' for n in range(20_000)) + "}]",
        '[2,"bad","MeterValues",{"connectorId":1,"meterValue":['
        + ",".join('{"sampledValue":[{"value":{}}]}' for _ in range(10_000))
        + "]}]",
    ],
    ids=lambda frame: frame[:60],
)  # fmt: skip
async def test_a17_hostile_json_costs_little_and_changes_nothing(ocpp: Ocpp, frame: str) -> None:
    name = f"A17-{abs(hash(frame)) % 10**9}"
    station = await ocpp.booted(name)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await station.send(frame)
    assert "currentTime" in await station.call("Heartbeat", {}, "after")
    assert loop.time() - began < 3, "and a quarter of that is the other station's"
    assert await ocpp.transactions(station=name) == []
    assert not station.over


async def test_a17_of_a_key_that_stands_twice_one_value_is_taken_everywhere(ocpp: Ocpp) -> None:
    station = await ocpp.booted("A17-twice")
    twice = '"meterStart":1000,"meterStart":1000,"idTag":"nobody"'
    await station.send(START % ("twice", at(1), twice))
    answer = await station.answer("twice")
    assert answer["idTagInfo"]["status"] == "Invalid"
    assert (await ocpp.transaction("A17-twice"))["id_token"]["value"] == "nobody"


async def test_a18_a_flood_is_slowed_down_and_noted(ocpp: Ocpp) -> None:
    station = await ocpp.booted("A18")
    for flood in range(5):  # a busy machine cannot send fast enough each time
        for n in range(2_300):
            await station.send(f'[2,"f{flood}-{n}","Heartbeat",{{}}]')
        await station.answer(f"f{flood}-2299")
        began = asyncio.get_running_loop().time()
        await station.call("Heartbeat", {})
        if asyncio.get_running_loop().time() - began > 0.2:
            break
    else:
        pytest.fail("five floods, and none was slowed down")
    await station.leave()
    assert await ocpp.deviations("A18", "flood")


async def test_a19_sockets_that_say_nothing_keep_nobody_out(
    house_dsn: str, tmp_path_factory: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud.communication.gateway.UNJUDGED", 20)
    monkeypatch.setattr("cloud.communication.sockets.HANDSHAKE_S", 2.0)
    async with serving(house_dsn, tmp_path_factory.mktemp("idle")) as target:
        local, port = (ELSEWHERE, 0), target.gateway.port
        idle = [await asyncio.open_connection("127.0.0.1", port, local_addr=local)
                for _ in range(30)]  # fmt: skip
        for reader, writer in idle[:10]:
            del reader
            writer.write(b"GET /ocpp/A19 HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        surplus = [asyncio.create_task(reader.read()) for reader, _ in idle[10:]]
        await asyncio.wait_for(asyncio.gather(*surplus, return_exceptions=True), 1.9)
        station = await target.booted("A19")
        held = [asyncio.create_task(reader.read()) for reader, _ in idle[:10]]
        await asyncio.wait_for(asyncio.gather(*held, return_exceptions=True), 10)
        assert await station.call("Heartbeat", {})
        for _, writer in idle:
            writer.close()


async def test_a20_answers_to_nothing_that_was_asked_are_ignored(ocpp: Ocpp) -> None:
    victim = await ocpp.booted("A20", answers={"ChangeAvailability": None})  # type: ignore[dict-item]
    attacker = await ocpp.booted("A20-attacker")
    await asyncio.sleep(1.1)  # commands begin after a pause
    command = await ocpp.command("A20", "set-availability", evse=0, operative=False)
    await victim.was_asked("ChangeAvailability")
    (message_id,) = victim.ids
    for number in (message_id, "k1-1", "", None, 7):
        await attacker.send([3, number, {"status": "Rejected"}])
        await attacker.send([4, number, "InternalError", "no", {}])
    assert await attacker.call("Heartbeat", {})
    assert (await ocpp.get(f"/commands/{command}"))["status"] == "sent"
    await victim.send([3, message_id, {"status": "Accepted"}])
    await victim.send([3, message_id, {"status": "Rejected"}])
    assert (await ocpp.ended(command))["status"] == "executed"
    await attacker.leave()
    assert await ocpp.deviations("A20-attacker", "unasked_answer")


# --------------------------------------------------------------------------- A21 to A25: content


@pytest.mark.parametrize("how", ["number", "key"])
async def test_a21_nobody_ends_another_stations_transaction(ocpp: Ocpp, how: str) -> None:
    version = "ocpp1.6" if how == "number" else "ocpp2.0.1"
    name, other = f"A21-{how}", f"A21-{how}-attacker"
    victim, attacker = await ocpp.booted(name, version), await ocpp.booted(other, version)
    if how == "number":
        number = (await victim.call("StartTransaction", start_16(CARD)))["transactionId"]
        assert await attacker.call("StopTransaction", stop_16(number, 10, 10**9)) == {}
        value = meter_16(moment(5, sample(10**9, ENERGY)), number=number)
        assert await attacker.call("MeterValues", value) == {}
        alerts = await ocpp.events(other, "transaction.foreign_number")
        assert alerts[0]["data"] == {"number": number}
        assert await ocpp.transactions(station=other) == []
    else:
        await victim.call("TransactionEvent", event_201("Started", 0, 1, "tx", CARD, 1_000))
        end = event_201("Ended", 1, 2, "tx", None, 10**9, info={"stoppedReason": "Local"})
        await attacker.call("TransactionEvent", end)
        (own,) = await ocpp.transactions(station=other)
        assert (own["review"], own["energy_wh"]) == ("unmatched", 0)
    found = await ocpp.transaction(name)
    assert (found["state"], found["energy_wh"], found["conflicts"]) == ("open", 0, 0)


@pytest.mark.parametrize(
    ("registers", "stop", "energy", "review"),
    [
        ((), -5, 0, "register_negative"),
        ((), 10**12, 0, "register_leap"),
        ((), 2**31 - 1, 0, "register_leap"),
        ((3_000, 2_000_000), 4_000, 3_000, "register_leap"),
        ((3_000, 500), 4_000, 3_000, "register_back"),
        ((3_000,), 900_000, 899_000, "energy_against_power"),
    ],
)
async def test_a22_energy_that_cannot_be_is_not_billed_and_looked_at(
    ocpp: Ocpp, registers: tuple[int, ...], stop: int, energy: int, review: str
) -> None:
    name = f"A22{abs(hash((registers, stop))) % 10**9}"
    station = await ocpp.booted(name)
    number = (await station.call("StartTransaction", start_16(CARD)))["transactionId"]
    for at_minute, register in enumerate(registers, 5):
        value = moment(at_minute, sample(str(register), ENERGY))
        await station.call("MeterValues", meter_16(value, number=number))
    assert "idTagInfo" in await station.call(
        "StopTransaction", stop_16(number, 20, stop, idTag=CARD)
    )
    found = await ocpp.transaction(name)
    assert (found["energy_wh"], found["review"], found["state"]) == (energy, review, "ended")


async def test_a22_energy_that_is_told_again_counts_once_and_more_of_it_is_a_conflict(
    ocpp: Ocpp,
) -> None:
    station = await ocpp.booted("A22")
    number = (await station.call("StartTransaction", start_16(CARD)))["transactionId"]
    value = meter_16(moment(5, sample("3000", ENERGY)), number=number)
    for _ in range(3):
        await station.call("MeterValues", value)
        await station.call("StopTransaction", stop_16(number, 20, 4_000))
    found = await ocpp.transaction("A22")
    assert (found["energy_wh"], found["conflicts"], found["review"]) == (3_000, 0, None)
    await station.call("StopTransaction", stop_16(number, 20, 5_000))
    found = await ocpp.transaction("A22")
    assert found["conflicts"] == 1
    detail = await ocpp.get(f"/transactions/{found['transaction']}")
    assert [one["kind"] for one in detail["contradictions"]] == ["same_number"]


async def test_a23_trying_out_id_tokens_soon_tells_nothing_more(ocpp: Ocpp) -> None:
    station = await ocpp.booted("A23")
    answers = []
    for number in range(60):
        try:
            answers.append(await station.call("Authorize", {"idTag": f"guess {number}"}))
        except Refused:
            break
    assert len(answers) >= 30
    assert all(one == {"idTagInfo": {"status": "Invalid"}} for one in answers)
    for number in range(3):
        await station.send([2, f"g{number}", "Authorize", {"idTag": f"more {number}"}])
    await station.send([2, "right", "Authorize", {"idTag": CARD}])
    with pytest.raises(Refused, match="InternalError"):
        await station.answer("right")
    other = await ocpp.booted("A23-other")
    for _ in range(40):
        asked_ = await other.call("Authorize", {"idTag": CARD})
        assert asked_["idTagInfo"]["status"] == "Accepted", "right ones are not counted"
    await asyncio.sleep(4)
    assert await station.call("Authorize", {"idTag": CARD})
    await station.leave()
    assert await ocpp.deviations("A23", "guessing")


HOSTILE = [
    '=HYPERLINK("http://x","a")',
    "<script>alert(1)</script>",
    "'; DROP TABLE stations.station; --",
    "{{7*7}}${7*7}<%= 7*7 %>",
    "+1+cmd|' /C calc'!A0",
]  # fmt: skip


async def test_a24_what_stations_write_is_inert_in_lists_and_exports(ocpp: Ocpp) -> None:
    station = await ocpp.booted("A24", boot={"chargePointVendor": HOSTILE[0],
                                             "chargePointModel": HOSTILE[1]})  # fmt: skip
    fault = status_16(1, "Faulted", errorCode="OtherError", info=HOSTILE[2])
    await station.call("StatusNotification", fault)
    for minutes, text in enumerate(HOSTILE, 1):
        await station.call("Authorize", {"idTag": text})
        await station.call("StartTransaction", start_16(text, minutes, minutes * 1_000))
    rows = await ocpp.transactions(station="A24")
    assert {one["id_token"]["value"] for one in rows} == set(HOSTILE)
    for path in ("/transactions", "/stations", "/evses", "/connections"):
        told = await ocpp.api.get(path, params={"format": "csv", "limit": 500})
        assert told.headers["content-type"].startswith("text/csv")
        assert not re.search(r'(^|,|\n)"?[=+@]', told.text), path
        shown = await ocpp.api.get(path, params={"limit": 500})
        assert shown.headers["content-type"].startswith("application/json")
        assert shown.headers["x-content-type-options"] == "nosniff"
    await station.leave()
    name = "<img src=x onerror=alert(1)>"
    await (await ocpp.booted(name)).leave()
    assert name in {one["station"] for one in (await ocpp.get("/stations", limit=500))["items"]}


@pytest.mark.parametrize(
    "name", ["A25\r\nfaked line", "A25\x1b[2J", "A25\x00", "A25\u2028x", "\x9b1m"]
)
async def test_a25_identities_cannot_break_a_log_line(ocpp: Ocpp, name: str) -> None:
    assert await refused(ocpp, name) == 404


async def test_a25_texts_cannot_break_a_log_line_or_an_example(
    ocpp: Ocpp, house_dsn: str, tmp_path_factory: Folder
) -> None:
    nasty = "x\r\n2026-01-01 INFO all is well\x1b[31m\x00\u202e"
    station = await ocpp.booted("A25", boot={"chargePointVendor": nasty, "firmwareVersion": nasty})
    await station.call("StatusNotification", status_16(1, "Faulted", info=nasty, errorCode=nasty))
    for frame in (
        [2, "a\r\nb", nasty, {}],
        [2, "c", "StatusNotification", {"connectorId": nasty}],
        [2, "d", "SignCertificate", {"csr": nasty}],
        [4, nasty, nasty, nasty, {}],
    ):
        await station.send(json.dumps(frame))
    assert await station.call("Heartbeat", {})
    await station.call("StartTransaction", start_16(nasty[:20]))
    await station.socket.close(1000, "bye\r\nfaked")
    found = await ocpp.deviations("A25", "refused")
    assert not any(_UNPRINTABLE.search(one["example"]) for one in found.values())
    (shown,) = (await ocpp.get("/connections", station="A25"))["items"]
    assert not _UNPRINTABLE.search(shown["closed_because"] or "")
    other = await ocpp.booted("A25-more")
    with pytest.raises(Refused):
        await other.call(nasty, {})
