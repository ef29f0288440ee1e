"""What 1.6 calls what stations are asked. EVSE n is connector n."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from protocols.ocpp import asks
from protocols.ocpp.asking import Numbers, amperes, told
from protocols.ocpp.dialect import NotExpressible

_PURPOSES: Final = {
    "ChargingStationMaxProfile": "ChargePointMaxProfile",
    "TxDefaultProfile": "TxDefaultProfile",
    "TxProfile": "TxProfile",
}


def _unlock(ask: asks.UnlockConnector, _: Numbers) -> asks.Worded:
    if ask.connector != 1:
        raise NotExpressible("in OCPP 1.6 an EVSE has one connector")
    return "UnlockConnector", {"connectorId": ask.evse}


def _reset(ask: asks.Reset, _: Numbers) -> asks.Worded:
    if ask.evse:
        raise NotExpressible("OCPP 1.6 resets the whole station only")
    if ask.kind == "on_idle":
        raise NotExpressible("OCPP 1.6 cannot wait for the end of transactions: soft or hard")
    return "Reset", {"type": ask.kind.capitalize()}


def _clear_cache(_ask: asks.ClearCache, _: Numbers) -> asks.Worded:
    return "ClearCache", {}


def _reserve(ask: asks.ReserveNow, _: Numbers) -> asks.Worded:
    if ask.connector_type is not None:
        raise NotExpressible("OCPP 1.6 reserves an EVSE or any, not a type of connector")
    return "ReserveNow", told(
        connectorId=ask.evse or 0,
        expiryDate=ask.expires_at,
        idTag=ask.id_token.value,
        parentIdTag=ask.group,
        reservationId=ask.id,
    )


def _cancel(ask: asks.CancelReservation, _: Numbers) -> asks.Worded:
    return "CancelReservation", {"reservationId": ask.id}


def _purpose(purpose: str | None) -> str | None:
    if purpose is not None and purpose not in _PURPOSES:
        raise NotExpressible(f"OCPP 1.6 has no {purpose}")
    return purpose and _PURPOSES[purpose]


def _set_profile(ask: asks.SetChargingProfile, numbers: Numbers) -> asks.Worded:
    if ask.transaction is not None and numbers.transaction_number is None:
        raise NotExpressible("the station has no number for this transaction")
    schedule = told(
        duration=ask.duration_s,
        startSchedule=ask.start_at,
        chargingRateUnit=ask.unit,
        chargingSchedulePeriod=[_period(one, ask.unit) for one in ask.periods],
    )
    profile = told(
        chargingProfileId=ask.id,
        transactionId=numbers.transaction_number,
        stackLevel=ask.stack_level,
        chargingProfilePurpose=_purpose(ask.purpose),
        chargingProfileKind=ask.kind,
        recurrencyKind=ask.recurrency,
        validFrom=ask.valid_from,
        validTo=ask.valid_to,
        chargingSchedule=schedule,
    )
    return "SetChargingProfile", {"connectorId": ask.evse, "csChargingProfiles": profile}


def _period(one: asks.Period, unit: str) -> dict[str, Any]:
    limit = amperes(one.limit_ma or 0) if unit == "A" else float(one.limit_w or 0)
    return told(startPeriod=one.start_s, limit=limit, numberPhases=one.phases)


def _clear_profile(ask: asks.ClearChargingProfile, _: Numbers) -> asks.Worded:
    return "ClearChargingProfile", told(
        id=ask.id,
        connectorId=ask.evse,
        chargingProfilePurpose=_purpose(ask.purpose),
        stackLevel=ask.stack_level,
    )


def _get_profiles(_ask: asks.GetChargingProfiles, _: Numbers) -> asks.Worded:
    raise NotExpressible("an OCPP 1.6 station cannot be asked which profiles it holds")


def _composite(ask: asks.GetCompositeSchedule, _: Numbers) -> asks.Worded:
    return "GetCompositeSchedule", told(
        connectorId=ask.evse, duration=ask.duration_s, chargingRateUnit=ask.unit
    )


def _firmware(ask: asks.UpdateFirmware, numbers: Numbers) -> asks.Worded:
    again = told(retries=ask.retries, retryInterval=ask.retry_interval_s)
    if ask.signature is None:
        if ask.install_at is not None:
            raise NotExpressible("OCPP 1.6 installs unsigned firmware as soon as it has it")
        fields = {"location": ask.location, "retrieveDate": ask.retrieve_at}
        return "UpdateFirmware", {**fields, **again}
    firmware = told(
        location=ask.location,
        retrieveDateTime=ask.retrieve_at,
        installDateTime=ask.install_at,
        signingCertificate=ask.signing_certificate or "",
        signature=ask.signature,
    )
    return "SignedUpdateFirmware", {"requestId": numbers.own, "firmware": firmware, **again}


def _log(ask: asks.GetLog, numbers: Numbers) -> asks.Worded:
    again = told(retries=ask.retries, retryInterval=ask.retry_interval_s)
    if ask.kind == "diagnostics":
        fields = told(location=ask.location, startTime=ask.since, stopTime=ask.until)
        return "GetDiagnostics", {**fields, **again}
    log = told(remoteLocation=ask.location, oldestTimestamp=ask.since, latestTimestamp=ask.until)
    return "GetLog", {"log": log, "logType": "SecurityLog", "requestId": numbers.own, **again}


def _send_list(ask: asks.SendLocalList, _: Numbers) -> asks.Worded:
    return "SendLocalList", told(
        listVersion=ask.version,
        updateType="Differential" if ask.differential else "Full",
        localAuthorizationList=[_entry(one) for one in ask.entries] or None,
    )


def _entry(one: asks.ListEntry) -> dict[str, Any]:
    status = "Blocked" if one.blocked else "Accepted"
    info = told(status=status, expiryDate=one.expires_at, parentIdTag=one.group)
    return told(idTag=one.id_token.value, idTagInfo=None if one.removed else info)


def _list_version(_ask: asks.GetLocalListVersion, _: Numbers) -> asks.Worded:
    return "GetLocalListVersion", {}


def _transfer(ask: asks.DataTransfer, _: Numbers) -> asks.Worded:
    plain = ask.data is None or isinstance(ask.data, str)
    data = ask.data if plain else msgspec.json.encode(ask.data).decode()
    return "DataTransfer", told(vendorId=ask.vendor, messageId=ask.message, data=data)


V16: Final[asks.Words] = {
    asks.UnlockConnector: _unlock,
    asks.Reset: _reset,
    asks.ClearCache: _clear_cache,
    asks.ReserveNow: _reserve,
    asks.CancelReservation: _cancel,
    asks.SetChargingProfile: _set_profile,
    asks.ClearChargingProfile: _clear_profile,
    asks.GetChargingProfiles: _get_profiles,
    asks.GetCompositeSchedule: _composite,
    asks.UpdateFirmware: _firmware,
    asks.GetLog: _log,
    asks.SendLocalList: _send_list,
    asks.GetLocalListVersion: _list_version,
    asks.DataTransfer: _transfer,
}
