"""Every way in which a station wrote a time that its reader could be sure of.

Never a guess: a time without a zone is UTC, as the specification advises (1.6, 3.14), unless the
operator set a zone for the station.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Final

_WRITTEN: Final = re.compile(
    r"(\d{4})([-/])(\d{1,2})\2(\d{1,2})(?:[Tt_]|\s+)"
    r"(\d{1,2}):(\d\d)(?::(\d\d)(?:[.,](\d+))?)?\s*"
    r"(?P<zone>[Zz]|UTC|GMT|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d)?)?",
    re.ASCII,
)
_NUMBER: Final = re.compile(r"\d{9,10}(?:\.\d+)?|\d{12,13}", re.ASCII)
_LAST_SECOND: Final = 100_000_000_000
_LAST_MILLISECOND: Final = 100_000_000_000_000

Read = tuple[datetime, str]
"""A time, and the deviation in how it was written; "" for none."""


def read_time(written: object, zone: tzinfo | None) -> Read | None:
    """The time, or None when it is none, or could be several."""
    if isinstance(written, bool):
        return None
    if isinstance(written, int | float):
        return _since_1970(written)
    if not isinstance(written, str) or len(written) > 64:
        return None
    text = written.strip()
    if _NUMBER.fullmatch(text):
        return _since_1970(float(text))
    found = _WRITTEN.fullmatch(text)
    return None if found is None else _of_text(found, written, zone)


def _since_1970(number: float) -> Read | None:
    if 0 <= number < _LAST_SECOND:
        return datetime.fromtimestamp(number, UTC), "epoch_timestamp"
    if _LAST_SECOND <= number < _LAST_MILLISECOND:
        return datetime.fromtimestamp(number / 1000, UTC), "epoch_timestamp"
    return None


def _of_text(found: re.Match[str], written: str, zone: tzinfo | None) -> Read | None:
    year, _, month, day, hour, minute, second, fraction, _ = found.groups()
    told = _offset(found["zone"])
    try:
        moment = datetime(  # noqa: DTZ001  # its zone follows
            int(year),
            int(month),
            int(day),
            int(hour),
            int(minute),
            min(int(second or 0), 59),  # a leap second is the 59th twice
            int((fraction or "0").ljust(6, "0")[:6]),
        )
    except ValueError:
        return None
    if told is None:
        return moment.replace(tzinfo=zone or UTC), "naive_timestamp"
    return moment.replace(tzinfo=told), "" if _is_rfc3339(written) else "timestamp_form"


def _offset(text: str | None) -> tzinfo | None:
    if text is None:
        return None
    if text[0] not in "+-":
        return UTC
    minutes = int(text[1:3]) * 60 + int(text[3:].lstrip(":") or 0)
    return timezone(timedelta(minutes=-minutes if text[0] == "-" else minutes))


def _is_rfc3339(written: str) -> bool:
    """As the strict reader takes it, with a space or small letters, and any number of decimals."""
    return bool(
        re.fullmatch(
            r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:[0-5]\d(\.\d+)?([Zz]|[+-]\d\d:?\d\d)", written, re.ASCII
        )
    )
