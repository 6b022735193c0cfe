"""The durable workflow of a job: every stage is a step whose result is kept, so a job goes on where it was left.

Runs inside a worker process. Also the webhook workflow, so that deliveries survive restarts too.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from dbos import DBOS, PortableWorkflowError, StepOptions
from dbos import error as dbos_error

from wan_pipelines.errors import PipelineError
from wan_pipelines.plan import RenderPlan
from wan_server import webhook
from wan_server.errors import WanboxError
from wan_server.job import Event, Job
from wan_server.output import Ingredients
from wan_server.progress import WHOLE, Pace, Reporter, Share
from wan_server.queue import PROGRESS_STREAM, RENDER_WORKFLOW, WEBHOOK_WORKFLOW, JobQueue
from wan_server.records import given_up
from wan_server.settings import Settings
from wan_server.stages import Stages
from wan_server.worker_process import EXIT_DEVICE_FAULT

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: attempts are counted by us, because a clean stop must not count; DBOS's own limit stays out of the way
NO_LIMIT: Final = 10_000

#: a forward of the 14B transformer on 1920x1088 has 4.33 times the operations of one on 1280x720, 2.27 times as large
PASS_POWER: Final = 1.79

#: a cancelled job ends when its worker has finished the step it was in, which may take a minute at full size
TERMINAL_WAIT_S: Final = 600.0


class JobFailed(Exception):
    """A stage failed; the message is the task's `error`."""


class WorkerStopping(BaseException):
    """The worker is asked to stop. Not an Exception: the queue must keep the job for the next worker."""


