"""The stream of a task: what is said when, by a clock of our own; then over the network with the real client."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import httpx
import pytest
from inferencesh import Inference

from front_end import FrontEnd, front_end, on_network
from test_tasks import done, running, state
from wan_server.errors import NotFound
from wan_server.job import JobState
from wan_server.status import TaskStatus
from wan_server.stream import NDJSON, SSE, Pace, Rhythm, StreamCut, encode, media_type_for, updates

RHYTHM = Rhythm(poll_s=0.5, keepalive_s=10)
#: fields of the last line that clients read
TERMINAL_FIELDS = {"id", "status", "output", "input", "created_at", "updated_at", "logs", "error"}


class FakeTime:
    """A clock that sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def pace(self) -> Pace:
        return Pace(now=lambda: self.now, sleep=self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def follow(
    first: JobState,
    at: Callable[[float], JobState],
    draining: threading.Event | None = None,
    until: int = 10_000,
) -> list[tuple[float, Any]]:
    """(time, message) of a stream whose task is `at(time)`; at most `until` messages."""
    clock = FakeTime()

    async def read() -> JobState:
        return at(clock.now)

    async def collect() -> list[tuple[float, Any]]:
        seen: list[tuple[float, Any]] = []
        stream = updates(first, read, RHYTHM, clock.pace(), draining or threading.Event())
        async for message in stream:
            seen.append((clock.now, message))
            if len(seen) >= until:
                break
        await stream.aclose()  # type: ignore[attr-defined]
        return seen

    return asyncio.run(collect())


def test_the_first_line_is_the_whole_task_as_it_stands():
    seen = follow(state(), lambda _: done())
    assert seen[0][0] == 0
    assert seen[0][1]["status"] == TaskStatus.QUEUED
    assert "fields" not in seen[0][1]


@pytest.mark.parametrize("last", [done(), running(TaskStatus.FAILED, error="why"), running(TaskStatus.CANCELLED)])
def test_the_last_line_is_the_whole_task_bare(last: JobState):
    seen = follow(state(), lambda now: running() if now < 3 else last)
    messages = [message for _, message in seen]
    assert messages[-1].keys() >= TERMINAL_FIELDS
    assert messages[-1]["status"] == last.status
    assert "data" not in messages[-1]
    assert [m["data"]["status"] for m in messages[1:-1]] == [7]


def test_an_ended_task_is_told_once():
    seen = follow(done(), lambda _: pytest.fail("nothing left to read"))
    assert [message["status"] for _, message in seen] == [10]


def test_a_real_line_comes_every_ten_seconds_while_queued():
    """Python clients count heartbeats as silence and give up after 30 s of it, six times."""
    seen = follow(state(position=0), lambda now: state(position=0) if now < 300 else done())
    times = [at for at, message in seen if message.get("type") != "heartbeat"]
    assert max(later - earlier for earlier, later in pairwise(times)) <= 10.5
    assert len(times) > 29
    assert times[-1] == 300


def test_every_partial_has_id_status_progress_and_logs():
    seen = follow(state(), lambda now: running(progress=int(now)) if now < 30 else done())
    partials = [message for _, message in seen[1:-1]]
    assert [partial["data"]["progress"] for partial in partials] == list(range(30))
    for partial in partials:
        assert partial["fields"]
        assert partial["data"]["id"]
        assert partial["data"].keys() >= {"id", "status", "progress", "logs", *partial["fields"]}
    assert partials[3]["fields"] == ["progress"]


def test_what_does_not_change_is_not_repeated():
    seen = follow(state(position=3), lambda now: state(position=3 if now < 4 else 2) if now < 8 else done())
    assert [(at, message.get("fields")) for at, message in seen] == [(0, None), (4, ["logs"]), (8, None)]


def test_draining_cuts_the_stream_before_the_end():
    draining = threading.Event()
    draining.set()
    with pytest.raises(StreamCut):
        follow(state(), lambda _: state(), draining)


def test_a_task_deleted_meanwhile_cuts_the_stream():
    def gone(_now: float) -> JobState:
        raise NotFound

    with pytest.raises(StreamCut):
        follow(state(), gone)


def test_lines_are_json_and_end_once():
    odd = replace(running(), error=None, job=replace(state().job, input={"prompt": "a\nb\u2028c\r😀"}))
    message = follow(odd, lambda _: done())[0][1]
    line = encode(message, NDJSON)
    assert line.endswith(b"\n")
    assert len(line.decode().splitlines()) == 1
    assert json.loads(line) == message
    event = encode(message, SSE)
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert json.loads(event[6:]) == message


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [("", NDJSON), ("*/*", NDJSON), (NDJSON, NDJSON), (SSE, SSE), ("text/Event-Stream;q=0.9, */*", SSE)],
)
def test_accept_chooses_the_form(accept: str, chosen: str):
    assert media_type_for(accept) == chosen


# ---- over the network ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontEnd]:
    with front_end(tmp_path_factory.mktemp("stream")) as front:
        yield front


@pytest.fixture(scope="module")
def url(front: FrontEnd) -> Iterator[str]:
    with on_network(front.app) as url:
        yield url


