"""The official synchronous Python client against a real server: only the base URL is changed."""

from __future__ import annotations

import base64
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import inferencesh.client
import pytest
from inferencesh import Inference
from inferencesh.models.errors import APIError

from local_site import LocalSite, QuietHandler, serving
from sdk_input import CANCELLED, COMPLETED, QUEUED, RUNNING, TERMINAL, check_video, later, request
from server_process import SPEED, Server


@pytest.fixture
def client(server: Server) -> Inference:
    return Inference(api_key="any", base_url=server.base_url)


def run(client: Inference, params: dict[str, Any], **options: Any) -> dict[str, Any]:
    """`client.run` where the answer is a task."""
    task = client.run(params, **options)
    assert isinstance(task, dict)
    return task


def wait_for(client: Inference, task_id: str, statuses: tuple[int, ...], timeout_s: float = 60) -> dict[str, Any]:
    """Polls a task until its status is one of `statuses`."""
    give_up = time.monotonic() + timeout_s
    while (task := client.tasks.get(task_id).data)["status"] not in statuses:
        assert time.monotonic() < give_up, f"status {task['status_text']} after {timeout_s} s"
        time.sleep(0.05)
    return task


def test_run_uploads_a_local_path_and_returns_the_video(client: Inference, first_frame: Path, tmp_path: Path):
    task = run(client, request(first_frame))
    assert task["status"] == COMPLETED
    assert task["input"]["first_frame"].startswith("http")
    check_video(task["output"], tmp_path)


def test_a_task_lists_its_files_and_can_be_deleted(client: Inference, first_frame: Path, server: Server):
    task = run(client, request(first_frame))
    files = client.tasks.files(task["id"], role="output").data
    assert [file["uri"] for file in files] == [task["output"]["video"]]
    client.tasks.delete(task["id"], files=True)
    with pytest.raises(APIError) as gone:
        client.tasks.get(task["id"])
    assert gone.value.status_code == 404
    assert httpx.get(files[0]["uri"]).status_code == 404


def test_stream_yields_progress_then_the_result(client: Inference, first_frame: Path):
    picture = base64.b64encode(first_frame.read_bytes()).decode()
    stream = client.run(request(f"data:image/png;base64,{picture}"), stream=True)
    assert isinstance(stream, inferencesh.client.TaskStream)
    updates = list(stream)
    statuses = [update["status"] for update in updates]
    assert statuses == sorted(statuses)
    assert RUNNING in statuses
    assert statuses[-1] == COMPLETED
    assert updates[-1]["output"]["video"].startswith("http")
    # Python drops every key it does not know, so progress can only be read in the logs
    lines = [line["content"] for update in updates for line in update["logs"] or []]
    assert any(re.search(r"\d+ of \d+", line) for line in lines), lines


def test_get_and_cancel_while_queued(client: Inference, first_frame: Path):
    created = run(client, request(first_frame, run_at=later(3600)), wait=False)
    assert created["status"] not in TERMINAL
    assert client.tasks.get(created["id"]).data["status"] == QUEUED
    client.tasks.cancel(created["id"])
    assert client.tasks.get(created["id"]).data["status"] == CANCELLED
    with pytest.raises(RuntimeError, match="task cancelled"):
        client.wait_for_completion(created["id"])
    with pytest.raises(APIError) as conflict:
        client.tasks.cancel(created["id"])
    assert conflict.value.status_code == 409


def test_cancel_while_running(client: Inference, first_frame: Path):
    params = request(first_frame)
    params["input"]["duration"] = 15
    created = run(client, params, wait=False)
    wait_for(client, created["id"], (RUNNING, *TERMINAL))
    client.tasks.cancel(created["id"])
    task = wait_for(client, created["id"], TERMINAL)
    assert (task["status"], task["output"]) == (CANCELLED, None)
    assert client.tasks.files(created["id"], role="output").data == []


def test_upload_then_run_with_the_uri(client: Inference, first_frame: Path):
    uploaded = client.files.upload(str(first_frame))
    assert uploaded["filename"] == "first.png"
    assert httpx.get(uploaded["uri"]).content == first_frame.read_bytes()
    created = run(client, request(uploaded["uri"], run_at=later(3600)), wait=False)
    assert client.tasks.get(created["id"]).data["input"]["first_frame"] == uploaded["uri"]
    client.tasks.cancel(created["id"])


def test_upload_of_a_data_uri_keeps_the_bytes(client: Inference, first_frame: Path):
    picture = base64.b64encode(first_frame.read_bytes()).decode()
    for data in (f"data:image/png;base64,{picture}", picture):
        uploaded = client.files.upload(data)
        assert httpx.get(uploaded["uri"]).content == first_frame.read_bytes()


def test_a_remote_file_that_is_no_picture_fails_the_task(client: Inference, site: LocalSite):
    with pytest.raises(RuntimeError, match=r"input\.first_frame: "):
        client.run(request(f"{site.url}/broken.png"))


