"""What a controller's claim gives it, and what it may do for itself afterwards."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey


def new_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def request_of(key: Key, name: str = "CP-1") -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


def login(username: str, password: str) -> dict[str, str]:
    told = base64.b64encode(f"{username}:{password}".encode()).decode()
    return {"Authorization": f"Basic {told}"}


@pytest.fixture
async def claim(admin: httpx.AsyncClient) -> dict[str, Any]:
    made = (await admin.post("/api/v1/stations", json={"station": "CP-1"})).json()
    return {"station": "CP-1", "code": made["claim"]["code"]}


async def test_a_claim_has_the_controllers_own_key_certified(
    claim: dict[str, Any], anybody: httpx.AsyncClient
) -> None:
    key = new_key()
    answer = await anybody.post("/api/v1/claims", json={**claim, "csr": request_of(key)})
    assert answer.status_code == 200
    certificate = x509.load_pem_x509_certificate(answer.json()["certificate"].encode())
    assert certificate.public_key() == key.public_key()
    (name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert name.value == "CP-1"


async def test_a_request_for_another_station_does_not_use_the_code_up(
    claim: dict[str, Any], anybody: httpx.AsyncClient
) -> None:
    wrong = {**claim, "csr": request_of(new_key(), "CP-2")}
    refused = await anybody.post("/api/v1/claims", json=wrong)
    assert (refused.status_code, refused.json()["code"]) == (422, "certificate.refused")
    assert (await anybody.post("/api/v1/claims", json=claim)).status_code == 200


async def test_only_the_controller_that_used_a_code_may_repeat_it_and_only_for_a_day(
    world: Any, claim: dict[str, Any], anybody: httpx.AsyncClient
) -> None:
    mine = {**claim, "csr": request_of(new_key())}
    assert (await anybody.post("/api/v1/claims", json=mine)).status_code == 200
    for stranger in (claim, {**claim, "csr": request_of(new_key())}):
        assert (await anybody.post("/api/v1/claims", json=stranger)).status_code == 403
    world.clock.forward(hours=23)
    assert (await anybody.post("/api/v1/claims", json=mine)).status_code == 200
    world.clock.forward(hours=2)
    late = await anybody.post("/api/v1/claims", json=mine)
    assert (late.status_code, late.json()["params"]["why"]) == (403, "expired")


async def test_a_new_code_makes_the_used_one_void(
    claim: dict[str, Any], admin: httpx.AsyncClient, anybody: httpx.AsyncClient
) -> None:
    mine = {**claim, "csr": request_of(new_key())}
    assert (await anybody.post("/api/v1/claims", json=mine)).status_code == 200
    await admin.post("/api/v1/stations/CP-1/claim-codes")
    assert (await anybody.post("/api/v1/claims", json=mine)).status_code == 403


async def test_a_claimed_station_renews_its_certificate_by_itself(
    claim: dict[str, Any], anybody: httpx.AsyncClient
) -> None:
    given = (await anybody.post("/api/v1/claims", json=claim)).json()
    key = new_key()
    path, body = "/api/v1/claims/certificate", {"csr": request_of(key)}
    assert (await anybody.post(path, json=body)).status_code == 401
    wrong = login(given["username"], "guess")
    assert (await anybody.post(path, json=body, headers=wrong)).status_code == 401
    right = login(given["username"], given["password"])
    answer = await anybody.post(path, json=body, headers=right)
    assert answer.status_code == 200
    made = x509.load_pem_x509_certificate(answer.json()["certificate"].encode())
    assert made.public_key() == key.public_key()
    other = await anybody.post(path, json={"csr": request_of(key, "CP-2")}, headers=right)
    assert other.status_code == 422


async def test_a_claimed_station_retires_itself_once(
    world: Any, claim: dict[str, Any], admin: httpx.AsyncClient, anybody: httpx.AsyncClient
) -> None:
    given = (await anybody.post("/api/v1/claims", json=claim)).json()
    path, right = "/api/v1/claims/retirement", login(given["username"], given["password"])
    wrong = login(given["username"], "guess")
    assert (await anybody.post(path, headers=wrong)).status_code == 401
    retired = await anybody.post(path, headers=right)
    assert (retired.status_code, retired.json()) == (200, {"station": "CP-1"})
    assert (await admin.get("/api/v1/stations/CP-1")).status_code == 404
    assert len(world.link.forgotten) == 1
    again = await anybody.post(path, headers=right)
    assert (again.status_code, again.json()["code"]) == (401, "unauthorized")
