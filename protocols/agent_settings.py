"""What may be set on an agent from afar: an overlay over its own configuration file.

Only what is listed here. What guards people, fuses and the way to the cloud (devices, phases,
failsafe, keys, addresses) is the file's alone; limits can be made lower than the file's, never
higher. Each field that is not said stays as the file has it. Signed releases of kind settings bring
the same document.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

MilliAmps = Annotated[int, Meta(ge=0, le=1_000_000)]
LARGEST_BYTES: Final = 64 * 1024
"""Of a document as JSON."""


class SettingsError(ValueError):
    """A document that cannot be used; the text says which field, and what is allowed."""


class Part(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """A table of the document."""


class Times(Part, frozen=True, kw_only=True):
    """As `[times]` of the agent's file, seconds."""

    poll_s: Annotated[float, Meta(ge=0.1, le=10)] | UnsetType = UNSET
    checkpoint_s: Annotated[int, Meta(ge=1, le=3600)] | UnsetType = UNSET
    checkpoint_wh: Annotated[int, Meta(ge=1, le=100_000)] | UnsetType = UNSET
    event_s: Annotated[int, Meta(ge=10, le=86_400)] | UnsetType = UNSET
    connection_timeout_s: Annotated[int, Meta(ge=5, le=3600)] | UnsetType = UNSET
    fault_grace_s: Annotated[int, Meta(ge=0, le=3600)] | UnsetType = UNSET
    raise_after_s: Annotated[int, Meta(ge=0, le=3600)] | UnsetType = UNSET


class Authorization(Part, frozen=True, kw_only=True):
    """As `[authorization]`."""

    unknown: Literal["deny", "allow"] | UnsetType = UNSET
    unknown_cap_ma: MilliAmps | UnsetType | None = UNSET
    unknown_energy_wh: Annotated[int, Meta(ge=0, le=1000000)] | UnsetType | None = UNSET


class Uplink(Part, frozen=True, kw_only=True):
    """As `[uplink]`."""

    telemetry_every_s: Annotated[float, Meta(ge=0.5, le=3600)] | UnsetType = UNSET
    monthly_mib: Annotated[int, Meta(ge=1, le=1000000)] | UnsetType | None = UNSET
    longest_retry_s: Annotated[float, Meta(ge=1, le=3600)] | UnsetType = UNSET


class Updates(Part, frozen=True, kw_only=True):
    """As `[updates]`."""

    rate_kib: Annotated[int, Meta(ge=1, le=1000000)] | UnsetType | None = UNSET
    check_every_h: Annotated[float, Meta(ge=0.1, le=168)] | UnsetType = UNSET
    hold_free_evses: bool | UnsetType = UNSET


class Surplus(Part, frozen=True, kw_only=True):
    """As `[site.surplus]`, W and s."""

    start_margin_w: Annotated[int, Meta(ge=0, le=1_000_000)] | UnsetType = UNSET
    import_w: Annotated[int, Meta(ge=0, le=1_000_000)] | UnsetType = UNSET
    start_after_s: Annotated[int, Meta(ge=0, le=86_400)] | UnsetType = UNSET
    stop_after_s: Annotated[int, Meta(ge=0, le=86_400)] | UnsetType = UNSET
    min_on_s: Annotated[int, Meta(ge=0, le=86_400)] | UnsetType = UNSET
    min_off_s: Annotated[int, Meta(ge=0, le=86_400)] | UnsetType = UNSET


class Site(Part, frozen=True, kw_only=True):
    """As `[site]`; currents at most as the file has them."""

    # no bounds here: msgspec 0.21 reads them as the tuple's length
    limit_ma: int | tuple[int, int, int] | UnsetType = UNSET
    safe_share_ma: MilliAmps | UnsetType = UNSET
    unbalance_ma: MilliAmps | UnsetType = UNSET
    turn_min: Annotated[int, Meta(ge=1, le=1440)] | UnsetType = UNSET
    surplus: Surplus | UnsetType = UNSET


