"""The settings a backend may read and change: OCPP 2.0.1's device model (Part 2, appendix 3.1).

The one table serves both versions; `v16` knows which of 1.6's keys is which variable. What a
backend changed is kept in the journal and outlives the process.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

Name = tuple[str, str, str]
"""Component, variable, the variable's instance; compared without regard to case."""


class Access(StrEnum):
    """2.x's MutabilityEnumType."""

    READ = "ReadOnly"
    WRITE = "WriteOnly"
    BOTH = "ReadWrite"


class Kind(StrEnum):
    """The part of 2.x's DataEnumType that is used."""

    TEXT = "string"
    INTEGER = "integer"
    DECIMAL = "decimal"
    BOOLEAN = "boolean"
    TIME = "dateTime"
    OPTION = "OptionList"
    MEMBERS = "MemberList"


class Result(StrEnum):
    """2.x's SetVariableStatusEnumType."""

    ACCEPTED = "Accepted"
    REJECTED = "Rejected"
    UNKNOWN_COMPONENT = "UnknownComponent"
    UNKNOWN_VARIABLE = "UnknownVariable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One setting; `value` is what it is until somebody changes it, or how to learn it."""

    component: str
    name: str
    value: str | Callable[[], str]
    instance: str = ""
    evse: int | None = None
    connector: int | None = None
    kind: Kind = Kind.TEXT
    access: Access = Access.READ
    least: int | None = None
    most: int | None = None
    choices: tuple[str, ...] = ()
    unit: str = ""
    secret: bool = False

    @property
    def key(self) -> tuple[str, str, str, int | None, int | None]:
        names = (self.component.lower(), self.name.lower(), self.instance.lower())
        return (*names, self.evse, self.connector)

    def wrong(self, text: str) -> str:
        """Why this cannot be its value; empty when it can."""
        if self.kind is Kind.INTEGER:
            return self._wrong_number(text)
        if self.kind is Kind.BOOLEAN:
            return "" if text.lower() in {"true", "false"} else "true or false is due"
        if self.kind in {Kind.OPTION, Kind.MEMBERS} and self.choices:
            chosen = members(text) if self.kind is Kind.MEMBERS else (text,)
            strange = [one for one in chosen if one not in self.choices]
            return f"{', '.join(strange)} is not among {', '.join(self.choices)}" if strange else ""
        if self.most is not None and len(text) > self.most:
            return f"at most {self.most} characters"
        if self.least is not None and len(text) < self.least:
            return f"at least {self.least} characters"
        return ""

    def _wrong_number(self, text: str) -> str:
        if not re.fullmatch(r"-?\d{1,10}", text.strip(), re.ASCII):
            return "a whole number is due"
        number = int(text)
        if self.least is not None and number < self.least:
            return f"at least {self.least}"
        if self.most is not None and number > self.most:
            return f"at most {self.most}"
        return ""


def members(text: str) -> tuple[str, ...]:
    """A comma-separated list's parts."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


class Keeper(Protocol):
    """Where changed values are kept."""

    def named(self, kind: str, shape: type[tuple[str, str]]) -> list[tuple[str, str]]: ...

    def keep(self, kind: str, records: Mapping[str, tuple[str, str]]) -> None: ...


KEPT_AS: Final = "ocpp_setting"


class DeviceModel:
    """All variables, with their values as of now."""

    def __init__(
        self,
        variables: Iterable[Variable],
        keeper: Keeper,
        changed: Callable[[str, str, str], None],
    ) -> None:
        self._variables = {one.key: one for one in variables}
        self._components = {key[0] for key in self._variables}
        self._keeper = keeper
        self._changed = changed
        self._kept = dict(keeper.named(KEPT_AS, tuple[str, str]))

    def apply(self) -> None:
        """Tell the agent what was changed in earlier lives."""
        for variable in self._variables.values():
            if self._key(variable) in self._kept:
                self._changed(variable.component, variable.name, self.value(variable))

    def __iter__(self) -> Iterator[Variable]:
        return iter(self._variables.values())

    def find(
        self,
        component: str,
        name: str,
        instance: str = "",
        evse: int | None = None,
        connector: int | None = None,
    ) -> Variable | Result:
        key = (component.lower(), name.lower(), instance.lower(), evse, connector)
        if key in self._variables:
            return self._variables[key]
        known = component.lower() in self._components
        return Result.UNKNOWN_VARIABLE if known else Result.UNKNOWN_COMPONENT

    def value(self, variable: Variable) -> str:
        kept = self._kept.get(self._key(variable))
        if kept is not None:
            return kept
        return variable.value() if callable(variable.value) else variable.value

    def set(self, variable: Variable, text: str) -> str:
        """Change it durably; returns why not, or nothing. Raises JournalError."""
        if variable.access is Access.READ:
            same = text == self.value(variable)
            return "" if same else "it cannot be changed"
        why = variable.wrong(text)
        if why:
            return why
        if not variable.secret:
            key = self._key(variable)
            self._keeper.keep(KEPT_AS, {key: (key, text)})
            self._kept[key] = text
        self._changed(variable.component, variable.name, text)
        return ""

    @staticmethod
    def _key(variable: Variable) -> str:
        return ".".join(str(part) for part in variable.key if part not in {"", None})

    # ------------------------------------------------------------------ for the station itself

    def text(self, component: str, name: str, instance: str = "") -> str:
        """Raises KeyError for a variable that is not there."""
        found = self.find(component, name, instance)
        if isinstance(found, Result):
            raise KeyError((component, name, instance))
        return self.value(found)

    def number(self, component: str, name: str, instance: str = "") -> int:
        return int(self.text(component, name, instance))

    def truth(self, component: str, name: str) -> bool:
        return self.text(component, name).lower() == "true"

    def list(self, component: str, name: str) -> tuple[str, ...]:
        return members(self.text(component, name))


# --------------------------------------------------------------------------- what there is

MEASURANDS: Final = (
    "Energy.Active.Import.Register",
    "Power.Active.Import",
    "Current.Import",
    "Current.Offered",
    "Voltage",
)
"""What the boards' readings hold, in the words that both versions share."""
MOST_PERIODS: Final = 24
MOST_PROFILES: Final = 32
MOST_STACK: Final = 9
MOST_ENTRIES: Final = 5000
PER_MESSAGE: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What commissioning and the agent's configuration say of the station."""

    identity: str
    vendor: str
    model: str
    security_profile: int
    ping_s: int
    message_timeout_s: int
    connection_timeout_s: int
    sample_s: int
    allow_unknown: bool
    evses: Sequence[tuple[int, int, int]]
    """Number, phases, and most power in W."""


