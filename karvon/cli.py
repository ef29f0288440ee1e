"""`karvon`: dispatches to agent, cloud, simulator or demo, importing only that one."""

from __future__ import annotations

import importlib
import sys
from typing import Final

from karvon import __version__

COMMANDS: Final = {
    "agent": ("karvon.agent", "edge", "the edge agent on a charger's controller"),
    "cloud": ("karvon.remote.cli", "cloud", "the cloud: run it, or speak with one that runs"),
    "release": ("karvon.release.cli", "release", "keys, images and signatures of releases"),
    "sim": ("karvon.simulator.cli", "edge", "simulated chargers and meters"),
    "demo": ("karvon.demo.cli", "edge,cloud", "a whole network on this machine"),
}

USAGE: Final = "usage: karvon COMMAND [ARGS]...\n\n" + "".join(
    f"  {name:<8} {what}\n" for name, (_, _, what) in COMMANDS.items()
)


def main(argv: list[str] | None = None) -> None:
    """Dispatch to the named half; exits 2 with the reason when there is no such command."""
    args = sys.argv[1:] if argv is None else argv
    if not args or args[0] in {"-h", "--help"}:
        sys.stdout.write(USAGE + "\n  karvon COMMAND --help tells more; karvon --version\n")
        sys.exit(0 if args else 2)
    if args[0] == "--version":
        sys.stdout.write(f"karvon {__version__}\n")
        return
    if args[0] not in COMMANDS:
        sys.stderr.write(f"karvon: no such command: {args[0]}\n{USAGE}")
        sys.exit(2)
    module, extra, _ = COMMANDS[args[0]]
    try:
        app = importlib.import_module(module).app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in {
            "karvon",
            "edge_agent",
            "cloud",
            "protocols",
        }:
            raise
        sys.stderr.write(
            f"karvon {args[0]}: the package '{error.name}' is not installed here; "
            f"install it with: pip install 'karvon[{extra}]'\n"
        )
        sys.exit(3)
    app(args=args[1:], prog_name=f"karvon {args[0]}")
