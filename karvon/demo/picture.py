"""The live table as a picture for the documentation."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from karvon.demo.table import TITLE, Row, live_table

WIDTH: Final = 80
FORMAT: Final = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
"""Rich's, without fonts from the network: a picture must not load anything."""


def write_picture(rows: Iterable[Row], path: Path) -> None:
    """Write the rows as SVG; they name no address and no folder of this machine."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(live_table(rows, TITLE))
    path.parent.mkdir(parents=True, exist_ok=True)
    console.save_svg(str(path), title="karvon demo", code_format=FORMAT, unique_id="demo")
