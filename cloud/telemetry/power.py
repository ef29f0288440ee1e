"""Power out of a register, for meters that tell no power (quirk S20): a pure rule."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import msgspec

from cloud.telemetry.store import Bucket

_SECOND = timedelta(seconds=1)


def with_power(buckets: Sequence[Bucket]) -> list[Bucket]:
    """Buckets in order of EVSE and time, each power that was not told made of the energy.

    It is the mean since the bucket before; nothing where a register ran back, since a meter that
    was exchanged has given no power away.
    """
    made: list[Bucket] = []
    before: Bucket | None = None
    for bucket in buckets:
        made.append(_with_power(bucket, before) if bucket.power_w is None else bucket)
        if bucket.energy_wh is not None:
            before = bucket
    return made


def _with_power(bucket: Bucket, before: Bucket | None) -> Bucket:
    if before is None or before.evse != bucket.evse:
        return bucket
    if bucket.energy_wh is None or before.energy_wh is None:
        return bucket
    moved, seconds = bucket.energy_wh - before.energy_wh, (bucket.at - before.at) / _SECOND
    if moved < 0 or seconds <= 0:
        return bucket
    return msgspec.structs.replace(bucket, power_w=round(moved * 3600 / seconds))
