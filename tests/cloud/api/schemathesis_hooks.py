"""What the generator cannot know: our formats, and what names something of the moment."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import strategies as st

schemathesis.openapi.format("time-zone", st.sampled_from(["UTC", "Asia/Tashkent", "Europe/Berlin"]))
MOMENTARY_HEADERS = {"if-match", "idempotency-key"}
"""Made up, they are refused by right: 412, and 422 for a key that was used for something else."""


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Valid cases go without them, and without a cursor: its form is nobody's business."""
    if case.meta is None or case.meta.generation.mode is not schemathesis.GenerationMode.POSITIVE:
        return
    if isinstance(case.query, dict):
        case.query.pop("cursor", None)
    for name in [name for name in case.headers or {} if name.lower() in MOMENTARY_HEADERS]:
        del case.headers[name]
