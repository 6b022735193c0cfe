"""What the queue's own records say about a job: pure functions over a workflow's row and its progress lines."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from dbos import WorkflowStatus

from wan_server.errors import NotFound
from wan_server.job import Event, Job
from wan_server.status import TaskStatus

WAITING: Final = ["ENQUEUED", "DELAYED"]
STOP_MARK: Final = "stopped-at-attempt-"
DEAD_LETTER: Final = "MAX_RECOVERY_ATTEMPTS_EXCEEDED"
TERMINAL: Final = ["SUCCESS", "ERROR", "CANCELLED", DEAD_LETTER]
#: workflow states behind a task status; running states are told apart by the last progress line
WORKFLOW_STATES: Final[dict[TaskStatus, list[str]]] = {
    TaskStatus.QUEUED: WAITING,
    TaskStatus.RUNNING: ["PENDING"],
    TaskStatus.COMPLETED: ["SUCCESS"],
    TaskStatus.FAILED: ["ERROR", DEAD_LETTER],
    TaskStatus.CANCELLED: ["CANCELLED"],
    TaskStatus.CANCELLING: ["CANCELLED"],
}


def job_of(row: WorkflowStatus) -> Job:
    """The job that was enqueued. Raises NotFound when its record cannot be read."""
    if row.input is None:
        raise NotFound(f"task {row.workflow_id} has no readable input")
    return Job.from_json(row.input["args"][0])


def updated_at(row: WorkflowStatus, job: Job, events: tuple[Event, ...]) -> float:
    """Epoch seconds of the last thing that happened."""
    stamps = (in_seconds(row.dequeued_at), in_seconds(row.completed_at), *(event.at for event in events[-1:]))
    return max(job.created_at, *(stamp or 0.0 for stamp in stamps))


def started_at(row: WorkflowStatus, events: tuple[Event, ...]) -> float | None:
    """When a worker took the job. SQLite keeps whole seconds, the worker's own lines are finer."""
    return events[0].at if events else in_seconds(row.dequeued_at)


def completed_at(row: WorkflowStatus, events: tuple[Event, ...]) -> float | None:
    """When the job ended; None while it has not."""
    if row.status not in TERMINAL:
        return None
    return max([in_seconds(row.completed_at) or 0.0, *(event.at for event in events[-1:])])


def progress_of(row: WorkflowStatus, events: tuple[Event, ...]) -> int:
    """0-100."""
    if row.status == "SUCCESS":
        return 100
    return events[-1].progress if events else 0


def attempts_of(row: WorkflowStatus) -> int:
    """How often workers took the job, without those that gave it back by a clean stop."""
    stops = sum(name.startswith(STOP_MARK) for name in row.attributes or {})
    return (row.recovery_attempts or 0) - stops


def stop_mark(row: WorkflowStatus) -> dict[str, bool]:
    """The attribute that says that this attempt ended by a clean stop."""
    return {f"{STOP_MARK}{row.recovery_attempts or 0}": True}


def error_text(row: WorkflowStatus) -> str | None:
    """Why the job failed; None when it did not."""
    if row.status == DEAD_LETTER:
        return given_up(row.recovery_attempts or 0)
    return str(row.error) if row.status == "ERROR" else None


def given_up(attempts: int) -> str:
    """The error of a job that keeps killing its worker."""
    return f"given up after {attempts} attempts: the worker died each time it ran this task"


def in_seconds(epoch_ms: int | None) -> float | None:
    return None if epoch_ms is None else epoch_ms / 1000


def iso(seconds: float) -> str:
    """Epoch seconds as the queue's queries want them."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()
