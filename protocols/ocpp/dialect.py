"""What every OCPP version can do for us: read, answer, ask, and understand the answer.

Callers choose a dialect by a connection's version and then forget the version. All of it is pure.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple, Protocol

import msgspec

from protocols.ocpp.messages import Answer, Told, Variable
from protocols.ocpp.version import Version
from protocols.quantities import MilliAmperes, Milliseconds


class NotSupported(Exception):
    """A request that OCPP knows but that a cloud does not take: CALLERROR NotSupported."""


class NotExpressible(Exception):
    """The version has no words for it; the text says what."""


class Request(NamedTuple):
    """A CALL of ours: plain data, to be checked by `Codec.make_request`."""

    action: str
    payload: dict[str, Any]
    way: str = ""
    """Which of several ways to say it this is; worth remembering when a station accepts it."""


class RequestContext(msgspec.Struct, frozen=True, kw_only=True):
    """What an action needs to become a request, beside itself. Only what it needs is read."""

    now_ms: Milliseconds = Milliseconds(0)
    connector: int = 1
    remote_start_id: int = 0
    """2.x repeats it in the transaction that begins."""
    transaction_key: str | None = None
    """2.x's transactionId of the transaction to stop or to limit."""
    transaction_number: int | None = None
    """1.6's."""
    profile_id: int = 1
    """The same for every limit of one EVSE, so that the next replaces it."""
    stack_level: int = 0
    rate_unit: str = "A"
    """A, or W for stations that take nothing else."""
    phases: int = 3
    voltage_mv: int = 230_000
    """Phase to neutral; with `phases` what turns current into power."""
    failsafe_ma: MilliAmperes | None = None
    """Holds when a limit has expired; None: whatever the station's other profiles say."""
    evses: int | None = None
    """How many the station has; with one, a limit of the station is one of the EVSE."""
    way: str = ""
    """The way of `ways` that this station is known to take."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a station's answer to a request of ours comes to."""

    accepted: bool
    text: str
    """The status it gave with its reasons; empty where an answer has none."""
    variables: tuple[Variable, ...] = ()


class Dialect(Protocol):
    """One version's words for the messages of `protocols.ocpp.messages`."""

    @property
    def version(self) -> Version: ...

    @property
    def not_supported(self) -> frozenset[str]:
        """What a station may ask by the specification, and no cloud of ours answers."""

    def read(self, action: str, request: Any, now_ms: int) -> Told:
        """A typed request (`Codec.decode_request`, or its lenient form) as a message.

        Raises NotSupported for `not_supported`, and for what only a cloud may ask.
        """

    def answer(self, action: str, told: Told, answer: Answer) -> bytes:
        """The CALLRESULT's payload as JSON. Raises SchemaError if `answer.data` does not fit."""


@cache
def dialect(version: Version) -> Dialect:
    from protocols.ocpp.v16 import V16

    return {Version.V16: V16}[version]()
