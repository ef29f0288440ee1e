"""What the modules' `rest.py` build on: request bodies."""

from __future__ import annotations

from typing import Final, Self

from pydantic import BaseModel, ConfigDict, model_validator

LARGEST_ID: Final = 2**31 - 1


class Body(BaseModel):
    """A request's body: unknown fields are refused, and texts that no database can hold."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="after")
    def _storable(self) -> Self:
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, str) and not storable(value):
                raise ValueError(f"{name} holds a NUL or a lone surrogate, which is no text")
        return self


def storable(text: str) -> bool:
    """Whether PostgreSQL can hold it: no NUL, valid Unicode."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False
