"""The application: one OpenAPI document over all modules' routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from fastapi import APIRouter, FastAPI, Request, Response

from cloud.kernel.http import (
    PROBLEM_RESPONSES,
    Authenticator,
    install_problem_handlers,
    problem,
)
from cloud.kernel.rest import storable

VERSION = "1"
_ABOUT = """Times are RFC 3339 in UTC; energy is in Wh, power in W, currents in mA, voltages in mV,
all integers. Stations go by their wire identity. Lists come in pages: pass `next` as `cursor`.
Failures are problem+json (RFC 9457) with a stable `code`."""


def create_app(authenticator: Authenticator, routers: Iterable[APIRouter]) -> FastAPI:
    """The application over these routes; `/docs` shows them."""
    app = FastAPI(title="Karvon", version=VERSION, description=_ABOUT, redoc_url=None)
    app.state.authenticator = authenticator
    install_problem_handlers(app)
    app.middleware("http")(_refuse_unstorable)
    for router in routers:
        documented = router.prefix or router.tags != ["health"]
        app.include_router(router, responses=PROBLEM_RESPONSES if documented else None)
    return app


async def _refuse_unstorable(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    """A NUL in path or query would only be found by the database."""
    texts = [
        request.url.path,
        *(part for pair in request.query_params.multi_items() for part in pair),
    ]
    if not all(storable(text) for text in texts):
        return problem(
            422, "request.invalid", "Invalid request", "path or query holds a NUL character"
        )
    return await call_next(request)
