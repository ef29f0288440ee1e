"""Idempotency keys: a POST that is sent again is not done again, and is answered the same.

The key, everything the request does and its answer are one database transaction. So a request that
died midway has left nothing, its key is free, and sending it again does it; a request that was
done has its answer on record, however the connection ended. A refusal (4xx, 5xx) changes nothing
and leaves the key free, too.

An answer may hold what is shown only once (an API key, a claim code). It is kept encrypted under
the caller's own token and key, neither of which is stored.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from psycopg import Rollback
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloud.kernel.database import Cursor, Database
from cloud.kernel.errors import KarvonError, Kind, Unauthorized
from cloud.kernel.http import Authenticator, Caller, known_problem, problem

KEPT: Final = timedelta(hours=24)
LONGEST_KEY: Final = 255
HEADER: Final = "Idempotency-Key"
REPLAYED: Final = "Idempotency-Replayed"
_FORGET_AT_ONCE: Final = 100
_NONCE: Final = 12


class KeyReused(KarvonError):
    kind = Kind.INVALID
    code = "idempotency.reused"


class KeyBusy(KarvonError):
    kind = Kind.CONFLICT
    code = "idempotency.busy"


class BadKey(KarvonError):
    kind = Kind.INVALID
    code = "idempotency.key"


class Answer(msgspec.Struct):
    """An answer as it went out."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


@dataclass(frozen=True)
class _Asked:
    """A request with a key: who asks, under which key, for what."""

    caller: Caller
    key_digest: bytes
    request_digest: bytes
    secret: bytes


class Idempotency:
    """ASGI middleware: every POST below `/api/v1` that carries an Idempotency-Key.

    Paths `apart` see to it themselves: what waits for a station must not hold a transaction.
    """

    def __init__(
        self,
        app: ASGIApp,
        database: Database,
        authenticator: Authenticator,
        clock: Callable[[], datetime],
        apart: re.Pattern[str] | None = None,
    ) -> None:
        self._app = app
        self._apart = apart
        self._database = database
        self._authenticator = authenticator
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        key = headers.get(HEADER)
        if key is None or scope["method"] != "POST" or not self._is_mine(scope["path"]):
            await self._app(scope, receive, send)
            return
        try:
            answer = await self._answered(scope, receive, headers, key)
        except KarvonError as error:
            await known_problem(error)(scope, receive, send)
        except HTTPException as error:
            await _http_problem(error)(scope, receive, send)
        else:
            await _send(answer, send)

    def _is_mine(self, path: str) -> bool:
        apart = self._apart is not None and self._apart.fullmatch(path) is not None
        return path.startswith("/api/v1/") and not apart

    async def _answered(self, scope: Scope, receive: Receive, headers: Headers, key: str) -> Answer:
        if not 0 < len(key) <= LONGEST_KEY or not key.isprintable():
            raise BadKey(f"an {HEADER} has 1 to {LONGEST_KEY} printable characters, e.g. a UUID")
        body = await Request(scope, receive).body()
        token = headers.get("authorization", "").partition(" ")[2].strip()
        try:
            caller = await self._authenticator.authenticate(token)
        except Unauthorized:
            return await self._run(scope, body)  # a route without a caller, or its own refusal
        asked = _Asked(
            caller,
            _digest(key.encode()),
            _digest(
                scope["path"].encode(),
                scope["query_string"],
                headers.get("content-type", "").encode(),
                body,
            ),
            _digest(b"answer", token.encode(), key.encode()),
        )
        async with self._database.joint(caller.tenant_id) as cursor:
            known = await self._claim(cursor, asked)
            if known is not None:
                return known
            answer = Answer(500, [], b"")
            async with cursor.connection.transaction():
                answer = await self._run(scope, body)
                if answer.status >= 400:
                    raise Rollback
                await self._keep(cursor, asked, answer)
        return answer

    async def _claim(self, cursor: Cursor, asked: _Asked) -> Answer | None:
        """Hold the key until the transaction's end; the answer when it was used before."""
        caller, now = asked.caller, self._clock()
        lock = _digest(str(caller.tenant_id).encode(), caller.subject.encode(), asked.key_digest)
        await cursor.execute(
            "SELECT pg_try_advisory_xact_lock(%s)", (int.from_bytes(lock[:8], signed=True),)
        )
        if (await cursor.fetchone()) != (True,):
            raise KeyBusy("a request with this key is being carried out; ask again in a moment")
        await _forget(cursor, now - KEPT)
        await cursor.execute(
            "SELECT request_digest, answer FROM kernel.idempotency"
            " WHERE tenant_id = %s AND subject = %s AND key_digest = %s AND created_at > %s",
            (caller.tenant_id, caller.subject, asked.key_digest, now - KEPT),
        )
        held = await cursor.fetchone()
        if held is None:
            return None
        if held[0] != asked.request_digest:
            raise KeyReused(
                "this key was used for another request; take a fresh key for each new request"
            )
        answer = _open(held[1], asked.secret)
        answer.headers.append((REPLAYED.lower().encode(), b"true"))
        return answer

    async def _keep(self, cursor: Cursor, asked: _Asked, answer: Answer) -> None:
        await cursor.execute(
            "INSERT INTO kernel.idempotency (tenant_id, subject, key_digest, request_digest,"
            " status, answer, created_at) VALUES (%s, %s, %s, %s, %s, %s, %s)"
            " ON CONFLICT (tenant_id, subject, key_digest) DO UPDATE SET"
            " request_digest = excluded.request_digest, status = excluded.status,"
            " answer = excluded.answer, created_at = excluded.created_at",
            (
                asked.caller.tenant_id,
                asked.caller.subject,
                asked.key_digest,
                asked.request_digest,
                answer.status,
                _seal(answer, asked.secret),
                self._clock(),
            ),
        )

    async def _run(self, scope: Scope, body: bytes) -> Answer:
        answer = Answer(500, [], b"")

        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = [(bytes(n), bytes(v)) for n, v in message["headers"]]
            elif message["type"] == "http.response.body":
                answer.body += message.get("body", b"")

        await self._app(scope, receive, send)
        return answer


