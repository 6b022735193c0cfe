"""One webhook delivery: what is sent, and what counts as delivered. Durable retries are in the SDK tests."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from local_site import LocalSite, serving
from queue_fixtures import make_job, make_settings, open_queue
from wan_server.fetch import FetchFailed, FetchRefused
from wan_server.job import JobState
from wan_server.webhook import WebhookFailed, deliver, is_worth_another_try, payload


@pytest.fixture
def cancelled(tmp_path: Path) -> Iterator[JobState]:
    """A task that has ended."""
    with open_queue(make_settings(tmp_path)) as queue:
        job = make_job(options={"session_id": "s" * 26})
        queue.submit(job)
        yield queue.cancel(job.id)


def test_the_payload_is_the_hosted_one(cancelled: JobState) -> None:
    body = payload(cancelled)
    assert list(body) == [
        "id", "status", "status_text", "output", "error", "session_id", "created_at", "updated_at",
    ]  # fmt: skip
    assert (body["status"], body["status_text"], body["output"], body["error"]) == (12, "cancelled", None, "")
    assert body["session_id"] == "s" * 26
    assert body["created_at"].endswith("Z")


def test_a_delivery_arrives(tmp_path: Path, cancelled: JobState) -> None:
    site = LocalSite({})
    with serving(site):
        settings = make_settings(tmp_path, allow_private_urls=True)
        assert deliver(settings, f"{site.url}/hook", payload(cancelled)) == 200
        assert site.posts.get(timeout=1)["id"] == cancelled.job.id


def test_anything_but_2xx_is_a_failure(tmp_path: Path, cancelled: JobState) -> None:
    class Refuses(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_error(503)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class names it so)
            """Silence."""

    settings = make_settings(tmp_path, allow_private_urls=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    with serving(server), pytest.raises(WebhookFailed, match="503") as caught:
        deliver(settings, f"http://127.0.0.1:{server.server_port}/", payload(cancelled))
    assert is_worth_another_try(caught.value)


def test_private_addresses_are_refused_for_good(tmp_path: Path, cancelled: JobState) -> None:
    with pytest.raises(FetchRefused) as caught:
        deliver(make_settings(tmp_path), "http://127.0.0.1:8000/hook", payload(cancelled))
    assert not is_worth_another_try(caught.value)
    assert is_worth_another_try(FetchFailed("the receiver does not answer"))
