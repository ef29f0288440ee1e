"""More of `karvon cloud tariffs`: new prices, old ones, and what charging would cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final

import typer

from karvon.remote.call import Call, Option, command
from karvon.remote.client import at
from karvon.remote.show import Column

HISTORY: Final = (
    Column("version"),
    Column("valid from", "valid_from"),
    Column("per kWh", "per_kwh"),
    Column("per minute", "per_minute"),
    Column("per session", "per_session"),
    Column("tax %", "tax_percent"),
    Column("tax included", "tax_included"),
    Column("min total", "min_total"),
    Column("max total", "max_total"),
    Column("by", "created_by"),
)


def add_pricing(
    branch: typer.Typer,
    key: Option,
    prices: Sequence[Option],
    body: Callable[[Mapping[str, Any]], dict[str, Any]],
) -> None:
    """`tariffs price`, `tariffs history`, `tariffs quote`; `body` makes a request of prices."""

    def price(call: Call, **given: Any) -> None:
        path = at("/tariffs/{tariff}/versions", tariff=given["tariff"])
        call.one(call.cloud.ask("POST", path, body=body(given)).json())

    about = "Give it new prices: all of them, what is not said is nothing. Old ones stay on record."
    command(branch, "price", price, about, [key, *prices])
    command(branch, "history", _history, "All its prices, the newest first.", [key], csv_too=False)
    command(
        branch,
        "quote",
        _quote,
        "What a transaction would cost; nothing is stored.",
        [
            key,
            Option("energy_wh", Annotated[int, typer.Option(min=0, help="Energy in Wh.")], ...),
            Option("minutes", Annotated[int, typer.Option(min=0, help="How long it takes.")], 0),
            Option("version", int | None, None, "By this version of its history."),
        ],
    )


def _history(call: Call, *, tariff: str) -> None:
    path = at("/tariffs/{tariff}/versions", tariff=tariff)
    call.rows(HISTORY, list(call.cloud.items(path, {}, None)))


def _quote(call: Call, *, tariff: str, energy_wh: int, minutes: int, version: int | None) -> None:
    body = {"energy_wh": energy_wh, "duration_ms": minutes * 60_000, "version": version}
    path = at("/tariffs/{tariff}/quote", tariff=tariff)
    call.one(call.cloud.ask("POST", path, body=body).json())
