"""Task DTOs: pure functions of a JobState."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from queue_fixtures import make_job
from wan_server.ids import is_id
from wan_server.job import Event, JobState
from wan_server.status import TaskStatus
from wan_server.tasks import event_dtos, log_lines, logs_dto, result_dto, rough_time, status_dto, task_dto, timings_dto

#: fields of TaskDTO that a strict decoder cannot do without
NEVER_NULL = (
    "id short_id created_at updated_at user_id team_id visibility is_featured status app_id app_version_id "
    "app_variant function infra workers rating input events logs usage_events"
)
START = 1_000_000.0
JOB = make_job(created_at=START)


def state(status: TaskStatus = TaskStatus.QUEUED, **more: Any) -> JobState:
    values: dict[str, Any] = {
        "job": JOB,
        "status": status,
        "created_at": START,
        "updated_at": START,
        "started_at": None,
        "completed_at": None,
        "output": None,
        "error": None,
        "events": (),
        "attempts": 0,
        "progress": 0,
        "position": None,
        "eta_s": None,
        "worker_id": None,
    }
    return JobState(**values | more)


def running(status: TaskStatus = TaskStatus.RUNNING, **more: Any) -> JobState:
    events = (
        Event(START + 2, TaskStatus.PREPARING, "prepare", "examining the media", 0),
        Event(START + 3, TaskStatus.RUNNING, "denoise", "denoising: 1 of 8", 20, 1, 8),
        Event(START + 4, TaskStatus.RUNNING, "denoise", "denoising: 2 of 8, about 6 s left", 30, 2, 8, 6.0),
    )
    values = {"started_at": START + 1, "updated_at": START + 4, "events": events, "progress": 30, "worker_id": "w"}
    return state(status, **values | more)


def done() -> JobState:
    return running(TaskStatus.COMPLETED, completed_at=START + 9, output={"video": "https://x/v.mp4"}, progress=100)


@pytest.mark.parametrize("of", [state(), running(), done()])
def test_strict_decoders_find_every_field(of: JobState):
    dto = task_dto(of)
    assert [name for name in NEVER_NULL.split() if dto.get(name) is None] == []
    assert dto["short_id"] == of.job.id[:8]
    assert dto["created_at"] == "1970-01-12T13:46:40.000000Z"
    assert {"user", "team", "graph_id", "engine", "worker", "run_at", "webhook", "setup", "session_id"} <= dto.keys()


def test_a_task_shows_what_was_asked_for():
    options = {"session_id": "s", "session_timeout": 60, "infra": "cloud", "workers": ["w"], "setup": {"a": 1}}
    options |= {"webhook": "https://x/hook", "run_at": "2030-01-01T00:00:00.000000Z", "app_version": "abc1"}
    dto = task_dto(state(job=make_job(options=options)))
    shown = {**{name: dto[name] for name in options if name in dto}, "app_version": dto["app_version_id"]}
    assert shown == options
    assert dto["input"]["prompt"] == "a sea"


def test_there_is_one_event_per_transition_in_order_of_time():
    events = event_dtos(done())
    assert [event["status"] for event in events] == [1, 2, 3, 4, 7, 10]
    assert [event["event_time"] for event in events] == sorted(event["event_time"] for event in events)
    assert all(is_id(event["id"]) for event in events)
    assert len({event["id"] for event in events}) == len(events)
    assert event_dtos(done()) != event_dtos(running())


def test_a_queued_task_has_been_received_and_queued():
    assert [event["status"] for event in event_dtos(state())] == [1, 2]


@pytest.mark.parametrize(
    ("position", "eta_s", "line"),
    [
        (0, None, "queued: next in line"),
        (1, 42.0, "queued: 1 task comes first, result in about 40 s"),
        (12, 3700.0, "queued: 12 tasks come first, result in about 1 h 2 min"),
        (None, None, "queued"),
    ],
)
def test_a_waiting_task_tells_its_place(position: int | None, eta_s: float | None, line: str):
    assert log_lines(state(position=position, eta_s=eta_s)) == [(START, line)]


def test_a_delayed_task_tells_its_start():
    delayed = state(job=make_job(options={"run_at": "2030-01-01T00:00:00.000000Z"}))
    assert log_lines(delayed)[0][1] == "queued: starts after 2030-01-01T00:00:00.000000Z"


def test_a_running_task_tells_percent_step_and_time_left():
    logs = logs_dto(running())["logs"]
    assert logs[-1]["content"] == "[ 30%] denoising: 2 of 8, about 6 s left"
    assert set(logs[-1]) == {"id", "created_at", "updated_at", "task_id", "log_type", "content"}
    assert len(logs) == 3


def test_failed_and_cancelled_tasks_say_so():
    failed = running(TaskStatus.FAILED, error="input.first_frame: cannot be read", completed_at=START + 5)
    assert log_lines(failed)[-1] == (START + 5, "failed: input.first_frame: cannot be read")
    assert task_dto(failed)["error"] == result_dto(failed)["error"] == "input.first_frame: cannot be read"
    assert log_lines(running(TaskStatus.CANCELLED))[-1][1] == "cancelled"


def test_a_failed_task_never_has_an_empty_error():
    assert task_dto(running(TaskStatus.FAILED, error=""))["error"]
    assert task_dto(done())["error"] is None


def test_the_slim_result_has_the_hosted_fields():
    names = {"id", "short_id", "created_at", "updated_at", "status", "status_text", "output"}
    assert result_dto(state()).keys() == names
    assert result_dto(state(job=make_job(options={"session_id": "s"}))).keys() == names | {"session_id"}
    assert result_dto(done())["output"] == {"video": "https://x/v.mp4"}


def test_the_status_for_pollers():
    dto = status_dto(running())
    assert (dto["status"], dto["status_text"], dto["progress"]) == (7, "running", 30)


def test_timings_add_up():
    timings = timings_dto(done(), now=START + 100)
    assert timings["total_duration_ms"] == 9000
    assert sum(event["duration_ms"] for event in timings["events"]) == 9000
    assert [(group["label"], group["duration_ms"]) for group in timings["groups"]] == [("queue", 1000), ("run", 8000)]
    assert [event["next_status"] for event in timings["events"]][-2:] == ["completed", ""]


def test_timings_of_a_waiting_task_run_until_now():
    assert timings_dto(state(), now=START + 100)["total_duration_ms"] == 100_000


@pytest.mark.parametrize(("seconds", "text"), [(0, "5 s"), (58, "60 s"), (90, "2 min"), (3600, "1 h 0 min")])
def test_rough_times_do_not_flicker(seconds: float, text: str):
    assert rough_time(seconds) == text


def test_clock_skew_between_machines_does_not_turn_time_back():
    skewed = replace(running(), started_at=START - 5)
    times = [event["event_time"] for event in event_dtos(skewed)]
    assert times == sorted(times)
