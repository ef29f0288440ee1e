"""The table of faults names tests that exist; a version that was rolled back finds its data."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

from edge_agent.journal import Journal, JournalBudget
from edge_agent.rules.authorization import OfflinePolicy
from edge_agent.updates.floors import Floors

Rig = Any  # the fixture's class lives in conftest, which cannot be imported
TESTS = Path(__file__).resolve().parents[2]
PAGE = TESTS.parent / "docs" / "releases.md"


def test_every_fault_of_the_table_has_the_tests_that_it_names() -> None:
    table = PAGE.read_text().split("<!-- faults -->")[1].split("<!-- /faults -->")[0]
    rows = re.findall(r"^\| (\d+) [^|]*\|[^|]*\|([^|]*)\|", table, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 40))
    files = [*(TESTS / "edge_agent").rglob("test_*.py"), TESTS / "system" / "test_update.py"]
    written = "\n".join(path.read_text() for path in files)
    there = set(re.findall(r"def (test_ota_f\d\d_\w+)\(", written))
    named = set()
    for number, names in rows:
        found = re.findall(r"`(test_\w+)`", names)
        assert found
        assert all(name.startswith(f"test_ota_f{int(number):02}_") for name in found), number
        named |= set(found)
    mine = {name for name in there if int(name[10:12]) < 40}
    assert mine == named


def migrated(path: Path) -> int:
    """What a later release might do: columns and tables more; returns how many tables it met."""
    with closing(sqlite3.connect(path)) as db:
        names = [
            row[0]
            for row in db.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
            )
        ]
        for name in names:
            db.execute(f"ALTER TABLE {name} ADD COLUMN of_a_later_release TEXT DEFAULT 'new'")
        db.execute("CREATE TABLE of_a_later_release (id INTEGER PRIMARY KEY)")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        db.execute(f"PRAGMA user_version = {version + 1}")
        db.commit()
    return len(names)


def open_journal(folder: Path) -> Journal:
    return Journal.open(folder, station="TAS-1", boot=uuid4(), budget=JournalBudget())


async def test_ota_f35_an_older_version_reads_what_a_newer_one_has_migrated(
    make_rig: Callable[..., Rig], tmp_path: Path
) -> None:
    """An open session survives there and back, to the watt-hour; so do the floors."""
    folder = tmp_path / "journal"
    first = open_journal(folder)
    rig = make_rig(store=first)
    rig.station.authorizer.policy = OfflinePolicy(allow_unknown=True)
    await rig.charge(200)
    first.close()
    files = [path for path in folder.iterdir() if path.suffix == ".sqlite"]
    assert sum(map(migrated, files)) >= len(files) >= 2
    with closing(open_journal(folder)) as second:
        assert second.reports == []
        rig.store = second
        rig.start()
        await rig.seconds(100)
        rig.board.unplug()
        await rig.seconds(2)
        (session,) = second.sessions(10)
    assert session.ended
    assert abs(session.energy_wh - rig.board.true_energy()) <= 1
    floors = Floors(tmp_path / "state")
    floors.raise_counter("agent/a", 7)
    floors.close()
    assert migrated(tmp_path / "state" / "floors.db")
    floors = Floors(tmp_path / "state")
    floors.raise_counter("agent/a", 8)
    assert (floors.counter("agent/a"), floors.reports) == (8, [])
    floors.close()
