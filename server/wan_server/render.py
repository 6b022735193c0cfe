"""`wanbox render`: a batch of jobs without a server, on the same queue, workflow and worker as `wanbox serve`."""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from wan_server.apps import Catalog
from wan_server.batch import BatchJob, Manifest, read_jobs, read_manifest
from wan_server.errors import InvalidInput, InvalidTransition, NotFound, Unavailable, WanboxError
from wan_server.files import FileStore
from wan_server.job import JobState
from wan_server.keys import Principal
from wan_server.queue import JobQueue
from wan_server.served import served_profiles
from wan_server.settings import Settings
from wan_server.status import TaskStatus
from wan_server.submit import Submission, Submitter
from wan_server.supervisor import Supervisor
from wan_server.worker_process import default_name

#: links inside an offline store lead nowhere; only the ids in them are used
BASE_URL: Final = "http://wanbox.invalid"
POLL_S: Final = 0.3
LONGEST_PATH: Final = 1000
EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130


@dataclass(frozen=True, slots=True)
class Batch:
    """The parts that a batch works with."""

    queue: JobQueue
    files: FileStore
    submitter: Submitter
    out: Path

    def begin(self, job: BatchJob) -> Manifest:
        """Submit a job, or find it where an earlier run left it. A refusal becomes a failed manifest."""
        found = read_manifest(self.out, job.name)
        try:
            digest = job.digest(_maker(self.submitter.settings))
            if found is not None and found.digest == digest:
                if found.is_done(self.out):
                    return found
                if self._goes_on(found):
                    return found.changed(status="queued")
            self._drop(found)
            return self._submit(job, digest).write(self.out)
        except WanboxError as error:
            failed = Manifest(job.name, "failed", "", job.app, job.input, error=str(error), created_at=time.time())
            return failed.write(self.out)

    def finish(self, manifest: Manifest, state: JobState) -> Manifest:
        """Write down how a job ended, with its video beside the manifest."""
        ended = manifest.changed(status=state.status.text, error=state.error, completed_at=state.completed_at)
        if state.status is TaskStatus.COMPLETED and state.output is not None:
            video = f"{manifest.name}.mp4"
            try:
                self._copy(state.output["video"], self.out / video)
            except (NotFound, FileNotFoundError) as error:
                return manifest.changed(status="failed", error=f"the video is gone: {error}").write(self.out)
            ended = ended.changed(video=video, output_meta=state.output["output_meta"])
        return ended.write(self.out)

    def _drop(self, manifest: Manifest | None) -> None:
        """Cancel what an earlier run left waiting under this name: the job has changed."""
        if manifest is None or manifest.task_id is None:
            return
        with suppress(NotFound, InvalidTransition):
            self.queue.cancel(manifest.task_id)

    def _goes_on(self, manifest: Manifest) -> bool:
        """Whether the queue still has the job to run, or its result to fetch."""
        try:
            state = self.queue.get(manifest.task_id or "")
        except NotFound:
            return False
        return state.status is TaskStatus.COMPLETED or not state.status.is_terminal

    def _submit(self, job: BatchJob, digest: str) -> Manifest:
        links = {role: self._ingest(path) for role, path in job.local_media().items()}
        body = {"app": job.app, "input": job.input | links}
        state = self.submitter.submit(Submission(body, BASE_URL, Principal("local")))
        return Manifest(
            job.name, "queued", digest, job.app, job.input, task_id=state.job.id, created_at=state.created_at
        )

    def _ingest(self, path: Path) -> str:
        record = self.files.ingest(path, filename=path.name, content_type=None)
        return self.files.uri(record, BASE_URL)

    def _copy(self, link: str, target: Path) -> None:
        file_id = self.files.id_of(link)
        if file_id is None:
            raise NotFound(f"the video {link} is not in the store")
        partial = target.with_suffix(".mp4.part")
        with self.files.local(file_id) as path:
            shutil.copyfile(path, partial)
        partial.replace(target)