class Desk(Protocol):
    """What the workflow tells its worker process: which job it holds, and whether it must stop."""

    name: str

    def take(self, job_id: str) -> None: ...
    def release(self, job_id: str) -> None: ...
    def is_stopping(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class JobRunner:
    """Runs jobs with the stages of this worker."""

    settings: Settings
    stages: Stages
    queue: JobQueue
    desk: Desk
    pace: Pace

    def register(self) -> None:
        """Make the workflows known to DBOS. Call once, before its launch."""

        @DBOS.workflow(name=RENDER_WORKFLOW, max_recovery_attempts=NO_LIMIT)
        def render(data: dict[str, Any]) -> dict[str, Any]:
            return self.render(Job.from_json(data))

        @DBOS.workflow(name=WEBHOOK_WORKFLOW)
        def deliver(job_id: str) -> int:
            return self.deliver(job_id)

    def render(self, job: Job) -> dict[str, Any]:
        """All stages in order. Failure ends the task, a stop or a lost worker does not."""
        self.desk.take(job.id)
        try:
            self._refuse_unserved(job)
            self._refuse_poison(job)
            output = self._stages(job)
        except (JobFailed, PortableWorkflowError):
            self.stages.discard(job)
            self.queue.announce(job)
            raise
        except WorkerStopping:
            self.queue.note_stop(job.id)
            raise
        except (dbos_error.DBOSWorkflowCancelledError, dbos_error.DBOSWorkflowConflictIDError):
            if self.queue.is_cancelled(job.id):
                self.stages.discard(job)
            raise
        finally:
            self.desk.release(job.id)
        self.queue.announce(job)
        return output

    def _refuse_unserved(self, job: Job) -> None:
        """A job from before a change of the configured models."""
        served = self.stages.renderers.models
        if job.model not in served:
            raise JobFailed(
                f"model {job.model} is not served any more; this server has {', '.join(served)}: send it anew"
            )

    def _refuse_poison(self, job: Job) -> None:
        """A job that has killed enough workers fails, in the same way as any other."""
        allowed = self.settings.max_attempts
        if self.queue.attempts(job.id) > allowed:
            raise JobFailed(given_up(allowed))

    def _stages(self, job: Job) -> dict[str, Any]:
        stages = self.stages
        prepared = self._step(job, "prepare", lambda report: stages.prepare(job, report))
        extension = self._step(job, "prompt", lambda report: stages.prompt(job, prepared, report))
        numbers = self._step(job, "plan", lambda _: stages.plan(job, prepared, extension).to_json())
        plan = RenderPlan.from_json(numbers)
        of_first, of_second = pass_shares(plan)
        first, last = plan.passes[0], plan.passes[-1]
        encoded = self._step(job, "encode", lambda report: stages.encode(job, first.parts[0], prepared, report))
        seams = [self._sample(job, part, share, prepared) for part, share in shares(first, of_first)]
        if plan.refine:
            seams = [self._refine(job, part, share, prepared) for part, share in shares(last, of_second)]
            encoded = seams[0]
        decoded = self._step(job, "decode", lambda report: stages.decode(job, plan, prepared, report))
        facts = {"seams": seams[1:]} if len(seams) > 1 else {}
        made = Ingredients(numbers, prepared, extension, encoded, decoded["file"], decoded["facts"] | facts)
        return self._step(job, "publish", lambda _: stages.publish(job, made))

    def _sample(self, job: Job, part: RenderPlan, share: Share, prepared: dict[str, Any]) -> dict[str, Any] | None:
        """Noise to latents of one sample, told of the one before. Several are each tried once more, alone."""

        def work(report: Reporter) -> dict[str, Any] | None:
            told = self.stages.go_on(job, part, prepared, report) if part.number else None
            self.stages.denoise(job, part, report)
            return told

        return self._step(job, "denoise", work, share)

    def _refine(self, job: Job, part: RenderPlan, share: Share, prepared: dict[str, Any]) -> dict[str, Any]:
        """The second pass over one sample."""
        return self._step(job, "denoise", lambda report: self.stages.refine(job, part, prepared, report), share)

    def _step(self, job: Job, name: str, work: Callable[[Reporter], T], share: Share = WHOLE) -> T:
        return DBOS.run_step({"name": name}, lambda: self._guarded(job, name, work, share, tries=min(2, share.count)))

    def _guarded(self, job: Job, name: str, work: Callable[[Reporter], T], share: Share, tries: int) -> T:
        """Run a stage; whatever goes wrong becomes the task's error and the worker lives on."""
        report = Reporter(name, self._write, lambda: self._check(job), self.pace, share=share)
        try:
            self._check(job)
            report.start()
            result = work(report)
            report.done()
            return result
        except (WanboxError, PipelineError) as error:
            logger.info("task %s failed in %s: %s", job.id, name, error)
            raise JobFailed(str(error)) from error
        except Exception as error:
            logger.exception("task %s failed in %s", job.id, name)
            _leave_on_device_fault(error)
            if tries > 1:
                return self._guarded(job, name, work, share, tries - 1)
            raise JobFailed(f"internal error in the {name} stage: {type(error).__name__}: {error}") from error

    def _write(self, event: Event) -> None:
        if self.desk.is_stopping():
            raise WorkerStopping
        DBOS.write_stream(PROGRESS_STREAM, event.to_json())

    def _check(self, job: Job) -> None:
        if self.desk.is_stopping():
            raise WorkerStopping
        if not self.queue.is_running_on(job.id, self.desk.name):
            raise dbos_error.DBOSWorkflowCancelledError(job.id)

    def deliver(self, job_id: str) -> int:
        """Tell the task's webhook how it ended; tried again with growing pauses."""
        url, body = DBOS.run_step({"name": "compose"}, lambda: self._compose(job_id))
        retries: StepOptions = {
            "name": "post",
            "retries_allowed": True,
            "max_attempts": self.settings.webhook_tries,
            "interval_seconds": self.settings.webhook_backoff_s,
            "backoff_rate": 2.0,
            "should_retry": webhook.is_worth_another_try,
        }
        return DBOS.run_step(retries, lambda: webhook.deliver(self.settings, url, body))

    def _compose(self, job_id: str) -> tuple[str, dict[str, Any]]:
        deadline = time.monotonic() + TERMINAL_WAIT_S
        state = self.queue.get(job_id)
        while not state.status.is_terminal:
            if time.monotonic() > deadline:
                raise webhook.WebhookFailed(f"task {job_id} has not ended")
            time.sleep(0.05)
            state = self.queue.get(job_id)
        return state.job.options["webhook"], webhook.payload(state)


def pass_shares(plan: RenderPlan) -> tuple[Share, Share]:
    """How much of denoising the first pass is, and the second, of which there may be none."""
    costs = [each.steps * (each.sample_width * each.sample_height) ** PASS_POWER for each in plan.passes]
    split = costs[0] / sum(costs)
    return Share(ends=split), Share(starts=split)


def shares(plan: RenderPlan, whole: Share = WHOLE) -> list[tuple[RenderPlan, Share]]:
    """The samples of a video, each with its part of that share of the work."""
    parts = plan.parts
    of_segment = [segment.share for segment in plan.segments] or [(0.0, 1.0)]
    spans = [[whole.starts + whole.size * at for at in share] for share in of_segment]
    return [(part, Share(part.number, len(parts), *span)) for part, span in zip(parts, spans, strict=True)]


def _leave_on_device_fault(error: Exception) -> None:
    """A broken CUDA context cannot be mended in the process: leave it, the queue keeps the job."""
    if "CUDA error" in str(error) and type(error).__name__ != "OutOfMemoryError":
        logger.critical("the CUDA context is broken; this worker ends and another takes the job up")
        logging.shutdown()
        os._exit(EXIT_DEVICE_FAULT)
