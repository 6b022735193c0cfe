"""Tasks of a running server, from the client's side, and the worker that does them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
from inferencesh import Inference

from sdk_input import COMPLETED, TERMINAL
from server_process import Server
from wan_server.tables import WorkerRow, Workers, make_engine


def submit(server: Server, wish: dict[str, Any]) -> str:
    """Sends a request without waiting, local files with it; gives the task's id."""
    task = Inference(api_key="any", base_url=server.base_url).run(wish, wait=False)
    assert isinstance(task, dict)
    return task["id"]


def task_of(server: Server, task_id: str) -> dict[str, Any]:
    """The task as it is now."""
    return httpx.get(f"{server.base_url}/tasks/{task_id}").raise_for_status().json()["data"]


def completed(server: Server, task_id: str, timeout_s: float = 300) -> dict[str, Any]:
    """The task when it has ended, which it must do well and in time."""
    give_up = time.monotonic() + timeout_s
    while (task := task_of(server, task_id))["status"] not in TERMINAL:
        assert time.monotonic() < give_up, f"status {task['status_text']} after {timeout_s} s"
        time.sleep(0.1)
    assert task["status"] == COMPLETED, task["error"]
    return task


def reached(server: Server, task_id: str, least: int, below: int, timeout_s: float = 300) -> None:
    """Returns when a running task's progress is within these bounds, in percent."""
    give_up = time.monotonic() + timeout_s
    while not least <= (task := task_of(server, task_id))["progress"] < below:
        assert task["status"] not in TERMINAL
        assert time.monotonic() < give_up, f"{task['progress']}% after {timeout_s} s"
        time.sleep(0.02)


def video_of(task: dict[str, Any], path: Path) -> Path:
    """The video of a completed task, downloaded to `path`."""
    path.write_bytes(httpx.get(task["output"]["video"]).raise_for_status().content)
    return path


def workers(server: Server) -> list[WorkerRow]:
    """The workers that the server's database knows, dead ones among them for as long as they stand there."""
    engine = make_engine(f"sqlite:///{server.log.parent / 'wanbox.db'}")
    try:
        return Workers(engine).list(fresh_s=3600)
    finally:
        engine.dispose()


def kill_worker(server: Server) -> None:
    """Kills the only worker; the server starts another."""
    (worker,) = workers(server)
    os.kill(worker.pid, signal.SIGKILL)
