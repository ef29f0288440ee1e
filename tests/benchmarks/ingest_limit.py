"""The limit: what the database takes when somebody else has done all the work before.

The very rows that ours stored are read back as binary COPY, cut into pieces of 2000, and copied
into an identical, empty table on one connection, one transaction a piece.
"""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Iterator

import psycopg
from ingest_messages import SAMPLES

ROWS_A_TRANSACTION = 2000
MOST_ROWS = 200_000
_HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_TRAILER = b"\xff\xff"


def pieces(dsn: str) -> list[bytes]:
    """What this cloud's database holds of telemetry, as COPY streams of 2000 rows each."""
    with psycopg.connect(dsn) as connection, connection.cursor() as cursor:
        query = f"COPY (SELECT * FROM telemetry.sample LIMIT {MOST_ROWS}) TO STDOUT (FORMAT BINARY)"
        with cursor.copy(query) as copy:
            stream = b"".join(bytes(part) for part in copy)
    return cut(stream, ROWS_A_TRANSACTION)


def cut(stream: bytes, rows: int) -> list[bytes]:
    """A binary COPY stream as streams of so many rows each; what is left over falls away."""
    ends = list(_rows(stream))[::rows]
    return [
        b"".join((_HEADER, stream[begin:end], _TRAILER)) for begin, end in itertools.pairwise(ends)
    ]


def _rows(stream: bytes) -> Iterator[int]:
    """Where each row begins, and where the last one ends."""
    at = len(_HEADER)
    while True:
        yield at
        (fields,) = struct.unpack_from("!h", stream, at)
        if fields < 0:
            return
        at += 2
        for _ in range(fields):
            (length,) = struct.unpack_from("!i", stream, at)
            at += 4 + max(length, 0)


def limit(dsn: str, copied: list[bytes], seconds: float) -> tuple[float, int]:
    """Messages (ten rows each) a second into a fresh schema, and how many there were."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        _partitions(connection)
        _copy(connection, copied[0])
        began, count = time.monotonic(), 0
        for piece in itertools.cycle(copied):
            _copy(connection, piece)
            count += ROWS_A_TRANSACTION // SAMPLES
            if time.monotonic() - began > seconds:
                return count / (time.monotonic() - began), count
    raise AssertionError("a cycle does not end")


def _partitions(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """Native partitions for the days around now; a hypertable makes its own."""
    connection.execute(
        "SELECT telemetry.ensure_days(array_agg(current_date + d)) FROM generate_series(-3, 1) d"
    )


def _copy(connection: psycopg.Connection[tuple[object, ...]], piece: bytes) -> None:
    with connection.cursor().copy("COPY telemetry.sample FROM STDIN (FORMAT BINARY)") as copy:
        copy.write(piece)
