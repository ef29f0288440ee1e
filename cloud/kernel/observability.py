"""Logs as JSON lines with context, metrics, and the health of each component."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

_context: ContextVar[dict[str, str]] = ContextVar("log_context", default={})  # noqa: B039  # never mutated


@contextmanager
def log_context(**fields: str) -> Iterator[None]:
    """Add fields (station, command, request …) to every line logged inside."""
    token = _context.set({**_context.get(), **fields})
    try:
        yield
    finally:
        _context.reset(token)


class JsonFormatter(logging.Formatter):
    """One JSON object a line; json escapes control characters, so a line stays a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "text": record.getMessage(),
            **_context.get(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure_logging(level: str = "INFO") -> None:
    """Send every logger's lines to stderr as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)


Check = Callable[[], Awaitable[bool]]


def health_routes(checks: dict[str, Check], registry: CollectorRegistry) -> APIRouter:
    """`/health` (200 when every check passes, else 503, each by name) and `/metrics`."""
    routes = APIRouter(tags=["health"])

    @routes.get("/health", responses={503: {"description": "one of the components is down"}})
    async def health() -> JSONResponse:
        states = {name: await check() for name, check in checks.items()}
        healthy = all(states.values())
        body = {
            "status": "ok" if healthy else "degraded",
            "components": {name: "ok" if ok else "down" for name, ok in states.items()},
        }
        return JSONResponse(body, status_code=200 if healthy else 503)

    @routes.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return routes
