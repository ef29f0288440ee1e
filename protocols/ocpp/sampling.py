"""Sampled values of any version as readings (OCPP 1.6, 7.33 and 7.43; 2.0.1 Part 2, J01).

A value is cut, never rounded up, at the unit of its column, and in decimals, so that no watt-hour
comes from a binary fraction: "12.3456" kWh are 12 345 Wh. Phases are added before they are cut.

Several values for one column: the total stands before the phases, the outlet before the inlet,
the first before a second that differs. What found no column is in `more` or, where its number or
unit cannot be had, in `raw`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import ROUND_DOWN, Context, Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, Final, NamedTuple

from protocols.ocpp.messages import Reading
from protocols.quantities import Milliseconds

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)
_FIRST_TRUSTED_MS: Final = 1_577_836_800_000
"""2020: no station that is in service has a right clock that says less (S11)."""
_AHEAD_MS: Final = 24 * 3600 * 1000


def unix_ms(at: datetime) -> Milliseconds:
    return Milliseconds((at - _EPOCH) // _MS)


def trusted(at_ms: int, now_ms: int) -> bool:
    """Whether a station's clock may be right: it is neither at its epoch nor a day ahead."""
    return _FIRST_TRUSTED_MS <= at_ms <= now_ms + _AHEAD_MS


def all_trusted(found: tuple[Reading, ...], now_ms: int) -> bool:
    """By the first and the last: they are in order."""
    return not found or (trusted(found[0].at_ms, now_ms) and trusted(found[-1].at_ms, now_ms))


def iso(at_ms: int) -> str:
    """UTC with milliseconds, the most that stations must read (2.0.1 Part 2, 2.1.4)."""
    seconds, ms = divmod(at_ms, 1000)
    return f"{_seconds(seconds)}.{ms:03d}Z"


