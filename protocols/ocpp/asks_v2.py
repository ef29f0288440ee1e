"""What 2.0.1 and 2.1 call what stations are asked."""

from __future__ import annotations

from typing import Any, Final

from protocols.agent_link import IdToken
from protocols.ocpp import asks
from protocols.ocpp.asking import Numbers, amperes, told
from protocols.ocpp.dialect import NotExpressible


def _evse(evse: int | None, connector: int | None = None) -> dict[str, Any] | None:
    return None if evse is None else told(id=evse, connectorId=connector)


def _unlock(ask: asks.UnlockConnector, _: Numbers) -> asks.Worded:
    return "UnlockConnector", {"evseId": ask.evse, "connectorId": ask.connector}


def _reset(ask: asks.Reset, _: Numbers) -> asks.Worded:
    kind = "OnIdle" if ask.kind == "on_idle" else "Immediate"
    return "Reset", told(type=kind, evseId=ask.evse or None)


def _clear_cache(_ask: asks.ClearCache, _: Numbers) -> asks.Worded:
    return "ClearCache", {}


def _token(token: IdToken) -> dict[str, Any]:
    return {"idToken": token.value, "type": token.type}


def _group(group: str | None) -> dict[str, Any] | None:
    return None if group is None else {"idToken": group, "type": "Central"}


def _reserve(ask: asks.ReserveNow, _: Numbers) -> asks.Worded:
    return "ReserveNow", told(
        id=ask.id,
        expiryDateTime=ask.expires_at,
        idToken=_token(ask.id_token),
        evseId=ask.evse or None,
        groupIdToken=_group(ask.group),
        connectorType=ask.connector_type,
    )


def _cancel(ask: asks.CancelReservation, _: Numbers) -> asks.Worded:
    return "CancelReservation", {"reservationId": ask.id}


def _set_profile(ask: asks.SetChargingProfile, numbers: Numbers) -> asks.Worded:
    if ask.transaction is not None and numbers.transaction_key is None:
        raise NotExpressible("the station has no name for this transaction")
    schedule = told(
        id=ask.id,
        duration=ask.duration_s,
        startSchedule=ask.start_at,
        chargingRateUnit=ask.unit,
        chargingSchedulePeriod=[_period(one, ask.unit) for one in ask.periods],
    )
    profile = told(
        id=ask.id,
        stackLevel=ask.stack_level,
        chargingProfilePurpose=ask.purpose,
        chargingProfileKind=ask.kind,
        recurrencyKind=ask.recurrency,
        validFrom=ask.valid_from,
        validTo=ask.valid_to,
        transactionId=numbers.transaction_key,
        chargingSchedule=[schedule],
    )
    return "SetChargingProfile", {"evseId": ask.evse, "chargingProfile": profile}


def _period(one: asks.Period, unit: str) -> dict[str, Any]:
    limit = amperes(one.limit_ma or 0) if unit == "A" else float(one.limit_w or 0)
    return told(startPeriod=one.start_s, limit=limit, numberPhases=one.phases)


def _clear_profile(ask: asks.ClearChargingProfile, _: Numbers) -> asks.Worded:
    criteria = told(evseId=ask.evse, chargingProfilePurpose=ask.purpose, stackLevel=ask.stack_level)
    return "ClearChargingProfile", told(
        chargingProfileId=ask.id, chargingProfileCriteria=criteria or None
    )


def _get_profiles(ask: asks.GetChargingProfiles, numbers: Numbers) -> asks.Worded:
    return "GetChargingProfiles", told(
        requestId=numbers.own,
        evseId=ask.evse,
        chargingProfile=told(chargingProfilePurpose=ask.purpose),
    )


def _composite(ask: asks.GetCompositeSchedule, _: Numbers) -> asks.Worded:
    return "GetCompositeSchedule", told(
        evseId=ask.evse, duration=ask.duration_s, chargingRateUnit=ask.unit
    )


def _firmware(ask: asks.UpdateFirmware, numbers: Numbers) -> asks.Worded:
    firmware = told(
        location=ask.location,
        retrieveDateTime=ask.retrieve_at,
        installDateTime=ask.install_at,
        signingCertificate=ask.signing_certificate,
        signature=ask.signature,
    )
    return "UpdateFirmware", told(
        requestId=numbers.own,
        firmware=firmware,
        retries=ask.retries,
        retryInterval=ask.retry_interval_s,
    )


def _log(ask: asks.GetLog, numbers: Numbers) -> asks.Worded:
    log = told(remoteLocation=ask.location, oldestTimestamp=ask.since, latestTimestamp=ask.until)
    return "GetLog", told(
        requestId=numbers.own,
        logType=f"{ask.kind.capitalize()}Log",
        log=log,
        retries=ask.retries,
        retryInterval=ask.retry_interval_s,
    )


def _send_list(ask: asks.SendLocalList, _: Numbers) -> asks.Worded:
    return "SendLocalList", told(
        versionNumber=ask.version,
        updateType="Differential" if ask.differential else "Full",
        localAuthorizationList=[_entry(one) for one in ask.entries] or None,
    )


def _entry(one: asks.ListEntry) -> dict[str, Any]:
    status = "Blocked" if one.blocked else "Accepted"
    info = told(status=status, cacheExpiryDateTime=one.expires_at, groupIdToken=_group(one.group))
    return told(idToken=_token(one.id_token), idTokenInfo=None if one.removed else info)


def _list_version(_ask: asks.GetLocalListVersion, _: Numbers) -> asks.Worded:
    return "GetLocalListVersion", {}


def _transfer(ask: asks.DataTransfer, _: Numbers) -> asks.Worded:
    return "DataTransfer", told(vendorId=ask.vendor, messageId=ask.message, data=ask.data)


V2: Final[asks.Words] = {
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
