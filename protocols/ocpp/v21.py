"""OCPP 2.1: 2.0.1 and what it adds. Of its new blocks, what needs no answer of ours is kept.

Read and understood: everything that 2.0.1 has, with 2.1's longer tokens, new measurands, and the
cost of a transaction while it runs. Kept as Notice: battery swaps (S), DER events (R), priority
charging (K), settlements of ad hoc payments (C), event streams (N) that nobody opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from protocols.ocpp.v201 import V201
from protocols.ocpp.version import Version

NOT_SUPPORTED = frozenset(
    {
        "GetCertificateChainStatus",
        "OpenPeriodicEventStream",
        "PullDynamicScheduleUpdate",
        "VatNumberValidation",
    }
)
"""Their answers promise a service: OCSP of a chain, streams, dynamic schedules, VAT numbers."""


class V21(V201):
    """See `protocols.ocpp.dialect.Dialect`."""

    version: ClassVar[Version] = Version.V21
    not_supported: ClassVar[frozenset[str]] = NOT_SUPPORTED
    notices: ClassVar[Mapping[str, Mapping[str, str]]] = {
        **V201.notices,
        "BatterySwap": {},
        "ClosePeriodicEventStream": {},
        "NotifyDERAlarm": {},
        "NotifyDERStartStop": {},
        "NotifyPeriodicEventStream": {},
        "NotifyPriorityCharging": {},
        "NotifySettlement": {},
        "ReportDERControl": {},
    }
    token_types: ClassVar[frozenset[str] | None] = None
    longest_token: ClassVar[int] = 255
    tells_running_cost: ClassVar[bool] = True
