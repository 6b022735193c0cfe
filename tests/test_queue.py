"""The queue against a real database, without a worker: everything here stays queued until it is cancelled."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from queue_fixtures import make_job, make_settings, open_queue
from wan_server.errors import InvalidRequest, InvalidTransition, NotFound
from wan_server.job import Job
from wan_server.listing import Cursor, Order
from wan_server.queue import JobQueue, render_queue_of
from wan_server.status import TaskStatus
from wan_server.tables import WorkerRow


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[JobQueue]:
    with open_queue(make_settings(tmp_path)) as queue:
        yield queue


def worker_row(name: str, job: str | None = None) -> WorkerRow:
    now = time.time()
    return WorkerRow(name, "here", 1, "ready", "tiny", "cpu", job, now, now)


def test_a_submitted_job_reads_back_as_it_was_sent(queue: JobQueue) -> None:
    job = make_job(files={"first_frame": "a" * 26}, not_honoured=("one",), options={"webhook": None})
    state = queue.submit(job)
    assert state.job == job == queue.get(job.id).job
    assert state.status is TaskStatus.QUEUED
    assert (state.output, state.error, state.attempts, state.progress) == (None, None, 0, 0)
    assert Job.from_json(job.to_json()) == job


def test_the_same_id_is_the_same_job(queue: JobQueue) -> None:
    job = make_job()
    queue.submit(job)
    queue.submit(job)
    assert queue.waiting() == 1


def test_an_unknown_id_is_not_found(queue: JobQueue) -> None:
    with pytest.raises(NotFound, match="nobody"):
        queue.get("nobody")


def test_the_line_is_first_come_first_served(queue: JobQueue) -> None:
    jobs = [make_job() for _ in range(4)]
    for job in jobs:
        queue.submit(job)
    assert [queue.get(job.id).position for job in jobs] == [0, 1, 2, 3]


def test_the_line_survives_a_restart(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    job = make_job()
    with open_queue(settings) as queue:
        queue.submit(job)
    with open_queue(settings) as queue:
        assert queue.get(job.id).job == job


def test_a_delayed_job_waits_outside_the_line(queue: JobQueue) -> None:
    late = queue.submit(make_job(), run_at=time.time() + 3600)
    assert (late.status, late.position, late.eta_s) == (TaskStatus.QUEUED, None, None)
    assert queue.submit(make_job()).position == 0


def test_a_queued_job_is_cancelled_at_once(queue: JobQueue) -> None:
    job = make_job()
    queue.submit(job)
    assert queue.cancel(job.id).status is TaskStatus.CANCELLED
    assert queue.waiting() == 0
    with pytest.raises(InvalidTransition, match="already cancelled"):
        queue.cancel(job.id)


def test_a_cancelled_job_is_cancelling_while_a_worker_holds_it(queue: JobQueue) -> None:
    job = make_job()
    queue.submit(job)
    queue.workers.beat(worker_row("w", job.id))
    assert queue.cancel(job.id).status is TaskStatus.CANCELLING
    queue.workers.beat(worker_row("w"))
    assert queue.get(job.id).status is TaskStatus.CANCELLED


def test_only_finished_jobs_are_deleted(queue: JobQueue) -> None:
    job = make_job()
    queue.submit(job)
    with pytest.raises(InvalidTransition, match="cancel it first"):
        queue.delete(job.id)
    queue.cancel(job.id)
    queue.delete(job.id)
    with pytest.raises(NotFound):
        queue.get(job.id)


def test_cancelling_enqueues_the_webhook_once(queue: JobQueue) -> None:
    job = make_job(options={"webhook": "https://example.com/hook"})
    queue.submit(job)
    queue.cancel(job.id)
    queue.announce(job)
    hooks = queue.client.list_workflows(name="webhook")
    assert [hook.workflow_id for hook in hooks] == [f"{job.id}-webhook"]


def test_pages_do_not_shift_under_new_submissions(queue: JobQueue) -> None:
    old = [make_job() for _ in range(5)]
    for job in old:
        queue.submit(job)
    first = queue.list(limit=2)
    queue.submit(make_job(created_at=time.time()))
    seen = [state.job.id for state in first.items]
    page = first
    while page.next_cursor:
        page = queue.list(limit=2, cursor=page.next_cursor)
        seen += [state.job.id for state in page.items]
    assert len(seen) == len(set(seen))
    assert set(seen) >= {job.id for job in old}


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_a_page_goes_on_after_a_deleted_job(queue: JobQueue, order: Order) -> None:
    jobs = [make_job() for _ in range(3)]
    for job in jobs:
        queue.submit(job)
        queue.cancel(job.id)
    page = queue.list(limit=2, order=order)
    assert page.next_cursor
    rest = {job.id for job in jobs} - {state.job.id for state in page.items}
    queue.delete(page.items[-1].job.id)
    assert {state.job.id for state in queue.list(cursor=page.next_cursor, order=order).items} == rest


def test_jobs_of_the_same_second_are_listed_in_the_order_they_came(queue: JobQueue) -> None:
    jobs = [make_job() for _ in range(8)]
    for job in jobs:
        queue.submit(job)
    came = [job.id for job in jobs]
    assert [state.job.id for state in queue.list(order="asc").items] == came
    assert [state.job.id for state in queue.list().items] == came[::-1]


def test_the_list_is_filtered_by_status(queue: JobQueue) -> None:
    kept, dropped = make_job(), make_job()
    queue.submit(kept)
    queue.submit(dropped)
    queue.cancel(dropped.id)
    assert [state.job.id for state in queue.list(status=TaskStatus.CANCELLED).items] == [dropped.id]
    assert [state.job.id for state in queue.list(status=TaskStatus.QUEUED).items] == [kept.id]


@pytest.mark.parametrize("cursor", ["x", "bm8=", "é", Cursor(10**30, 0.0, "a").encode()])
def test_a_foreign_cursor_is_refused(queue: JobQueue, cursor: str) -> None:
    with pytest.raises(InvalidRequest, match="cursor"):
        queue.list(cursor=cursor)


def test_the_models_of_a_set_share_one_line(tmp_path: Path) -> None:
    jobs = [make_job(), make_job(model="tiny-ti2v"), make_job()]
    with open_queue(make_settings(tmp_path, models="tiny,tiny-ti2v")) as queue:
        for job in jobs:
            queue.submit(job)
        assert [queue.get(job.id).position for job in jobs] == [0, 1, 2]


def test_each_set_of_models_has_its_own_line(queue: JobQueue, tmp_path: Path) -> None:
    first, other, second = make_job(), make_job(model="tiny-ti2v"), make_job()
    with open_queue(make_settings(tmp_path, models="tiny-ti2v,tiny")) as both:
        for job, line in ((first, queue), (other, both), (second, queue)):
            line.submit(job)
        assert [queue.get(job.id).position for job in (first, other, second)] == [0, 0, 1]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [(("a", "b"), ("b", "a"), True), (("a",), ("a", "b"), False), (("a",), ("a:fast",), False)],
)
def test_the_line_of_a_set_does_not_depend_on_its_order(one: tuple[str], other: tuple[str], same: bool) -> None:
    assert (render_queue_of(one) == render_queue_of(other)) is same
    assert render_queue_of(["tiny"]) == "render-tiny"


def test_a_forgotten_job_forgets_its_webhook(queue: JobQueue) -> None:
    job = make_job(options={"webhook": "https://example.com/hook"})
    queue.submit(job)
    queue.cancel(job.id)
    queue.delete(job.id)
    assert queue.client.list_workflows(name="webhook") == []


def test_cancelling_jobs_can_be_listed(queue: JobQueue) -> None:
    job = make_job()
    queue.submit(job)
    queue.workers.beat(worker_row("w", job.id))
    queue.cancel(job.id)
    assert [state.status for state in queue.list(status=TaskStatus.CANCELLING).items] == [TaskStatus.CANCELLING]
