"""What neighbours may know of telemetry: its errors."""

from __future__ import annotations

from cloud.kernel.errors import KarvonError, Kind


class SpanTooLong(KarvonError):
    kind = Kind.INVALID
    code = "telemetry.span"


class TooManyBuckets(KarvonError):
    kind = Kind.INVALID
    code = "telemetry.buckets"


class UnknownTimeZone(KarvonError):
    kind = Kind.INVALID
    code = "telemetry.time_zone"
