"""The table of what `karvon cloud` can list, show, add, change, remove and import."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from karvon.remote.show import Column

Kind = Literal["text", "number", "decimal", "flag", "moment", "secret", "words", "numbers", "json"]


@dataclass(frozen=True)
class Field:
    """Something that can be said of a resource: an option, or its one argument."""

    name: str
    about: str
    kind: Kind = "text"


@dataclass(frozen=True)
class Verb:
    """Something else that can be done to one of them."""

    name: str
    method: Literal["POST", "DELETE"]
    path: str
    about: str


@dataclass(frozen=True)
class Resource:
    """What a list below /api/v1 offers; empty fields mean that it does not."""

    name: str
    path: str
    key: str
    about: str
    columns: tuple[Column, ...]
    filters: tuple[Field, ...] = ()
    sort: str = ""
    show: bool = True
    add: tuple[Field, ...] = ()
    """The first one is the argument."""
    change: tuple[Field, ...] = ()
    remove: str = ""
    """What removing means; empty: it cannot be done."""
    imports: str = ""
    """What can be imported."""
    verbs: tuple[Verb, ...] = ()


def _evses(station: Mapping[str, Any]) -> str:
    """How many EVSEs are in which status, as last known."""
    words: Counter[str] = Counter()
    for evse in station.get("evses") or ():
        state = evse.get("state")
        word = state["value"]["status"] if state else "unknown"
        words[word + ("?" if state and state["stale"] else "")] += 1
    return ", ".join(f"{count} {word}" for word, count in words.items())


def _token(item: Mapping[str, Any]) -> Any:
    return (item.get("id_token") or {}).get("value")


def _kwh(item: Mapping[str, Any]) -> str:
    return f"{item['energy_wh'] / 1000:.3f}"


def _age(item: Mapping[str, Any]) -> str | None:
    state = item.get("state")
    return f"{state['age_s']} s{', stale' if state['stale'] else ''}" if state else None


TEXT: Final = Field("text", "Part of its name or identity.")
SITE: Final = Field("site", "Of this site, by its number.", "number")
STATION: Final = Field("station", "Of this station.")
EVSE: Final = Field("evse", "Of this EVSE.", "number")
FROM: Final = Field("from", "From then on: 2026-11-21T08:00, or 2h for two hours ago.", "moment")
TO: Final = Field("to", "Before then.", "moment")
EXPIRES: Final = Field("expires_at", "Until then: 2030-01-01, or a time.", "moment")
PRICES: Final = (
    Field("per_kwh", "Of the major unit, e.g. 1500 or 0.4875."),
    Field("per_minute", "Of the session's time."),
    Field("per_session", "For each session, also without energy."),
    Field("tax_percent", "The tax, e.g. 12."),
    Field("tax_included", "Whether the prices have it in them; they have if not said.", "flag"),
    Field("min_total", "The least that a transaction with energy costs."),
    Field("max_total", "The most that one costs."),
    Field("shown_digits", "Decimals for people; if not said the currency's.", "number"),
    Field("valid_from", "From then on: 2030-01-01, or a time; now if not said.", "moment"),
)

NARROWED: Final = (
    Field("sites", "Of these sites, by number, with commas.", "numbers"),
    Field("models", "Parts of what stations say they are, with commas.", "words"),
    Field("versions", "Beginnings of the version that they run, with commas.", "words"),
    Field("tags", "With any of these tags, with commas.", "words"),
    Field("hardware", "Hardware ids, any of which agents tell.", "words"),
    Field("percent", "Of those that the rest leaves; always the same ones.", "number"),
)

RESOURCES: Final = (
    Resource(
        "stations",
        "/stations",
        "station",
        "Charging stations.",
        (
            Column("station"),
            Column("name"),
            Column("site"),
            Column("registration"),
            Column("online"),
            Column("EVSEs", of=_evses),
            Column("last seen", "last_seen"),
            Column("agent", "agent.version"),
        ),
        filters=(
            SITE,
            Field("registration", "expected, pending or registered."),
            Field("online", "Only those that are connected, or are not.", "flag"),
            Field("status", "With an EVSE in this status, e.g. Faulted."),
            Field("model", "Part of what a power board says it is."),
            Field("version", "Part of the agent's version."),
            Field("updated_since", "Changed, or told a new state, since then.", "moment"),
            TEXT,
        ),
        sort="station, name, last_seen, created_at",
        add=(
            Field("station", "Its wire identity."),
            Field("name", "What people call it."),
            Field("site", "The site's number.", "number"),
        ),
        change=(
            Field("name", "What people call it."),
            Field("site", "The site's number.", "number"),
        ),
        remove="Its credentials are void at once; what it did stays in the history.",
        imports="stations",
        verbs=(
            Verb(
                "claim-code",
                "POST",
                "/stations/{station}/claim-codes",
                "Make a new code for `karvon agent claim`; shown once.",
            ),
            Verb("approve", "POST", "/pending/{station}/approval", "Let a waiting station in."),
            Verb("reject", "DELETE", "/pending/{station}", "Turn a waiting station away."),
        ),
    ),
    Resource(
        "sites",
        "/sites",
        "site",
        "Places where stations stand.",
        (
            Column("id"),
            Column("name"),
            Column("address"),
            Column("time zone", "time_zone"),
            Column("latitude"),
            Column("longitude"),
        ),
        filters=(TEXT,),
        sort="id, name, created_at",
        add=(
            Field("name", "What people call it."),
            Field("address", "Its address."),
            Field("latitude", "Degrees north.", "decimal"),
            Field("longitude", "Degrees east.", "decimal"),
            Field("time_zone", "Its IANA name, e.g. Asia/Tashkent."),
        ),
        change=(
            Field("name", "What people call it."),
            Field("address", "Its address."),
            Field("latitude", "Degrees north.", "decimal"),
            Field("longitude", "Degrees east.", "decimal"),
            Field("time_zone", "Its IANA name, e.g. Asia/Tashkent."),
        ),
        remove="Refused while stations belong to it.",
    ),
    Resource(
        "evses",
        "/evses",
        "evse",
        "EVSEs of all stations, as last known.",
        (
            Column("station"),
            Column("evse"),
            Column("status", "state.value.status"),
            Column("charging", "state.value.charging_state"),
            Column("offered mA", "state.value.offered_ma"),
            Column("limited by", "state.value.limited_by"),
            Column("error", "state.value.error"),
            Column("age", of=_age),
            Column("source", "state.source"),
        ),
        filters=(
            SITE,
            Field("status", "In this status, e.g. Available."),
            Field("gone", "Also those that their station offers no more.", "flag"),
        ),
        sort="station, status, at",
        show=False,
    ),
    Resource(
        "transactions",
        "/transactions",
        "transaction",
        "Charging transactions.",
        (
            Column("transaction"),
            Column("station"),
            Column("evse"),
            Column("state"),
            Column("started", "started_at"),
            Column("ended", "ended_at"),
            Column("kWh", of=_kwh),
            Column("id token", of=_token),
            Column("reason"),
        ),
        filters=(
            STATION,
            SITE,
            EVSE,
            Field("state", "open or ended."),
            Field("id_token", "Started with this id token."),
            FROM,
            TO,
            Field("ended_from", "Ended then or later.", "moment"),
            Field("ended_to", "Ended before then.", "moment"),
            Field("min_energy_wh", "With at least so much energy.", "number"),
            Field("review", "Only those that a person should look at, or need not.", "flag"),
        ),
        sort="started_at, ended_at, energy_wh",
    ),
    Resource(
        "tokens",
        "/id-tokens",
        "value",
        "Id tokens: cards and other things that may charge.",
        (
            Column("value"),
            Column("type"),
            Column("group"),
            Column("label"),
            Column("blocked"),
            Column("expires", "expires_at"),
        ),
        filters=(
            Field("group", "Of this group, by its number.", "number"),
            Field("type", "Of this type, e.g. ISO14443."),
            Field("blocked", "Only those that are blocked, or are not.", "flag"),
            Field("expired", "Only those that have expired, or have not.", "flag"),
            TEXT,
        ),
        sort="value, expires_at, created_at",
        add=(
            Field("value", "What the reader reads."),
            Field("type", "OCPP's type, ISO14443 if not said."),
            Field("group", "The name of its group."),
            Field("label", "Whose it is."),
            Field("blocked", "Known, and refused.", "flag"),
            EXPIRES,
        ),
        change=(
            Field("type", "OCPP's type."),
            Field("group", "The name of its group."),
            Field("label", "Whose it is."),
            Field("blocked", "Known, and refused.", "flag"),
            EXPIRES,
        ),
        remove="It is unknown from then on, which an agent may treat otherwise than blocked.",
        imports="id tokens",
    ),
    Resource(
        "groups",
        "/id-token-groups",
        "group",
        "Groups of id tokens; any of a group may stop what another started.",
        (Column("id"), Column("name"), Column("created", "created_at")),
        filters=(TEXT,),
        sort="name, created_at",
        add=(Field("name", "What people call it."),),
        change=(Field("name", "What people call it."),),
        remove="Its tokens stay, without a group.",
    ),
    Resource(
        "tariffs",
        "/tariffs",
        "tariff",
        "Tariffs: what charging costs.",
        (
            Column("id"),
            Column("name"),
            Column("currency"),
            Column("per kWh", "current.per_kwh"),
            Column("per minute", "current.per_minute"),
            Column("per session", "current.per_session"),
            Column("since", "current.valid_from"),
            Column("versions"),
        ),
        filters=(Field("currency", "In this currency, e.g. UZS."), TEXT),
        sort="name, created_at",
        add=(
            Field("name", "What people call it."),
            Field("currency", "By ISO 4217: UZS, EUR, USD, RUB …"),
            *PRICES,
        ),
        change=(Field("name", "What people call it."),),
    ),
    Resource(
        "assignments",
        "/tariff-assignments",
        "assignment",
        "Where tariffs hold; the narrowest place wins: EVSE, station, site, everywhere.",
        (
            Column("id"),
            Column("tariff"),
            Column("name"),
            Column("site"),
            Column("station"),
            Column("evse"),
            Column("since"),
            Column("until"),
            Column("by", "created_by"),
        ),
        filters=(
            Field("tariff", "Of this tariff, by its number.", "number"),
            Field("site", "To this site as a whole, by its number.", "number"),
            Field("station", "To this station or an EVSE of it."),
            Field("ended", "Those that hold no more.", "flag"),
        ),
        sort="since",
        add=(
            Field("tariff", "The tariff's number.", "number"),
            Field("site", "At this site, by its number.", "number"),
            Field("station", "At this station."),
            Field("evse", "At this EVSE of the station.", "number"),
        ),
        remove="From then on the next wider place's tariff holds there.",
    ),
    Resource(
        "settings",
        "/settings",
        "station",
        "Settings from afar: what agents shall run on, and what they do run on.",
        (
            Column("station"),
            Column("desired", "desired.version"),
            Column("running", "reported.version"),
            Column("state", "reported.state"),
            Column("in sync", "in_sync"),
            Column("reason", "reported.reason"),
        ),
        filters=(
            Field("in_sync", "Only those that run on what is desired, or do not.", "flag"),
            SITE,
        ),
        sort="station, set_at",
        show=False,
    ),
    Resource(
        "releases",
        "/releases",
        "release",
        "Releases: software and firmware that the release keys have signed.",
        (
            Column("id"),
            Column("kind"),
            Column("name"),
            Column("version"),
            Column("counter"),
            Column("uploaded", "uploaded_at"),
            Column("revoked", "revoked_at"),
        ),
        filters=(
            Field("kind", "agent, board or settings."),
            Field("name", "Of this component."),
            Field("revoked", "Only those that are revoked, or are not.", "flag"),
        ),
        sort="uploaded_at, version, counter",
    ),
    Resource(
        "cohorts",
        "/cohorts",
        "cohort",
        "Cohorts: which stations a campaign means.",
        (
            Column("id"),
            Column("name"),
            Column("sites"),
            Column("models"),
            Column("versions"),
            Column("tags"),
            Column("%", "percent"),
        ),
        filters=(TEXT,),
        sort="name, created_at",
        add=(Field("name", "What people call it."), *NARROWED),
        change=(Field("name", "What people call it."), *NARROWED),
        remove="Campaigns keep what it was.",
    ),
    Resource(
        "campaigns",
        "/campaigns",
        "campaign",
        "Campaigns: a release, brought to a cohort in waves.",
        (
            Column("id"),
            Column("name"),
            Column("release", "release.version"),
            Column("stage"),
            Column("wave"),
            Column("waiting", "counts.waiting"),
            Column("under way", "counts.offered"),
            Column("succeeded", "counts.succeeded"),
            Column("failed", "counts.failed"),
            Column("reason"),
        ),
        filters=(
            Field("stage", "draft, running, paused, halted, finished or aborted."),
            Field("release", "Of this release, by its number.", "number"),
            TEXT,
        ),
        sort="created_at, name",
        add=(
            Field("name", "What people call it."),
            Field("release", "The release's number.", "number"),
            Field("cohort", "The cohort's number.", "number"),
            Field("waves", "Cumulative percents, with commas: 1,10,50.", "numbers"),
            Field("success_percent", "Of a wave, before the next begins (95).", "number"),
            Field("error_percent", "Of a wave, or of all so far: halts it (5).", "number"),
            Field("min_sample", "Ends that it takes before failures halt it (5).", "number"),
            Field("deadline_s", "Seconds after which silence is failure (a day).", "number"),
            Field("window", 'JSON: {"start": "01:00", "end": "05:00", "time_zone": …}.', "json"),
            Field("force", "Wait neither for the window nor for transactions.", "flag"),
            Field("signed", "JSON for OCPP stations: certificate and signature.", "json"),
        ),
        verbs=(
            Verb("approve", "POST", "/campaigns/{campaign}/approval", "Let a colleague's begin."),
            Verb("pause", "POST", "/campaigns/{campaign}/pause", "Offer it to nobody more."),
            Verb("resume", "POST", "/campaigns/{campaign}/resumption", "Go on."),
            Verb("abort", "POST", "/campaigns/{campaign}/abort", "End it for good."),
        ),
    ),
    Resource(
        "users",
        "/users",
        "user",
        "People who may sign in.",
        (
            Column("id"),
            Column("name"),
            Column("role"),
            Column("language"),
            Column("created", "created_at"),
            Column("disabled", "disabled_at"),
        ),
        filters=(
            Field("role", "viewer, technician, operator or admin."),
            Field("disabled", "Only those that may not sign in, or may.", "flag"),
            TEXT,
        ),
        sort="name, created_at",
        add=(
            Field("name", "What they sign in as."),
            Field("role", "viewer, technician, operator or admin."),
            Field("language", "uz, ru, en or de."),
            Field("password", "File with the password; asked for when not given.", "secret"),
        ),
        change=(
            Field("name", "What they sign in as."),
            Field("role", "viewer, technician, operator or admin."),
            Field("language", "uz, ru, en or de."),
            Field("disabled", "May not sign in; ends their sessions.", "flag"),
            Field("password", "File with the new password.", "secret"),
        ),
        remove="Ends their sessions, and their keys.",
    ),
    Resource(
        "keys",
        "/api-keys",
        "key",
        "API keys.",
        (
            Column("id"),
            Column("name"),
            Column("role"),
            Column("created by", "created_by"),
            Column("expires", "expires_at"),
            Column("revoked", "revoked_at"),
            Column("last used", "last_used_at"),
        ),
        filters=(
            Field("role", "viewer, technician, operator or admin."),
            Field("user", "Of this user, by their number.", "number"),
            Field("active", "Only those that still work.", "flag"),
            TEXT,
        ),
        sort="id, name, created_at, last_used_at",
        add=(
            Field("name", "What it is for."),
            Field("role", "viewer, technician, operator or admin."),
            Field("user", "Whose it is, by their number.", "number"),
            EXPIRES,
        ),
        remove="It stops working at once.",
    ),
    Resource(
        "commands",
        "/commands",
        "command",
        "What stations were told to do.",
        (
            Column("id"),
            Column("station"),
            Column("action", "action.action"),
            Column("status"),
            Column("requested", "requested_at"),
            Column("finished", "finished_at"),
            Column("result"),
            Column("by", "actor"),
        ),
        filters=(
            STATION,
            Field(
                "status",
                "requested, sent, accepted, executed, rejected, failed …",
            ),
            Field("kind", "Of this action, e.g. set_limit."),
            FROM,
            TO,
        ),
        sort="requested_at",
        verbs=(
            Verb(
                "cancel",
                "POST",
                "/commands/{command}/cancellation",
                "Withdraw one that still waits for its station.",
            ),
        ),
    ),
    Resource(
        "events",
        "/events",
        "event",
        "What happened, in order per station.",
        (
            Column("at"),
            Column("kind"),
            Column("station"),
            Column("subject"),
            Column("id"),
        ),
        filters=(
            STATION,
            Field("kind", "Whose kind begins so, e.g. transaction."),
            Field("since", "Recorded since then.", "moment"),
            Field("order", "oldest or newest first."),
        ),
        show=False,
    ),
)

HELD: Final = (
    Resource(
        "variables",
        "/stations/{station}/variables",
        "variable",
        "Settings of a station that speaks OCPP, as it told them last.",
        (
            Column("component"),
            Column("instance", "component_instance"),
            Column("evse"),
            Column("variable"),
            Column("attribute"),
            Column("value"),
            Column("mutability"),
            Column("told", "at"),
        ),
        filters=(
            Field("component", "Of this component; 1.6's keys are of ChargingStation."),
            EVSE,
            Field("text", "Part of component or variable."),
        ),
        sort="variable, component, at",
    ),
    Resource(
        "charging-profiles",
        "/stations/{station}/charging-profiles",
        "profile",
        "Charging profiles that a station holds.",
        (
            Column("profile"),
            Column("evse"),
            Column("purpose"),
            Column("level", "stack_level"),
            Column("source"),
            Column("details"),
            Column("told", "at"),
        ),
        filters=(EVSE, Field("purpose", "Of this purpose, e.g. TxDefaultProfile.")),
        sort="evse, stack_level, at",
    ),
    Resource(
        "charging-limits",
        "/stations/{station}/charging-limits",
        "source",
        "Limits that others impose on a station.",
        (
            Column("evse"),
            Column("source"),
            Column("grid critical", "is_grid_critical"),
            Column("schedules"),
            Column("told", "at"),
        ),
        sort="evse, at",
    ),
    Resource(
        "reservations",
        "/stations/{station}/reservations",
        "reservation",
        "Reservations at a station.",
        (
            Column("reservation"),
            Column("evse"),
            Column("connector type", "connector_type"),
            Column("status"),
            Column("expires", "expires_at"),
            Column("command"),
        ),
        filters=(Field("status", "active, used, cancelled, expired, removed …"),),
        sort="expires_at, at",
    ),
    Resource(
        "security-events",
        "/stations/{station}/security-events",
        "id",
        "What a station or its agent told of its security.",
        (Column("at"), Column("type"), Column("text"), Column("link")),
        filters=(Field("type", "Of this type."), FROM, TO),
        sort="at",
    ),
    Resource(
        "firmware",
        "/stations/{station}/firmware",
        "request",
        "Updates of a station's firmware.",
        (
            Column("asked", "asked_at"),
            Column("status"),
            Column("open"),
            Column("concluded"),
            Column("expected", "expected_version"),
            Column("location"),
            Column("at"),
        ),
        filters=(Field("status", "In this status, e.g. Installed."),),
        sort="asked_at, at",
    ),
    Resource(
        "logs",
        "/stations/{station}/logs",
        "request",
        "Uploads of a station's logs.",
        (
            Column("asked", "asked_at"),
            Column("status"),
            Column("open"),
            Column("filename"),
            Column("location"),
            Column("at"),
        ),
        filters=(Field("status", "In this status, e.g. Uploaded."),),
        sort="asked_at, at",
    ),
    Resource(
        "monitors",
        "/stations/{station}/monitors",
        "monitor",
        "What a station watches by itself.",
        (
            Column("monitor"),
            Column("component", "component.name"),
            Column("variable", "variable.name"),
            Column("type"),
            Column("value"),
            Column("severity"),
        ),
        filters=(
            Field("component", "Of this component."),
            Field("severity", "That severe, or more: 0 is danger.", "number"),
        ),
        sort="severity, at",
    ),
    Resource(
        "display-messages",
        "/stations/{station}/display-messages",
        "message",
        "Messages on a station's display.",
        (Column("message"), Column("details"), Column("told", "at")),
        sort="message, at",
    ),
    Resource(
        "notices",
        "/stations/{station}/notices",
        "id",
        "Whatever else a station told.",
        (Column("at"), Column("action"), Column("payload")),
        filters=(Field("action", "Of this action, e.g. NotifyEvent."), FROM, TO),
        sort="at",
    ),
)
"""What one station holds or told: `karvon cloud variables STATION`."""

OF_CAMPAIGNS: Final = (
    Resource(
        "devices",
        "/campaigns/{campaign}/devices",
        "station",
        "What became of each station.",
        (
            Column("station"),
            Column("wave"),
            Column("standing"),
            Column("told", "word"),
            Column("runs", "running"),
            Column("reason"),
            Column("deadline", "deadline_at"),
            Column("at"),
        ),
        filters=(
            Field("standing", "waiting, offered, succeeded, failed, skipped, gone, withdrawn."),
            Field("wave", "Of this wave, from 1.", "number"),
            Field("word", "That told this last, e.g. Downloading."),
        ),
        sort="wave, at, station",
    ),
    Resource(
        "audit",
        "/campaigns/{campaign}/audit",
        "at",
        "Who did what to it.",
        (Column("at"), Column("actor"), Column("what"), Column("reason")),
        sort="at",
    ),
)
"""Lists below a campaign: `karvon cloud campaigns devices CAMPAIGN`."""
