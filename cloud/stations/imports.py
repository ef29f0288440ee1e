"""Entering stations in bulk: what is new is expected and gets a claim code, what is known is set.

The same import again changes nothing; a row that leaves name or site out leaves them as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.imports import Outcome
from cloud.stations import registration, store
from cloud.stations.store import NewRow, Station


@dataclass(frozen=True)
class Entry:
    """A row of the import; None leaves a known station's name as it is."""

    line: int
    identity: str
    name: str | None
    site: int | None
    site_name: str | None
    keep_site: bool


@dataclass(frozen=True)
class Verdict:
    """What became of a row."""

    line: int
    identity: str
    outcome: Outcome
    reason: str = ""
    code: str | None = None


@dataclass
class _Plan:
    new: dict[str, tuple[int, NewRow, str]] = field(default_factory=dict)
    changes: list[tuple[int, str, int | None]] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)


async def enter(
    cursor: Cursor,
    tenant: TenantId,
    entries: Sequence[Entry],
    now: datetime,
    expires_at: datetime,
) -> list[Verdict]:
    """Create and change the stations of the rows, in a handful of statements for all."""
    known = await store.known_stations(cursor, [entry.identity for entry in entries])
    named = await store.sites_named(cursor, {e.site_name for e in entries if e.site_name})
    numbered = await store.known_sites(cursor, {e.site for e in entries if e.site})
    plan = _Plan()
    for entry in entries:
        site, wrong = _site(entry, named, numbered)
        if wrong:
            plan.verdicts.append(Verdict(entry.line, entry.identity, Outcome.FAILED, wrong))
        else:
            _decide(plan, entry, site, known.get(entry.identity))
    if plan.changes:
        await store.change_stations(cursor, plan.changes, now)
    return plan.verdicts + await _create(cursor, tenant, plan, now, expires_at)


def _site(row: Entry, named: dict[str, int], numbered: set[int]) -> tuple[int | None, str]:
    """The row's site, and what is wrong with it."""
    by_name = named.get(row.site_name.lower()) if row.site_name else None
    if row.site_name and by_name is None:
        return None, f"there is no site named {row.site_name!r}; create it first"
    if row.site is not None and row.site not in numbered:
        return None, f"there is no site {row.site}; create it first"
    if row.site is not None and by_name is not None and row.site != by_name:
        return None, f"site {row.site} is not the one named {row.site_name!r}; leave one out"
    return row.site if row.site is not None else by_name, ""


def _decide(plan: _Plan, entry: Entry, site: int | None, held: Station | None) -> None:
    if held is None:
        code = registration.new_code()
        new = NewRow(entry.identity, entry.name or "", site, registration.digest(code))
        plan.new[entry.identity] = (entry.line, new, code)
        return
    name = held.name if entry.name is None else entry.name
    wanted = (held.id, name, held.site_id if entry.keep_site else site)
    same = wanted == (held.id, held.name, held.site_id)
    if not same:
        plan.changes.append(wanted)
    outcome = Outcome.UNCHANGED if same else Outcome.UPDATED
    plan.verdicts.append(Verdict(entry.line, entry.identity, outcome))


async def _create(
    cursor: Cursor, tenant: TenantId, plan: _Plan, now: datetime, expires_at: datetime
) -> list[Verdict]:
    new = [row for _, row, _ in plan.new.values()]
    made = await store.add_stations(cursor, tenant, new, now, expires_at) if new else set()
    taken = "the identity is taken; choose another"
    return [
        Verdict(line, identity, Outcome.CREATED, code=code)
        if identity in made
        else Verdict(line, identity, Outcome.FAILED, taken)
        for identity, (line, _, code) in plan.new.items()
    ]
