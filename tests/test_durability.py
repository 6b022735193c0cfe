"""Processes that are killed while they work: nothing is lost, and the front end does not notice its worker."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from running_tasks import task_of, workers
from server_process import Server, running_server

#: checkpoint after every step, notice a dead worker soon, give a job up at its third start
SETTINGS = {
    "WANBOX_CHECKPOINT_EVERY_S": "0",
    "WANBOX_HEARTBEAT_S": "0.5",
    "WANBOX_HEARTBEAT_TIMEOUT_S": "3",
    "WANBOX_MAX_ATTEMPTS": "2",
}


class Box:
    """A server and the folder of its data."""

    def __init__(self, data: Path, stack: ExitStack) -> None:
        self._data, self._stack = data, stack
        self.server = self._start()

    def lose_power(self) -> None:
        """Ends the server and its worker in the same moment, and starts them on what they left."""
        os.killpg(self.server.process.pid, signal.SIGKILL)
        self.server.process.wait()
        self.server = self._start()

    def _start(self) -> Server:
        return self._stack.enter_context(running_server(self._data, settings=SETTINGS))


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A server of its own: its worker is killed again and again."""
    with ExitStack() as stack:
        yield Box(tmp_path_factory.mktemp("box") / "data", stack)


def run(server: Server, first_frame: Path, **given: Any) -> str:
    """Submits a short 720P job and returns its id."""
    slot = httpx.post(f"{server.base_url}/files", json={"files": [{"filename": "a.png"}]}).json()["data"][0]
    httpx.put(slot["upload_url"], content=first_frame.read_bytes()).raise_for_status()
    values = {"first_frame": slot["uri"], "resolution": "720P", "duration": 2, **given}
    answer = httpx.post(f"{server.base_url}/apps/run", json={"app": "alibaba/wan-2-7-i2v", "input": values})
    answer.raise_for_status()
    return answer.json()["data"]["id"]


def wait(server: Server, task_id: str, until: Callable[[dict[str, Any]], bool], seconds: float = 90) -> dict[str, Any]:
    """Polls a task until `until` holds; fails with the task when it does not in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = task_of(server, task_id)
        if until(found):
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} s in vain: {task_of(server, task_id)}")


def has_ended(found: dict[str, Any]) -> bool:
    return found["status"] in (10, 11, 12)


def is_halfway(found: dict[str, Any]) -> bool:
    return found["status"] in (7, 9) and 10 <= found["progress"] < 90


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_job_completes(box: Box, first_frame: Path) -> None:
    job = run(box.server, first_frame)
    wait(box.server, job, is_halfway)
    (worker,) = workers(box.server)
    os.kill(worker.pid, signal.SIGKILL)
    assert httpx.get(f"{box.server.base_url}/healthz").status_code == 200
    ended = wait(box.server, job, has_ended)
    assert (ended["status"], ended["error"]) == (10, None)
    assert [row.pid for row in workers(box.server)] != [worker.pid]
    assert box.server.process.poll() is None


@pytest.mark.slow
def test_a_running_job_is_cancelled_within_a_step(box: Box, first_frame: Path) -> None:
    job = run(box.server, first_frame, duration=5)
    wait(box.server, job, is_halfway)
    httpx.post(f"{box.server.base_url}/tasks/{job}/cancel").raise_for_status()
    began = time.monotonic()
    ended = wait(box.server, job, has_ended, seconds=15)
    assert (ended["status"], ended["output"]) == (12, None)
    a_few_steps_s = 3.0  # the whole job takes several times as long
    assert time.monotonic() - began < a_few_steps_s
    following = run(box.server, first_frame)
    assert wait(box.server, following, has_ended)["status"] == 10


@pytest.mark.slow
def test_a_job_that_kills_its_worker_is_given_up(box: Box, first_frame: Path) -> None:
    job = run(box.server, first_frame)
    for _ in range(2):
        wait(box.server, job, lambda _: [worker.job for worker in workers(box.server)] == [job])
        (worker,) = workers(box.server)
        os.kill(worker.pid, signal.SIGKILL)
        wait(box.server, job, lambda _, pid=worker.pid: [w.pid for w in workers(box.server)] != [pid])
    ended = wait(box.server, job, has_ended)
    assert ended["status"] == 11
    assert "given up after" in ended["error"]


@pytest.mark.slow
def test_everything_killed_goes_on_after_a_start(box: Box, first_frame: Path) -> None:
    """The new server starts its worker without the pauses that have grown with every death before."""
    done = run(box.server, first_frame)
    video = wait(box.server, done, has_ended)["output"]["video"]
    running = run(box.server, first_frame)
    queued = run(box.server, first_frame, seed=1)
    wait(box.server, running, is_halfway)
    box.lose_power()
    assert task_of(box.server, done)["status"] == 10
    path = video.split("/", 3)[3]
    assert httpx.head(f"{box.server.base_url}/{path}").status_code == 200
    assert [wait(box.server, job, has_ended)["status"] for job in (running, queued)] == [10, 10]


@pytest.mark.slow
def test_a_worker_that_is_stopped_costs_its_job_no_attempt(box: Box, first_frame: Path) -> None:
    job = run(box.server, first_frame, duration=3)
    for _ in range(2):  # as many as would be too many
        wait(box.server, job, lambda _: [worker.job for worker in workers(box.server)] == [job])
        (worker,) = workers(box.server)
        os.kill(worker.pid, signal.SIGTERM)
        wait(box.server, job, lambda _, pid=worker.pid: pid not in [w.pid for w in workers(box.server)])
    ended = wait(box.server, job, has_ended)
    assert (ended["status"], ended["error"]) == (10, None)
