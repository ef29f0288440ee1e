"""ETags: what a client has seen, told apart by its content, so that nobody overwrites unseen.

An ETag is `"<version>"`, a digest of the rows that a change may touch, or `"<version>-<state>"`
where the answer also shows what comes and goes by itself (a station's live state). `If-None-Match`
compares all of it, `If-Match` the version alone: an agent's report does not void an operator's
edit. Ages (`age_s`) follow from `at` and are in neither.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Final, TypeVar, cast

import msgspec
from fastapi import Depends, Header, Response
from pydantic import BaseModel

from cloud.kernel.errors import KarvonError, Kind

View = TypeVar("View")
_LONGEST: Final = 1000
ETAG_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"headers": {"ETag": {"schema": {"type": "string"}}}},
    304: {"description": "what `If-None-Match` names is still so"},
}
"""For `responses=` of a single resource's GET."""


class Stale(KarvonError):
    kind = Kind.STALE
    code = "etag.stale"


def version_of(*rows: Any) -> str:
    """A digest of rows' content (dataclasses, structs, plain values): 16 hex digits."""
    return hashlib.sha256(msgspec.json.encode(rows)).hexdigest()[:16]


def state_of(view: BaseModel) -> str:
    """A digest of all that a view shows, ages aside."""
    return version_of(_ageless(view.model_dump(mode="json")))


def _ageless(shown: Any) -> Any:
    if isinstance(shown, dict):
        return {name: _ageless(value) for name, value in shown.items() if name != "age_s"}
    return [_ageless(value) for value in shown] if isinstance(shown, list) else shown


def _tags(header: str) -> list[str]:
    return [tag.strip() for tag in header.split(",")]


class Expected:
    """What the caller of a change says he has seen; a service checks it on the row it has locked.

    `expected.check(version_of(row))`, in the transaction that writes: nobody writes in between.
    """

    def __init__(self, if_match: str | None) -> None:
        self._versions = None if if_match is None else {_version(tag) for tag in _tags(if_match)}

    def check(self, version: str) -> None:
        """Raises Stale when the caller has seen another version."""
        if self._versions is None or "*" in self._versions or version in self._versions:
            return
        raise Stale("somebody changed this since you read it; read it again, then change it")


ANYTHING: Final = Expected(None)


class Guarded(Expected):
    """Of PATCH, PUT and DELETE: what `If-Match` expects, and the ETag after it."""

    def __init__(self, response: Response, if_match: str | None) -> None:
        super().__init__(if_match)
        self._response = response

    def answer(self, view: View, version: str, state: str | None = None) -> View:
        """The changed resource under its new ETag."""
        self._response.headers["ETag"] = etag(version, state)
        return view


def _version(tag: str) -> str | None:
    """The part that a change is checked against; a weak tag stands for none."""
    if tag == "*":
        return tag
    strong = len(tag) > 1 and tag[0] == tag[-1] == '"'
    return tag[1:-1].partition("-")[0] if strong else None


class Tagged:
    """Answers a GET with its ETag, or 304 when the caller has it already."""

    def __init__(self, response: Response, if_none_match: str | None) -> None:
        self._response = response
        self._seen = [] if if_none_match is None else _tags(if_none_match)

    def answer(self, view: View, version: str, state: str | None = None) -> View:
        """The view under its ETag."""
        tag = etag(version, state)
        if tag in self._seen or f"W/{tag}" in self._seen or "*" in self._seen:
            sent = Response(status_code=304, headers={"ETag": tag})
            return cast("View", sent)  # FastAPI sends a Response as it is
        self._response.headers["ETag"] = tag
        return view


async def _guarded(
    response: Response,
    if_match: Annotated[
        str | None,
        Header(max_length=_LONGEST, description="the ETag seen; 412 when it is no longer so"),
    ] = None,
) -> Guarded:
    return Guarded(response, if_match)


async def _tagged(
    response: Response,
    if_none_match: Annotated[
        str | None, Header(max_length=_LONGEST, description="ETags seen; 304 when still so")
    ] = None,
) -> Tagged:
    return Tagged(response, if_none_match)


IfMatch = Annotated[Guarded, Depends(_guarded)]
IfNoneMatch = Annotated[Tagged, Depends(_tagged)]
"""For a route's parameters. Made by coroutines: FastAPI calls anything else in a thread."""


def etag(version: str, state: str | None = None) -> str:
    """The header's value."""
    return f'"{version}"' if state is None else f'"{version}-{state}"'