def variables_of(
    about: About,
    *,
    time: Callable[[], str],
    entries: Callable[[], int],
    state: Callable[[int], str],
) -> list[Variable]:
    """All variables of a station; `state` gives a 2.x status by EVSE, 0 for the station."""
    return [
        *_communication(about),
        *_authorization(about, entries),
        *_transactions(about),
        *_limits(),
        Variable(component="ClockCtrlr", name="DateTime", value=time, kind=Kind.TIME),
        Variable(
            component="ClockCtrlr", name="TimeSource", value="NTP,Heartbeat", kind=Kind.MEMBERS
        ),
        *_places(about, state),
    ]


def _number(  # one line a variable below
    component: str,
    name: str,
    value: int,
    instance: str = "",
    *,
    rw: bool = False,
    least: int = 0,
    most: int = 2**31 - 1,
    unit: str = "",
) -> Variable:
    access = Access.BOTH if rw else Access.READ
    return Variable(
        component=component,
        name=name,
        instance=instance,
        value=str(value),
        kind=Kind.INTEGER,
        access=access,
        least=least,
        most=most,
        unit=unit,
    )


def _truth(component: str, name: str, *, value: bool, rw: bool = False) -> Variable:
    access = Access.BOTH if rw else Access.READ
    text = "true" if value else "false"
    return Variable(component=component, name=name, value=text, kind=Kind.BOOLEAN, access=access)


def _members(
    component: str, name: str, value: str, choices: tuple[str, ...] = (), *, rw: bool = False
) -> Variable:
    access = Access.BOTH if rw else Access.READ
    return Variable(
        component=component,
        name=name,
        value=value,
        kind=Kind.MEMBERS,
        access=access,
        choices=choices,
    )


def _communication(about: About) -> list[Variable]:
    link, security = "OCPPCommCtrlr", "SecurityCtrlr"
    return [
        _number(link, "HeartbeatInterval", 300, rw=True, least=1, most=86_400, unit="s"),
        _number(link, "WebSocketPingInterval", about.ping_s, unit="s"),
        _number(link, "MessageTimeout", about.message_timeout_s, "Default", unit="s"),
        _number(link, "MessageAttempts", 3, "TransactionEvent", rw=True, least=1, most=20),
        _number(
            link, "MessageAttemptInterval", 60, "TransactionEvent", rw=True, most=3600, unit="s"
        ),
        _number(link, "OfflineThreshold", 60, rw=True, unit="s"),
        _number(link, "ResetRetries", 0, rw=True, most=10),
        _number(link, "NetworkProfileConnectionAttempts", 1),
        _number(link, "ActiveNetworkProfile", 1),
        _members(link, "NetworkConfigurationPriority", "1"),
        _members(link, "FileTransferProtocols", "HTTPS,HTTP"),
        _truth(link, "UnlockOnEVSideDisconnect", value=False),
        Variable(component=security, name="Identity", value=about.identity),
        Variable(component=security, name="OrganizationName", value=about.vendor),
        Variable(
            component=security,
            name="BasicAuthPassword",
            value="",
            access=Access.WRITE,
            least=16,
            most=40,
            secret=True,
        ),
        _number(security, "SecurityProfile", about.security_profile),
        _number(security, "CertificateEntries", 0),
        _number("DeviceDataCtrlr", "ItemsPerMessage", PER_MESSAGE, "GetVariables"),
        _number("DeviceDataCtrlr", "ItemsPerMessage", PER_MESSAGE, "SetVariables"),
        _number("DeviceDataCtrlr", "ItemsPerMessage", PER_MESSAGE, "GetReport"),
        _number("DeviceDataCtrlr", "BytesPerMessage", 65_536, "GetVariables"),
        _number("DeviceDataCtrlr", "BytesPerMessage", 65_536, "SetVariables"),
        _number("DeviceDataCtrlr", "BytesPerMessage", 65_536, "GetReport"),
    ]


