"""How updates of firmware and uploads of logs go on, from what stations tell: pure rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

Kind = Literal["firmware", "log"]

_OVER: Final[dict[str, frozenset[str]]] = {
    "firmware": frozenset(
        {
            "DownloadFailed",
            "InstallationFailed",
            "InstallVerificationFailed",
            "Installed",
            "InvalidChecksum",
            "InvalidSignature",
            "PublishFailed",
            "Published",
        }
    ),
    "log": frozenset(
        {
            "AcceptedCanceled",
            "BadMessage",
            "NotSupportedOperation",
            "PermissionDenied",
            "Uploaded",
            "UploadFailure",
        }
    ),
}
ASKED: Final = "Asked"
INSTALLED: Final = "Installed"
SUPERSEDED: Final = "Superseded"
TOO_OLD: Final = timedelta(days=30)
"""A status without a number that long after the request is not of that request."""


def is_over(kind: str, status: str) -> bool:
    return status in _OVER[kind]


@dataclass(frozen=True)
class Standing:
    """A transfer as it is held."""

    id: int
    station_id: int
    kind: str
    request_id: int | None
    expected_version: str
    status: str
    is_open: bool
    asked_at: datetime


def addressee(
    held: Iterable[Standing], kind: Kind, request_id: int | None, at: datetime
) -> Standing | None:
    """Which of a station's transfers a status is of, those asked last first.

    1.6 gives no number: then it is of the latest, unless that is too long ago.
    """
    of_kind = [one for one in held if one.kind == kind]
    if request_id is not None:
        return next((one for one in of_kind if one.request_id == request_id), None)
    latest = of_kind[0] if of_kind else None
    return latest if latest is not None and at - latest.asked_at < TOO_OLD else None


def concluded(held: Sequence[Standing], firmware: str) -> list[Standing]:
    """Updates that a boot with this firmware shows to be done, though none said so (S30)."""
    return [
        one
        for one in held
        if one.kind == "firmware"
        and one.is_open
        and one.expected_version
        and _same(one.expected_version, firmware)
    ]


def _same(expected: str, told: str) -> bool:
    """Stations write `v2.1` and `2.1 ` for 2.1."""
    return _plain(expected) == _plain(told)


def _plain(version: str) -> str:
    return version.strip().lower().removeprefix("v").strip()
