"""What every REST route shares: who calls, what fails, how lists are cut into pages."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Final, Protocol

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from cloud.kernel.database import TenantId
from cloud.kernel.errors import Forbidden, KarvonError, Kind, Unauthorized

logger = logging.getLogger(__name__)

STATUS: Final = {
    Kind.INVALID: 422,
    Kind.UNAUTHORIZED: 401,
    Kind.FORBIDDEN: 403,
    Kind.NOT_FOUND: 404,
    Kind.CONFLICT: 409,
    Kind.GONE: 410,
    Kind.STALE: 412,
    Kind.TOO_LARGE: 413,
    Kind.RATE_LIMITED: 429,
    Kind.UNAVAILABLE: 503,
    Kind.TIMEOUT: 504,
}
PROBLEM: Final = "application/problem+json"


class Role(StrEnum):
    """Each role may do what those before it may."""

    VIEWER = "viewer"
    TECHNICIAN = "technician"
    OPERATOR = "operator"
    ADMIN = "admin"

    def covers(self, needed: Role) -> bool:
        order = list(Role)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True)
class Caller:
    """Who asks: `subject` is `key:12` or `user:3`."""

    tenant_id: TenantId
    subject: str
    role: Role


class Authenticator(Protocol):
    """Answers for a bearer token; set as `app.state.authenticator` (users implements it)."""

    async def authenticate(self, token: str) -> Caller:
        """Raises Unauthorized."""
        ...


_bearer = HTTPBearer(auto_error=False, description="An API key: kv_…")


async def _caller(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Caller:
    if credentials is None:
        raise Unauthorized("send an API key in the header: Authorization: Bearer kv_…")
    authenticator: Authenticator = request.app.state.authenticator
    return await authenticator.authenticate(credentials.credentials)


def require(role: Role) -> Callable[[Caller], Awaitable[Caller]]:
    """For `Depends`: gives the Caller, or answers 401 or 403."""

    async def check(caller: Annotated[Caller, Depends(_caller)]) -> Caller:
        if not caller.role.covers(role):
            raise Forbidden(f"this needs the role {role}; yours is {caller.role}", needs=role)
        return caller

    return check


# --------------------------------------------------------------------------- problems


class Problem(BaseModel):
    """RFC 9457 problem details; `code` is stable, `detail` is for people."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    params: dict[str, Any] = {}


def problem(status: int, code: str, title: str, detail: str, /, **params: Any) -> JSONResponse:
    body = Problem(title=title, status=status, code=code, detail=detail, params=params)
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(
        body.model_dump(mode="json"), status_code=status, media_type=PROBLEM, headers=headers
    )


def install_problem_handlers(app: FastAPI) -> None:
    """Make every failure of the app answer problem+json."""
    app.add_exception_handler(KarvonError, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


async def _known(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, KarvonError):
        raise error
    return known_problem(error)


def known_problem(error: KarvonError) -> JSONResponse:
    """One of our own errors as an answer."""
    title = error.kind.replace("_", " ").capitalize()
    return problem(STATUS[error.kind], error.code, title, error.detail, **error.params)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestValidationError):
        raise error
    fields = [
        {"field": ".".join(str(part) for part in e["loc"]), "reason": e["msg"]}
        for e in error.errors()
    ]
    detail = "; ".join(f"{f['field']}: {f['reason']}" for f in fields)
    return problem(422, "request.invalid", "Invalid request", detail, fields=fields)


async def _http(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    response = problem(
        error.status_code, f"http.{error.status_code}", str(error.detail), str(error.detail)
    )
    response.headers.update(error.headers or {})
    if error.status_code == 405:
        response.headers["Allow"] = ", ".join(_methods_at(request))
    return response


def _methods_at(request: Request) -> list[str]:
    """What may be done at the request's path, by whatever route."""
    known: dict[str, list[str]] = {}
    for path, methods in request.app.openapi()["paths"].items():
        pattern = re.sub(r"\\\{[^/]+?\\\}", "[^/]+", re.escape(path))
        if re.fullmatch(pattern, request.url.path):
            known[path] = [method.upper() for method in methods]
    plain = known.get(request.url.path)
    return sorted(plain or {method for methods in known.values() for method in methods})


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    reference = uuid.uuid4().hex[:12]
    logger.error(
        "unexpected error %s in %s %s", reference, request.method, request.url.path, exc_info=error
    )
    detail = f"something failed on our side; quote {reference} when you report it"
    return problem(500, "internal", "Internal error", detail, reference=reference)


PROBLEM_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": Problem, "description": kind.replace("_", " "), "content": {PROBLEM: {}}}
    for kind, status in (*STATUS.items(), ("unreadable", 400))
    if status in {400, 401, 403, 404, 409, 412, 413, 422, 429, 503}
}