def _authorization(about: About, entries: Callable[[], int]) -> list[Variable]:
    ask, held = "AuthCtrlr", "LocalAuthListCtrlr"
    return [
        _truth(ask, "Enabled", value=True),
        _truth(ask, "AuthorizeRemoteStart", value=False, rw=True),
        _truth(ask, "LocalAuthorizeOffline", value=True, rw=True),
        _truth(ask, "LocalPreAuthorize", value=True, rw=True),
        _truth(ask, "OfflineTxForUnknownIdEnabled", value=about.allow_unknown, rw=True),
        _truth("AuthCacheCtrlr", "Available", value=True),
        _truth("AuthCacheCtrlr", "Enabled", value=True),
        _truth(held, "Available", value=True),
        _truth(held, "Enabled", value=True),
        _truth(held, "SupportsExpiryDateTime", value=True),
        Variable(
            component=held,
            name="Entries",
            value=lambda: str(entries()),
            kind=Kind.INTEGER,
            most=MOST_ENTRIES,
        ),
        _number(held, "ItemsPerMessage", 1000),
        _number(held, "BytesPerMessage", 500_000),
    ]


def _transactions(about: About) -> list[Variable]:
    tx, sampled, aligned = "TxCtrlr", "SampledDataCtrlr", "AlignedDataCtrlr"
    return [
        _number(
            tx,
            "EVConnectionTimeOut",
            about.connection_timeout_s,
            rw=True,
            least=1,
            most=86_400,
            unit="s",
        ),
        _truth(tx, "StopTxOnEVSideDisconnect", value=True),
        _truth(tx, "StopTxOnInvalidId", value=True, rw=True),
        _members(tx, "TxStartPoint", "PowerPathClosed"),
        _members(tx, "TxStopPoint", "EVConnected,Authorized"),
        _truth(sampled, "Enabled", value=True),
        _number(sampled, "TxUpdatedInterval", about.sample_s, rw=True, most=86_400, unit="s"),
        _number(sampled, "TxEndedInterval", 0, unit="s"),
        _members(sampled, "TxUpdatedMeasurands", ",".join(MEASURANDS), MEASURANDS, rw=True),
        _members(sampled, "TxStartedMeasurands", MEASURANDS[0]),
        _members(sampled, "TxEndedMeasurands", MEASURANDS[0]),
        _truth(aligned, "Enabled", value=True),
        _number(aligned, "Interval", 0, rw=True, most=86_400, unit="s"),
        _number(aligned, "TxEndedInterval", 0, unit="s"),
        _members(aligned, "Measurands", ",".join(MEASURANDS), MEASURANDS, rw=True),
        _members(aligned, "TxEndedMeasurands", ""),
    ]


def _limits() -> list[Variable]:
    smart = "SmartChargingCtrlr"
    return [
        _truth(smart, "Available", value=True),
        _truth(smart, "Enabled", value=True),
        _number(smart, "ProfileStackLevel", MOST_STACK),
        _number(smart, "PeriodsPerSchedule", MOST_PERIODS),
        _number(smart, "Entries", MOST_PROFILES, "ChargingProfiles"),
        _members(smart, "RateUnit", "A,W"),
        _truth(smart, "Phases3to1", value=False),
        _truth("ReservationCtrlr", "Available", value=True),
        _truth("ReservationCtrlr", "Enabled", value=True),
        _truth("ReservationCtrlr", "NonEvseSpecific", value=False),
    ]


def _places(about: About, state: Callable[[int], str]) -> list[Variable]:
    most = max((phases for _, phases, _ in about.evses), default=3)
    made = [
        Variable(component="ChargingStation", name="VendorName", value=about.vendor),
        Variable(component="ChargingStation", name="Model", value=about.model),
        _truth("ChargingStation", "Available", value=True),
        Variable(
            component="ChargingStation",
            name="AvailabilityState",
            value=lambda: state(0),
            kind=Kind.OPTION,
        ),
        _number("ChargingStation", "SupplyPhases", most),
    ]
    for number, phases, watts in about.evses:
        for component, connector in (("EVSE", None), ("Connector", 1)):
            made += [
                Variable(
                    component=component,
                    name=name,
                    value=value,
                    kind=kind,
                    evse=number,
                    connector=connector,
                )
                for name, value, kind in (
                    ("Available", "true", Kind.BOOLEAN),
                    ("AvailabilityState", lambda evse=number: state(evse), Kind.OPTION),
                    ("SupplyPhases", str(phases), Kind.INTEGER),
                )
            ]
        made += [
            Variable(
                component="EVSE",
                name="Power",
                value="",
                kind=Kind.DECIMAL,
                evse=number,
                most=watts,
                unit="W",
            ),
            Variable(
                component="Connector",
                name="ConnectorType",
                value="Undetermined",
                evse=number,
                connector=1,
            ),
        ]
    return made
