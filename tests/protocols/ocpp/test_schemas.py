"""The types against the official schemas, judged by jsonschema; and what only the types judge."""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from ocpp_instances import TIME, Instances

from protocols.ocpp.schemas import Codec, SchemaError, codec
from protocols.ocpp.version import Version, choose

Record = Callable[[str, object], None]


SIDES = ("request", "response")


def _actions(version: Version, side: str) -> frozenset[str]:
    shapes = codec(version).shapes
    return shapes.requests if side == "request" else shapes.responses


def _schema(version: Version, action: str, side: str) -> dict[str, Any]:
    text: str = getattr(codec(version).shapes, f"{side}_text")(action)
    return dict(json.loads(text))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("version", Version)
def test_every_message_agrees_with_jsonschema(
    version: Version, side: str, record_property: Record, sample_size: Callable[[int, int], int]
) -> None:
    decode = getattr(codec(version), f"decode_{side}")
    every = 12 - sample_size(1, 11)
    counted: Counter[str] = Counter()
    for action in _actions(version, side):
        schema = _schema(version, action, side)
        theirs = jsonschema.validators.validator_for(schema)(schema)
        for name, mutant in itertools.islice(_mutants(schema), 0, None, every):
            valid = theirs.is_valid(mutant)
            if _accepts(decode, action, mutant) == valid:
                counted["accepted by both" if valid else "refused by both"] += 1
            else:
                assert _stricter(schema, mutant), (action, name)
                counted["with a time that is none, refused by us"] += 1
    assert counted["refused by both"] > counted["accepted by both"] > 30
    for outcome, count in counted.items():
        record_property(f"mutants {outcome}", count)


