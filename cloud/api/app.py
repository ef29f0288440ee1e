"""The application: one OpenAPI document over all modules' routes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloud.kernel import idempotency
from cloud.kernel.database import Database
from cloud.kernel.http import (
    PROBLEM_RESPONSES,
    Authenticator,
    install_problem_handlers,
    problem,
)
from cloud.kernel.idempotency import Idempotency
from cloud.kernel.rest import say_storable, storable

VERSION = "1"
WAITING: Final = re.compile(r"/api/v1/stations/[^/]+/ocpp/[^/]+")
"""What answers when a station has answered."""
LARGEST_BODY = 8 * 1024 * 1024
_NO_SNIFFING: Final = (b"x-content-type-options", b"nosniff")
_ABOUT = """Times are RFC 3339 in UTC; energy is in Wh, power in W, currents in mA, voltages in mV,
all integers. Stations go by their wire identity. Lists come in pages: pass `next` as `cursor`;
`Accept: text/csv` gives them as CSV. Single resources have an ETag for `If-None-Match` and
`If-Match`. A POST with an `Idempotency-Key` is done once, however often it is sent. Failures are
problem+json (RFC 9457) with a stable `code`."""


def create_app(
    authenticator: Authenticator,
    routers: Iterable[APIRouter],
    database: Database,
    clock: Callable[[], datetime],
) -> FastAPI:
    """The application over these routes; `/docs` shows them."""
    app = FastAPI(title="Karvon", version=VERSION, description=_ABOUT, redoc_url=None)
    app.state.authenticator = authenticator
    install_problem_handlers(app)
    app.add_middleware(
        Idempotency, database=database, authenticator=authenticator, clock=clock, apart=WAITING
    )
    app.add_middleware(Guard)
    for router in routers:
        documented = router.prefix or router.tags != ["health"]
        app.include_router(router, responses=PROBLEM_RESPONSES if documented else None)
    _document(app)
    return app


def _document(app: FastAPI) -> None:
    """Have the OpenAPI document also tell what the middleware adds."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            idempotency.document(plain())
            _tell_storable(plain())
        return plain()

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend it


def _tell_storable(document: dict[str, Any]) -> None:
    """What `Guard` refuses of a URL."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] in {"query", "path"}:
                    say_storable(parameter["schema"])


class Guard:
    """Refuses what only the database would find, or memory: NULs in the URL, bodies without end.

    And has browsers take every answer for what it says it is: what stations wrote is in it (A24).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif not _storable_url(Request(scope)):
            detail = "path or query holds a NUL character"
            answer = problem(422, "request.invalid", "Invalid request", detail)
            await answer(scope, receive, _as_it_is(send))
        else:
            await self._app(scope, _counted(receive), _as_it_is(send))


def _storable_url(request: Request) -> bool:
    queried = (part for pair in request.query_params.multi_items() for part in pair)
    return all(storable(text) for text in (request.scope["path"], *queried))


def _as_it_is(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), _NO_SNIFFING]
        await send(message)

    return sent


def _counted(receive: Receive) -> Receive:
    left = LARGEST_BODY

    async def counted() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise HTTPException(413, f"a body may have {LARGEST_BODY} bytes; send it in parts")
        return message

    return counted
