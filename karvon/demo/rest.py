"""A small client of the cloud's REST interface, on the standard library alone."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any, Final

from karvon.demo.process import DemoError

DEADLINE_S: Final = 10.0


class RestError(DemoError):
    """The cloud said no, or nothing; `status` is 0 when there was no answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Rest:
    """Speaks JSON with `base` (…/api/v1) under an API key."""

    def __init__(self, base: str, key: str = "") -> None:
        self.base = base.rstrip("/")
        self.key = key

    def get(self, path: str, **query: str | int | None) -> Any:
        """GET; raises RestError for everything but a 2xx answer."""
        given = {name: value for name, value in query.items() if value is not None}
        return self._ask("GET", path + ("?" + urllib.parse.urlencode(given) if given else ""))

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """POST; raises RestError for everything but a 2xx answer."""
        return self._ask("POST", path, body)

    def put(self, path: str, body: Mapping[str, Any]) -> Any:
        """PUT; raises RestError for everything but a 2xx answer."""
        return self._ask("PUT", path, body)

    def items(self, path: str, **query: str | int | None) -> Iterator[dict[str, Any]]:
        """Every item of a list, page by page."""
        cursor = None
        while True:
            page = self.get(path, **query, cursor=cursor)
            yield from page["items"]
            cursor = page.get("next")
            if not cursor:
                return

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        request = urllib.request.Request(  # noqa: S310  base is http://127.0.0.1
            self.base + path,
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:  # noqa: S310
                raw = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise RestError(error.code, _reason(method, path, error)) from None
        except OSError as error:
            raise RestError(0, f"{method} {path}: no answer from {self.base}: {error}") from None
        return json.loads(raw) if raw else None


def _reason(method: str, path: str, error: urllib.error.HTTPError) -> str:
    text = error.read().decode(errors="replace")
    with contextlib.suppress(ValueError, AttributeError):  # not problem+json: shown as it came
        problem = json.loads(text)
        text = str(problem.get("detail") or problem.get("title") or text)
    return f"{method} {path}: {error.code} {text}"
