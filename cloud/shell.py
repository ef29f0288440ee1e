"""What every `karvon cloud` command over the database shares: options, settings, one-line failures.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 something needed is out of reach.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import uvloop
from pydantic import ValidationError

from cloud.kernel.config import CloudConfig
from cloud.kernel.embedded import EmbeddedError
from cloud.kernel.errors import KarvonError, Unavailable

DataDir = Annotated[
    Path | None, typer.Option(help="Folder of the embedded servers; default karvon-data.")
]
DatabaseUrl = Annotated[
    str | None, typer.Option(help="PostgreSQL to use instead of the embedded one: postgresql://…")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")]


def fail(code: int, text: str) -> NoReturn:
    sys.stderr.write(f"karvon cloud: {text}\n")
    raise typer.Exit(code)


def configured(**given: Any) -> CloudConfig:
    try:
        return CloudConfig(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        reasons = "; ".join(
            f"{'.'.join(str(part) for part in one['loc']) or 'settings'}: {one['msg']}"
            for one in error.errors()
        )
        fail(2, f"{reasons} (from the options or the KARVON_… environment)")


def run(work: Any, *, interrupted: int = 0) -> Any:
    """Run to the end; what cannot be reached or used becomes one line.

    `interrupted` is the exit code after Ctrl-C.
    """
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(work)
    except KeyboardInterrupt:
        raise typer.Exit(interrupted) from None
    except EmbeddedError as error:
        fail(3, str(error))
    except Unavailable as error:
        fail(3, f"{' '.join(error.detail.split())}; check --database-url")
    except TimeoutError:
        fail(3, "the MQTT broker did not let us in; check --mqtt-url and the broker's log")
    except KarvonError as error:
        fail(1, error.detail)
    except OSError as error:
        fail(3, f"{error}; choose another port or folder, or stop what holds it")
