"""A language model service on 127.0.0.1 that speaks the OpenAI chat protocol, well, badly or never."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Any

from PIL import Image

from local_site import QuietHandler, serving


class ChatService(ThreadingHTTPServer):
    """Answers every request with `status` and `body`, after `release` is set; keeps what it was asked."""

    daemon_threads = True

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.body = status, body
        #: path, headers and body of every request
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.arrived = threading.Event()
        self.hung_up = threading.Event()
        self.release = threading.Event()
        self.release.set()

    @property
    def url(self) -> Any:
        return f"http://127.0.0.1:{self.server_port}/v1/"

    def messages(self, index: int = -1) -> tuple[str, Any]:
        """System prompt and user content of a request."""
        system, user = self.asked[index][2]["messages"]
        assert (system["role"], user["role"]) == ("system", "user")
        return system["content"], user["content"]


class _Handler(QuietHandler):
    server: ChatService  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:  # noqa: N802 (the base class names it so)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), body))
        self.server.arrived.set()
        if not self.server.release.is_set() and self.rfile.read(1) == b"":  # nothing more comes: the client is gone
            self.server.hung_up.set()
            return
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)


def completion(text: str) -> bytes:
    """The body of a chat completion."""
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@contextmanager
def chat_service(body: bytes, status: int = 200, *, silent: bool = False) -> Iterator[ChatService]:
    """A service that is up for the length of the block; a silent one takes requests and never answers."""
    service = ChatService(status, body)
    if silent:
        service.release.clear()
    with serving(service):
        yield service


def picture_of(part: dict[str, Any]) -> Image.Image:
    """The picture in a part of a user's message."""
    kind, _, data = part["image_url"]["url"].partition(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
