"""A cursor whose first questions travel with BEGIN, and its last statements with COMMIT.

Each turn to the server costs a small commit a quarter of a millisecond on both sides, and most of
what a commit writes is asked for nothing. While a cursor holds back, such statements wait and go
out together at the end, in one turn with the COMMIT; which of them failed is not known then, so
that a caller who must know does it again without holding back. What a commit reads can mostly be
told before it begins: it comes with the answer to BEGIN, and `ask` finds it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import LiteralString, cast

import psycopg
from psycopg.rows import TupleRow

from cloud.kernel.turns import Ask, Connection, Params

PlainCursor = psycopg.AsyncCursor[TupleRow]
_BEGIN: Ask = Ask("BEGIN")
_COMMIT: Ask = Ask("COMMIT")


class Cursor(PlainCursor):
    """Executes at once, but for `at_last` while it holds back."""

    _held: list[Ask] | None = None
    _foreseen: dict[LiteralString, tuple[Params, list[TupleRow]]] | None = None

    @property
    def holds_back(self) -> bool:
        return self._held is not None

    async def begin(self, asks: Sequence[Ask] = ()) -> None:
        """Begin a transaction; the rows of `asks`, one for a statement, wait for `ask`."""
        _, *answers = await self._turn([_BEGIN, *asks])
        self._foreseen = {
            asked.statement: (asked.params, rows) for asked, rows in zip(asks, answers, strict=True)
        }

    async def ask(self, statement: LiteralString, params: Params = ()) -> list[TupleRow]:
        """Its rows; those that `begin` brought for the same question are given out once."""
        if self._foreseen:
            asked, rows = self._foreseen.pop(statement, (None, []))
            if asked == params:
                return rows
        await self.execute(statement, params)
        return await self.fetchall()

    def hold_back(self) -> None:
        """Let the statements given to `at_last` wait from now on."""
        self._held = []

    def let_go(self) -> None:
        """Forget what waits and what was foreseen, as after a rollback, and hold back no more."""
        self._held = self._foreseen = None

    async def at_last(self, statement: LiteralString, params: Params) -> None:
        """Execute what gives no result that anybody reads; `holds_back` says whether later.

        A statement that may not have the wished effect is to fail then: nobody looks at it.
        """
        if self._held is None:
            await self.execute(statement, params)
        else:
            self._held.append(Ask(statement, params))

    async def catch_up(self) -> None:
        """Execute what waits, before something is read that it may have changed."""
        if self._held:
            held, self._held = self._held, []
            await self._turn(held)

    async def commit(self) -> None:
        """Execute what waits and commit, in one turn. Raises the first failure: roll back then."""
        held, self._held = self._held or [], None
        await self._turn([*held, _COMMIT])

    async def _turn(self, asks: Sequence[Ask]) -> list[list[TupleRow]]:
        return await cast("Connection", self.connection).turn(asks)