class Board(Part, frozen=True, kw_only=True):
    """As `[[boards]]` of that name; its cable at most as strong as the file has it."""

    cable_ma: MilliAmps | UnsetType = UNSET
    priority: Annotated[int, Meta(ge=-1000, le=1000)] | UnsetType = UNSET
    surplus: bool | UnsetType = UNSET


class AgentSettings(Part, frozen=True, kw_only=True):
    """The whole document; an empty one sets nothing."""

    times: Times | UnsetType = UNSET
    authorization: Authorization | UnsetType = UNSET
    uplink: Uplink | UnsetType = UNSET
    updates: Updates | UnsetType = UNSET
    site: Site | UnsetType = UNSET
    boards: dict[Annotated[str, Meta(min_length=1, max_length=64)], Board] | UnsetType = UNSET


CEILINGS: Final = (
    ("site", "limit_ma"),
    ("site", "safe_share_ma"),
    ("site", "unbalance_ma"),
)
"""What can only be lowered, beside each board's cable."""
_CABLE: Final = "cable_ma"


def settings_of(document: Any) -> AgentSettings:
    """A document as it came. Raises SettingsError."""
    try:
        settings = msgspec.convert(document, AgentSettings)
    except msgspec.ValidationError as error:
        raise SettingsError(_explained(str(error))) from None
    limit = UNSET if isinstance(settings.site, UnsetType) else settings.site.limit_ma
    if not isinstance(limit, UnsetType) and min(_three(limit)) < 0:
        raise SettingsError("site.limit_ma: Expected `int` >= 0")
    return settings


def plain(settings: AgentSettings) -> dict[str, Any]:
    """The document as JSON has it: only what is said."""
    found: dict[str, Any] = msgspec.to_builtins(settings)
    return found


def merged(own: dict[str, Any], settings: AgentSettings) -> dict[str, Any]:
    """A configuration (as of its file, plain) with the overlay on it. Raises SettingsError."""
    said = plain(settings)
    boards = said.pop("boards", {})
    result = _over(own, said, "")
    for table, field in CEILINGS:
        _lowered(own.get(table) or {}, result.get(table) or {}, field, f"{table}.{field}")
    known = {board["name"]: board for board in own["boards"]}
    unknown = next((name for name in boards if name not in known), None)
    if unknown is not None:
        raise SettingsError(
            f"boards.{unknown}: there is no such board here, only {', '.join(known)}"
        )
    result["boards"] = [
        _over(board, boards.get(board["name"], {}), f"boards.{board['name']}.")
        for board in own["boards"]
    ]
    for before, after in zip(own["boards"], result["boards"], strict=True):
        _lowered(before, after, _CABLE, f"boards.{before['name']}.{_CABLE}")
    return result


def _over(own: dict[str, Any], said: dict[str, Any], path: str) -> dict[str, Any]:
    result = dict(own)
    for name, value in said.items():
        if not isinstance(value, dict):
            result[name] = value
        elif own.get(name) is None:
            raise SettingsError(
                f"{path}{name}: this controller has no such part in its configuration file"
            )
        else:
            result[name] = _over(own[name], value, f"{path}{name}.")
    return result


def _lowered(own: dict[str, Any], now: dict[str, Any], field: str, path: str) -> None:
    before, after = own.get(field), now.get(field)
    if before is None or after is None:
        return
    if any(new > old for old, new in zip(_three(before), _three(after), strict=True)):
        raise SettingsError(
            f"{path}: {after} is more than the {before} of the configuration file; from afar it can"
            " only be lowered"
        )


def _three(value: Any) -> tuple[int, int, int]:
    one, two, three = value if isinstance(value, list | tuple) else (value,) * 3
    return one, two, three


def _explained(text: str) -> str:
    """Msgspec's message as path and reason."""
    reason, _, path = text.partition(" - at `$.")
    if path:
        return f"{path.rstrip('`')}: {reason}"
    return reason
