"""The cloud's REST interface as scripts need it: pages, safe retries, one-line failures."""

from __future__ import annotations

import ipaddress
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote, urlsplit

import httpx

FAILED: Final = 1
USAGE: Final = 2
OUT_OF_REACH: Final = 3
DEFAULT_URL: Final = "http://127.0.0.1:8080"
PREFIX: Final = "/api/v1"
DEADLINE_S: Final = 30.0
TRIES: Final = 3
FIRST_PAUSE_S: Final = 0.5
MOST_PER_PAGE: Final = 500
CSV: Final = "text/csv"
_AGAIN: Final = frozenset({429, 502, 503, 504})
_USAGE: Final = frozenset({400, 401, 422})


class RemoteError(Exception):
    """What went wrong, as one line for a person, and the exit code that a script sees."""

    def __init__(self, code: int, text: str, problem: Mapping[str, Any] | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.problem = problem or {}


@dataclass(frozen=True)
class Target:
    """Which cloud, and as whom."""

    url: str
    key: str

    @classmethod
    def of(
        cls, url: str | None, key_file: Path | None, environment: Mapping[str, str] = os.environ
    ) -> Self:
        """From options and `KARVON_URL`, `KARVON_API_KEY`, `KARVON_API_KEY_FILE`.

        Raises RemoteError for no key, one that cannot be read, or one that would travel in the
        clear.
        """
        where = (url or environment.get("KARVON_URL") or DEFAULT_URL).rstrip("/")
        where = where.removesuffix(PREFIX)
        parts = urlsplit(where)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise RemoteError(USAGE, f"{where!r} is no address; give --url https://cloud.example")
        if parts.scheme == "http" and not _on_loopback(parts.hostname):
            raise RemoteError(
                USAGE,
                f"the key would travel to {parts.hostname} unencrypted; use https://, or a tunnel "
                "to 127.0.0.1",
            )
        return cls(where, _key(key_file, environment))


def _on_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _key(key_file: Path | None, environment: Mapping[str, str]) -> str:
    named = environment.get("KARVON_API_KEY_FILE")
    file = key_file or (Path(named) if named else None)
    if file is not None:
        try:
            key = file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise RemoteError(USAGE, f"the key in {file} cannot be read: {error}") from None
    else:
        key = environment.get("KARVON_API_KEY", "").strip()
    if not key or not key.isascii() or any(letter.isspace() for letter in key):
        raise RemoteError(
            USAGE,
            "there is no API key; put it into a file and name that with --key-file or in "
            "KARVON_API_KEY_FILE",
        )
    return key


def at(template: str, **keys: object) -> str:
    """A path below /api/v1 whose parts are quoted."""
    return template.format(**{name: quote(str(key), safe="") for name, key in keys.items()})


class Remote:
    """`with Remote(target) as cloud: cloud.get("/stations")`. Everything raises RemoteError."""

    def __init__(
        self,
        target: Target,
        *,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = target.url
        self._sleep = sleep
        self._client = httpx.Client(
            base_url=target.url + PREFIX,
            headers={"Authorization": f"Bearer {target.key}", "User-Agent": "karvon"},
            timeout=DEADLINE_S,
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, path: str, **query: Any) -> Any:
        return self.ask("GET", path, query).json()

    def ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        *,
        body: Any = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """One request, tried again where that is safe: a POST keeps its Idempotency-Key."""
        sent = dict(headers or {})
        if method == "POST":
            sent["Idempotency-Key"] = secrets.token_urlsafe(18)
        request = self._client.build_request(
            method, path, params=_given(query), json=body, content=content, headers=sent
        )
        for left in reversed(range(TRIES)):
            try:
                answer = self._client.send(request)
            except httpx.TransportError as error:
                if not left:
                    raise self._away(error) from None
            else:
                if not left or not _worth_another_try(answer):
                    return _checked(answer)
            self._sleep(FIRST_PAUSE_S * 2 ** (TRIES - 1 - left))
        raise AssertionError("the last try returns or raises")

    def items(self, path: str, query: Mapping[str, Any], most: int | None) -> Iterator[Any]:
        """A list's items page by page, at most so many (None: all)."""
        cursor, left = query.get("cursor"), most
        while left is None or left > 0:
            size = MOST_PER_PAGE if left is None else min(left, MOST_PER_PAGE)
            page = self.get(path, **{**query, "limit": size, "cursor": cursor})
            yield from page["items"]
            cursor = page.get("next")
            left = None if left is None else left - len(page["items"])
            if not cursor or not page["items"]:
                return

    def csv(self, path: str, query: Mapping[str, Any], most: int | None) -> Iterator[str]:
        """A list as CSV, page by page, with one header line at the top."""
        left, first = most, True
        parameters: Mapping[str, Any] = query
        while left is None or left > 0:
            size = MOST_PER_PAGE if left is None else min(left, MOST_PER_PAGE)
            answer = self.ask("GET", path, {**parameters, "limit": size}, headers={"Accept": CSV})
            if not answer.headers.get("content-type", "").startswith(CSV):
                raise RemoteError(FAILED, "this list is not offered as CSV; take --json")
            head, _, rows = answer.text.partition("\n")
            yield f"{head}\n{rows}" if first else rows
            following = answer.links.get("next", {}).get("url")
            if not following:
                return
            first = False
            parameters = dict(httpx.URL(following).params)
            left = None if left is None else left - size

    def stream(self, path: str, query: Mapping[str, Any], last_id: str | None) -> Iterator[Sent]:
        """Server-sent events until the cloud ends the stream."""
        headers = {"Accept": "text/event-stream"}
        if last_id is not None:
            headers["Last-Event-ID"] = last_id
        try:
            with self._client.stream("GET", path, params=_given(query), headers=headers) as answer:
                if answer.is_error:
                    answer.read()
                    _checked(answer)
                yield from _events(answer.iter_lines())
        except httpx.TransportError as error:
            raise self._away(error) from None

    def _away(self, error: Exception) -> RemoteError:
        why = str(error) or type(error).__name__
        return RemoteError(
            OUT_OF_REACH, f"the cloud at {self.url} does not answer ({why}); check --url"
        )


@dataclass(frozen=True)
class Sent:
    """One server-sent event."""

    event: str
    data: str
    id: str | None


def _events(lines: Iterator[str]) -> Iterator[Sent]:
    """As the HTML standard has it; comments are heartbeats."""
    event, data, last_id = "message", list[str](), None
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield Sent(event, "\n".join(data), last_id)
            event, data = "message", []
        elif name == "data":
            data.append(value)
        elif name == "event":
            event = value
        elif name == "id":
            last_id = value


def _worth_another_try(answer: httpx.Response) -> bool:
    """The cloud is busy, or still at the same request, whose answer had not come in time."""
    twin = answer.status_code == 409 and b'"idempotency.busy"' in answer.content
    return twin or answer.status_code in _AGAIN


def _given(query: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (query or {}).items() if value is not None}


def _checked(answer: httpx.Response) -> httpx.Response:
    """The answer, when it is a good one; raises RemoteError for problem+json and the rest."""
    if not answer.is_error:
        return answer
    try:
        problem = dict(answer.json())
        text = str(problem["detail"])
    except (ValueError, KeyError, TypeError):
        raise RemoteError(
            OUT_OF_REACH,
            f"{answer.url.host} answered {answer.status_code} without saying why; is --url a "
            "Karvon cloud?",
        ) from None
    code = USAGE if answer.status_code in _USAGE else FAILED
    if answer.status_code in _AGAIN:
        code = OUT_OF_REACH
    if answer.status_code == 401:
        text += "; check the key (--key-file, KARVON_API_KEY_FILE)"
    raise RemoteError(code, text, problem)
