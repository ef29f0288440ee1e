"""What neighbours may know of telemetry: its errors."""

from __future__ import annotations

from cloud.kernel.errors import KarvonError, Kind


class SpanTooLong(KarvonError):
    kind = Kind.INVALID
    code = "telemetry.span"