@lru_cache(maxsize=256)
def _seconds(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")


# --------------------------------------------------------------------------- where a value goes

_ENERGY, _POWER, _CURRENT, _VOLTAGE, _OFFERED = 0, 4, 8, 12, 16
_WIDTH: Final = 17
_MORE, _RAW, _SECOND = -1, -2, -3
_UNKNOWN: Final = -1
"""A phase was told, but not as a number: no total can be made."""
_ADDED: Final = frozenset({1, 2, 3, 5, 6, 7})
_IMPORT: Final = "Energy.Active.Import.Register"
_COLUMNS: Final = {
    _IMPORT: (_ENERGY, "wh"),
    "Power.Active.Import": (_POWER, "w"),
    "Current.Import": (_CURRENT, "ma"),
    "Voltage": (_VOLTAGE, "mv"),
    "Current.Offered": (_OFFERED, "ma"),
    "Current.Import.Offered": (_OFFERED, "ma"),
}
_PHASES: Final = {"": 0, "L1": 1, "L1-N": 1, "L2": 2, "L2-N": 2, "L3": 3, "L3-N": 3}
_UNITS: Final = {
    "wh": ("wh", 0),
    "kwh": ("wh", 3),
    "varh": ("varh", 0),
    "kvarh": ("varh", 3),
    "vah": ("vah", 0),
    "kvah": ("vah", 3),
    "w": ("w", 0),
    "kw": ("w", 3),
    "va": ("va", 0),
    "kva": ("va", 3),
    "var": ("var", 0),
    "kvar": ("var", 3),
    "a": ("ma", 3),
    "v": ("mv", 3),
    "celsius": ("mc", 3),
    "celcius": ("mc", 3),
    "c": ("mc", 3),
    "°c": ("mc", 3),
    "fahrenheit": ("mf", 3),
    "k": ("mk", 3),
    "percent": ("pct", 0),
    "%": ("pct", 0),
    "hertz": ("mhz", 3),
    "hz": ("mhz", 3),
    "rpm": ("rpm", 0),
    "s": ("s", 0),
    "factor": ("permille", 3),
}
"""Unit in lower case -> the unit of ours, and how many decimal places lie between (S15, S17)."""
_USUAL: Final = (
    ("Energy.Reactive", "varh"),
    ("Energy.Apparent", "VAh"),
    ("Energy", "Wh"),
    ("Power.Reactive", "var"),
    ("Power.Factor", "factor"),
    ("Power", "W"),
    ("Current", "A"),
    ("Voltage", "V"),
    ("Temperature", "Celsius"),
    ("Frequency", "Hertz"),
    ("SoC", "Percent"),
    ("RPM", "rpm"),
)
"""What a measurand is in when nothing is said."""
_ELSEWHERE: Final = frozenset({"EV", "Upstream"})
"""Other meters than the EVSE's own; inlet and body stand in where the outlet has none."""
_EXTRA: Final = 6
"""Decimal places kept below the unit while phases wait to be added."""
_MOST: Final = 2**40
_TENS: Final[tuple[int, ...]] = tuple(10**n for n in range(32))
_LONGEST_RAW: Final = 120
_WIDEST_MULTIPLIER: Final = 12

_PERIODIC: Final = "Sample.Periodic"
Readings = tuple[Reading, ...]
Key = tuple[str | None, str | None, str | None, str | None, int | None]
"""Measurand, unit, phase, location, multiplier: as sent."""


class _Place(NamedTuple):
    slot: int
    shift: int
    """Decimal places from the unit sent to the number kept."""
    most: int
    name: str
    column: int = -1
    """Of a second choice: which it fills where the better location has no such value."""


_RAW_PLACE: Final = _Place(_RAW, 0, 0, "")


def _place(key: Key) -> _Place:
    measurand, unit, phase, location, multiplier = key
    measurand, phase, location = measurand or _IMPORT, phase or "", location or "Outlet"
    unit = unit or next((u for m, u in _USUAL if measurand.startswith(m)), "")
    ours, shift = ("wh", 6) if unit == "MWh" else _UNITS.get(unit.lower(), ("", 0))
    multiplier = multiplier or 0
    if not ours or abs(multiplier) > _WIDEST_MULTIPLIER:
        return _RAW_PLACE
    shift += multiplier
    name = _name(measurand, phase, location, ours)
    column = _COLUMNS.get(measurand)
    if column is None or phase not in _PHASES or location in _ELSEWHERE:
        return _Place(_MORE, shift, _MOST, name)
    base, of_column = column
    if ours != of_column:
        return _RAW_PLACE
    slot = base if base == _OFFERED else base + _PHASES[phase]
    most = _MOST
    if slot in _ADDED:
        shift, most = shift + _EXTRA, _MOST * _TENS[_EXTRA]
    if location in ("Inlet", "Body"):
        return _Place(_SECOND, shift, most, name, slot)
    return _Place(slot, shift, most, name)


def _name(measurand: str, phase: str, location: str, unit: str) -> str:
    words = [measurand, phase.removesuffix("-N"), unit]
    if location != "Outlet" and measurand != "SoC":
        words.insert(2, location)
    return re.sub(r"[^a-z0-9]+", "_", "_".join(word for word in words if word)[:80].lower())


_places: dict[Key, _Place] = {}
_MOST_PLACES: Final = 4096


def _placed(key: Key) -> _Place:
    place = _place(key)
    if len(_places) < _MOST_PLACES:
        _places[key] = place
    return place


# --------------------------------------------------------------------------- numbers

_EXACT: Final = Context(prec=80, rounding=ROUND_DOWN)
_LONGEST_NUMBER: Final = 40


def scaled(value: str | float, shift: int) -> int | None:
    """A decimal number times 10**shift, cut to a whole one; None for what is no such number."""
    if not isinstance(value, str):
        if shift >= 0 and 0 <= value < _MOST_FLOAT:
            number = round(value * _TENS[shift])
            if number / _TENS[shift] == value and number < _EXACT_FLOAT:
                return number
        value = repr(value)
    if shift >= 0 and len(value) <= _LONGEST_NUMBER:
        if value.isdecimal():
            return int(value) * _TENS[shift]
        whole, dot, part = value.partition(".")
        if dot and whole.isdecimal() and part.isdecimal():
            missing = shift - len(part)
            if missing >= 0:
                return int(whole + part) * _TENS[missing]
            return int(whole + part[:shift])
    return _scaled_slowly(value, shift)


_MOST_FLOAT: Final = 1e12
_EXACT_FLOAT: Final = 10**15
"""Below it no two decimals of as many digits are the same float, so equal floats are equal."""


def _scaled_slowly(value: str, shift: int) -> int | None:
    if len(value) > _LONGEST_NUMBER or "_" in value:
        return None
    try:
        number = Decimal(value)
    except InvalidOperation:
        return None
    if not number.is_finite() or number.adjusted() > 20:
        return None
    if number.adjusted() < -20:
        return 0
    return int(number.scaleb(shift, _EXACT).to_integral_value(ROUND_DOWN, _EXACT))


# --------------------------------------------------------------------------- readings


class _Moment:
    """What was measured at one time in one context, while it is put together."""

    __slots__ = ("columns", "more", "raw", "second", "signed")

    def __init__(self) -> None:
        self.columns: list[Any] = [None] * _WIDTH
        self.more: dict[str, int] = {}
        self.raw: list[str] = []
        self.signed: list[str] = []
        self.second: list[tuple[_Place, int]] = []

    def put_rare(self, key: Key, place: _Place, value: str | float, number: int | None) -> None:
        """What does not simply fill an empty column."""
        slot = place.slot
        if number is None or slot == _RAW or not -place.most <= number <= place.most:
            self._keep_raw(key, value, slot)
        elif slot == _MORE:
            if self.more.setdefault(place.name, number) != number:
                self._keep_raw(key, value, _MORE)
        elif number < 0:
            self._keep_raw(key, value, slot)
        elif slot == _SECOND:
            self.second.append((place, number))
        elif self.columns[slot] != number:
            self._keep_raw(key, value, _MORE)

    def _keep_raw(self, key: Key, value: str | float, slot: int) -> None:
        measurand, unit, phase, location, multiplier = key
        told = f"{measurand or _IMPORT}{f'.{phase}' if phase else ''}={value!s:.{_LONGEST_RAW}}"
        told += f"e{multiplier}" if multiplier else ""
        told += f" {unit}" if unit else ""
        self.raw.append(f"{told} {location}" if location and location != "Outlet" else told)
        if slot in _ADDED and self.columns[slot] is None:
            self.columns[slot] = _UNKNOWN

    def reading(self, at_ms: Milliseconds, context: str) -> Reading:
        columns = self.columns
        if self.second:
            self._let_stand_in()
        if columns[1] is not None or columns[2] is not None or columns[3] is not None:
            self._add_phases(_ENERGY, "energy_active_import_register_l{}_wh")
        if columns[5] is not None or columns[6] is not None or columns[7] is not None:
            self._add_phases(_POWER, "power_active_import_l{}_w")
        if columns[_CURRENT] is not None:
            self._give_to_l1(_CURRENT, "current_import_ma")
        if columns[_VOLTAGE] is not None:
            self._give_to_l1(_VOLTAGE, "voltage_mv")
        return Reading(
            at_ms=at_ms,
            context=context,
            energy_wh=columns[0],
            power_w=columns[4],
            current_l1_ma=columns[9],
            current_l2_ma=columns[10],
            current_l3_ma=columns[11],
            voltage_l1_mv=columns[13],
            voltage_l2_mv=columns[14],
            voltage_l3_mv=columns[15],
            offered_ma=columns[16],
            more=self.more,
            raw=tuple(self.raw),
            signed=tuple(self.signed),
        )

    def _let_stand_in(self) -> None:
        """A measurand of which the outlet says nothing is taken from the inlet or the body."""
        told = {slot // 4 for slot, number in enumerate(self.columns) if number is not None}
        for place, number in self.second:
            if place.column // 4 not in told and self.columns[place.column] is None:
                self.columns[place.column] = number
            else:
                kept = number // _TENS[_EXTRA] if place.column in _ADDED else number
                self.more.setdefault(place.name, kept)

    def _add_phases(self, base: int, name: str) -> None:
        """S18, S19: a total of what the phases say, unless a total was told or a phase is bad."""
        told = [(n, self.columns[base + n]) for n in (1, 2, 3)]
        phases = [(n, number) for n, number in told if number is not None]
        if self.columns[base] is None and all(number != _UNKNOWN for _, number in phases):
            self.columns[base] = sum(number for _, number in phases) // _TENS[_EXTRA]
            if len(phases) == 1:
                return
        for n, number in phases:
            if number != _UNKNOWN:
                self.more[name.format(n)] = number // _TENS[_EXTRA]

    def _give_to_l1(self, base: int, name: str) -> None:
        if all(self.columns[base + n] is None for n in (1, 2, 3)):
            self.columns[base + 1] = self.columns[base]
        else:
            self.more[name] = self.columns[base]


Unpacked = tuple[Key, "str | float", str]
"""A sampled value's key, its number, and its signed form ("": none)."""


def readings(entries: Sequence[Any] | None, unpack: Callable[[Any], Unpacked]) -> Readings:
    """One reading for each time and context, by time; `unpack` knows the version's fields."""
    if not entries:
        return ()
    placed = _places
    moments: dict[tuple[Milliseconds, str], _Moment] = {}
    for entry in entries:
        at_ms = unix_ms(entry.timestamp)
        context, moment = None, None
        for one in entry.sampledValue:
            if moment is None or one.context != context:
                context = one.context
                which = (at_ms, context or _PERIODIC)
                moment = moments.get(which)
                if moment is None:
                    moment = moments[which] = _Moment()
                columns = moment.columns
            key, value, signed = unpack(one)
            if signed:
                moment.signed.append(signed)
                if value == "":
                    continue
            place = placed.get(key) or _placed(key)
            slot, shift, most, _, _ = place
            number = scaled(value, shift)
            if slot >= 0 and number is not None and 0 <= number <= most and columns[slot] is None:
                columns[slot] = number
            else:
                moment.put_rare(key, place, value, number)
    made = [moment.reading(at_ms, context) for (at_ms, context), moment in moments.items()]
    if len(made) > 1:
        made.sort(key=_at)
    return tuple(made)


def _at(reading: Reading) -> int:
    return reading.at_ms