@pytest.fixture
def undrained(front: FrontEnd) -> Iterator[threading.Event]:
    """The event that says a shutdown begins; taken back afterwards."""
    yield front.app.state.draining
    front.app.state.draining.clear()


def later(seconds: float, call: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(seconds, call)
    timer.start()
    return timer


def sdk(url: str) -> Inference:
    return Inference(api_key="any", base_url=url)


def test_the_python_client_sees_progress_and_the_output(front: FrontEnd, url: str):
    task_id = front.task()
    later(0.3, lambda: front.complete(task_id, {"video": "https://x/v.mp4"}))
    seen = list(sdk(url).stream_task(task_id))
    assert seen[0]["status"] == 2
    assert all(update["id"] == task_id and update["status"] for update in seen)
    assert all(update["logs"] for update in seen[:-1])
    assert seen[-1]["output"] == {"video": "https://x/v.mp4"}
    assert seen[-1]["input"]["prompt"] == "a calm sea"


def test_the_python_client_hears_why_a_task_failed(front: FrontEnd, url: str):
    task_id = front.task()
    later(0.2, lambda: front.fail(task_id, "input.first_frame: no picture"))
    with pytest.raises(RuntimeError, match=r"^input\.first_frame: no picture$"):
        sdk(url).wait_for_completion(task_id)


def test_cancelling_ends_the_stream(front: FrontEnd, url: str):
    client, task_id = sdk(url), front.task()
    later(0.2, lambda: client.cancel(task_id))
    with pytest.raises(RuntimeError, match="cancelled"):
        list(client.stream_task(task_id))


def test_a_trailing_slash_in_the_base_url_is_forgiven(front: FrontEnd, url: str):
    task_id = front.task()
    front.complete(task_id, {"video": "v"})
    assert sdk(url + "/").wait_for_completion(task_id)["output"] == {"video": "v"}


def test_the_response_is_not_buffered_or_compressed(front: FrontEnd, url: str):
    task_id = front.task()
    headers = {"Accept-Encoding": "gzip", "Accept": NDJSON}
    with httpx.stream("GET", f"{url}/tasks/{task_id}/stream", headers=headers) as response:
        assert response.headers["content-type"].startswith(NDJSON)
        assert response.headers["x-accel-buffering"] == "no"
        assert "no-cache" in response.headers["cache-control"]
        assert "content-encoding" not in response.headers
        assert json.loads(next(response.iter_lines()))["id"] == task_id


def test_server_sent_events(front: FrontEnd, url: str):
    task_id = front.task()
    later(0.2, lambda: front.complete(task_id, {"video": "v"}))
    response = httpx.get(f"{url}/tasks/{task_id}/stream", headers={"Accept": SSE})
    assert response.headers["content-type"].startswith(SSE)
    events = [event for event in response.text.split("\n\n") if event]
    assert all(event.startswith("data: ") for event in events)
    assert json.loads(events[-1].removeprefix("data: "))["status"] == 10


def test_an_unknown_task_has_no_stream(url: str):
    response = httpx.get(f"{url}/tasks/nobody/stream", headers={"Accept": NDJSON})
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("agent", "ends_clean"),
    [("inference-sdk-py/0.36.0", True), ("node", False), ("", False)],
)
def test_a_shutdown_ends_cleanly_only_for_clients_that_reconnect(
    front: FrontEnd, url: str, undrained: threading.Event, agent: str, ends_clean: bool
):
    """A JS client waits for ever after a clean end, an async Python client fails after a dropped connection."""
    task_id = front.task()
    headers = {"User-Agent": agent, "X-Client-Source": "inference-sdk-js/0.5.13", "Accept": NDJSON}
    with httpx.stream("GET", f"{url}/tasks/{task_id}/stream", headers=headers) as response:
        lines = response.iter_lines()
        next(lines)
        undrained.set()
        if ends_clean:
            assert len(list(lines)) <= 1
        else:
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)


def test_the_python_client_reconnects_after_a_restart(front: FrontEnd, url: str, undrained: threading.Event):
    task_id = front.task()
    later(0.2, undrained.set)
    later(0.6, undrained.clear)
    later(0.8, lambda: front.complete(task_id, {"video": "v"}))
    stream = sdk(url).stream_task(task_id, reconnect_delay_ms=600)
    assert list(stream)[-1]["output"] == {"video": "v"}


def test_a_client_that_leaves_is_forgotten(front: FrontEnd, url: str):
    task_id, reads = front.task(), []
    get = front.queue.get

    def counted(job_id: str) -> JobState:
        reads.append(job_id)
        return get(job_id)

    front.queue.get = counted
    try:
        with httpx.stream("GET", f"{url}/tasks/{task_id}/stream") as response:
            next(response.iter_lines())
        time.sleep(0.2)
        before = len(reads)
        time.sleep(0.3)
    finally:
        front.queue.get = get
    assert len(reads) == before


def test_heartbeats_are_not_needed(front: FrontEnd, url: str):
    """Within a second of a silent task the keep-alive (0.3 s here) has spoken in real lines."""
    task_id = front.task()
    with httpx.stream("GET", f"{url}/tasks/{task_id}/stream") as response:
        lines = response.iter_lines()
        seen = [json.loads(next(lines)) for _ in range(3)]
    assert [set(line) for line in seen[1:]] == [{"data", "fields"}] * 2
