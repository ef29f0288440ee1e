"""`karvon demo`: the whole network on this machine."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Final, NoReturn

import typer
from rich.console import Console

from karvon.demo.live import curl_line, run_live
from karvon.demo.network import Network
from karvon.demo.picture import write_picture
from karvon.demo.places import PLANS, plans
from karvon.demo.process import DemoError
from karvon.demo.session import TOKEN, Summary, run_session

FAILED: Final = 1
INTERRUPTED: Final = 130
ONCE_SPEED: Final = 10.0
LIVE_SPEED: Final = 20.0
PICTURE_S: Final = 40.0

app = typer.Typer(add_completion=False)


@app.command()
def demo(
    once: Annotated[
        bool, typer.Option("--once", help="One checked charging session, then stop.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --once: a JSON summary as the last line.")
    ] = False,
    stations: Annotated[
        int | None, typer.Option(min=1, max=50, help="How many stations [6; 1 with --once].")
    ] = None,
    speed: Annotated[
        float | None, typer.Option(min=1, max=100, help="How fast the vehicles' world runs.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Keep everything here instead of a temporary folder.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Do not remove the folder.")] = False,
    picture: Annotated[
        Path | None, typer.Option(help="Run for 40 s, then write the live table as SVG and stop.")
    ] = None,
) -> None:
    """Run cloud, agents and simulated chargers as real processes on this machine.

    Without --once it runs until Ctrl-C. Exit codes: 0 fine, 1 something failed or did not agree
    (the reason is on stderr), 2 wrong usage, 130 interrupted.
    """
    if as_json and not once:
        raise typer.BadParameter("only --once ends with a summary; add --once", param_hint="--json")
    if picture is not None and once:
        raise typer.BadParameter("--once has no live table; leave it out", param_hint="--picture")
    signal.signal(signal.SIGTERM, _interrupt)
    folder = _folder(data_dir)
    console = Console(stderr=True)
    count = stations or (1 if once else len(PLANS))
    pace = speed or (ONCE_SPEED if once else LIVE_SPEED)
    code = FAILED
    try:
        with Network(folder, speed=pace) as network:
            bring_up(network, count, lambda text: console.print(f"[dim]{text}[/]", highlight=False))
            code = _once(network, console, as_json=as_json) if once else _live(network, picture)
    except DemoError as error:
        _complain(console, str(error), as_json=as_json)
    except KeyboardInterrupt:
        console.print("stopped")
        code = INTERRUPTED if once else 0
    finally:
        _tidy(folder, console, keep=keep or data_dir is not None or code == FAILED)
    raise typer.Exit(code)


def _folder(data_dir: Path | None) -> Path:
    if data_dir is not None:
        data_dir.mkdir(parents=True, exist_ok=True)
        return data_dir.resolve()
    folder = Path(tempfile.mkdtemp(prefix="karvon-demo-"))
    folder.chmod(0o755)  # PostgreSQL, which refuses root, must reach its part of it
    return folder


def bring_up(network: Network, count: int, say: Callable[[str], None]) -> None:
    """Start the cloud and `count` stations; an id token is known everywhere."""
    say(f"cloud starts in {network.data}")
    network.start_cloud()
    say(f"cloud serves {network.rest.base}")
    network.rest.post("/id-tokens", {"value": TOKEN, "label": "demo driver"})
    added = [network.add_station(plan) for plan in plans(count)]
    for station in added:
        station.start()
    for station in added:
        network.wait_online(station)
        say(f"{station.identity} is online ({station.plan.name}, {station.plan.site.city})")


def _once(network: Network, console: Console, *, as_json: bool) -> int:
    station = next(iter(network.stations.values()))
    summary = run_session(network, station, lambda text: console.print(text, highlight=False))
    for problem in summary.problems:
        console.print(f"[red]does not agree:[/] {problem}", highlight=False)
    _show(summary, as_json=as_json)
    return 0 if summary.ok else FAILED


def _show(summary: Summary, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(summary.as_json()) + "\n")
    else:
        energy = summary.energy_wh
        sys.stdout.write(
            f"transaction {summary.transaction}: simulator {energy.simulator:.3f} Wh,"
            f" agent {energy.agent} Wh, cloud {energy.cloud} Wh, telemetry {energy.telemetry} Wh:"
            f" {'they agree' if summary.ok else 'they do not agree'}\n"
        )
    sys.stdout.flush()


def _live(network: Network, picture: Path | None) -> int:
    console = Console()
    console.print(f"API: {network.rest.base}\n{curl_line(network)}\nCtrl-C stops.", soft_wrap=True)
    if picture is None:
        run_live(network, console)
    else:
        write_picture(run_live(network, console, PICTURE_S), picture)
    return 0


def _complain(console: Console, reason: str, *, as_json: bool) -> None:
    console.print(f"[red]demo failed:[/] {reason}", highlight=False)
    if as_json:
        sys.stdout.write(json.dumps({"ok": False, "problems": [reason]}) + "\n")


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _tidy(folder: Path, console: Console, *, keep: bool) -> None:
    if keep:
        console.print(f"everything, logs included, is in {folder}", highlight=False)
    else:
        shutil.rmtree(folder, ignore_errors=True)