async def _forget(cursor: Cursor, before: datetime) -> None:
    """Drop some of the caller's tenant's old keys; each request with a key does its share."""
    await cursor.execute(
        "DELETE FROM kernel.idempotency WHERE (tenant_id, subject, key_digest) IN"
        " (SELECT tenant_id, subject, key_digest FROM kernel.idempotency"
        "  WHERE tenant_id = kernel.tenant() AND created_at < %s"
        "  ORDER BY created_at LIMIT %s FOR UPDATE SKIP LOCKED)",
        (before, _FORGET_AT_ONCE),
    )


def _digest(*parts: bytes) -> bytes:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8))
        sha.update(part)
    return sha.digest()


def _seal(answer: Answer, secret: bytes) -> bytes:
    nonce = os.urandom(_NONCE)
    return nonce + AESGCM(secret).encrypt(nonce, msgspec.msgpack.encode(answer), None)


def _open(sealed: bytes, secret: bytes) -> Answer:
    try:
        plain = AESGCM(secret).decrypt(sealed[:_NONCE], sealed[_NONCE:], None)
    except InvalidTag:
        raise KeyReused("this key was used by another session; take a fresh key") from None
    return msgspec.msgpack.decode(plain, type=Answer)


def _http_problem(error: HTTPException) -> JSONResponse:
    detail = str(error.detail)
    return problem(error.status_code, f"http.{error.status_code}", detail, detail)


async def _send(answer: Answer, send: Send) -> None:
    await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
    await send({"type": "http.response.body", "body": answer.body})


def document(schema: dict[str, Any]) -> None:
    """Add the header and its refusals to every POST of an OpenAPI document that has a caller."""
    parameter = {
        "name": HEADER,
        "in": "header",
        "required": False,
        "description": "repeat the request with the same key and it is not done again, for 24 h",
        "schema": {"type": "string", "minLength": 1, "maxLength": LONGEST_KEY},
    }
    for path, methods in schema["paths"].items():
        operation = methods.get("post")
        if operation is not None and path.startswith("/api/v1/") and operation.get("security"):
            operation.setdefault("parameters", []).append(parameter)
