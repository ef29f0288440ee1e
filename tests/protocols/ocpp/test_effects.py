"""Answers mean the same in every version's words."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest

from protocols.agent_link import IdToken
from protocols.ocpp import asks, effects
from protocols.ocpp.asking import Numbers
from protocols.ocpp.effects import effect_of
from protocols.ocpp.messages import Answered
from protocols.ocpp.version import Version
from protocols.quantities import MilliAmperes

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
CARD = IdToken("A")
ACCEPTED = {"status": "Accepted"}


def answered(
    version: Version, ask: asks.AnyAsk, response: Any, *, accepted: bool = True
) -> Answered:
    action, payload = asks.words(version, ask, Numbers(7, "tx", 5))
    request = msgspec.json.decode(msgspec.json.encode(payload))
    return Answered(
        command=UUID(int=1), action=action, request=request, response=response, accepted=accepted
    )


@pytest.mark.parametrize("version", list(Version))
@pytest.mark.parametrize(
    ("ask", "effect"),
    [
        (
            asks.ClearChargingProfile(evse=2, purpose="ChargingStationMaxProfile", stack_level=3),
            effects.ProfilesCleared(None, 2, "ChargingStationMaxProfile", 3),
        ),
        (asks.ClearChargingProfile(id=5), effects.ProfilesCleared(id=5)),
        (asks.ClearChargingProfile(), effects.ProfilesCleared()),
        (
            asks.ReserveNow(id=3, id_token=CARD, expires_at=NOON, evse=1),
            effects.Reserved(3, 1, "", NOON),
        ),
        (
            asks.ReserveNow(id=3, id_token=CARD, expires_at=NOON),
            effects.Reserved(3, 0, "", NOON),
        ),
        (asks.CancelReservation(id=3), effects.ReservationCancelled(3)),
        (asks.SendLocalList(version=9, differential=True), effects.ListHeld(9)),
        (asks.Reset(kind="soft"), None),
    ],
)
def test_the_same_in_every_version(
    version: Version, ask: asks.AnyAsk, effect: effects.Effect | None
) -> None:
    assert effect_of(answered(version, ask, ACCEPTED)) == effect
    assert effect_of(answered(version, ask, {"status": "Rejected"}, accepted=False)) is None
    assert effect_of(answered(version, ask, None)) is None


@pytest.mark.parametrize("version", list(Version))
def test_a_profile_is_kept_in_2_xs_words(version: Version) -> None:
    ask = asks.SetChargingProfile(
        evse=0, id=5, purpose="ChargingStationMaxProfile", kind="Absolute", unit="A",
        periods=(asks.Period(start_s=0, limit_ma=MilliAmperes(16000)),), transaction=UUID(int=2),
    )  # fmt: skip
    effect = effect_of(answered(version, ask, ACCEPTED))
    assert isinstance(effect, effects.ProfileSet)
    assert effect.evse == 0
    profile = effect.profile
    assert (profile["id"], profile["chargingProfilePurpose"], profile["transactionId"]) == (
        5, "ChargingStationMaxProfile", "5" if version is Version.V16 else "tx",
    )  # fmt: skip
    assert profile["chargingSchedule"][0]["chargingSchedulePeriod"][0]["limit"] == 16.0


def test_lists_versions_and_transfers() -> None:
    ask = asks.GetLocalListVersion()
    for version, name in ((Version.V16, "listVersion"), (Version.V201, "versionNumber")):
        assert effect_of(answered(version, ask, {name: 4}, accepted=False)) == effects.ListHeld(4)
    firmware = asks.UpdateFirmware(location="https://x.example/1", retrieve_at=NOON)
    asked = [effect_of(answered(v, firmware, {})) for v in (Version.V16, Version.V21)]
    assert asked == [
        effects.TransferAsked("firmware", None, "https://x.example/1", ""),
        effects.TransferAsked("firmware", 7, "https://x.example/1", ""),
    ]
    log = asks.GetLog(kind="diagnostics", location="ftp://x.example/")
    told = [
        effect_of(answered(Version.V16, log, {"fileName": "a.zip"})),
        effect_of(answered(Version.V201, log, {"status": "Accepted", "filename": "a.zip"})),
    ]
    assert told == [
        effects.TransferAsked("log", None, "ftp://x.example/", "a.zip"),
        effects.TransferAsked("log", 7, "ftp://x.example/", "a.zip"),
    ]


def call(action: str, request: Any, response: Any) -> Answered:
    return Answered(
        command=UUID(int=1), action=action, request=request, response=response, accepted=True
    )


def test_monitors_get_their_stations_numbers() -> None:
    at = {"component": {"name": "C"}, "variable": {"name": "V"}, "type": "Delta", "severity": 3}
    effect = effect_of(
        call(
            "SetVariableMonitoring",
            {"setMonitoringData": [{**at, "value": 5.0}]},
            {"setMonitoringResult": [{**at, "status": "Accepted", "id": 8},
                                     {**at, "type": "Periodic", "status": "Rejected"}]},
        )
    )  # fmt: skip
    assert effect == effects.MonitorsSet(({**at, "value": 5.0, "status": "Accepted", "id": 8},))
    results = [{"id": 8, "status": "Accepted"}, {"id": 9, "status": "Rejected"}]
    cleared = call("ClearVariableMonitoring", {"id": [8, 9]}, {"clearMonitoringResult": results})
    assert effect_of(cleared) == effects.MonitorsCleared((8,))


def test_monitors_are_known_again_whatever_the_order_of_their_fields() -> None:
    """A request that waited in the database comes back with its fields in another order."""
    place = {"name": "C", "evse": {"id": 1, "connectorId": 2}}
    back = {"evse": {"connectorId": 2, "id": 1}, "name": "C"}
    at = {"component": place, "variable": {"name": "V"}, "type": "Delta", "severity": 3}
    answer = {"setMonitoringResult": [{**at, "status": "Accepted", "id": 8}]}
    asked = {"setMonitoringData": [{**at, "component": back, "value": 5.0}]}
    effect = effect_of(call("SetVariableMonitoring", asked, answer))
    assert isinstance(effect, effects.MonitorsSet)
    assert [one["value"] for one in effect.monitors] == [5.0]


def test_nonsense_has_no_effect() -> None:
    assert effect_of(call("ReserveNow", {"id": 1, "expiryDateTime": "soon"}, {})) is None
    assert effect_of(call("SetChargingProfile", {}, {})) is None
    assert effect_of(call("SetDisplayMessage", {"message": None}, {})) is None
    late = {"id": 1, "expiryDateTime": "9999-12-31T23:59:59-14:00"}
    assert effect_of(call("ReserveNow", late, {})) is None
    far = {"id": 1, "expiryDateTime": "2030-01-01T00:00:00Z", "evseId": 10**12}
    assert effect_of(call("ReserveNow", far, {})) is None
    assert effect_of(call("ClearChargingProfile", {"connectorId": 10**12}, {})) is None
