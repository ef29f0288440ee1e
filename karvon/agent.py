"""`karvon agent` as people get it: the technician's commands, and the maker's of device profiles.

The latter run profiles on the simulator, which the agent itself never sees.
"""

from __future__ import annotations

import typer

from edge_agent.cli.main import app as technician
from karvon.profiles.cli import app as profiles

app = typer.Typer(
    help=technician.info.help,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(technician)
app.add_typer(profiles, name="profile")

__all__ = ["app"]
