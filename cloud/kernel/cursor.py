"""A cursor whose last statements travel with the COMMIT.

Each turn to the server costs a small commit a quarter of a millisecond on both sides, and most of
what a commit writes is asked for nothing. While a cursor holds back, such statements wait and go
out together at the end, in one pipeline with the COMMIT; which of them failed is not known then,
so that a caller who must know does it again without holding back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, LiteralString

import psycopg
from psycopg.rows import TupleRow

Params = Sequence[Any] | Mapping[str, Any]


PlainCursor = psycopg.AsyncCursor[TupleRow]


class Cursor(PlainCursor):
    """Executes at once, but for `at_last` while it holds back."""

    _held: list[tuple[LiteralString, Params]] | None = None

    @property
    def holds_back(self) -> bool:
        return self._held is not None

    def hold_back(self) -> None:
        """Let the statements given to `at_last` wait from now on."""
        self._held = []

    def let_go(self) -> None:
        """Forget what waits, as after a rollback, and hold back no more."""
        self._held = None

    async def at_last(self, statement: LiteralString, params: Params) -> None:
        """Execute what gives no result that anybody reads; `holds_back` says whether later.

        A statement that may not have the wished effect is to fail then: nobody looks at it.
        """
        if self._held is None:
            await self.execute(statement, params)
        else:
            self._held.append((statement, params))

    async def catch_up(self) -> None:
        """Execute what waits, before something is read that it may have changed."""
        if self._held:
            held, self._held = self._held, []
            async with self.connection.pipeline():
                for statement, params in held:
                    await self.execute(statement, params)

    async def commit(self) -> None:
        """Execute what waits and commit, in one turn. Raises the first failure: roll back then."""
        held, self._held = self._held or [], None
        async with self.connection.pipeline():
            for statement, params in held:
                await self.execute(statement, params)
            await self.execute("COMMIT")
