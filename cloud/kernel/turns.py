"""A connection that takes several statements and their answers in one turn.

One write, one wake-up of the server, one answer: psycopg's own pipeline sends each statement by
itself, which wakes both sides as often as there are statements. The statements are prepared under
names of ours, beside those that psycopg gives.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, LiteralString, NamedTuple

import psycopg
from psycopg.abc import AdaptContext, Buffer, PQGen
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.rows import TupleRow
from psycopg.waiting import Ready, Wait

Params = Sequence[Any] | Mapping[str, Any]
MOST_PREPARED: Final = 200
"""Statements with their parameters' types that a connection keeps prepared."""


class Ask(NamedTuple):
    """A statement as `Cursor.execute` takes it."""

    statement: LiteralString
    params: Params = ()


Sending = Callable[[], None]
_Key = tuple[str, tuple[int, ...]]
"""A statement, and the types of its parameters."""
_Values = Sequence[Buffer | None]
_Exchange = Generator[Wait, Ready | int, list[PGresult]]


class Connection(psycopg.AsyncConnection[TupleRow]):
    """An AsyncConnection that knows turns."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._named: dict[_Key, bytes] = {}

    async def turn(self, asks: Sequence[Ask]) -> list[list[TupleRow]]:
        """Execute these in their order; returns the rows of each, none for what gives none.

        Raises the first failure; what follows it is not executed. COPY is not for turns.
        """
        wire = Transformer.from_context(self)
        sends: list[Sending] = []
        fresh: dict[_Key, tuple[int, bytes]] = {}
        executed: list[int] = []
        for ask in asks:
            text, values = _numbered(ask)
            dumped = wire.dump_sequence(values, [PyFormat.AUTO] * len(values))
            key = (text, tuple(wire.types or ()))
            formats = wire.formats or ()
            name = self._named.get(key) or (fresh[key][1] if key in fresh else None)
            if name is None and len(self._named) + len(fresh) < MOST_PREPARED:
                name = b"_karvon_%d" % (len(self._named) + len(fresh))
                fresh[key] = (len(sends), name)
                sends.append(_prepare(self.pgconn, name, key))
            executed.append(len(sends))
            if name is None:
                sends.append(_at_once(self.pgconn, key, dumped, formats))
            else:
                sends.append(_by_name(self.pgconn, name, dumped, formats))
        async with self.lock:
            results = await self.wait(_exchange(self.pgconn, sends))
        for key, (at, name) in fresh.items():
            if results[at].status == ExecStatus.COMMAND_OK:
                self._named[key] = name
        for result in results:
            if result.status == ExecStatus.FATAL_ERROR:
                raise error_from_result(result, encoding=self.info.encoding)
        return [_rows(wire, results[at]) for at in executed]

    def _deallocate(self, name: bytes | None) -> PQGen[None]:
        """Psycopg forgets all that is prepared, ours with it, after some rollbacks."""
        if name is None:
            self._named.clear()
        return super()._deallocate(name)


def _exchange(pgconn: PGconn, sends: Iterable[Sending]) -> _Exchange:
    """Send it all, then take one result for each."""
    pgconn.enter_pipeline_mode()
    for send in sends:
        send()
    pgconn.pipeline_sync()
    while pgconn.flush():
        if (yield Wait.RW) & Ready.R:
            pgconn.consume_input()
    results: list[PGresult] = []
    while True:
        while pgconn.is_busy():
            yield Wait.R
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:  # stands between two statements
            continue
        if result.status == ExecStatus.PIPELINE_SYNC:
            break
        results.append(result)
    pgconn.exit_pipeline_mode()
    return results


def _prepare(pgconn: PGconn, name: bytes, key: _Key) -> Sending:
    return lambda: pgconn.send_prepare(name, key[0].encode(), key[1])


def _by_name(pgconn: PGconn, name: bytes, values: _Values, formats: Sequence[int]) -> Sending:
    return lambda: pgconn.send_query_prepared(name, values, formats)


def _at_once(pgconn: PGconn, key: _Key, values: _Values, formats: Sequence[int]) -> Sending:
    return lambda: pgconn.send_query_params(key[0].encode(), values, key[1], formats)


def _rows(wire: AdaptContext, result: PGresult) -> list[TupleRow]:
    if result.status != ExecStatus.TUPLES_OK:
        return []
    loading = Transformer.from_context(wire)
    loading.set_pgresult(result)
    return loading.load_rows(0, result.ntuples, tuple)


_PLACE: Final = re.compile(r"%(?:%|s|\((\w+)\)s)")


@lru_cache(maxsize=1000)
def _in_numbers(statement: str) -> tuple[str, tuple[str, ...]]:
    """The statement with PostgreSQL's own placeholders, and the names that they stand for.

    Without names they stand for the values in their order.
    """
    names: list[str] = []
    count = 0

    def number(place: re.Match[str]) -> str:
        nonlocal count
        if place[0] == "%%":
            return "%"
        if place[1] is None:
            count += 1
            return f"${count}"
        if place[1] not in names:
            names.append(place[1])
        return f"${names.index(place[1]) + 1}"

    return _PLACE.sub(number, statement), tuple(names)


def _numbered(ask: Ask) -> tuple[str, Sequence[Any]]:
    statement, params = ask
    if not params:
        return statement, ()
    text, names = _in_numbers(statement)
    if isinstance(params, Mapping):
        return text, [params[name] for name in names]
    return text, params
