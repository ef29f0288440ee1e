"""What an OCPP station tells of a transaction, as it is kept: pure rules.

An agent tells its own transaction's whole measure; an OCPP station tells registers, and leaves
much out. `NativeEvent` keeps just what was told, and the projection makes the rest of it. Its id
comes from its content, so that what is told again is known again.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1
from typing import Final, TypeVar
from uuid import UUID

import msgspec

from protocols.agent_link import (
    MAX_SIGNED_BYTES,
    MOST_SIGNED,
    ChargingState,
    TransactionEventType,
)
from protocols.ocpp.messages import Meter, Reading, Status, Transaction
from protocols.quantities import Milliseconds, WattHours, Watts

_NIL: Final = UUID(int=0)
_NAMESPACE: Final = UUID("5e6f8d8c-3c1a-4b52-9a35-7d0c39a4c0f1").bytes
STOP_SEQ: Final = 2**52
"""1.6's stop is numbered above everything else."""
_BEGIN: Final = "Transaction.Begin"
_END: Final = "Transaction.End"
_MOST_KEPT: Final = 2**62
_LONGEST_SIGNED: Final = 2 * MAX_SIGNED_BYTES
"""Base64 or hexadecimal digits of it."""


class NativeEvent(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    gc=False,
    tag="native",
    tag_field="kind",
):
    """One step of a transaction as an OCPP station told it, or as we conclude it."""

    id: UUID = _NIL
    transaction: UUID = _NIL
    type: TransactionEventType
    seq_no: int
    at_ms: Milliseconds
    """As told, whether or not its clock is trusted."""
    trigger: str
    evse: int = 0
    connector: int = 1
    charging_state: ChargingState | None = None
    begin_wh: WattHours | None = None
    """The register at the transaction's beginning."""
    begin_ms: Milliseconds | None = None
    """When that was read, told by an event that is not the beginning itself."""
    register_wh: WattHours | None = None
    """The register's newest reading."""
    power_w: Watts | None = None
    reason: str | None = None
    stop_token: bool = False
    offline: bool = False
    remote_start_id: int | None = None
    metered: bool = False
    """Of a MeterValues: not numbered by the station, so it has no rivals for its number."""
    stated: bool = False
    """Of a 1.6 StatusNotification: likewise."""
    concluded: bool = False
    """Not told by the station: we hold that it is over until the station says otherwise."""
    final: bool = False
    """Of a conclusion: also what happened later does not undo it, a real end does."""
    signed: tuple[str, ...] = ()
    """What its meter has signed, as the station told it."""


_ENCODER: Final = msgspec.json.Encoder()


def transaction_id(station_id: int, key: str, incarnation: int = 1) -> UUID:
    """The same for every repeat, on whichever gateway."""
    return _uuid(_NAMESPACE + f"{station_id}:{incarnation}:{key}".encode())


def identified(
    transaction: UUID, content: NativeEvent, seq_no: int | None = None
) -> tuple[NativeEvent, bytes]:
    """The event with its ids, and as it is kept, without them.

    `seq_no` is what our own numbering says, no part of its identity.
    """
    kept = _ENCODER.encode(content)
    bare = kept
    if content.offline or content.signed:
        # A repeat may be sent as offline. What is signed was not kept at first, so it is no part.
        bare = _ENCODER.encode(msgspec.structs.replace(content, offline=False, signed=()))
    told = _uuid(transaction.bytes + bare)
    number = content.seq_no if seq_no is None else seq_no
    event = msgspec.structs.replace(content, id=told, transaction=transaction, seq_no=number)
    return event, kept


_VERSION_MASK: Final = ~(0xF000 << 64 | 0xC000 << 48)
_VERSION_5: Final = 0x5000 << 64 | 0x8000 << 48


def _uuid(content: bytes) -> UUID:
    """As `uuid5`, in half its time: one is made for every metered value."""
    digest = int.from_bytes(sha1(content, usedforsecurity=False).digest()[:16], "big")
    return UUID(int=digest & _VERSION_MASK | _VERSION_5)


def fingerprint(start: Transaction) -> str:
    """The native key of 1.6's start: it is known by what it says (quirk S4)."""
    token = start.id_token.value.lower() if start.id_token else ""
    return f"start:{start.evse}:{token}:{start.at_ms}:{start.register_wh}"


def stop_fingerprint(stop: Transaction) -> str:
    """The native key of a transaction that is known by its 1.6 stop alone (S2)."""
    return f"stop:{stop.number}:{stop.at_ms}:{stop.register_wh}"


