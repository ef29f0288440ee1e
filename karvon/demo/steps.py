"""The steps of a commissioning as pictures for the guide: `python -m karvon.demo.steps FOLDER`.

A real commissioning of a simulated charger, with a real cloud where one is given; what the
installer types is put in as if it were typed.
"""

from __future__ import annotations

import asyncio
import io
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape

from edge_agent.commissioning import draft, running
from edge_agent.commissioning.dialog import Dialog
from edge_agent.commissioning.progress import STEPS, Progress
from edge_agent.commissioning.work import Options, Work
from edge_agent.hardware.registry import find_profile
from edge_agent.wording import wording
from karvon.demo.network import Network
from karvon.demo.picture import FORMAT
from karvon.simulator.charger import SimulatedCharger
from karvon.simulator.running import Places, Running
from karvon.simulator.vehicle import Vehicle

WIDTH: Final = 88
STATION: Final = "TAS-0001"
PROFILES: Final = ("abb_terra_ac", "alfen_eve", "eastron_sdm630", "vestel_evc04")


class Typist:
    """Answers questions by their option, and shows what was asked and typed."""

    def __init__(self, console: Console, answers: Mapping[str, str]) -> None:
        self._console, self._answers = console, answers

    def __call__(self, question: str, default: str | None = None, **_: object) -> str:
        found = (answer for start, answer in self._answers.items() if question.startswith(start))
        answer = next(found, default or "")
        usual = "" if default is None else rf" \[{escape(default)}]"
        self._console.print(
            f"{escape(question)}{usual}: [bold]{escape(answer)}[/]", highlight=False
        )
        return answer


async def photograph(folder: Path, options: Options, answers: Mapping[str, str]) -> list[Path]:
    """Commission a simulated charger within the current folder; one picture for each step."""
    clock = time.monotonic
    device = SimulatedCharger(find_profile("abb_terra_ac"), evses=1, unit=1, speed=1, now=clock())
    device.plug(Vehicle(wants_wh=None, max_current=16_000, phases=3, reaction_ms=0), 1)
    charger = Running(device=device, places=Places(tcp="127.0.0.1:0"), clock=clock)
    await charger.start()
    try:
        port = int(charger.addresses["tcp"].rpartition(":")[2])
        return await _steps(folder, _on(options, port), answers)
    finally:
        await charger.close()


def _on(options: Options, port: int) -> Options:
    plain = {name: getattr(options, name) for name in Options.__slots__}
    return Options(**{**plain, "hosts": ("127.0.0.1",), "tcp_port": port})


async def _steps(folder: Path, options: Options, answers: Mapping[str, str]) -> list[Path]:
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    dialog = Dialog(wording("en"), console, yes=False, prompt=Typist(console, answers))
    work = Work(
        path=Path("agent.toml"),
        folder=Path("journal"),
        options=options,
        dialog=dialog,
        progress=Progress(station=STATION),
        plain=draft.changed({}, journal={"folder": "journal"}),
    )
    made = []
    for number, step in enumerate(STEPS, start=1):
        await running.do_step(work, step, number)
        picture = folder / f"commission-{number}-{step}.svg"
        title = f"karvon agent commission ({number}/{len(STEPS)})"
        console.save_svg(str(picture), title=title, code_format=FORMAT, unique_id=step)
        made.append(picture)
    return made


def main(folder: Path) -> None:
    """With a cloud of its own, in a folder that goes away."""
    folder = folder.absolute()
    with tempfile.TemporaryDirectory() as place, Network(Path(place)) as network:
        network.start_cloud()
        code = network.rest.post("/stations", {"station": STATION})["claim"]["code"]
        answers = {
            "Main fuse": "63",
            "abb_terra_ac: most": "16",
            "Register with": "cloud",
            "The cloud's address": network.rest.base.removesuffix("/api/v1"),
            "Claim code": code,
            "Test charge": "y",
            "What the QR": "https://cloud.example/s/{station}",
        }
        with chdir(place):
            asyncio.run(photograph(folder, Options(profiles=PROFILES, charge_s=12), answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
