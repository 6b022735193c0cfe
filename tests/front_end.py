"""The front end on a real queue, store and database, without a worker: tasks stay queued until a test ends them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

from queue_fixtures import make_settings
from server_process import free_port
from wan_server.app import create_app
from wan_server.files import FileStore
from wan_server.job import Job, JobState
from wan_server.queue import JobQueue
from wan_server.services import Services
from wan_server.settings import Settings
from wan_server.status import TaskStatus
from wan_server.stream import Pace

BASE = "http://127.0.0.1:8000"
APP = "alibaba/wan-2-7-i2v"
#: a public address that nobody will ever call: these tests run no worker
REMOTE = "https://media.example.org/first.png"


class EndableQueue(JobQueue):
    """A real queue in which a test may say how a job ended."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.endings: dict[str, dict[str, Any]] = {}
        #: id of the job that was submitted last
        self.latest = ""

    def submit(self, job: Job, run_at: float | None = None) -> JobState:
        self.latest = job.id
        return super().submit(job, run_at)

    def end(self, job_id: str, **changes: Any) -> None:
        self.endings[job_id] = {"completed_at": time.time(), **changes}

    def get(self, job_id: str) -> JobState:
        return replace(super().get(job_id), **self.endings.get(job_id, {}))


@dataclass(frozen=True, slots=True)
class FrontEnd:
    app: FastAPI
    queue: EndableQueue
    client: TestClient

    @property
    def services(self) -> Services:
        return self.app.state.services

    @property
    def files(self) -> FileStore:
        return self.services.files

    def run(self, media: dict[str, Any] | None = None, **more: Any) -> Any:
        """POST /apps/run with the cheapest input that is accepted."""
        given = {"prompt": "a calm sea", "resolution": "720P", "duration": 2} | (media or {"first_frame": REMOTE})
        return self.client.post("/apps/run", json={"app": APP, "input": given} | more)

    def task(self, **more: Any) -> str:
        """The id of a new task."""
        return self.run(**more).raise_for_status().json()["data"]["id"]

    def upload(self, data: bytes, **slot: Any) -> dict[str, Any]:
        """The FileDTO of a file that was created and uploaded, as the SDKs do it."""
        made = self.client.post("/files", json={"files": [slot]}).raise_for_status().json()["data"][0]
        self.client.put(made["upload_url"], content=data).raise_for_status()
        return made

    def complete(self, task_id: str, output: dict[str, Any]) -> None:
        self.queue.end(task_id, status=TaskStatus.COMPLETED, output=output, progress=100)

    def fail(self, task_id: str, error: str) -> None:
        self.queue.end(task_id, status=TaskStatus.FAILED, error=error)


@contextmanager
def front_end(data_dir: Path, pace: Pace | None = None, **given: Any) -> Iterator[FrontEnd]:
    """A front end with these settings; everything is closed at the end."""
    settings = make_settings(data_dir, **{"stream_poll_s": 0.05, "stream_keepalive_s": 0.3, **given})
    queue = EndableQueue(settings)
    app = create_app(settings, queue, FileStore(settings, queue.engine), queue.engine, pace)
    try:
        with TestClient(app, BASE, raise_server_exceptions=False) as client:
            yield FrontEnd(app, queue, client)
    finally:
        queue.close()


@contextmanager
def on_network(app: FastAPI) -> Iterator[str]:
    """The application under a real uvicorn in a thread; gives its base URL."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        app.state.draining.set()
        server.should_exit = True
        thread.join(10)
