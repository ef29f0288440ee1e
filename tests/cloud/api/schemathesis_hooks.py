"""What the generator cannot know: our formats, and what names something of the moment."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import schemathesis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import strategies as st
from schemathesis.core.parameters import ParameterLocation

schemathesis.openapi.format("time-zone", st.sampled_from(["UTC", "Asia/Tashkent", "Europe/Berlin"]))
schemathesis.openapi.format(
    "station-identity", st.from_regex(r"[A-Za-z0-9 _.-]{1,48}", fullmatch=True)
)


@functools.cache
def _request() -> str:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CP-1")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    made = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


schemathesis.openapi.format("certificate-request", st.builds(_request))
schemathesis.openapi.format(
    "transfer-url", st.sampled_from(["https://files.example.com/x", "ftps://files.example.com/in/"])
)
MOMENTARY_HEADERS = {"if-match": 1000, "idempotency-key": 255}
"""Made up, they are refused by right: 412, and 422 for a key that was used for something else.
Longer ones were made to be refused."""
MOMENTARY_FIELDS = (
    ("/stations/import", "stations", ("site", "site_name")),
    ("/id-tokens/import", "id_tokens", ("group",)),
)
SPAN = {"from": "2026-05-01T00:00:00Z", "to": "2026-05-02T00:00:00Z"}
"""Telemetry is told for a year at most."""
CONTRADICTORY = ("min_total", "max_total", "shown_digits", "site", "evse")
"""Each is valid, but not beside any other, or for any currency."""
SHEETS = {"id-tokens": "value\r\n04AB\r\n", "stations": "station\r\nCP-1\r\n"}


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Mend what was meant to be valid; what was meant to be wrong stays as it is."""
    if _valid(case, ParameterLocation.QUERY) and isinstance(case.query, dict):
        case.query.pop("cursor", None)  # its form is nobody's business
        if "/telemetry" in case.path:
            case.query.update(SPAN)
        if "time_zone" in case.query:
            case.query["time_zone"] = "Asia/Tashkent"
    for name in list(case.headers or {}):
        # a key beside a wrong If-Match too: what was done under it is told again whatever is asked
        meant = _valid(case, ParameterLocation.HEADER) or name.lower() == "idempotency-key"
        if meant and len(str(case.headers[name])) <= MOMENTARY_HEADERS.get(name.lower(), -1):
            del case.headers[name]
    if case.path.endswith("/import") and not _valid(case, ParameterLocation.BODY):
        for name in ("dry_run", "on_error"):  # these answer bad rows with a report, by intent
            (case.query or {}).pop(name, None)
    _untangle(case)
    if case.method == "POST" and case.path.endswith("/releases") and _meant_well(case):
        root = Path(os.environ["RELEASE_ROOT"]).read_text(encoding="utf-8")
        case.body = {"metadata": [{"role": "root", "body": root}]}
    if _meant_well(case) and case.media_type == "text/csv":
        case.body = SHEETS[case.path.split("/")[3]]


def _untangle(case: Any) -> None:
    if _valid(case, ParameterLocation.BODY):
        _name_what_there_is(case)
    if not ("/tariff" in case.path and _valid(case, ParameterLocation.BODY)):
        return
    for name in CONTRADICTORY if isinstance(case.body, dict) else ():
        case.body.pop(name, None)


def _name_what_there_is(case: Any) -> None:
    """A station's certificate request names it; imported stations stand at sites that exist."""
    if (
        case.path.endswith("/ocpp-certificates")
        and isinstance(case.body, dict)
        and "csr" in case.body
    ):
        case.path_parameters["station"] = "CP-1"
    for suffix, key, momentary in MOMENTARY_FIELDS if case.path.endswith("/import") else ():
        rows = case.body.get(key) if isinstance(case.body, dict) else case.body
        for row in rows if case.path.endswith(suffix) and isinstance(rows, list) else ():
            for name in momentary if isinstance(row, dict) else ():
                row.pop(name, None)


def _meant_well(case: Any) -> bool:
    mode = None if case.meta is None else case.meta.generation.mode
    return mode is schemathesis.GenerationMode.POSITIVE


def _valid(case: Any, part: ParameterLocation) -> bool:
    told = None if case.meta is None else case.meta.components.get(part)
    return told is None or told.mode is schemathesis.GenerationMode.POSITIVE
