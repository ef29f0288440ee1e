"""`karvon sim`: a charger or meter that answers Modbus as its profile says, or a board to flash."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from edge_agent.hardware.registry import UnknownProfileError, find_profile
from firmware_bridge.simulator.flash import make_image
from firmware_bridge.simulator.stm32 import Stm32
from karvon.simulator.charger import SimulatedCharger
from karvon.simulator.meter import SimulatedMeter
from karvon.simulator.running import Places, Running
from karvon.simulator.script import ScriptError, parse_script
from karvon.simulator.serial_board import SimulatedSerialBoard
from protocols.modbus.describing import options_of, register_table, summary
from protocols.modbus.document import ProfileError
from protocols.modbus.loading import profile_schema
from protocols.modbus.profile import Profile

app = typer.Typer(
    help="Simulated chargers and meters, made from device profiles, and boards to flash.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ProfileOption = Annotated[str, typer.Option("--profile", help="A profile's name or path.")]
TcpOption = Annotated[str | None, typer.Option("--tcp", help="HOST:PORT; port 0 chooses one.")]
PtyOption = Annotated[str | None, typer.Option("--pty", help="Path of a link to a serial line.")]
ControlOption = Annotated[
    str | None, typer.Option("--control", help="HOST:PORT or path: JSON lines to control it.")
]
SpeedOption = Annotated[float, typer.Option("--speed", help="World seconds per second.")]
UnitOption = Annotated[int | None, typer.Option("--unit", help="Modbus unit; default by profile.")]
StateOption = Annotated[str | None, typer.Option("--state", help="File that keeps its memory.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON line with the addresses.")]
EvsesOption = Annotated[int, typer.Option("--evses", min=1, help="How many EVSEs.")]
ScriptOption = Annotated[
    str | None,
    typer.Option("--script", help="'plug after 2 s, want 5 kWh, unplug when full, repeat'"),
]
OptionOption = Annotated[
    list[str] | None, typer.Option("--option", help="An option of the profile; repeatable.")
]
LoadOption = Annotated[int, typer.Option("--load", help="Watts drawn at the start.")]


@app.command()
def charger(
    profile: ProfileOption = "abb_terra_ac",
    tcp: TcpOption = None,
    pty: PtyOption = None,
    control: ControlOption = None,
    state: StateOption = None,
    script: ScriptOption = None,
    evses: EvsesOption = 1,
    unit: UnitOption = None,
    speed: SpeedOption = 1.0,
    option: OptionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve a charger with a vehicle behind it until interrupted."""
    found = _profile(profile, "charger")
    try:
        plan = parse_script(script) if script else None
        device = SimulatedCharger(
            found,
            evses=evses,
            unit=_unit(found, unit, pty),
            speed=speed,
            now=time.monotonic(),
            options=_options(found, option or []),
        )
    except (ScriptError, ValueError) as error:
        raise _refused(str(error)) from error
    places = Places(tcp=tcp, pty=pty, control=control, state=state)
    _run(Running(device=device, places=_reachable(places), script=plan), as_json=as_json)


