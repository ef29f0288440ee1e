"""What all steps of a commissioning share: where things are, what was asked, what is known."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_agent.commissioning import draft, progress
from edge_agent.commissioning.dialog import Dialog
from edge_agent.commissioning.progress import Progress
from edge_agent.config import Config, load


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says; None or empty: ask, or take what is usual."""

    station: str | None = None
    ports: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    tcp_port: int = 502
    units: tuple[int, ...] = ()
    profiles: tuple[str, ...] = ()
    use: tuple[str, ...] = ()
    failsafe_timeout: int | None = None
    failsafe_current: str | None = None
    fuse: str | None = None
    connector_max: tuple[str, ...] = ()
    rotation: tuple[str, ...] = ()
    cloud: str | None = None
    code: str | None = None
    ocpp_url: str | None = None
    ocpp_version: str | None = None
    ocpp_identity: str | None = None
    ocpp_profile: int | None = None
    ocpp_password: Path | None = None
    ocpp_ca: Path | None = None
    alone: bool = False
    """No uplink at all."""
    charge: bool | None = None
    charge_s: int = 60
    wait_s: int = 120
    """For a vehicle to be plugged in."""
    evse: int | None = None
    sticker: str | None = None
    installer: str | None = None
    reports: Path | None = None


@dataclass(slots=True, kw_only=True)
class Work:
    """One commissioning while it runs."""

    path: Path
    """Of the agent's configuration."""
    folder: Path
    """Of the journal."""
    options: Options
    dialog: Dialog
    progress: Progress
    plain: dict[str, Any] = field(default_factory=dict)
    """The configuration as it stands in the file."""

    @property
    def config(self) -> Config:
        """Raises ConfigError."""
        return load(self.path)

    @property
    def reports(self) -> Path:
        return self.options.reports or self.path.parent / "commissioning"

    def save(self) -> None:
        """Raises OSError."""
        progress.write(self.folder, self.progress)

    def place(self, **tables: Any) -> None:
        """Change the configuration; what was there before all this is kept once, as .bak.

        Raises ConfigError, OSError; then the file is as it was.
        """
        plain = draft.changed(self.plain, **tables)
        if not self.progress.kept_config:
            draft.keep_old(self.path)
            self.progress.kept_config = True
            self.save()
        draft.place(self.path, plain)
        self.plain = plain
