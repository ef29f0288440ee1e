"""Whether an agent's journal is the one that the cloud knows (pure; decision 0003)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from protocols.agent_link import Hello, Ranges, Stream, Verdict


@dataclass(frozen=True)
class KnownOutbox:
    """What the cloud remembers of an outbox."""

    last_boot: UUID
    committed: Mapping[Stream, Ranges]


def judge(
    hello: Hello, known: KnownOutbox | None, *, of_other_station: bool
) -> tuple[Verdict, str]:
    """The verdict on a hello, and why it is not to go on."""
    if of_other_station:
        return Verdict.NEW_OUTBOX, "this outbox belongs to another station"
    if known is None:
        return Verdict.GO_ON, ""
    if known.last_boot not in hello.boots:
        return (
            Verdict.NEW_OUTBOX,
            f"boot {known.last_boot} used this outbox and is not of this journal",
        )
    for stream, ranges in known.committed.items():
        mark = hello.marks.get(stream)
        highest = ranges[-1][1] if ranges else 0
        if mark is None or highest >= mark.next:
            return (
                Verdict.NEW_OUTBOX,
                f"the cloud holds {stream} up to {highest}, the agent does not",
            )
    return Verdict.GO_ON, ""
