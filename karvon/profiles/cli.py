"""`karvon agent profile`: from a manual to a profile that is proven, without a programmer.

Exit codes: 0 all well, 1 the profile or what the device shows is wrong, 2 wrong usage, 3 the device
does not answer. Nothing here ever writes to a device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
)

JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
TimeoutOption = Annotated[
    float | None, typer.Option("--timeout", min=0.05, help="Seconds for one answer.")
]
NameArgument = Annotated[str, typer.Argument(help="A shipped profile's name, or a file's path.")]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="tcp://HOST:PORT/UNIT or rtu:///dev/ttyUSB0?baudrate=9600&unit=1; only read.",
    ),
]
OptionOption = Annotated[
    list[str] | None, typer.Option("--option", help="An option of the profile; repeatable.")
]


@app.command("list")
def list_profiles(
    as_json: JsonOption = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="The table of the documentation.")
    ] = False,
) -> None:
    """List the shipped profiles, where their maps come from, and how much of them is unsure."""
    from karvon.profiles import showing

    raise typer.Exit(showing.list_all(as_json=as_json, as_markdown=as_markdown))


@app.command()
def show(name: NameArgument, as_json: JsonOption = False) -> None:
    """Show what a profile reads, in how many requests, what it may write, and what is unsure."""
    from karvon.profiles import showing

    raise typer.Exit(showing.show(name, as_json=as_json))


@app.command()
def new(
    path: Annotated[Path, typer.Argument(help="The file to write, such as ./my_charger.yaml.")],
    kind: Annotated[
        Literal["charger", "meter"], typer.Option("--kind", help="What the device is.")
    ] = "charger",
    like: Annotated[
        str | None, typer.Option("--like", help="Start from this profile, not from the blueprint.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a profile to fill in: every setting that there is, with what it means."""
    from karvon.profiles import scaffold

    raise typer.Exit(scaffold.new(path, kind, like, as_json=as_json))


@app.command()
def lint(
    paths: Annotated[list[Path], typer.Argument(help="Profiles to check.")],
    as_json: JsonOption = False,
) -> None:
    """Check profiles: each mistake with file, line and reason; and what is worth a second look."""
    from karvon.profiles import linting

    raise typer.Exit(linting.lint(paths, as_json=as_json))


@app.command("test")
def try_out(
    name: NameArgument,
    device: DeviceOption = None,
    option: OptionOption = None,
    evse: Annotated[int, typer.Option("--evse", min=1, help="On a live device.")] = 1,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Charge a vehicle on the profile's own simulator; with --device read a live one instead."""
    from karvon.profiles import live, trying

    options = tuple(option or ())
    if device is None:
        raise typer.Exit(trying.run(name, options, as_json=as_json))
    raise typer.Exit(live.run(name, device, options, live.How(evse, timeout), as_json=as_json))


@app.command()
def capture(
    out: Annotated[Path | None, typer.Option("--out", help="The file to write.")] = None,
    device: DeviceOption = None,
    functions: Annotated[
        str, typer.Option("--functions", help="Read functions, one after the other: 3,4")
    ] = "3,4",
    ranges: Annotated[
        str, typer.Option("--ranges", help="Addresses, decimal or 0x: 0-200,0x4000-0x4030")
    ] = "",
    profile: Annotated[
        str | None,
        typer.Option("--profile", help="Its registers, its pauses, and what it forbids."),
    ] = None,
    frames: Annotated[
        Path | None,
        typer.Option("--frames", help="Record golden frames of the profile's requests there."),
    ] = None,
    gap: Annotated[
        float | None, typer.Option("--gap", min=0, help="Seconds between two requests.")
    ] = None,
    timeout: TimeoutOption = None,
    chunk: Annotated[int, typer.Option("--chunk", min=1, max=125, help="Registers at once.")] = 16,
    diff: Annotated[
        tuple[Path, Path] | None, typer.Option("--diff", help="Compare two captures.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read a live device's registers politely into a file; compare two files; record frames."""
    from karvon.profiles import capturing, comparing

    wish = capturing.Wish(
        out=out,
        device=device,
        functions=functions,
        ranges=ranges,
        profile=profile,
        frames=frames,
        gap=gap,
        timeout=timeout,
        chunk=chunk,
    )
    if diff is not None:
        raise typer.Exit(comparing.compare(*diff, profile, as_json=as_json))
    raise typer.Exit(capturing.run(wish, as_json=as_json))
