"""What the generator cannot know: our formats, and headers that name something of the moment."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import strategies as st

schemathesis.openapi.format("time-zone", st.sampled_from(["UTC", "Asia/Tashkent", "Europe/Berlin"]))
MOMENTARY_HEADERS = {"if-match", "idempotency-key"}
"""A generated one is refused by right: 412, and 422 for a key that was used for something else."""


@schemathesis.hook
def map_query(context: Any, query: dict[str, Any] | None) -> dict[str, Any] | None:
    """Leave cursors out: one that is not ours is refused, and its form is nobody's business."""
    if not isinstance(query, dict):
        return query
    return {name: value for name, value in query.items() if name != "cursor"}


@schemathesis.hook
def map_headers(context: Any, headers: dict[str, Any] | None) -> dict[str, Any] | None:
    if headers is None:
        return None
    return {name: value for name, value in headers.items() if name.lower() not in MOMENTARY_HEADERS}
