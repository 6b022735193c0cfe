"""A small web site on 127.0.0.1: serves given bodies, remembers what was posted to it."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class LocalSite(ThreadingHTTPServer):
    """`pages` maps a path to (content type, body); posted JSON bodies arrive in `posts`."""

    daemon_threads = True

    def __init__(self, pages: dict[str, tuple[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages = pages
        self.posts: queue.Queue[dict[str, Any]] = queue.Queue()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class QuietHandler(BaseHTTPRequestHandler):
    """Prints nothing: what matters is asserted."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the parent's name for it)
        pass


class _Handler(QuietHandler):
    server: LocalSite  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self):
        kind, body = self.server.pages.get(self.path, ("", b""))
        self.answer(200 if kind else 404, kind or "text/plain", body)

    def do_POST(self):
        self.server.posts.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.answer(200, "application/json", b"{}")

    def answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[None]:
    """Runs a server in a thread for the length of the block."""
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
