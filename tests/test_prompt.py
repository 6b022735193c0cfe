"""Prompt extension against a real HTTP server that speaks the OpenAI chat protocol, well and badly."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from local_site import serving
from media_samples import make_image
from queue_fixtures import make_settings
from wan_server.prompt import IMAGE_SIDE, extend_prompt
from wan_server.settings import Settings


class Llm(ThreadingHTTPServer):
    """Answers every request with `status` and `body`; keeps what it was asked."""

    daemon_threads = True

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.body = status, body
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []


class _Handler(BaseHTTPRequestHandler):
    server: Llm  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), body))
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class names it so)
        """Silence: what matters is asserted."""


def completion(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@contextmanager
def llm(tmp_path: Path, body: bytes, status: int = 200) -> Iterator[tuple[Llm, Settings]]:
    server = Llm(status, body)
    url: Any = f"http://127.0.0.1:{server.server_port}/v1/"
    given = {"prompt_extend_url": url, "prompt_extend_model": "some-vl", "prompt_extend_key": "secret"}
    with serving(server):
        yield server, make_settings(tmp_path, **given)


def test_the_model_sees_prompt_and_image_and_its_answer_is_used(tmp_path: Path) -> None:
    image = make_image(tmp_path / "a.png", (1200, 600), "PNG")
    with llm(tmp_path, completion("  a calm sea, the camera glides left  ")) as (server, settings):
        made = extend_prompt(settings, "a sea", image, requested=True)
    assert (made.prompt, made.applied, made.model) == ("a calm sea, the camera glides left", True, "some-vl")
    path, headers, body = server.asked[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    picture, wish = body["messages"][1]["content"]
    assert wish == {"type": "text", "text": "a sea"}
    shown = Image.open(io.BytesIO(base64.b64decode(picture["image_url"]["url"].split(",")[1])))
    assert shown.size == (IMAGE_SIDE, IMAGE_SIDE // 2)


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (500, b"oops", "HTTP 500"),
        (200, b"not json", "ValidationError"),
        (200, b'{"choices": []}', "ValueError"),
        (200, completion(""), "ValueError"),
        (200, completion("x" * 5001), "ValueError"),
    ],
)
def test_a_failing_model_leaves_the_prompt_and_is_reported(
    tmp_path: Path, status: int, body: bytes, reason: str
) -> None:
    with llm(tmp_path, body, status) as (_, settings):
        made = extend_prompt(settings, "a sea", None, requested=True)
    assert (made.prompt, made.applied) == ("a sea", False)
    assert made.note is not None
    assert reason in made.note


def test_an_absent_server_leaves_the_prompt(tmp_path: Path) -> None:
    with llm(tmp_path, b"") as (_, settings):
        pass  # closed again: nobody listens on its port
    made = extend_prompt(settings, "a sea", None, requested=True)
    assert (made.prompt, made.applied) == ("a sea", False)
    assert "ConnectError" in str(made.note)


def test_without_a_model_it_says_so(tmp_path: Path) -> None:
    made = extend_prompt(make_settings(tmp_path), "a sea", None, requested=True)
    assert (made.prompt, made.applied) == ("a sea", False)
    assert "no language model configured" in str(made.note)


def test_it_is_not_asked_when_not_wanted(tmp_path: Path) -> None:
    with llm(tmp_path, completion("other")) as (server, settings):
        made = extend_prompt(settings, "a sea", None, requested=False)
    assert (made.prompt, made.applied, made.note, server.asked) == ("a sea", False, None, [])
