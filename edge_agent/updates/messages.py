"""What the agent and the process that fetches its updates tell each other: JSON, one per line."""

from __future__ import annotations

from uuid import UUID

import msgspec

from protocols.agent_link import UpdateState
from protocols.release import Kind, Release, Window


class Component(msgspec.Struct, frozen=True, kw_only=True):
    """Something that this controller takes releases of."""

    kind: Kind
    name: str = ""
    """Of the release; empty: any."""
    hw_ids: tuple[str, ...]
    """What it is here; an image for any of them fits."""
    running: str = ""
    """The SHA-256 of the image that is confirmed; empty: it is not known."""
    protocols: tuple[int, ...] = ()
    """Major versions of a board's protocol that this agent speaks; empty: it has none."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent asks: look for an update, and make a slot of it."""

    root: str
    """The folder of the slots."""
    state: str
    """The folder of floors, metadata and downloads."""
    images_root: str
    """The file of the first root that this controller was given."""
    director_root: str | None
    station: str
    hardware: str
    version: str
    running: str
    """The slot that runs; empty: the factory's."""
    others: tuple[Component, ...] = ()
    """What is taken beside the agent itself."""
    now_ms: int
    clock_trusted: bool
    url: str = ""
    folder: str = ""
    """Take everything from here instead; no director is asked then."""
    ca: str | None = None
    rate: int | None = None
    """Bytes a second at most."""
    selftest: tuple[str, ...] = ()


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What a message is about."""

    target: str
    version: str
    request: UUID | None = None


class Progress(msgspec.Struct, frozen=True, tag="progress", tag_field="is"):
    about: Subject
    state: UpdateState


class Ready(msgspec.Struct, frozen=True, tag="ready", tag_field="is", kw_only=True):
    """A slot is made and proven, or an image lies here; good until its metadata expires."""

    about: Subject
    slot: str
    """Of an image that is no agent's: its SHA-256, by which it lies in the folder of images."""
    component: str
    counter: int
    valid_until_ms: int
    window: Window | None = None
    force: bool = False
    received: int = 0
    """Bytes that were downloaded for it."""
    release: Release | None = None
    """None in what an older agent has left: an agent's."""

    @property
    def kind(self) -> Kind:
        return Kind.AGENT if self.release is None else self.release.kind


class Current(msgspec.Struct, frozen=True, tag="current", tag_field="is"):
    """What is asked for is what runs."""

    about: Subject


class Nothing(msgspec.Struct, frozen=True, tag="nothing", tag_field="is"):
    """Nothing is asked for."""


class Failure(msgspec.Struct, frozen=True, tag="failed", tag_field="is"):
    state: UpdateState
    reason: str
    about: Subject | None = None


Message = Progress | Ready | Current | Nothing | Failure
