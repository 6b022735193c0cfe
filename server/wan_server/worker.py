"""The worker process: loads its models, takes one job at a time, and keeps a heartbeat in the database.

Dies alone: whatever happens here, the front end stays up and the queue keeps the job. A worker also takes up the jobs
of workers whose heartbeat has stopped.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer
from dbos import error as dbos_error
from dbos._recovery import recover_pending_workflows  # keeps the count of attempts, unlike resume_workflows
from sqlalchemy.exc import SQLAlchemyError

from wan_pipelines.errors import CheckpointError, PlacementError, ProfileError
from wan_pipelines.profile import Profile
from wan_server.files import FileStore
from wan_server.lines import StrayLines
from wan_server.progress import Pace
from wan_server.queue import APPLICATION, WEBHOOK_QUEUE, WORKFLOW_VERSION, JobQueue
from wan_server.renderers import Stopped, load_renderers
from wan_server.served import served_profiles, settle
from wan_server.settings import Settings, SettingsError
from wan_server.stages import Stages
from wan_server.tables import WorkerRow, Workers
from wan_server.worker_process import EXIT_CANNOT_START, is_gone
from wan_server.workflow import JobFailed, JobRunner

logger = logging.getLogger(__name__)

#: seconds that a stop waits for the running job to reach its next step and checkpoint
STOP_GRACE_S: Final = 10.0
WEBHOOKS_AT_ONCE: Final = 8


class CannotStart(Exception):
    """The worker cannot run as it is configured."""


class Heartbeat:
    """The worker's row in the database, renewed by a thread. Also the desk that the workflow reports to."""

    def __init__(self, workers: Workers, name: str, models: Sequence[str], device: str, every_s: float) -> None:
        self.workers = workers
        self.name = name
        self.model = ",".join(models)
        self.device = device
        self.every_s = every_s
        self.state = "loading"
        self.job: str | None = None
        self.started_at = time.time()
        self.stopping = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self, timeout_s: float) -> None:
        """Enter the list of workers. Waits for an earlier worker of the same name to leave. Raises CannotStart."""
        deadline = time.monotonic() + 2 * timeout_s + STOP_GRACE_S
        while holder := self.workers.claim(self.row(), timeout_s, is_gone):
            if self.stopping.is_set() or time.monotonic() > deadline:
                raise CannotStart(f"another worker is running under the name {self.name} (pid {holder.pid})")
            time.sleep(0.2)
        self._thread.start()

    def row(self) -> WorkerRow:
        """What is said about this worker now."""
        return WorkerRow(
            executor_id=self.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            state="stopping" if self.stopping.is_set() else self.state,
            model=self.model,
            device=self.device,
            job=self.job,
            started_at=self.started_at,
            heartbeat_at=time.time(),
        )

    def ready(self, device: str) -> None:
        self.state, self.device = "ready", device
        self._try_beat()

    def take(self, job_id: str) -> None:
        self.job = job_id
        self._try_beat()

    def release(self, job_id: str) -> None:
        if self.job == job_id:
            self.job = None
            self._try_beat()

    def is_stopping(self) -> bool:
        return self.stopping.is_set()

    def end(self) -> None:
        """Stop the thread and leave the list of workers."""
        self._ended.set()
        self._thread.join(timeout=self.every_s + 1)
        self.workers.remove(self.name, os.getpid())

    def _run(self) -> None:
        while not self._ended.wait(self.every_s):
            self._try_beat()

    def _try_beat(self) -> None:
        """A database that is away for a moment must not end the heart."""
        try:
            self.workers.beat(self.row())
        except SQLAlchemyError as error:
            logger.warning("no heartbeat: %s", error)


def run_worker(settings: Settings, name: str, *, supervised: bool = False) -> int:
    """Work until a signal, or until the supervising process is gone. Returns the exit status."""
    try:
        settings = settle(settings, with_worker=False)
        profiles = served_profiles(settings)
        queue = JobQueue(settings)
        desk = Heartbeat(queue.workers, name, settings.served, settings.device, settings.heartbeat_s)
        _stop_on_signals(desk.stopping, supervised)
        desk.start(settings.heartbeat_timeout_s)
    except (CannotStart, ProfileError, SettingsError) as error:
        logger.error("the worker cannot start: %s", error)
        return EXIT_CANNOT_START
    try:
        return _work(settings, profiles, queue, desk)
    finally:
        desk.end()