@app.command()
def meter(
    profile: ProfileOption = "eastron_sdm630",
    tcp: TcpOption = None,
    pty: PtyOption = None,
    control: ControlOption = None,
    unit: UnitOption = None,
    load: LoadOption = 0,
    speed: SpeedOption = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Serve an energy meter until interrupted."""
    found = _profile(profile, "meter")
    device = SimulatedMeter(found, unit=_unit(found, unit, pty), speed=speed, now=time.monotonic())
    device.load_w = load
    places = Places(tcp=tcp, pty=pty, control=control)
    _run(Running(device=device, places=_reachable(places)), as_json=as_json)


@app.command()
def loader(
    pty: Annotated[str, typer.Option("--pty", help="Path of a link to a serial line.")],
    kind: Annotated[
        Literal["stm32", "modbus", "smp"], typer.Option("--kind", help="What is in its ROM.")
    ] = "stm32",
    baudrate: Annotated[
        int | None, typer.Option("--baudrate", min=1200, help="As slow as a wire; else at once.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve a power board that waits in its loader, for `karvon bridge`, until interrupted."""
    from karvon.simulator import bootloaders

    try:
        bootloaders.serve(kind, pty, baudrate, as_json=as_json)
    except ModuleNotFoundError as error:
        raise _refused(
            f"the package '{error.name}' is not here; pip install 'karvon[bridge]'"
        ) from error
    except OSError as error:
        raise _refused(f"cannot serve: {error}; choose another --pty") from error


@app.command()
def board(
    pty: Annotated[str, typer.Option("--pty", help="Path of a link to a serial line.")],
    control: ControlOption = None,
    state: StateOption = None,
    script: ScriptOption = None,
    evses: Annotated[int, typer.Option("--evses", min=1, max=4, help="How many EVSEs.")] = 1,
    address: Annotated[int, typer.Option("--address", min=1, max=247, help="On its line.")] = 1,
    one_phase: Annotated[bool, typer.Option("--one-phase", help="It has one phase.")] = False,
    echo: Annotated[bool, typer.Option("--echo", help="The line echoes what is sent.")] = False,
    flash: Annotated[
        Path | None,
        typer.Option("--flash", help="Its chip's flash: it has an STM32's loader then."),
    ] = None,
    speed: SpeedOption = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Serve a board of our own serial language with a vehicle behind it until interrupted."""
    try:
        plan = parse_script(script) if script else None
    except ScriptError as error:
        raise _refused(str(error)) from error
    device = SimulatedSerialBoard(
        evses=evses,
        address=address,
        phases=1 if one_phase else 3,
        speed=speed,
        now=time.monotonic(),
        chip=None if flash is None else _chip(flash),
    )
    places = Places(pty=pty, control=control, state=state, echo=echo)
    _run(Running(device=device, places=places, script=plan), as_json=as_json)


@app.command()
def schema() -> None:
    """Print the JSON schema of device profiles."""
    sys.stdout.write(profile_schema().decode())


@app.command()
def check(profile: Annotated[str, typer.Argument(help="A profile's name or path.")]) -> None:
    """Check a device profile; say what it reads, how often it asks, what it writes."""
    try:
        found = find_profile(profile)
    except (UnknownProfileError, ProfileError) as error:
        raise _refused(str(error)) from error
    sys.stdout.write(summary(found))


@app.command()
def table(profile: Annotated[str, typer.Argument(help="A profile's name or path.")]) -> None:
    """Print a profile's registers as the Markdown table of the documentation."""
    try:
        sys.stdout.write(register_table(find_profile(profile)))
    except (UnknownProfileError, ProfileError) as error:
        raise _refused(str(error)) from error


def _chip(flash: Path) -> Stm32:
    """What the file holds, or what the factory left on it."""
    fresh = not flash.exists()
    try:
        chip = Stm32(file=flash, boot0=False)
    except (OSError, ValueError) as error:
        raise _refused(f"--flash {flash}: {error}") from error
    if fresh:
        chip.flash.program(0, make_image(4096, "1.0.0", hw_id="KPB-SIM"))
        chip.power_on()
    return chip


def _profile(name: str, kind: str) -> Profile:
    try:
        profile = find_profile(name)
    except (UnknownProfileError, ProfileError) as error:
        raise _refused(str(error)) from error
    if profile.kind != kind:
        raise _refused(
            f"profile '{name}' describes a {profile.kind}; use: karvon sim {profile.kind}"
        )
    return profile


def _refused(why: str) -> typer.Exit:
    sys.stderr.write(f"karvon sim: {why}\n")
    return typer.Exit(2)


def _unit(profile: Profile, unit: int | None, pty: str | None) -> int:
    if unit is not None:
        return unit
    transport = profile.transports.rtu if pty else profile.transports.tcp
    transport = transport or profile.transports.tcp or profile.transports.rtu
    return transport.unit if transport else 1


def _options(profile: Profile, wanted: list[str]) -> frozenset[str]:
    known = options_of(profile)
    for option in wanted:
        if option not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"profile {profile.profile} has no option '{option}'; {has}")
    return frozenset(wanted)


def _reachable(places: Places) -> Places:
    if not places.tcp and not places.pty:
        places.tcp = "127.0.0.1:0"
    return places


def _run(running: Running, *, as_json: bool) -> None:
    try:
        asyncio.run(_serve(running, as_json=as_json))
    except OSError as error:
        raise _refused(
            f"cannot serve: {error}; choose another --tcp, --pty or --control"
        ) from error


async def _serve(running: Running, *, as_json: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await running.start()
    told = {"profile": running.device.profile.profile, **running.addresses}
    if as_json:
        line = json.dumps(told)
    else:
        line = "serving " + ", ".join(f"{name} {value}" for name, value in told.items())
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
    try:
        await stop.wait()
    finally:
        await running.close()
