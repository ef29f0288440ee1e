"""What the agent knows, put together for an operator far away, and brought where they want it.

Blocking: to be called in a thread. Nothing in it is a secret.
"""

from __future__ import annotations

import base64
import gzip
import http.client
import ssl
from typing import Any, Final
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

DEADLINE_S: Final = 60
SCHEMES: Final = ("http", "https")


class UploadError(Exception):
    """It was not taken; the text says why."""


def packed(content: Any) -> bytes:
    """As gzipped JSON."""
    return gzip.compress(msgspec.json.format(msgspec.json.encode(content)), 6)


def address(location: str) -> SplitResult:
    """Raises UploadError for what is no http(s):// URL."""
    try:
        found = urlsplit(location)
        port = found.port
    except ValueError as error:
        raise UploadError(f"{location}: {error}") from None
    if found.scheme not in SCHEMES or not found.hostname or port == 0:
        raise UploadError(f"{location}: only http:// and https:// are spoken here")
    return found


def put(location: str, name: str, content: bytes, context: ssl.SSLContext | None = None) -> None:
    """HTTP PUT; a location that ends with / gets the file's name. Raises UploadError."""
    url = address(location)
    path = (url.path or "/") + (name if (url.path or "/").endswith("/") else "")
    if url.query:
        path += f"?{url.query}"
    headers = {"Content-Type": "application/gzip", "Content-Length": str(len(content))}
    if url.username is not None:
        pair = f"{unquote(url.username)}:{unquote(url.password or '')}".encode()
        headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
    connection = _connection(url, context)
    try:
        connection.request("PUT", path, body=content, headers=headers)
        answer = connection.getresponse()
        if answer.status // 100 != 2:
            raise UploadError(f"{url.hostname} answers {answer.status} {answer.reason}")
    except (OSError, http.client.HTTPException) as error:
        raise UploadError(f"{url.hostname}: {str(error) or type(error).__name__}") from error
    finally:
        connection.close()


def _connection(url: SplitResult, context: ssl.SSLContext | None) -> http.client.HTTPConnection:
    host = url.hostname or ""
    if url.scheme == "http":
        return http.client.HTTPConnection(host, url.port, timeout=DEADLINE_S)
    return http.client.HTTPSConnection(host, url.port, timeout=DEADLINE_S, context=context)
