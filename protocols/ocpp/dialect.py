"""What every OCPP version can do for us: read, answer, ask, and understand the answer.

Callers choose a dialect by a connection's version and then forget the version. All of it is pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from protocols.agent_link import Action, SetLimit
from protocols.ocpp.messages import Answer, Told, Variable
from protocols.ocpp.sampling import iso
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


# --------------------------------------------------------------------------- what versions share


def choose(ways: tuple[Request, ...], context: RequestContext) -> Request:
    """The way that the station is known to take, or else the best."""
    return next((one for one in ways if one.way == context.way), ways[0])


def schedule(do: SetLimit, context: RequestContext) -> dict[str, Any]:
    """A limit from now until it expires (1.6, 7.13; 2.0.1 Part 2, K01), in tenths, cut."""
    assert do.limit_ma is not None
    seconds = max(do.valid_ms // 1000, 1)
    periods = [_period(0, do.limit_ma, context)]
    made: dict[str, Any] = {
        "startSchedule": iso(context.now_ms),
        "chargingRateUnit": context.rate_unit,
        "chargingSchedulePeriod": periods,
    }
    if context.failsafe_ma is None:
        made["duration"] = seconds
    else:
        periods.append(_period(seconds, context.failsafe_ma, context))
    return made


def _period(start_s: int, limit_ma: int, context: RequestContext) -> dict[str, Any]:
    if context.rate_unit == "W":
        tenths = limit_ma * context.voltage_mv * context.phases // 100_000
    else:
        tenths = limit_ma // 100
    made: dict[str, Any] = {"startPeriod": start_s, "limit": tenths / 10}
    if context.phases != _USUAL_PHASES:
        made["numberPhases"] = context.phases
    return made


_USUAL_PHASES: Final = 3
"""What a schedule means that does not say."""

_DONE: Final = frozenset(
    {
        "Accepted",
        "AcceptedCanceled",
        "RebootRequired",
        "Scheduled",
        "Unlocked",
        "Unpublished",
    }
)
_GONE: Final = frozenset({"ClearChargingProfile", "ClearDisplayMessage"})
"""What had to go and is not known is gone."""


def done(status: str, action: str = "") -> bool:
    return status in _DONE or (status == "Unknown" and action in _GONE)


def plain(response: Any) -> dict[str, Any]:
    """A typed response as plain data; plain ones as they are."""
    made: dict[str, Any] = (
        dict(response) if isinstance(response, Mapping) else msgspec.to_builtins(response)
    )
    return made


def outcome(action: str, response: dict[str, Any]) -> Outcome:
    """By its status, if it has one: answers without are always consent."""
    status = response.get("status")
    if not isinstance(status, str):
        return Outcome(accepted=True, text="")
    info = response.get("statusInfo") or {}
    parts = (status, info.get("reasonCode"), info.get("additionalInfo"))
    text = ": ".join(str(part) for part in parts if part)
    return Outcome(accepted=done(status, action), text=text)


def answer_heartbeat(_told: Any, answer: Answer) -> bytes:
    return b'{"currentTime":"%b"}' % iso(answer.now_ms).encode()


def answer_boot(_told: Any, answer: Answer) -> bytes:
    return b'{"status":"%b","currentTime":"%b","interval":%d}' % (
        answer.registration.encode(),
        iso(answer.now_ms).encode(),
        answer.interval_s,
    )


def answer_empty(_told: Any, _answer: Answer) -> bytes:
    return b"{}"


def answer_sign(_told: Any, answer: Answer) -> bytes:
    return b'{"status":"Accepted"}' if answer.status == "Accepted" else b'{"status":"Rejected"}'


# --------------------------------------------------------------------------- the port


class Dialect(Protocol):
    """One version's words for the messages of `protocols.ocpp.messages`."""

    @property
    def version(self) -> Version: ...

    @property
    def longest_token(self) -> int:
        """Characters that an id token, or the name of a group of them, may have."""

    @property
    def token_types(self) -> frozenset[str] | None:
        """The types of id tokens that it knows; None: any."""

    @property
    def not_supported(self) -> frozenset[str]:
        """What a station may ask by the specification, and no cloud of ours answers."""

    def read(self, action: str, request: Any, now_ms: int) -> Told:
        """A typed request (`Codec.decode_request`, or its lenient form) as a message.

        Raises NotSupported for `not_supported`, and for what only a cloud may ask.
        """

    def answer(self, action: str, told: Told, answer: Answer) -> bytes:
        """The CALLRESULT's payload as JSON. Raises SchemaError if `answer.data` does not fit."""

    def request(self, do: Action, context: RequestContext) -> Request:
        """The first of `ways`, or `context.way`. Raises NotExpressible."""

    def ways(self, do: Action, context: RequestContext) -> tuple[Request, ...]:
        """All ways to say it, the best first: stations take one and reject another (S26)."""

    def reset(self, *, immediate: bool, evse: int = 0) -> Request:
        """Restart the station or, where the version can, one EVSE. Raises NotExpressible."""

    def trigger(self, message: str, evse: int | None = None, connector: int = 1) -> Request:
        """Ask for a message, named as 2.x does (MessageTriggerEnumType); raises NotExpressible."""

    def running_cost(self, told: Told, total: str) -> Request | None:
        """Tell what an open transaction has cost so far; None where the answer tells it or nothing.

        `total` is in the currency's main unit, tax included, such as `12.50`.
        """

    def ask(self, variables: tuple[Variable, ...], request_id: int = 0) -> Request:
        """Read variables, or all there are; 2.x tells all in Reports of that request."""

    def change(self, variables: tuple[Variable, ...]) -> tuple[Request, ...]:
        """Set variables to their values: one request in 2.x, one for each in 1.6."""

    def outcome(self, action: str, request: Mapping[str, Any], response: Any) -> Outcome:
        """Read the answer (typed or plain) to a request of ours, whoever put that together."""


@cache
def dialect(version: Version) -> Dialect:
    from protocols.ocpp.v16 import V16
    from protocols.ocpp.v21 import V21
    from protocols.ocpp.v201 import V201

    spoken: dict[Version, Callable[[], Dialect]] = {
        Version.V16: V16,
        Version.V201: V201,
        Version.V21: V21,
    }
    return spoken[version]()
