"""A job queue on a real database in a temporary folder, and jobs to put into it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wan_server.ids import new_id
from wan_server.job import Job
from wan_server.queue import JobQueue
from wan_server.settings import Settings


def make_settings(data_dir: Path, **given: Any) -> Settings:
    """Settings of a quiet server in `data_dir`, whatever the environment says."""
    return Settings(data_dir=data_dir, **given)


def make_job(**given: Any) -> Job:
    """A job that any queue accepts."""
    values: dict[str, Any] = {
        "id": new_id(),
        "app": "alibaba/wan-2-7-i2v",
        "model": "tiny",
        "input": {"prompt": "a sea", "resolution": "720P", "duration": 5},
        "files": {},
        "remote": {},
        "seed": 7,
        "base_url": "http://127.0.0.1:8000",
        "created_at": time.time(),
    }
    return Job(**values | given)


@contextmanager
def open_queue(settings: Settings) -> Iterator[JobQueue]:
    """A queue that is closed at the end."""
    queue = JobQueue(settings)
    try:
        yield queue
    finally:
        queue.close()
