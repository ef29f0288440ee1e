"""A web server for images that can do everything wrong that web servers do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote


class Server:
    """Shows a folder; `faults` is asked about every answer and may change it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.etag = '"v1"'
        self.cut_after: int | None = None
        """Bytes of a body after which the line is cut."""
        self.ignores_range = False
        self.status: int | None = None
        self.portal: bytes | None = None
        self.body: Callable[[bytes], bytes] = lambda content: content
        self.asked: list[tuple[str, str | None, str | None]] = []
        self.sent = 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                owner.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted, condition = handler.headers.get("Range"), handler.headers.get("If-Range")
        self.asked.append((handler.path, wanted, condition))
        image = "/targets/" in handler.path
        path = self.folder / unquote(handler.path).lstrip("/")
        if self.portal is not None:
            self._send(handler, 200, self.portal, {})
        elif image and self.status is not None:
            self._send(handler, self.status, b"", {})
        elif not path.is_file():
            self._send(handler, 404, b"", {})
        elif image:
            self._image(handler, self.body(path.read_bytes()), wanted, condition)
        else:
            self._send(handler, 200, path.read_bytes(), {})

    def _image(
        self, handler: Any, content: bytes, wanted: str | None, condition: str | None
    ) -> None:
        headers = {"ETag": self.etag, "Accept-Ranges": "bytes"}
        if wanted and not self.ignores_range and condition in {None, self.etag}:
            first = int(wanted.removeprefix("bytes=").rstrip("-"))
            if first >= len(content):
                self._send(handler, 416, b"", {"Content-Range": f"bytes */{len(content)}"})
                return
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            self._send(handler, 206, content[first:], headers, cut=True)
        else:
            self._send(handler, 200, content, headers, cut=True)

    def _send(
        self,
        handler: Any,
        status: int,
        content: bytes,
        headers: dict[str, str],
        *,
        cut: bool = False,
    ) -> None:
        handler.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        shown = content if not cut or self.cut_after is None else content[: self.cut_after]
        self.sent += len(shown) if cut else 0  # before whoever reads it can know
        with suppress(OSError):
            handler.wfile.write(shown)
        if len(shown) < len(content):
            handler.close_connection = True
