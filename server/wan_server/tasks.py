"""Tasks as clients see them: JobState turned into the DTOs of the wire. Pure functions."""

from __future__ import annotations

from typing import Any, Final

from wan_server.apps import FUNCTION, app_id, ownership, version_id
from wan_server.clock import timestamp
from wan_server.ids import derived_id, short_id
from wan_server.job import JobState
from wan_server.status import TaskStatus

Json = dict[str, Any]

#: TaskLogType of lines that a task itself writes
TASK_LOG: Final = 4


def task_dto(state: JobState) -> Json:
    """The full TaskDTO. Fields that strict decoders insist on are there even when nothing fills them."""
    job, options = state.job, state.job.options
    return {
        **_times(state),
        "deleted_at": None,
        **ownership("private"),
        **_foreign_fields(),
        "status": int(state.status),
        "status_text": state.status.text,
        "progress": state.progress,
        "app_id": app_id(job.app),
        "app": None,
        "app_version_id": options.get("app_version") or version_id(job.app),
        "app_version": None,
        "app_variant": "",
        "function": options.get("function") or FUNCTION,
        "infra": options.get("infra") or "private",
        "workers": options.get("workers") or [],
        "worker_id": state.worker_id,
        "run_at": options.get("run_at"),
        "webhook": options.get("webhook"),
        "setup": options.get("setup"),
        "metadata": options.get("metadata"),
        "input": job.input,
        "output": state.output,
        "error": _error(state),
        "events": event_dtos(state),
        "logs": log_dtos(state),
        "session_id": options.get("session_id"),
        "session_timeout": options.get("session_timeout"),
    }


def result_dto(state: JobState) -> Json:
    """The slim TaskResultDTO of a run."""
    options = state.job.options
    optional = {"session_id": options.get("session_id"), "run_at": options.get("run_at"), "error": _error(state)}
    return {
        **_times(state),
        "status": int(state.status),
        "status_text": state.status.text,
        "output": state.output,
        **{name: value for name, value in optional.items() if value},
    }


def status_dto(state: JobState) -> Json:
    """The ResourceStatusDTO that pollers read."""
    return {
        "id": state.job.id,
        "status": int(state.status),
        "status_text": state.status.text,
        "progress": state.progress,
        "updated_at": timestamp(state.updated_at),
    }


def logs_dto(state: JobState) -> Json:
    """The TaskLogsDTO."""
    return {
        "task_id": state.job.id,
        "status": int(state.status),
        "events": event_dtos(state),
        "logs": log_dtos(state),
    }


def timings_dto(state: JobState, now: float) -> Json:
    """The TaskTimingsDTO: how long the task stayed in each state, up to its end or to now."""
    steps = transitions(state)
    end = state.completed_at or now
    ends = [at for at, _ in steps[1:]] + [max(end, steps[-1][0])]
    following = [status.text for _, status in steps[1:]] + [""]
    events = [
        {"status": status.text, "timestamp": timestamp(at), **_duration(until - at), "next_status": after}
        for (at, status), until, after in zip(steps, ends, following, strict=True)
    ]
    total = _duration(end - state.created_at)
    return {
        "task_id": state.job.id,
        "status": int(state.status),
        "total_duration": total["duration"],
        "total_duration_ms": total["duration_ms"],
        "groups": _groups(state, end),
        "events": events,
    }


def transitions(state: JobState) -> list[tuple[float, TaskStatus]]:
    """Every state the task has been in, in order, each with the time it was reached."""
    start = state.created_at
    steps = [(start, TaskStatus.RECEIVED), (start, TaskStatus.QUEUED)]
    if state.started_at is not None:
        steps.append((state.started_at, TaskStatus.DISPATCHED))
    steps += [(event.at, TaskStatus(event.status)) for event in state.events]
    steps.append((state.completed_at or state.updated_at, state.status))
    changes = [steps[0]]
    for at, status in steps[1:]:
        if status is not changes[-1][1]:
            changes.append((max(at, changes[-1][0]), status))
    return changes


def event_dtos(state: JobState) -> list[Json]:
    """One TaskEvent per transition."""
    return [
        {
            "id": derived_id("event", state.job.id, str(index)),
            "created_at": timestamp(at),
            "event_time": timestamp(at),
            "task_id": state.job.id,
            "status": int(status),
        }
        for index, (at, status) in enumerate(transitions(state))
    ]


def log_dtos(state: JobState) -> list[Json]:
    """Readable lines in the shape of TaskLog, oldest first."""
    return [_log(state.job.id, index, at, text) for index, (at, text) in enumerate(log_lines(state))]


def log_lines(state: JobState) -> list[tuple[float, str]]:
    """What there is to say so far, with times. While the task waits, the last line tells for how long."""
    lines = [(event.at, f"[{event.progress:3d}%] {event.text}") for event in state.events]
    if state.status in (TaskStatus.RECEIVED, TaskStatus.QUEUED):
        lines.append((state.updated_at, waiting_line(state)))
    if state.status is TaskStatus.FAILED:
        lines.append((state.completed_at or state.updated_at, f"failed: {state.error}"))
    if state.status in (TaskStatus.CANCELLING, TaskStatus.CANCELLED):
        lines.append((state.completed_at or state.updated_at, state.status.text))
    return lines


def waiting_line(state: JobState) -> str:
    """`queued: 3 tasks come first, result in about 2 min`."""
    run_at = state.job.options.get("run_at")
    if state.position is None:
        return f"queued: starts after {run_at}" if run_at else "queued"
    counted = {0: "next in line", 1: "1 task comes first"}
    ahead = counted.get(state.position, f"{state.position} tasks come first")
    eta = "" if state.eta_s is None else f", result in about {rough_time(state.eta_s)}"
    return f"queued: {ahead}{eta}"


def rough_time(seconds: float) -> str:
    """Coarse on purpose: a line that changes every second says nothing new."""
    if seconds < 60:
        return f"{max(5, 5 * round(seconds / 5))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _log(task_id: str, index: int, at: float, text: str) -> Json:
    return {
        "id": derived_id("log", task_id, str(index)),
        "created_at": timestamp(at),
        "updated_at": timestamp(at),
        "task_id": task_id,
        "log_type": TASK_LOG,
        "content": text,
    }


def _times(state: JobState) -> Json:
    return {
        "id": state.job.id,
        "short_id": short_id(state.job.id),
        "created_at": timestamp(state.created_at),
        "updated_at": timestamp(state.updated_at),
    }


def _error(state: JobState) -> str | None:
    """Why it failed, never empty for a failed task."""
    return (state.error or "the task failed") if state.status is TaskStatus.FAILED else None


def _foreign_fields() -> Json:
    """Fields of the hosted service's other parts (flows, chats, agents, engines, billing)."""
    absent = (
        "graph_id flow_run_id chat_id sub_flow_run_id agent_id agent_version_id agent engine_id engine worker egress"
    )
    return {
        **dict.fromkeys(absent.split()),
        "user_public_key": "",
        "engine_public_key": "",
        "is_featured": False,
        "rating": "unrated",
        "usage_events": [],
    }


def _groups(state: JobState, end: float) -> list[Json]:
    started = state.started_at
    spans = [("queue", state.created_at, started or end)]
    if started is not None:
        spans.append(("run", started, end))
    return [
        {"label": label, "start_at": timestamp(a), "end_at": timestamp(b), **_duration(b - a)} for label, a, b in spans
    ]


def _duration(seconds: float) -> Json:
    seconds = max(0.0, seconds)
    return {"duration": f"{seconds:.3f}s", "duration_ms": round(seconds * 1000)}
