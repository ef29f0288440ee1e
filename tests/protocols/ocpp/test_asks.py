"""Every ask, in every version's words, is what that version's schema demands."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from protocols.agent_link import IdToken
from protocols.ocpp import asks
from protocols.ocpp.actions import NEVER_TWICE, goes_down, without_secrets
from protocols.ocpp.asking import Numbers
from protocols.ocpp.dialect import NotExpressible
from protocols.ocpp.messages import Variable
from protocols.ocpp.schemas import codec
from protocols.ocpp.version import Version
from protocols.quantities import MilliAmperes, Watts

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
CARD = IdToken("04A2B3C4")
NUMBERS = Numbers(7, "tx-1", 4711)
PERIODS = (asks.Period(start_s=0, limit_ma=MilliAmperes(16_050), phases=3),)


def heartbeat(value: str | None = None) -> Variable:
    return Variable(component="ChargingStation", variable="HeartbeatInterval", value=value)


ASKS: list[asks.AnyAsk] = [
    asks.UnlockConnector(evse=1),
    asks.Reset(kind="soft"),
    asks.Reset(kind="hard"),
    asks.TriggerMessage(message="StatusNotification", evse=1),
    asks.TriggerMessage(message="SignChargingStationCertificate"),
    asks.ClearCache(),
    asks.GetVariables(),
    asks.GetVariables(variables=(heartbeat(),)),
    asks.SetVariables(variables=(heartbeat("60"),)),
    asks.ReserveNow(id=3, id_token=CARD, expires_at=NOON, evse=1, group="taxis"),
    asks.ReserveNow(id=3, id_token=CARD, expires_at=NOON),
    asks.CancelReservation(id=3),
    asks.SetChargingProfile(
        evse=1, id=5, purpose="TxProfile", kind="Absolute", unit="A", periods=PERIODS,
        transaction=UUID(int=1), start_at=NOON, duration_s=3600,
    ),
    asks.SetChargingProfile(
        evse=0, id=5, purpose="ChargingStationMaxProfile", kind="Recurring", recurrency="Daily",
        unit="W", periods=(asks.Period(start_s=0, limit_w=Watts(11_000)),), valid_from=NOON,
    ),
    asks.ClearChargingProfile(),
    asks.ClearChargingProfile(id=5),
    asks.ClearChargingProfile(evse=1, purpose="TxDefaultProfile", stack_level=0),
    asks.GetChargingProfiles(evse=0),
    asks.GetCompositeSchedule(evse=1, duration_s=600, unit="A"),
    asks.UpdateFirmware(location="https://fw.example/1.bin", retrieve_at=NOON, retries=2),
    asks.UpdateFirmware(
        location="https://fw.example/1.bin", retrieve_at=NOON, install_at=NOON,
        signature="c2ln", signing_certificate="-----BEGIN CERTIFICATE-----",
    ),
    asks.GetLog(kind="diagnostics", location="ftps://logs.example/", since=NOON),
    asks.GetLog(kind="security", location="ftps://logs.example/", until=NOON),
    asks.SendLocalList(version=3, differential=False),
    asks.SendLocalList(
        version=4, differential=True,
        entries=(
            asks.ListEntry(id_token=CARD, expires_at=NOON, group="taxis"),
            asks.ListEntry(id_token=IdToken("B"), removed=True),
        ),
    ),
    asks.GetLocalListVersion(),
    asks.DataTransfer(vendor="com.example", message="hello", data={"a": [1]}),
]  # fmt: skip
NOT_IN_1_6 = {asks.GetChargingProfiles}


@pytest.mark.parametrize("version", list(Version))
def test_every_ask_satisfies_the_schema(version: Version) -> None:
    for ask in ASKS:
        if version is Version.V16 and type(ask) in NOT_IN_1_6:
            with pytest.raises(NotExpressible):
                asks.words(version, ask, NUMBERS)
            continue
        action, payload = asks.words(version, ask, NUMBERS)
        codec(version).make_request(action, payload)
        assert goes_down(action)
    assert {type(ask) for ask in ASKS} == set(asks.AnyAsk.__args__)


def test_limits_are_never_rounded_up() -> None:
    for version, path in (
        (Version.V16, ("csChargingProfiles", "chargingSchedule")),
        (Version.V21, ("chargingProfile", "chargingSchedule", 0)),
    ):
        profile = next(ask for ask in ASKS if isinstance(ask, asks.SetChargingProfile))
        payload: Any = asks.words(version, profile, NUMBERS)[1]
        for step in (*path, "chargingSchedulePeriod", 0):
            payload = payload[step]
        assert payload["limit"] == 16.0


@pytest.mark.parametrize(
    "ask",
    [
        asks.Reset(kind="on_idle"),
        asks.Reset(kind="soft", evse=1),
        asks.UnlockConnector(evse=1, connector=2),
        asks.TriggerMessage(message="TransactionEvent"),
        asks.ClearChargingProfile(purpose="ChargingStationExternalConstraints"),
        asks.ReserveNow(id=1, id_token=CARD, expires_at=NOON, connector_type="cCCS2"),
        asks.UpdateFirmware(location="https://a.example/", retrieve_at=NOON, install_at=NOON),
    ],
)
def test_what_1_6_cannot_say_is_not_said_otherwise(ask: asks.AnyAsk) -> None:
    with pytest.raises(NotExpressible):
        asks.words(Version.V16, ask, NUMBERS)
    asks.words(Version.V201, ask, NUMBERS)


def test_1_6_changes_one_key_at_a_time() -> None:
    both = asks.SetVariables(variables=tuple(heartbeat(value) for value in ("1", "2")))
    assert len(asks.one_by_one(Version.V16, both)) == 2
    assert asks.one_by_one(Version.V201, both) == (both,)


@pytest.mark.parametrize("version", list(Version))
def test_what_goes_down_is_an_action_that_a_station_answers(version: Version) -> None:
    down = {action for action in codec(version).actions if goes_down(action)}
    assert down >= {"Reset", "DataTransfer", "TriggerMessage"}
    assert not down & {"BootNotification", "Heartbeat", "Authorize", "SignCertificate"}
    for action in down:
        codec(version).response_type(action)
    assert {action for each in Version for action in codec(each).actions} >= NEVER_TWICE


@pytest.mark.parametrize(
    ("payload", "shown"),
    [
        ({"key": "AuthorizationKey", "value": "x"}, {"key": "AuthorizationKey", "value": "***"}),
        ({"key": "HeartbeatInterval", "value": "5"}, None),
        (
            {"data": [{"variable": {"name": "BasicAuthPassword"}, "attributeValue": "x"}]},
            {"data": [{"variable": {"name": "BasicAuthPassword"}, "attributeValue": "***"}]},
        ),
        (
            {"vpn": {"server": "s", "user": "u", "password": "p", "key": "k", "type": "IPSec"}},
            {"vpn": {"server": "s", "user": "u", "password": "***", "key": "***", "type": "IPSec"}},
        ),
        (
            {"location": "ftp://user:pass@host.example:21/x"},
            {"location": "ftp://user:***@host.example:21/x"},
        ),
        ({"location": "https://host.example/x", "n": 1, "none": None}, None),
        ({"location": "http://[broken"}, None),
    ],
)
def test_secrets_are_not_shown(payload: dict[str, Any], shown: dict[str, Any] | None) -> None:
    assert without_secrets(payload) == (payload if shown is None else shown)