def test_a_remote_file_that_is_missing_fails_the_task(client: Inference, site: LocalSite):
    with pytest.raises(RuntimeError, match=r"input\.first_frame: .*404"):
        client.run(request(f"{site.url}/nothing.png"))


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"duration": 20}, "input.duration: must be at most 15 (got 20)"),
        ({"resolution": "4K"}, "input.resolution"),
        ({"prompt": "x" * 5001 + "!"}, "input.prompt"),
        ({"seed": -1}, "input.seed"),
        ({"first_frame": None}, "media input"),
    ],
)
def test_bad_input_is_refused_with_the_field_and_the_limit(
    client: Inference, first_frame: Path, change: dict[str, Any], detail: str
):
    params = request(first_frame)
    params["input"] |= change
    with pytest.raises(APIError) as refusal:
        client.run(params)
    assert refusal.value.status_code == 422
    assert detail in str(refusal.value)


def test_unknown_app_is_refused(client: Inference, first_frame: Path):
    with pytest.raises(APIError) as refusal:
        client.run({**request(first_frame), "app": "alibaba/wan-9"})
    assert refusal.value.status_code == 404


def test_webhook_gets_the_result(client: Inference, site: LocalSite, first_frame: Path):
    task = run(client, request(f"{site.url}/first.png", webhook=f"{site.url}/hook"))
    posted = site.posts.get(timeout=20)
    assert posted["id"] == task["id"]
    assert posted["status"] == COMPLETED
    assert posted["output"] == task["output"]
    assert {"error", "session_id", "created_at", "updated_at"} <= posted.keys()


def test_a_new_session_gets_an_id(client: Inference, first_frame: Path):
    created = run(client, request(first_frame, session="new", run_at=later(3600)), wait=False)
    assert created["session_id"]
    client.tasks.cancel(created["id"])


def test_same_idempotency_key_same_task(server: Server, site: LocalSite):
    body = request(f"{site.url}/first.png", run_at=later(3600))
    tasks = [
        httpx.post(f"{server.base_url}/apps/run", json=body, headers={"Idempotency-Key": key}).json()["data"]["id"]
        for key in ("one", "one", "two")
    ]
    assert tasks[0] == tasks[1] != tasks[2]
    for task in tasks[1:]:
        httpx.post(f"{server.base_url}/tasks/{task}/cancel").raise_for_status()


# ---- waiting for longer than the client's patience -----------------------------------------------------------------
# The client reads nothing but heartbeats for 30 s, reconnects at most five times, and gives up after about 190 s. Its
# clock is sped up instead of waiting; the server's keep-alive is shortened by the same factor.
PATIENCE_S = 30


@pytest.fixture
def fast_clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`time` as the client sees it, SPEED times as fast."""
    sleep, monotonic = time.sleep, time.monotonic
    scaled = {"monotonic": lambda: monotonic() * SPEED, "sleep": lambda seconds: sleep(seconds / SPEED)}
    clock = SimpleNamespace(**vars(time) | scaled)
    monkeypatch.setattr(inferencesh.client, "time", clock)
    # the reconnecting loop imports `time` inside a function
    monkeypatch.setitem(sys.modules, "time", clock)
    return clock


@dataclass
class Watch:
    """How often the client opened a stream, and when a real line came, in the client's time."""

    streams: int = 0
    lines: list[float] = field(default_factory=list)


def watched(client: Inference, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Looks over the client's shoulder while it reads streams."""
    watch = Watch()
    open_stream = client._stream_updates

    def counted(task_id: str, task: dict[str, Any]) -> Iterator[Any]:
        watch.streams += 1
        for update in open_stream(task_id, task):
            watch.lines.append(clock.monotonic())
            yield update

    monkeypatch.setattr(client, "_stream_updates", counted)
    return watch


def test_a_task_that_takes_more_than_200_s_completes(
    client: Inference, first_frame: Path, fast_clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
):
    watch = watched(client, fast_clock, monkeypatch)
    began = fast_clock.monotonic()
    task = run(client, request(first_frame, run_at=later(240 / SPEED)))
    assert fast_clock.monotonic() - began > 240
    assert task["status"] == COMPLETED
    assert watch.streams == 1, "the client lost patience and reconnected"
    assert max(after - before for before, after in pairwise(watch.lines)) < PATIENCE_S


class OnlyHeartbeats(QuietHandler):
    """A task that is queued for ever, and a stream that says nothing but heartbeats, one every 10 s."""

    protocol_version = "HTTP/1.1"
    beat = (json.dumps({"type": "heartbeat"}) + "\n").encode()

    def do_GET(self):  # noqa: N802 (the parent's name for it)
        self.send_response(200)
        if not self.path.endswith("/stream"):
            body = json.dumps({"data": {"id": "t", "status": QUEUED}}).encode()
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        try:
            for _ in range(60):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(self.beat), self.beat))
                threading.Event().wait(10 / SPEED)
        except OSError:
            return  # the client went away


def test_with_heartbeats_alone_the_client_gives_up(fast_clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), OnlyHeartbeats) as silent, serving(silent):
        client = Inference(api_key="any", base_url=f"http://127.0.0.1:{silent.server_port}")
        watch = watched(client, fast_clock, monkeypatch)
        began = fast_clock.monotonic()
        with pytest.raises(RuntimeError, match="Stream ended without completion"):
            client.wait_for_completion("t")
    assert (watch.streams, watch.lines) == (6, [])
    assert 150 < fast_clock.monotonic() - began < 260
