"""From a configuration to a board or meter: finds the profile, shares the ports."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import msgspec

from edge_agent.hardware.board import EnergyKind, Meter, PowerBoard
from edge_agent.hardware.metered_board import Grade, MeteredBoard
from edge_agent.hardware.modbus_board import ModbusBoard, ModbusMeter
from edge_agent.hardware.modbus_device import ModbusDevice
from edge_agent.hardware.modbus_port import ModbusLink, PortPool
from edge_agent.hardware.serial_board import SerialBoard
from edge_agent.hardware.serial_port import SerialPort
from protocols.modbus.binding import Binding
from protocols.modbus.loading import load_profile
from protocols.modbus.profile import Profile
from protocols.quantities import WattHours

PROFILES: Final = Path(__file__).parents[1] / "profiles"


class UnknownProfileError(Exception):
    """No such profile; the text names those there are."""


class BoardConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One power board or meter of this agent."""

    profile: str = ""
    """The name of a shipped profile, or a path to one (with a slash or ending in .yaml)."""
    link: ModbusLink
    kind: Literal["modbus", "serial_board"] = "modbus"
    """serial_board: one of our own, which needs no profile."""
    evses: int | None = None
    """How many EVSEs to use; default the profile's count."""
    options: tuple[str, ...] = ()
    """The options of the profile, or of a serial board, that hold for this device."""


def profile_names() -> tuple[str, ...]:
    """The shipped profiles; the blueprint is none."""
    names = (path.stem for path in PROFILES.glob("*.yaml"))
    return tuple(sorted(name for name in names if not name.startswith("_")))


def find_profile(name: str) -> Profile:
    """By name or path. Raises UnknownProfileError, ProfileError (file, line, reason)."""
    by_path = "/" in name or name.endswith(".yaml")
    path = Path(name) if by_path else PROFILES / f"{name}.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        alike = difflib.get_close_matches(name, profile_names(), n=1)
        known = f"did you mean {alike[0]}? Otherwise " if alike else ""
        known += f"give one of {', '.join(profile_names())}, or a path to a file"
        raise UnknownProfileError(f"no profile '{name}' ({error.strerror}); {known}") from error
    return load_profile(text, str(path) if by_path else path.name)


def open_board(
    config: BoardConfig,
    ports: PortPool | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> PowerBoard:
    """The board, not yet connected: await its `open()`.

    Boards on one line must share `ports`. Raises UnknownProfileError, ProfileError, ValueError.
    """
    if config.kind == "serial_board":
        return _serial_board(config, ports or PortPool(clock), clock)
    profile = _of_kind("charger", config.profile)
    count = config.evses or profile.evses.count
    return ModbusBoard(_device(config, profile, ports, clock, range(1, count + 1)), clock=clock)


def open_meter(
    config: BoardConfig,
    ports: PortPool | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Meter:
    """The meter, not yet connected: await its `open()`. Raises as `open_board`."""
    profile = _of_kind("meter", config.profile)
    return ModbusMeter(_device(config, profile, ports, clock, range(1)), clock=clock)


def _serial_board(config: BoardConfig, ports: PortPool, clock: Callable[[], float]) -> SerialBoard:
    link = config.link
    return SerialBoard(
        ports.shared(link.line, SerialPort, lambda: SerialPort(link, clock)),
        link.unit or 1,
        evses=range(1, (config.evses or 1) + 1),
        options=frozenset(config.options),
        clock=clock,
    )


def grade_of(profile: Profile) -> Grade:
    """What the register of a meter beside a board is. Raises ValueError where it cannot bill."""
    energy = profile.energy
    if energy is None or energy.field != "imported":
        raise ValueError(
            f"profile {profile.profile} does not count what is drawn through the meter"
        )
    binding = Binding(profile=profile, unit=1)
    return Grade(
        kind=EnergyKind(energy.kind),
        step=WattHours(binding.step("imported")),
        modulus=binding.modulus("imported") if energy.wraps else None,
        billing=energy.billing_grade,
    )


def beside(
    board: PowerBoard,
    config: BoardConfig,
    ports: PortPool,
    *,
    patience_s: float,
    stale_after_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> MeteredBoard:
    """The board with the meter in its feed.

    Raises UnknownProfileError, ProfileError, ValueError.
    """
    meter = open_meter(config, ports, clock)
    grade = grade_of(find_profile(config.profile))
    return MeteredBoard(
        board, meter, grade, patience_s=patience_s, stale_after_s=stale_after_s, clock=clock
    )


def _of_kind(kind: str, name: str) -> Profile:
    profile = find_profile(name)
    if profile.kind != kind:
        raise UnknownProfileError(f"profile '{name}' describes a {profile.kind}, not a {kind}")
    return profile


def _device(
    config: BoardConfig,
    profile: Profile,
    ports: PortPool | None,
    clock: Callable[[], float],
    evses: range,
) -> ModbusDevice:
    link = config.link.completed(profile)
    port = (ports or PortPool(clock)).port(link)
    options = frozenset(config.options)
    return ModbusDevice(profile, link, port, evses=evses, options=options, clock=clock)
