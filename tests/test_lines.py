"""Queues that no worker serves any more: their jobs come over, each exactly as it waited."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from queue_fixtures import make_job, make_settings, open_queue
from wan_server.lines import StrayLines
from wan_server.queue import JobQueue
from wan_server.status import TaskStatus
from wan_server.tables import WorkerRow


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[JobQueue]:
    with open_queue(make_settings(tmp_path, models="tiny")) as queue:
        yield queue


@pytest.fixture
def left(tmp_path: Path) -> Iterator[JobQueue]:
    with open_queue(make_settings(tmp_path, models="wan9,tiny")) as queue:
        yield queue


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def worker(models: str, heartbeat_at: float) -> WorkerRow:
    return WorkerRow("w", "elsewhere", 1, "ready", models, "cpu", None, heartbeat_at, heartbeat_at)


def line_of(queue: JobQueue, job_id: str) -> str | None:
    return queue.client.list_workflows(workflow_ids=[job_id])[0].queue_name


def test_jobs_of_a_left_line_come_over_after_a_while(ours: JobQueue, left: JobQueue) -> None:
    left.submit(job := make_job(model="wan9"))
    ours.submit(make_job())
    clock = Clock()
    strays = StrayLines(ours, clock)
    assert strays.take_over() == []
    clock.now = strays.patience_s - 1
    assert strays.take_over() == []
    clock.now += 1
    assert strays.take_over() == [left.render_queue] == ["render-tiny+wan9"]
    assert line_of(ours, job.id) == ours.render_queue == "render-tiny"
    assert ours.get(job.id).status is TaskStatus.QUEUED
    assert strays.take_over() == []


def test_a_line_with_a_worker_is_left_alone(ours: JobQueue, left: JobQueue) -> None:
    left.submit(job := make_job())
    ours.workers.beat(worker("wan9,tiny", time.time()))
    clock = Clock()
    strays = StrayLines(ours, clock)
    for clock.now in (0.0, 1e6):
        assert strays.take_over() == []
    assert line_of(ours, job.id) == left.render_queue
    ours.workers.beat(worker("wan9,tiny", time.time() - 3600))
    for clock.now in (2e6, 3e6):
        strays.take_over()
    assert line_of(ours, job.id) == ours.render_queue


def test_a_line_that_gets_a_worker_in_time_starts_anew(ours: JobQueue, left: JobQueue) -> None:
    left.submit(make_job())
    clock = Clock()
    strays = StrayLines(ours, clock)
    strays.take_over()
    ours.workers.beat(worker("tiny,wan9", time.time()))
    clock.now = strays.patience_s
    assert strays.take_over() == []
    ours.workers.remove("w", 1)
    assert strays.take_over() == []
    clock.now *= 2
    assert strays.take_over() == [left.render_queue]


def test_a_delayed_job_keeps_its_time_and_a_cancelled_one_stays_cancelled(ours: JobQueue, left: JobQueue) -> None:
    late, dropped = make_job(), make_job()
    left.submit(late, run_at=time.time() + 3600)
    left.submit(dropped)
    left.cancel(dropped.id)
    clock = Clock()
    strays = StrayLines(ours, clock)
    strays.take_over()
    clock.now = strays.patience_s
    strays.take_over()
    assert line_of(ours, late.id) == ours.render_queue
    assert (ours.get(late.id).status, ours.get(late.id).position) == (TaskStatus.QUEUED, None)
    assert ours.waiting(delayed=True) == 1
    assert ours.get(dropped.id).status is TaskStatus.CANCELLED
