"""The durable queue: DBOS workflows in one database, seen through a small synchronous window.

There is no task table of our own. Status, input, output, error, progress and history of a job are the workflow's own
records, so they cannot disagree. The front end only enqueues, reads and cancels; workers run the workflow
(`workflow.py`). Knows no HTTP and no tensors.
"""

from __future__ import annotations

import builtins
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from threading import Lock
from typing import Final

from dbos import DBOS, DBOSClient, DBOSPortableJSONSerializer, EnqueueOptions, WorkflowStatus
from dbos import error as dbos_error

from wan_server.errors import InvalidTransition, NotFound
from wan_server.estimate import Estimator, Workload
from wan_server.job import Event, Job, JobPage, JobState
from wan_server.listing import Cursor, Order, rows_after
from wan_server.records import (
    TERMINAL,
    WAITING,
    WORKFLOW_STATES,
    attempts_of,
    completed_at,
    error_text,
    job_of,
    progress_of,
    started_at,
    stop_mark,
    updated_at,
)
from wan_server.settings import Settings
from wan_server.status import TaskStatus
from wan_server.tables import WorkerRow, Workers, make_engine, teach_sqlite_subseconds
from wan_server.worker_process import is_gone

APPLICATION: Final = "wanbox"
#: bump when the workflow's steps change: jobs of another version are left to workers of that version
WORKFLOW_VERSION: Final = "1"
RENDER_WORKFLOW: Final = "render"
WEBHOOK_WORKFLOW: Final = "webhook"
WEBHOOK_QUEUE: Final = "webhooks"
PROGRESS_STREAM: Final = "progress"
PAGE_LIMIT: Final = 200
LINE_REFRESH_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Line:
    """The waiting lines as they stood at `at` (epoch seconds), one per set of models."""

    at: float
    #: queue name -> ids in the order of dequeueing
    queued: Mapping[str, builtins.list[str]]
    running: int
    workers: builtins.list[WorkerRow]


def render_queue_of(models: Iterable[str]) -> str:
    """The queue of the jobs for a set of models, in whatever order they are configured; its workers take no others."""
    return f"render-{'+'.join(sorted(set(models)))}"


def _webhook_id(job_id: str) -> str:
    return f"{job_id}-webhook"


