"""Words to values and back, in integers: a float on the wire is taken as the exact ratio it is."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from protocols.modbus.profile import BITS, Field, Number, width

Words = tuple[int, ...]

BASE: Final = {
    "": Fraction(1),
    "A": Fraction(1000),
    "mA": Fraction(1),
    "V": Fraction(1000),
    "mV": Fraction(1),
    "W": Fraction(1),
    "kW": Fraction(1000),
    "mW": Fraction(1, 1000),
    "Wh": Fraction(1),
    "kWh": Fraction(1000),
    "mWh": Fraction(1, 1000),
    "VA": Fraction(1),
    "VAh": Fraction(1),
    "kVAh": Fraction(1000),
    "var": Fraction(1),
    "kvarh": Fraction(1000),
    "Hz": Fraction(1000),
    "degC": Fraction(1000),
    "deg": Fraction(1000),
    "%": Fraction(1000),
    "s": Fraction(1),
    "ms": Fraction(1, 1000),
}
"""Integers come out in mA, mV, W, Wh, VA, var, s; Hz, degrees and percent in thousandths."""
FLOATS: Final = {"f32": ">f", "f64": ">d"}


class EncodingError(ValueError):
    """A value does not fit its register; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Value:
    """A decoded field: None with `suspect` is a sentinel or implausible, never a number."""

    value: int | str | None
    suspect: bool = False


SUSPECT: Final = Value(None, suspect=True)


def exact(number: Number) -> Fraction:
    """The decimal as written in the profile: 0.1 is a tenth, not its nearest binary float."""
    return Fraction(repr(number))


def factor(scale: Number, unit: str) -> Fraction:
    """What one raw step is worth in the unit's base (mA, mV, W, Wh, s, ...)."""
    return exact(scale) * BASE[unit]


def nearest(ratio: Fraction) -> int:
    """Half away from zero, as a person rounds a meter."""
    magnitude = (abs(ratio.numerator) * 2 + ratio.denominator) // (2 * ratio.denominator)
    return magnitude if ratio >= 0 else -magnitude


def decode(field: Field, words: Sequence[int], order: str, exponent: int = 0) -> Value:
    """One field's value from its raw registers (or its coil), as they came off the wire.

    `exponent` is what the field's `scale_from` said.
    """
    ordered = tuple(words) if order == "msw_first" else tuple(reversed(words))
    if field.type.startswith(("str", "bytes")):
        return _text(field, tuple(words))
    pattern = _joined(ordered)
    if pattern in field.sentinels:
        return SUSPECT
    if field.type in FLOATS:
        number = struct.unpack(FLOATS[field.type], _octets(ordered))[0]
        return _scaled(field, Fraction(number), exponent) if math.isfinite(number) else SUSPECT
    return _integer(field, pattern, exponent)


def _integer(field: Field, pattern: int, exponent: int) -> Value:
    if field.bits is not None:
        low, high = field.bits
        pattern = pattern >> low & (1 << high - low + 1) - 1
    elif field.type.startswith("s") and pattern >> BITS[field.type] - 1:
        pattern -= 1 << BITS[field.type]
    if pattern in field.zeros:
        return Value(0)
    if field.form != "hex":
        return Value(_pairs(pattern))
    return _scaled(field, Fraction(pattern), exponent)


def _scaled(field: Field, raw: Fraction, exponent: int) -> Value:
    shown = raw * exact(field.scale) * Fraction(10) ** exponent
    if field.plausible is not None:
        low, high = (exact(bound) for bound in field.plausible)
        if not low <= shown <= high:
            return SUSPECT
    return Value(nearest(shown * BASE[field.unit]))


def _text(field: Field, words: Words) -> Value:
    if _joined(words) in field.sentinels:
        return SUSPECT
    octets = _octets(words)
    if field.type.startswith("bytes"):
        first, last = field.bytes or (0, len(octets) - 1)
        part = octets[first : last + 1]
        return Value(".".join(map(str, part)) if field.form == "dotted" else part.hex())
    if field.text == "low_byte":
        octets = octets[1::2]
    codec = "utf-16-be" if field.text == "utf16" else "ascii"
    text = octets.decode(codec, errors="replace").split("\0")[0].strip()
    return Value(text) if text.isprintable() and "\ufffd" not in text else SUSPECT


def _pairs(number: int) -> str:
    """Decimal MMmmpp as a dotted version: 10203 is 1.2.3."""
    return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"


def encode(field: Field, value: int | str, order: str, exponent: int = 0) -> Words:
    """The registers that decode to `value` (base units); used for writes and by the simulator.

    Raises EncodingError where the value does not fit. Bits are placed, other bits are 0.
    """
    if isinstance(value, str) and field.form == "pairs":
        value = _number(value)
    if isinstance(value, str):
        return _text_words(field, value)
    raw = Fraction(value) / factor(field.scale, field.unit) / Fraction(10) ** exponent
    return encode_raw(field.type, nearest(raw) if field.type not in FLOATS else raw, order, field)


def encode_raw(kind: str, raw: int | Fraction, order: str, field: Field | None = None) -> Words:
    """An unscaled number as registers."""
    if kind in FLOATS:
        octets = struct.pack(FLOATS[kind], float(raw))
    else:
        octets = _whole(kind, int(raw), field)
    words = struct.unpack(f">{len(octets) // 2}H", octets)
    return words if order == "msw_first" else tuple(reversed(words))


def _whole(kind: str, raw: int, field: Field | None) -> bytes:
    bits = BITS.get(kind)
    if bits is None:
        raise EncodingError(f"a number does not fit into {kind}")
    if field is not None and field.bits is not None:
        raw <<= field.bits[0]
    low = -(1 << bits - 1) if kind.startswith("s") else 0
    if not low <= raw < low + (1 << bits):
        raise EncodingError(f"{raw} does not fit into {kind}")
    return (raw & (1 << bits) - 1).to_bytes(2 * width(kind), "big")


def _number(version: str) -> int:
    """1.2.3 as decimal MMmmpp: 10203."""
    number = 0
    for part in version.split("."):
        number = number * 100 + int(part)
    return number


def _text_words(field: Field, text: str) -> Words:
    size = width(field.type)
    if not field.type.startswith(("str", "bytes")):
        raise EncodingError(f"'{text}' is a text, the register a {field.type}")
    if field.type.startswith("bytes"):
        octets = _bytes_of(field, text)
    elif field.text == "low_byte":
        octets = b"".join(bytes((0, code)) for code in text.encode("ascii"))
    else:
        octets = text.encode("utf-16-be" if field.text == "utf16" else "ascii")
    if len(octets) > 2 * size:
        raise EncodingError(f"'{text}' does not fit into {field.type}")
    return struct.unpack(f">{size}H", octets.ljust(2 * size, b"\0"))


def _bytes_of(field: Field, text: str) -> bytes:
    part = bytes(map(int, text.split("."))) if field.form == "dotted" else bytes.fromhex(text)
    return bytes(field.bytes[0] if field.bytes else 0) + part


def _joined(words: Sequence[int]) -> int:
    pattern = 0
    for word in words:
        pattern = pattern << 16 | word
    return pattern


def _octets(words: Sequence[int]) -> bytes:
    return struct.pack(f">{len(words)}H", *words)
