"""`karvon bridge`: firmware for power boards, by hand: look, write, compare, recover.

The agent does the same by itself with releases; it must not be using the line meanwhile.

Exit codes: 0 all well, 1 refused or failed, 2 wrong usage, 3 no board or no line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from firmware_bridge.ways import Kind, Parity, Where

app = typer.Typer(
    help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
)


DeviceOption = Annotated[
    str, typer.Option("--device", help="/dev/ttyUSB0; for Modbus also tcp://HOST:PORT.")
]
LoaderOption = Annotated[Kind, typer.Option("--loader", help="What the board is flashed through.")]
BaudrateOption = Annotated[
    int | None, typer.Option("--baudrate", min=1200, help="Else as the loader is used to.")
]
ParityOption = Annotated[
    Parity | None, typer.Option("--parity", help="Else as the loader is used to.")
]
UnitOption = Annotated[int, typer.Option("--unit", min=1, max=247, help="Modbus unit.")]
HwIdOption = Annotated[
    str | None,
    typer.Option("--hw-id", help="The board's name, vouched for by you where it cannot tell."),
]
BoardOption = Annotated[
    str, typer.Option("--board", help="Which of several boards: each has its own journal.")
]
StateOption = Annotated[
    Path, typer.Option("--state", envvar="KARVON_BRIDGE_STATE", help="Keeps journal and images.")
]
ChecksumOption = Annotated[
    str | None,
    typer.Option("--terra-ac-checksum", help="crc32 or sum, by who has ABB's document: unlocks."),
]
PinsOption = Annotated[
    str | None,
    typer.Option("--pins", help="STM32: what drives BOOT0 and reset: rts,dtr; ! if inverted."),
]
VersionOption = Annotated[
    str | None, typer.Option("--version", help="The image's version; MCUboot images tell it.")
]
MadeForOption = Annotated[
    list[str] | None,
    typer.Option("--for", help="A board that the image is made for; repeatable."),
]
ChipOption = Annotated[
    list[str] | None,
    typer.Option("--chip", help="STM32: an id that the image is made for, as 0x413; repeatable."),
]
AddressOption = Annotated[
    str, typer.Option("--address", help="STM32: where the image was linked to.")
]
ProtocolOption = Annotated[
    int | None, typer.Option("--protocol", help="Major version of the board's protocol it speaks.")
]
PreviousOption = Annotated[
    Path | None,
    typer.Option("--previous", help="Put back if the image does not work, at the first time."),
]
PreviousVersionOption = Annotated[
    str | None, typer.Option("--previous-version", help="The version of --previous.")
]
OwnBoardOption = Annotated[
    int | None,
    typer.Option(
        "--own-board",
        min=1,
        max=247,
        help="STM32: a board of our own serial language at this address; it is asked and told.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
ImageArgument = Annotated[Path, typer.Argument(help="The file with the firmware.")]
DEFAULT_STATE = Path("/var/lib/karvon/bridge")


@app.command()
def probe(
    device: DeviceOption,
    loader: LoaderOption = Kind.STM32,
    baudrate: BaudrateOption = None,
    parity: ParityOption = None,
    unit: UnitOption = 1,
    pins: PinsOption = None,
    hw_id: HwIdOption = None,
    own_board: OwnBoardOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look who answers: the application or a loader, its chip or board. Changes nothing."""
    from firmware_bridge import working

    where = Where(device, loader, baudrate, parity, unit, pins, hw_id, address=own_board)
    raise typer.Exit(working.probe(where, as_json=as_json))


@app.command()
def flash(
    image: ImageArgument,
    device: DeviceOption,
    loader: LoaderOption = Kind.STM32,
    version: VersionOption = None,
    made_for: MadeForOption = None,
    chip: ChipOption = None,
    address: AddressOption = "0x08000000",
    protocol: ProtocolOption = None,
    previous: PreviousOption = None,
    previous_version: PreviousVersionOption = None,
    baudrate: BaudrateOption = None,
    parity: ParityOption = None,
    unit: UnitOption = 1,
    pins: PinsOption = None,
    hw_id: HwIdOption = None,
    board: BoardOption = "board",
    state: StateOption = DEFAULT_STATE,
    terra_ac_checksum: ChecksumOption = None,
    own_board: OwnBoardOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put an image into the board; if it does not work, the one before it.

    Nothing is erased before chip and board are those that the image is made for. A cut at any
    moment leaves a board that waits in its loader: run `karvon bridge recover`.
    """
    from firmware_bridge import working

    where = Where(
        device,
        loader,
        baudrate,
        parity,
        unit,
        pins,
        hw_id,
        terra_ac_checksum=terra_ac_checksum,
        address=own_board,
    )
    said = working.Said(version, made_for or [], chip or [], address, protocol)
    raise typer.Exit(
        working.flash(
            where,
            working.Kept(state, board),
            image,
            said,
            previous=(previous, previous_version),
            as_json=as_json,
        )
    )


@app.command()
def verify(
    image: ImageArgument,
    device: DeviceOption,
    loader: LoaderOption = Kind.STM32,
    version: VersionOption = None,
    address: AddressOption = "0x08000000",
    baudrate: BaudrateOption = None,
    parity: ParityOption = None,
    unit: UnitOption = 1,
    pins: PinsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare what is in the board with a file. Changes nothing."""
    from firmware_bridge import working

    where = Where(device, loader, baudrate, parity, unit, pins, None)
    said = working.Said(version or "0.0.0", [], [], address, None)
    raise typer.Exit(working.verify(where, image, said, as_json=as_json))


@app.command()
def recover(
    device: DeviceOption,
    loader: LoaderOption = Kind.STM32,
    baudrate: BaudrateOption = None,
    parity: ParityOption = None,
    unit: UnitOption = 1,
    pins: PinsOption = None,
    hw_id: HwIdOption = None,
    board: BoardOption = "board",
    state: StateOption = DEFAULT_STATE,
    terra_ac_checksum: ChecksumOption = None,
    own_board: OwnBoardOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take up a flashing that was cut, or try a faulted board again; needs no file."""
    from firmware_bridge import working

    where = Where(
        device,
        loader,
        baudrate,
        parity,
        unit,
        pins,
        hw_id,
        terra_ac_checksum=terra_ac_checksum,
        address=own_board,
    )
    raise typer.Exit(working.recover(where, working.Kept(state, board), as_json=as_json))