def of_transaction(told: Transaction) -> NativeEvent:
    """What a transaction message says, its numbers of 1.6 not yet given."""
    started = told.event is TransactionEventType.STARTED
    ended = told.event is TransactionEventType.ENDED
    begin = _begin(told.readings)
    last = _last(told.readings, ended=ended)
    register = _likelier(told.register_wh, _energy(last))
    begin_wh = _energy(begin)
    if started and begin_wh is None:
        begin_wh = _likelier(told.register_wh, _earliest(told.readings))
    return NativeEvent(
        type=told.event,
        seq_no=_seq_no(told),
        at_ms=told.at_ms,
        trigger=told.trigger,
        evse=told.evse,
        connector=told.connector,
        charging_state=told.charging_state,
        begin_wh=_kept(begin_wh),
        begin_ms=begin.at_ms if begin is not None and not started else None,
        register_wh=_kept(register),
        power_w=_fitting(_power(told.readings)),
        reason=told.reason,
        stop_token=told.stop_token,
        offline=told.offline,
        remote_start_id=_fitting(told.remote_start_id),
        signed=_signed(told.readings),
    )


def of_meter(told: Meter) -> NativeEvent | None:
    """What metered values say of the transaction that they belong to; None for no values."""
    readings = told.readings
    if not readings:
        return None
    newest = readings[0]
    begin, register, power = None, newest.energy_wh, newest.power_w
    if len(readings) > 1 or newest.context == _BEGIN:
        newest = max(readings, key=_at)
        begin = _begin(readings)
        register, power = _energy(_last(readings, ended=False)), _power(readings)
    return NativeEvent(
        type=TransactionEventType.UPDATED,
        seq_no=0,
        at_ms=newest.at_ms,
        trigger="MeterValueClock" if newest.context == "Sample.Clock" else "MeterValuePeriodic",
        evse=told.evse,
        connector=told.connector,
        begin_wh=_kept(_energy(begin)),
        begin_ms=begin.at_ms if begin is not None else None,
        register_wh=_kept(register),
        power_w=_fitting(power),
        metered=True,
        signed=_signed(readings),
    )


def of_status(told: Status, received_ms: Milliseconds) -> NativeEvent | None:
    """What a connector's status says of its transaction; None when it says nothing of one."""
    if told.evse <= 0 or told.charging_state in {None, ChargingState.IDLE}:
        return None
    return NativeEvent(
        type=TransactionEventType.UPDATED,
        seq_no=0,
        at_ms=received_ms if told.at_ms is None else told.at_ms,
        trigger="ChargingStateChanged",
        evse=told.evse,
        connector=told.connector,
        charging_state=told.charging_state,
        stated=True,
    )


def _signed(readings: Sequence[Reading]) -> tuple[str, ...]:
    """The last few of what a message brings, none longer than a meter's can be."""
    found = [one for reading in readings for one in reading.signed if len(one) <= _LONGEST_SIGNED]
    return tuple(found[-MOST_SIGNED:])


def _seq_no(told: Transaction) -> int:
    if told.seq_no is not None:
        return min(max(told.seq_no, 0), STOP_SEQ)
    return {TransactionEventType.STARTED: 0, TransactionEventType.ENDED: STOP_SEQ}.get(
        told.event, 1
    )


def _at(reading: Reading) -> int:
    return reading.at_ms


def _energy(reading: Reading | None) -> WattHours | None:
    return None if reading is None else reading.energy_wh


def _likelier(told: WattHours | None, read: WattHours | None) -> WattHours | None:
    """A register of its own goes before a reading, unless it can be none."""
    return told if read is None or (told is not None and told >= 0) else read


def _kept(register: WattHours | None) -> WattHours | None:
    """A register that a column can hold; the projection refuses what is left of the absurd."""
    if register is None:
        return None
    return WattHours(min(max(register, -1), _MOST_KEPT))


Small = TypeVar("Small", bound=int)


def _fitting(value: Small | None) -> Small | None:
    """A number that stations mean, and sums of which a column can hold; else none."""
    return value if value is not None and -(2**31) <= value < 2**31 else None


def _begin(readings: Sequence[Reading]) -> Reading | None:
    """The reading of the transaction's beginning, where one is said to be."""
    for reading in readings:
        if reading.context == _BEGIN and reading.energy_wh is not None:
            return reading
    return None


def _last(readings: Sequence[Reading], *, ended: bool) -> Reading | None:
    """The newest reading of the register; an end's own before any other."""
    measured = [one for one in readings if one.energy_wh is not None]
    ends = [one for one in measured if one.context == _END] if ended else []
    later = [one for one in measured if one.context != _BEGIN]
    return max(ends or later or measured, key=_at, default=None)


def _earliest(readings: Sequence[Reading]) -> WattHours | None:
    measured = [one for one in readings if one.energy_wh is not None]
    return _energy(min(measured, key=_at, default=None))


def _power(readings: Sequence[Reading]) -> Watts | None:
    measured = [one for one in readings if one.power_w is not None]
    return max(measured, key=_at).power_w if measured else None