class JobQueue:
    """Enqueue, read, list, cancel and delete jobs. Thread-safe; every call is a few short database round trips."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self.clock = clock
        #: the queue of this server's set of models
        self.render_queue = render_queue_of(settings.served)
        teach_sqlite_subseconds()
        self.engine = make_engine(settings.database)
        DBOS.migrate(settings.database)
        self.client = DBOSClient(
            system_database_url=settings.database,
            serializer=DBOSPortableJSONSerializer(),
            application_name=APPLICATION,
        )
        self.workers = Workers(self.engine)
        self.estimator = Estimator(self.finished_jobs, Workload(settings).of, clock)
        self._line_lock = Lock()
        self._line_now = Line(float("-inf"), {}, 0, [])

    def close(self) -> None:
        self.client.destroy()
        self.engine.dispose()

    def submit(self, job: Job, run_at: float | None = None) -> JobState:
        """Enqueue a job, delayed until `run_at` (epoch seconds). The same id a second time is the same job."""
        options: EnqueueOptions = {
            "workflow_name": RENDER_WORKFLOW,
            "queue_name": self.render_queue,
            "workflow_id": job.id,
            "app_version": WORKFLOW_VERSION,
        }
        if run_at is not None and run_at > self.clock():
            options["delay_seconds"] = run_at - self.clock()
        self.client.enqueue(options, job.to_json())
        return self.get(job.id)

    def get(self, job_id: str) -> JobState:
        """The job as it stands. Raises NotFound."""
        return self._state(self._workflow(job_id))

    def list(
        self, limit: int = 20, cursor: str | None = None, *, status: TaskStatus | None = None, order: Order = "desc"
    ) -> JobPage:
        """A page of jobs by submission time; submissions in between neither shift nor repeat anything."""
        limit = max(1, min(limit, PAGE_LIMIT))
        states = None if status is None else WORKFLOW_STATES.get(status, ["PENDING"])
        read = partial(self.client.list_workflows, name=RENDER_WORKFLOW, status=states)
        rows = [*islice(rows_after(read, Cursor.decode(cursor) if cursor else None, order), limit + 1)]
        more = Cursor.at(rows[limit - 1]).encode() if len(rows) > limit else None
        return JobPage([self._state(row) for row in rows[:limit]], more)

    def waiting(self, *, delayed: bool = False) -> int:
        """Jobs that wait for a worker, or for their `run_at`."""
        return len(self._rows(["DELAYED" if delayed else "ENQUEUED"]))

    def files_in_use(self) -> set[str]:
        """Ids of the files that waiting and running jobs need."""
        rows = self.client.list_workflows(name=RENDER_WORKFLOW, status=[*WAITING, "PENDING"], load_output=False)
        return {file_id for row in rows for file_id in job_of(row).files.values()}

    def cancel(self, job_id: str) -> JobState:
        """Cancel a job: a queued one at once, a running one within a denoise step. Raises InvalidTransition."""
        state = self.get(job_id)
        if state.status.is_terminal:
            raise InvalidTransition(f"task {job_id} is already {state.status.text}")
        self.client.cancel_workflow(job_id)
        state = self.get(job_id)
        if state.status is not TaskStatus.COMPLETED:
            self.announce(state.job)
        return state

    def delete(self, job_id: str) -> None:
        """Forget a finished job. Raises InvalidTransition while it is not finished."""
        state = self.get(job_id)
        if not state.status.is_terminal:
            raise InvalidTransition(f"task {job_id} is {state.status.text}: cancel it first")
        self.client.delete_workflows([job_id, _webhook_id(job_id)])

    def announce(self, job: Job) -> None:
        """Enqueue the delivery of a job's webhook, once however often it is asked for."""
        if not job.options.get("webhook"):
            return
        options: EnqueueOptions = {
            "workflow_name": WEBHOOK_WORKFLOW,
            "queue_name": WEBHOOK_QUEUE,
            "workflow_id": _webhook_id(job.id),
            "app_version": WORKFLOW_VERSION,
        }
        self.client.enqueue(options, job.id)

    def is_cancelled(self, job_id: str) -> bool:
        return self._bare(job_id).status == "CANCELLED"

    def is_running_on(self, job_id: str, worker_id: str) -> bool:
        """Whether a worker still holds the job: not cancelled, not taken over by another."""
        row = self._bare(job_id)
        return row.status == "PENDING" and row.executor_id == worker_id

    def holders(self) -> set[str]:
        """Names of the workers that hold running work of any kind."""
        rows = self.client.list_workflows(status="PENDING", load_input=False, load_output=False)
        return {row.executor_id for row in rows if row.executor_id}

    def attempts(self, job_id: str) -> int:
        """How often workers took the job and did not give it back."""
        return attempts_of(self._bare(job_id))

    def note_stop(self, job_id: str) -> None:
        """A worker stops and leaves the job to the next one: this attempt does not count."""
        row = self._bare(job_id)
        if row.status == "PENDING":
            self.client.update_workflow_attributes(job_id, stop_mark(row), merge=True)

    def is_over(self, job_id: str) -> bool:
        """Whether the job has ended or is forgotten."""
        rows = self.client.list_workflows(workflow_ids=[job_id], load_input=False, load_output=False)
        return not rows or rows[0].status in TERMINAL

    def finished_jobs(self, limit: int = 20) -> builtins.list[tuple[Job, float]]:
        """The latest completed jobs with the seconds that each took a worker."""
        rows = self.client.list_workflows(
            name=RENDER_WORKFLOW, status="SUCCESS", limit=limit, sort_desc=True, load_output=False
        )
        return [
            (job_of(row), (row.completed_at - row.dequeued_at) / 1000)
            for row in rows
            if row.completed_at and row.dequeued_at
        ]

    def live_workers(self) -> builtins.list[WorkerRow]:
        """Workers with a fresh heartbeat, but those of this machine that have just died."""
        fresh = self.workers.list(fresh_s=self.settings.heartbeat_timeout_s)
        return [worker for worker in fresh if not is_gone(worker)]

    def _workflow(self, job_id: str) -> WorkflowStatus:
        rows = self.client.list_workflows(workflow_ids=[job_id], name=RENDER_WORKFLOW)
        if not rows:
            raise NotFound(f"no task has the id {job_id}")
        return rows[0]

    def _bare(self, job_id: str) -> WorkflowStatus:
        rows = self.client.list_workflows(workflow_ids=[job_id], load_input=False, load_output=False)
        if not rows:
            raise NotFound(f"no task has the id {job_id}")
        return rows[0]

    def _rows(self, status: builtins.list[str]) -> builtins.list[WorkflowStatus]:
        return self.client.list_workflows(name=RENDER_WORKFLOW, status=status, load_input=False, load_output=False)

    def _state(self, row: WorkflowStatus) -> JobState:
        job = job_of(row)
        events = self.events(job.id)
        status = self._status(row, events)
        position, eta_s = self._outlook(row, job, status, events)
        return JobState(
            job=job,
            status=status,
            created_at=job.created_at,
            updated_at=updated_at(row, job, events),
            started_at=started_at(row, events),
            completed_at=completed_at(row, events),
            output=row.output if row.status == "SUCCESS" else None,
            error=error_text(row),
            events=events,
            attempts=attempts_of(row),
            progress=progress_of(row, events),
            position=position,
            eta_s=eta_s,
            worker_id=row.executor_id if row.status not in WAITING else None,
        )

    def events(self, job_id: str) -> tuple[Event, ...]:
        """Every progress line so far."""
        lines: list[Event] = []
        try:
            for value in self.client.read_stream(job_id, PROGRESS_STREAM, timeout_seconds=0):
                lines.append(Event.from_json(value))
        except (dbos_error.DBOSStreamTimeoutError, dbos_error.DBOSNonExistentWorkflowError):
            pass
        return tuple(lines)

    def _status(self, row: WorkflowStatus, events: tuple[Event, ...]) -> TaskStatus:
        if row.status == "CANCELLED":
            held = any(worker.job == row.workflow_id for worker in self.live_workers())
            return TaskStatus.CANCELLING if held else TaskStatus.CANCELLED
        if row.status == "PENDING":
            return TaskStatus(events[-1].status) if events else TaskStatus.DISPATCHED
        return next(status for status, states in WORKFLOW_STATES.items() if row.status in states)

    def _outlook(
        self, row: WorkflowStatus, job: Job, status: TaskStatus, events: tuple[Event, ...]
    ) -> tuple[int | None, float | None]:
        """Jobs ahead and seconds until the result, as far as they can be known."""
        if status.is_terminal or row.status == "CANCELLED":
            return None, None
        if row.status == "PENDING":
            return None, events[-1].eta_s if events else None
        if row.status == "DELAYED":
            return None, None
        line = self._line(job.id)
        name = row.queue_name or self.render_queue
        queued = line.queued.get(name, [])
        position = queued.index(job.id) if job.id in queued else 0
        devices = [worker.device for worker in line.workers if render_queue_of(worker.models) == name]
        return position, self.estimator.wait(job, position + line.running, devices)

    def _line(self, job_id: str) -> Line:
        """Who waits, in the order of dequeueing. Read once a second, and for a job that is not in it yet."""
        with self._line_lock:
            known = any(job_id in line for line in self._line_now.queued.values())
            if self.clock() - self._line_now.at > LINE_REFRESH_S or not known:
                queued: dict[str, builtins.list[str]] = defaultdict(builtins.list)
                for row in sorted(self._rows(["ENQUEUED"]), key=lambda r: (r.priority or 0, r.created_at or 0)):
                    queued[row.queue_name or ""].append(row.workflow_id)
                running = len(self._rows(["PENDING"]))
                self._line_now = Line(self.clock(), queued, running, self.live_workers())
            return self._line_now