def _maker(settings: Settings) -> str:
    """What decides a video besides its job; another one makes it anew."""
    rate = "" if settings.frame_rate is None else f"@{settings.frame_rate}"
    return ",".join(settings.served) + rate


def render(settings: Settings, environment: Mapping[str, str], jobs_file: Path, out: Path) -> int:
    """Render all jobs of a file. Returns 0, 1 when any job failed, 130 when interrupted.

    Raises WanboxError when the batch cannot begin.
    """
    jobs = read_jobs(jobs_file)
    _refuse_overwriting(jobs, jobs_file, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"--out {out}: cannot be used ({error})") from None
    settings = settings.model_copy(update={"max_queue": len(jobs) + settings.max_queue})
    queue = JobQueue(settings)
    files = FileStore(settings, queue.engine)
    catalog = Catalog(served_profiles(settings))
    batch = Batch(queue, files, Submitter(settings, queue, files, catalog, secret=b""), out)
    try:
        manifests = _run(batch, jobs, Supervisor(f"render-{default_name()}", environment))
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped; run the same command again to go on")
        return EXIT_INTERRUPTED
    finally:
        queue.close()
    return _report(manifests, out)


def _refuse_overwriting(jobs: list[BatchJob], jobs_file: Path, out: Path) -> None:
    """Results must not replace what they are made from. Raises InvalidInput."""
    targets = {(out / f"{job.name}{ending}").resolve() for job in jobs for ending in (".json", ".mp4")}
    sources = {jobs_file.resolve()}
    for job in jobs:
        values = (value for value in job.input.values() if isinstance(value, str))
        sources |= {
            (job.folder / value).resolve() for value in values if len(value) < LONGEST_PATH and value.isprintable()
        }
    if clash := sorted(targets & sources):
        raise InvalidInput(f"--out {out}: the results would overwrite {clash[0]}; choose another folder")


def _run(batch: Batch, jobs: list[BatchJob], supervisor: Supervisor) -> list[Manifest]:
    manifests = {job.name: batch.begin(job) for job in jobs}
    waiting = deque(m for m in manifests.values() if m.status == "queued")
    if not waiting:
        return list(manifests.values())
    supervisor.start()
    try:
        with _bars() as bars:
            total = bars.add_task("all jobs", total=len(jobs), completed=len(jobs) - len(waiting))
            while waiting:
                manifest = waiting.popleft()
                state = _follow(batch.queue, manifest, supervisor, bars)
                manifests[manifest.name] = batch.finish(manifest, state)
                bars.advance(total)
    finally:
        supervisor.stop()
    return list(manifests.values())


def _follow(queue: JobQueue, manifest: Manifest, supervisor: Supervisor, bars: Progress) -> JobState:
    """Show a job's progress until it ends. Jobs run in the order of their submission, so one is enough to watch."""
    bar = bars.add_task(manifest.name, total=100)
    while not (state := queue.get(manifest.task_id or "")).status.is_terminal:
        if supervisor.given_up is not None:
            raise Unavailable(supervisor.given_up)
        _show(bars, bar, manifest.name, state)
        time.sleep(POLL_S)
    bars.remove_task(bar)
    return state


def _show(bars: Progress, bar: TaskID, name: str, state: JobState) -> None:
    said = state.events[-1].text if state.events else state.status.text
    bars.update(bar, completed=state.progress, description=f"{name}: {said}")


def _bars() -> Progress:
    columns: list[Any] = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    ]
    return Progress(*columns, console=Console(stderr=True))


def _report(manifests: list[Manifest], out: Path) -> int:
    console = Console(stderr=True, highlight=False)
    failed = [manifest for manifest in manifests if not manifest.is_done(out)]
    for manifest in failed:
        console.print(f"{manifest.name}: {manifest.status}: {manifest.error}", style="red", markup=False)
    console.print(f"{len(manifests) - len(failed)} of {len(manifests)} jobs are done in {out}")
    return EXIT_FAILED if failed else 0