def _work(settings: Settings, profiles: Sequence[Profile], queue: JobQueue, desk: Heartbeat) -> int:
    try:
        device = pick_device(settings.device)
        renderers = load_renderers(settings, profiles, device, desk.is_stopping)
    except (CheckpointError, PlacementError, CannotStart) as error:
        logger.error("the worker cannot start: %s", error)
        return EXIT_CANNOT_START
    except Stopped:
        return 0
    stages = Stages(settings, FileStore(settings), renderers)
    stages.sweep(queue.is_over)
    dbos = launch(settings, desk.name, JobRunner(settings, stages, queue, desk, Pace()))
    desk.ready(device)
    logger.info("worker %s is ready: %s on %s", desk.name, ", ".join(renderers.models), device)
    strays = StrayLines(queue)
    while not desk.stopping.wait(settings.heartbeat_s):
        try:
            adopt(dbos, queue, desk.name)
            strays.take_over()
        except SQLAlchemyError as error:
            logger.warning("the database does not answer: %s", error)
    _let_go(desk)
    if desk.job is not None:
        queue.note_stop(desk.job)
    return 0


def launch(settings: Settings, name: str, runner: JobRunner) -> DBOS:
    """Start taking jobs under this executor name; its own unfinished jobs of an earlier life come first."""
    config: DBOSConfig = {
        "name": APPLICATION,
        "system_database_url": settings.database,
        "application_version": WORKFLOW_VERSION,
        "executor_id": name,
        "serializer": DBOSPortableJSONSerializer(),
        "log_level": "WARNING",
        "notification_listener_polling_interval_sec": settings.queue_poll_s,
    }
    dbos = DBOS(config=config)
    runner.register()
    logging.getLogger("dbos").addFilter(_is_news)
    render_queue = runner.queue.render_queue
    DBOS.listen_queues([render_queue, WEBHOOK_QUEUE])
    DBOS.launch()
    for queue, at_once in ((render_queue, 1), (WEBHOOK_QUEUE, WEBHOOKS_AT_ONCE)):
        DBOS.register_queue(
            queue,
            worker_concurrency=at_once,
            polling_interval_sec=settings.queue_poll_s,
            on_conflict="always_update",
        )
    return dbos


def adopt(dbos: DBOS, queue: JobQueue, name: str) -> None:
    """Put the jobs of workers whose heartbeat stopped back into the queue."""
    holders = queue.holders()
    if not holders - {name}:
        return
    alive = {worker.executor_id for worker in queue.live_workers()}
    if gone := sorted(holders - alive - {name}):
        logger.warning("workers without a heartbeat: %s; their jobs go back into the queue", ", ".join(gone))
        recover_pending_workflows(dbos, gone)


def pick_device(wish: str) -> str:
    """ "cuda" or "cpu". Raises CannotStart when CUDA is asked for and absent."""
    import torch

    if wish == "cuda" and not torch.cuda.is_available():
        raise CannotStart("device: cuda is asked for, but torch sees no CUDA device")
    return "cuda" if wish != "cpu" and torch.cuda.is_available() else "cpu"


def _stop_on_signals(stopping: threading.Event, supervised: bool) -> None:
    """A supervised worker leaves Ctrl-C to its supervisor, and stops when the supervisor is gone."""

    def stop(_signal: int, _frame: Any) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN if supervised else stop)
    if supervised:
        threading.Thread(target=_stop_at_eof, args=(stopping,), name="parent", daemon=True).start()


def _stop_at_eof(stopping: threading.Event) -> None:
    """The supervisor holds the other end of our standard input; it closes when the supervisor is gone."""
    while sys.stdin.buffer.read(4096):
        pass
    stopping.set()


def _let_go(desk: Heartbeat) -> None:
    """Give the running job a moment to notice the stop at its next step."""
    deadline = time.monotonic() + STOP_GRACE_S
    while desk.job is not None and time.monotonic() < deadline:
        time.sleep(0.05)


def leave(status: int) -> NoReturn:
    """End the process without waiting for threads: a denoise step may take seconds, and the queue keeps the job."""
    if sys.exc_info()[0] is not None:
        traceback.print_exc()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _is_news(record: logging.LogRecord) -> bool:
    """Drop what DBOS logs about failed and cancelled jobs: the first are logged by us, the second were asked for."""
    if record.exc_info is None or record.exc_info[0] is None:
        return "Waiting for the" not in record.getMessage()
    return not issubclass(record.exc_info[0], (JobFailed, dbos_error.DBOSAwaitedWorkflowCancelledError))
