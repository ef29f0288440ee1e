"""All of REST built once for a whole run: building it takes half a second, most tests less."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.types import Receive, Scope, Send

from cloud.api.app import create_app

_present: ContextVar[Mapping[str, Any]] = ContextVar("present")
_built: dict[str, FastAPI] = {}


class _Present:
    """Whatever service of that name the request's application has."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(_present.get()[self._name], attribute)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _present.get()[self._name](*args, **kwargs)


class Within:
    """An application whose requests meet these services."""

    def __init__(self, app: FastAPI, services: Mapping[str, Any]) -> None:
        self.app = app
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        token = _present.set(self._services)
        try:
            await self.app(scope, receive, send)
        finally:
            _present.reset(token)

    def openapi(self) -> dict[str, Any]:
        return self.app.openapi()


Service = Callable[[str], Any]
"""Gives a service by its name."""


def app_once(kind: str, routers: Callable[[Service], Sequence[APIRouter]]) -> FastAPI:
    """The application over stand-ins for services, among them `users`, `database` and `clock`."""
    if kind not in _built:
        _built[kind] = app_over(_Present, routers)
    return _built[kind]


def app_over(service: Service, routers: Callable[[Service], Sequence[APIRouter]]) -> FastAPI:
    return create_app(service("users"), routers(service), service("database"), service("clock"))
