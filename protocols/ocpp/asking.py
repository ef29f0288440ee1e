"""What the words of every version need beside what is asked."""

from __future__ import annotations

from typing import Any, NamedTuple


class Numbers(NamedTuple):
    """The names that a request gives or takes."""

    own: int
    """requestId."""
    transaction_key: str | None = None
    transaction_number: int | None = None


def told(**fields: Any) -> dict[str, Any]:
    """A payload without what is not told."""
    return {name: value for name, value in fields.items() if value is not None}


def amperes(milliamperes: int) -> float:
    """In tenths, which is as fine as OCPP has it; never more than was meant."""
    return milliamperes // 100 / 10