def _mutants(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    instances = Instances(schema)
    for full in (False, True):
        yield "valid", instances.valid(full=full)
        yield from instances.mutants(full=full)


def _accepts(decode: Callable[[str, bytes], Any], action: str, instance: Any) -> bool:
    try:
        decode(action, json.dumps(instance).encode())
    except SchemaError:
        return False
    return True


def _stricter(schema: dict[str, Any], mutant: Any) -> bool:
    """Where we refuse what the schema's text allows: a date-time that is none."""
    checker = jsonschema.FormatChecker(formats=())
    checker.checks("date-time")(lambda value: not isinstance(value, str) or value == TIME)
    validator = jsonschema.validators.validator_for(schema)
    return not validator(schema, format_checker=checker).is_valid(mutant)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("version", Version)
def test_what_is_read_is_written_the_same(version: Version, side: str) -> None:
    types = codec(version)
    for action in _actions(version, side):
        instances = Instances(_schema(version, action, side))
        for full in (False, True):
            valid = instances.valid(full=full)
            read = getattr(types, f"decode_{side}")(action, json.dumps(valid).encode())
            assert json.loads(types.encode(read)) == valid


def test_the_package_of_the_schemas_is_not_imported() -> None:
    """It would bring asyncio and more; a controller's start would feel it."""
    code = """
import sys
from protocols.ocpp.schemas import codec
from protocols.ocpp.version import Version
for version in Version:
    codec(version).request_type("Heartbeat")
print([name for name in ("ocpp", "asyncio", "jsonschema", "socket") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("version", Version)
def test_types_of_a_whole_version_are_made_quickly(version: Version) -> None:
    """Measured 40 to 320 ms of CPU when all are made, which nobody does."""
    began = time.process_time()
    made = Codec(version)
    for action in made.actions:
        made.request_type(action)
    assert time.process_time() - began < 2
    assert len(made.actions) == {"ocpp1.6": 39, "ocpp2.0.1": 64, "ocpp2.1": 91}[version]


def test_a_type_is_made_once_and_shared() -> None:
    types = codec(Version.V201)
    told = types.request_type("MeterValues").__struct_fields__
    assert set(told) == {"customData", "evseId", "meterValue"}
    meter_value = types.request_shape("MeterValues").fields["meterValue"]
    assert meter_value.item is types.request_shape("TransactionEvent").fields["meterValue"].item
    assert codec(Version.V201) is types


def _refused(version: Version, action: str, raw: bytes) -> SchemaError:
    with pytest.raises(SchemaError) as refused:
        codec(version).decode_request(action, raw)
    return refused.value


START: dict[str, Any] = {"connectorId": 1, "idTag": "A", "meterStart": 5, "timestamp": TIME}


@pytest.mark.parametrize(
    ("change", "code", "path", "words"),
    [
        ({"idTag": None}, "TypeConstraintViolation", "/idTag", "str is due, not null"),
        ({"meterStart": "5"}, "TypeConstraintViolation", "/meterStart", "int is due, not str"),
        ({"meterStart": 1.5}, "TypeConstraintViolation", "/meterStart", "int is due, not float"),
        ({"idTag": "x" * 21}, "PropertyConstraintViolation", "/idTag", "must be <= 20"),
        ({"meterStart": 10**30}, "PropertyConstraintViolation", "/meterStart", "must be <="),
        ({"timestamp": "soon"}, "PropertyConstraintViolation", "/timestamp", "a time is written"),
        ({"timestamp": TIME[:-1]}, "PropertyConstraintViolation", "/timestamp", "needs its zone"),
        ({"tag": 1}, "FormationViolation", "", "there is no field tag"),
    ],
)
def test_a_refusal_says_where_and_what_to_do(
    change: dict[str, Any], code: str, path: str, words: str
) -> None:
    refusal = _refused(Version.V16, "StartTransaction", json.dumps({**START, **change}).encode())
    assert (refusal.code, refusal.path) == (code, path)
    assert words in refusal.text


def test_versions_spell_their_codes_their_own_way() -> None:
    assert _refused(Version.V16, "Heartbeat", b"[]").code == "FormationViolation"
    assert _refused(Version.V201, "Heartbeat", b"[]").code == "FormatViolation"
    assert _refused(Version.V16, "Authorize", b"{}").code == "OccurenceConstraintViolation"
    assert _refused(Version.V21, "Authorize", b"{}").code == "OccurrenceConstraintViolation"
    assert _refused(Version.V201, "Fly", b"{}").code == "NotImplemented"
    assert _refused(Version.V16, "HeartbeatResponse", b"{}").code == "NotImplemented"


def test_a_path_leads_into_lists_and_extensions() -> None:
    value = {"timestamp": TIME, "sampledValue": [{"value": "1"}, {"value": "2", "unit": "ell"}]}
    raw = json.dumps({"connectorId": 1, "meterValue": [value]}).encode()
    refusal = _refused(Version.V16, "MeterValues", raw)
    assert refusal.path == "/meterValue/0/sampledValue/1/unit"
    assert "'ell' is not among" in refusal.text
    refusal = _refused(Version.V201, "Heartbeat", b'{"customData":{"vendorId":5}}')
    assert (refusal.code, refusal.path) == ("TypeConstraintViolation", "/customData/vendorId")


def test_custom_data_keeps_what_only_its_vendor_knows() -> None:
    raw = b'{"customData":{"vendorId":"v","a":[1,{"b":null}]}}'
    message = codec(Version.V201).decode_request("Heartbeat", raw)
    assert message.customData == {"vendorId": "v", "a": [1, {"b": None}]}
    assert codec(Version.V201).encode(message) == raw


def test_what_is_sent_is_strict_and_has_whole_seconds() -> None:
    types = codec(Version.V16)
    now = datetime(2026, 3, 14, 9, 26, 53, 589793, tzinfo=UTC)
    message = types.make_response(
        "BootNotification", {"currentTime": now, "interval": 300, "status": "Accepted"}
    )
    assert types.encode(message) == (
        b'{"status":"Accepted","currentTime":"2026-03-14T09:26:53Z","interval":300}'
    )
    schedule = {"localAuthorizationList": [{"idTag": "A", "idTagInfo": {"status": "Accepted"}}]}
    types.make_request("SendLocalList", {"listVersion": 1, "updateType": "Full", **schedule})
    with pytest.raises(SchemaError):
        types.make_request("Reset", {"type": "hard"})
    with pytest.raises(SchemaError):
        types.make_request("Reset", {"type": "Hard", "now": True})
    with pytest.raises(SchemaError):
        types.make_response("Heartbeat", {"currentTime": now.replace(tzinfo=None)})


@pytest.mark.parametrize(
    ("limit", "holds"), [(16.1, True), (0.3, True), (22000.1, True), (16.15, False), (1e308, False)]
)
def test_a_multiple_is_judged_in_decimals(limit: float, holds: bool) -> None:
    period = {"startPeriod": 0, "limit": limit}
    schedule = {"chargingRateUnit": "A", "chargingSchedulePeriod": [period]}
    profile = {
        "chargingProfileId": 1,
        "stackLevel": 0,
        "chargingProfilePurpose": "TxProfile",
        "chargingProfileKind": "Absolute",
        "chargingSchedule": schedule,
    }
    raw = json.dumps({"connectorId": 1, "csChargingProfiles": profile}).encode()
    if holds:
        codec(Version.V16).decode_request("SetChargingProfile", raw)
    else:
        assert "multiple of 0.1" in _refused(Version.V16, "SetChargingProfile", raw).text


DEEP = 100_000
HOSTILE = {
    "deep lists": b'{"connectorId":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep objects": b'{"connectorId":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
    "deep and open": b"[" * DEEP,
    "deep in an extra field": b'{"x":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "an integer of 5000 digits": b'{"connectorId":' + b"9" * 5000 + b"}",
    "an integer of 30 digits": b'{"connectorId":' + b"9" * 30 + b"}",
    "not a number": b'{"connectorId":NaN}',
    "infinity": b'{"connectorId":-Infinity}',
    "out of range": b'{"connectorId":1e999}',
    "a byte order mark": b'\xef\xbb\xbf{"connectorId":1}',
    "no UTF-8": b'{"connectorId":1,"info":"\xff"}',
    "UTF-16": '{"connectorId":1}'.encode("utf-16"),
    "a lone surrogate": b'{"connectorId":1,"info":"\\ud800"}',
    "nothing": b"",
    "a comma too many": b'{"connectorId":1,}',
    "two messages": b'{"connectorId":1}{"connectorId":1}',
    "many extra fields": b"{" + b",".join(b'"%d":1' % n for n in range(50_000)) + b"}",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("version", Version)
def test_hostile_payloads_are_refused_at_once(version: Version, name: str) -> None:
    """A17."""
    codec(version).request_type("StatusNotification")
    began = time.process_time()
    refusal = _refused(version, "StatusNotification", HOSTILE[name])
    assert time.process_time() - began < 0.05
    assert len(refusal.text) < 400
    assert refusal.text.isprintable()


def test_of_equal_keys_the_last_counts() -> None:
    raw = b'{"idTag":"first","idTag":"last"}'
    assert codec(Version.V16).decode_request("Authorize", raw).idTag == "last"


def test_raw_parts_are_read_without_a_copy() -> None:
    (raw,) = msgspec.json.decode(b'[{"idTag":"A"}]', type=tuple[msgspec.Raw])
    assert codec(Version.V16).decode_request("Authorize", raw).idTag == "A"


def test_events_that_are_only_sent_have_no_response() -> None:
    types = codec(Version.V21)
    assert "NotifyPeriodicEventStream" in types.actions
    with pytest.raises(SchemaError, match="has no action"):
        types.response_type("NotifyPeriodicEventStream")


def test_the_newest_version_is_chosen() -> None:
    assert choose(["ocpp1.6", "ocpp2.0.1"]) is Version.V201
    assert choose(["OCPP1.6 ", "ocpp2.0"]) is Version.V16
    assert choose(["ocpp2.1", "ocpp1.6"]) is Version.V21
    assert choose([]) is None


def test_missing_schemas_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from protocols.ocpp import shapes

    monkeypatch.setattr(shapes, "find_spec", lambda _name: None)
    with pytest.raises(shapes.SchemasMissing, match="is not installed"):
        shapes.Shapes(Version.V16)
    spec = importlib.util.spec_from_loader("ocpp", None, is_package=True)
    assert spec is not None
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(shapes, "find_spec", lambda _name: spec)
    with pytest.raises(shapes.SchemasMissing, match="another release"):
        shapes.Shapes(Version.V16)
    (tmp_path / "v16" / "schemas").mkdir(parents=True)
    (tmp_path / "v16" / "schemas" / "New.json").write_text('{"type":"string","pattern":"a+"}')
    with pytest.raises(shapes.SchemasMissing, match="uses pattern"):
        shapes.Shapes(Version.V16).request("New")
