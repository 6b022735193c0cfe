"""The stages of one job, from stored media to a stored MP4. Each takes and returns small JSON; tensors go to scratch.

Knows the store and the renderer, not the queue: `workflow.py` turns the stages into durable steps.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_pipelines.plan import PlanError, PlanRequest, RenderPlan, make_plan, shape_role
from wan_server import media
from wan_server.errors import InvalidInput, NotFound, WanboxError
from wan_server.fetch import fetch
from wan_server.files import FileRecord, FileStore
from wan_server.inputs import examine
from wan_server.job import Job
from wan_server.output import Ingredients, output_of
from wan_server.probe import Probe
from wan_server.progress import Reporter
from wan_server.prompt import extend_prompt
from wan_server.prompt_chat import Wish
from wan_server.renderers import Renderers
from wan_server.settings import Settings

if TYPE_CHECKING:
    from wan_pipelines.conditions import Media

#: shape of a video from text alone, width / height
TEXT_ASPECT = 16 / 9
CONDITIONING = "conditioning.safetensors"
CHECKPOINT = "checkpoint.safetensors"
LATENTS = "latents.safetensors"
JOINED = "joined.safetensors"
BEGUN = "begun.safetensors"
#: stands before the names of the files of a second pass
FINE = "fine-"


@dataclass(frozen=True, slots=True)
class Stages:
    """What a worker does with a job. One instance per worker process."""

    settings: Settings
    files: FileStore
    renderers: Renderers

    def prepare(self, job: Job, report: Reporter) -> dict[str, Any]:
        """Fetch what is remote, examine all media. Returns `{files: {role: id}, probes: {role: probe}, notes}`."""
        files = dict(job.files)
        for role, url in job.remote.items():
            files[role] = self._fetch(job, role, url, report.beat).id
        probes = {role: self._examine(role, file_id) for role, file_id in files.items()}
        notes = [note for role, probe in probes.items() for note in media.notes(role, probe)]
        prepared = {"files": files, "probes": {role: p.to_json() for role, p in probes.items()}, "notes": notes}
        self._refuse_too_large(job, prepared)
        return prepared

    def prompt(self, job: Job, prepared: dict[str, Any], report: Reporter) -> dict[str, Any]:
        """The prompt that is rendered, extended when asked for and possible."""
        report.beat()
        requested = bool(job.input.get("prompt_extend"))
        clip_s = (prepared["probes"].get("first_clip") or {}).get("seconds") or 0.0
        with ExitStack() as stack:
            found = {role: self._local(stack, prepared, role) for role in media.VISUAL} if requested else {}
            wish = Wish(
                prompt=job.input.get("prompt") or "",
                negative_prompt=job.input.get("negative_prompt") or "",
                seconds=round(max(job.input["duration"] - clip_s, 0.0), 1),
                shown={role: path for role, path in found.items() if path is not None},
                clip_seconds=clip_s,
            )
            return extend_prompt(self.settings, wish, requested, report.beat).to_json()

    def plan(self, job: Job, prepared: dict[str, Any], extension: dict[str, Any]) -> RenderPlan:
        """Every number of the render. Raises InvalidInput when the model cannot do it."""
        probes = {role: Probe.from_json(probe) for role, probe in prepared["probes"].items()}
        clip = probes.get("first_clip")
        request = PlanRequest(
            prompt=extension["prompt"],
            negative_prompt=job.input.get("negative_prompt"),
            resolution=job.input["resolution"],
            seconds=job.input["duration"],
            aspect=_aspect(probes),
            seed=job.seed,
            watermark=bool(job.input.get("watermark")),
            media=tuple(role for role in media.ROLES if role in probes),
            clip_seconds=clip.seconds if clip else None,
            output_fps=self.settings.frame_rate,
            hd_route=None if self.settings.hd_route == "profile" else self.settings.hd_route,
        )
        try:
            return make_plan(self.renderers.profile(job.model), request)
        except PlanError as error:
            raise InvalidInput(str(error)) from None

    def encode(
        self, job: Job, plan: RenderPlan, prepared: dict[str, Any], report: Reporter, of: str = ""
    ) -> dict[str, Any]:
        """Text and media to conditioning tensors. Returns the renderer's report. `of`: `FINE` for the second pass."""
        with ExitStack() as stack, self._work(job) as work:
            out = work / (of + CONDITIONING)
            facts = self.renderers.of(job.model).encode(plan, self._given(stack, job, prepared), out, report.beat)
            self.files.scratch_put(job.id, out.name, out)
        return asdict(facts)

    def go_on(
        self, job: Job, part: RenderPlan, prepared: dict[str, Any], report: Reporter, of: str = ""
    ) -> dict[str, Any]:
        """The end of the segment before to conditioning tensors of this one. Returns what was done to its colours."""
        from wan_pipelines.seams import Before, read_grade

        with ExitStack() as stack, self._work(job) as work:
            out = work / _of(CONDITIONING, part.number, of)
            if not self.files.scratch_get(job.id, out.name, out):
                latents = self._need(job, _of(LATENTS, part.number - 1, of), work)
                before = Before(self._need(job, of + CONDITIONING, work), latents)
                renderer, given = self.renderers.of(job.model), self._given(stack, job, prepared)
                renderer.go_on(part, given, before, out, report.beat)
                self.files.scratch_put(job.id, out.name, out)
            return {"colour": read_grade(out)}

    def denoise(self, job: Job, plan: RenderPlan, report: Reporter, of: str = "") -> None:
        """Noise to latents of one sample; goes on from the last checkpoint when there is one. `of` as in `encode`."""
        with self._work(job) as work:
            checkpoint, latents = (work / _of(name, plan.number, of) for name in (CHECKPOINT, LATENTS))
            conditioning = self._need(job, _of(CONDITIONING, plan.number, of), work)
            begun = self._need(job, _of(BEGUN, plan.number), work) if of else None
            self.files.scratch_get(job.id, checkpoint.name, checkpoint)
            saved = _stamp(checkpoint)

            def on_step(step: int, steps: int) -> None:
                nonlocal saved
                if _stamp(checkpoint) != saved:
                    saved = _stamp(checkpoint)
                    self.files.scratch_put(job.id, checkpoint.name, checkpoint)
                report.step(step, steps)

            self.renderers.of(job.model).denoise(plan, conditioning, latents, on_step, checkpoint, begun)
            self.files.scratch_put(job.id, latents.name, latents)

    def refine(self, job: Job, part: RenderPlan, prepared: dict[str, Any], report: Reporter) -> dict[str, Any]:
        """A small sample to latents of the size of the video: the second pass. Returns as `encode` or `go_on` do."""
        from wan_pipelines.refine import enlarge

        report.rename("refining")
        told = (self.go_on if part.number else self.encode)(job, part, prepared, report, FINE)
        with self._work(job) as work:
            begun = work / _of(BEGUN, part.number)
            if not self.files.scratch_get(job.id, begun.name, begun):
                small = self._need(job, _of(LATENTS, part.number), work)
                enlarge(self.renderers.of(job.model), part, small, begun, report.beat)
                self.files.scratch_put(job.id, begun.name, begun)
        self.denoise(job, part, report, FINE)
        return told

    def decode(self, job: Job, plan: RenderPlan, prepared: dict[str, Any], report: Reporter) -> dict[str, Any]:
        """Latents to an MP4 in the store. Returns `{file: id, facts}`."""
        with ExitStack() as stack, self._work(job) as work:
            last = plan.passes[-1]
            latents = self._joined(job, last, work, FINE if plan.refine else "")
            clip = self._local(stack, prepared, "first_clip")
            is_heard = clip is not None and prepared["probes"]["first_clip"]["has_audio"]
            sound = clip if is_heard else self._local(stack, prepared, "driving_audio")
            out = work / "video.mp4"
            facts = self.renderers.of(job.model).decode(last, latents, out, sound, report.step, clip)
            name = f"{job.app.rsplit('/', 1)[-1]}-{job.id[:8]}.mp4"
            record = self.files.ingest(out, filename=name, content_type="video/mp4", task_id=job.id, role="output")
        return {"file": record.id, "facts": asdict(facts)}

    def publish(self, job: Job, ingredients: Ingredients) -> dict[str, Any]:
        """The task's output, with a link to the stored video. Drops the scratch files."""
        record = self.files.get(ingredients.file_id)
        self.discard(job)
        return output_of(job, self.renderers.profile(job.model), self.files.uri(record, job.base_url), ingredients)

    def discard(self, job: Job) -> None:
        """Remove everything that only a running job needs."""
        self.files.scratch_clear(job.id)
        shutil.rmtree(self._folder(job), ignore_errors=True)

    def sweep(self, is_over: Callable[[str], bool]) -> None:
        """Remove what jobs left behind that ended while this machine was not looking."""
        for folder in (self.settings.data_dir / "work").glob("*"):
            if is_over(folder.name):
                self.files.scratch_clear(folder.name)
                shutil.rmtree(folder, ignore_errors=True)

    def _refuse_too_large(self, job: Job, prepared: dict[str, Any]) -> None:
        """A job for which there is not enough memory ends here. Raises PlacementError, InvalidInput."""
        plan = self.plan(job, prepared, {"prompt": job.input.get("prompt") or ""})
        visible = [role for role in prepared["files"] if role in media.VISUAL]
        self.renderers.of(job.model).place(plan, min(1, len(visible)))

    def _fetch(self, job: Job, role: str, url: str, beat: Callable[[], None]) -> FileRecord:
        limit = media.LIMITS[role].max_size
        with self._work(job) as work:
            target = work / f"fetched-{role}"
            try:
                fetch(
                    url,
                    target,
                    max_bytes=limit,
                    timeout_s=self.settings.fetch_timeout_s,
                    allow_private=self.settings.allow_private_urls,
                    beat=beat,
                )
            except WanboxError as error:
                raise InvalidInput(f"input.{role}: {error}") from None
            return self.files.ingest(
                target, filename=role, content_type="application/octet-stream", task_id=job.id, role="input"
            )

    def _examine(self, role: str, file_id: str) -> Probe:
        try:
            probe = examine(self.files, self.files.get(file_id))
        except NotFound as error:
            raise InvalidInput(f"input.{role}: {error} (any more)") from None
        if problems := media.check(role, probe):
            raise InvalidInput(f"input.{role}: {'; '.join(problems)}")
        return probe

    def _local(self, stack: ExitStack, prepared: dict[str, Any], role: str) -> Path | None:
        file_id = prepared["files"].get(role)
        return None if file_id is None else stack.enter_context(self.files.local(file_id))

    def _given(self, stack: ExitStack, job: Job, prepared: dict[str, Any]) -> Media:
        """The files that the model sees and hears."""
        from wan_pipelines.renderer import Media

        listens = {"driving_audio"} & set(self.renderers.profile(job.model).inputs)
        return Media(**{role: self._local(stack, prepared, role) for role in (*media.VISUAL, *listens)})

    def _joined(self, job: Job, plan: RenderPlan, work: Path, of: str) -> Path:
        """The latents of the whole video."""
        from wan_pipelines.seams import join

        made = [self._need(job, _of(LATENTS, part.number, of), work) for part in plan.parts]
        if len(made) == 1:
            return made[0]
        join(plan, made, work / JOINED)
        return work / JOINED

    def _need(self, job: Job, name: str, work: Path) -> Path:
        if not self.files.scratch_get(job.id, name, work / name):
            raise WanboxError(f"{name} of an earlier stage is gone from the store")
        return work / name

    def _folder(self, job: Job) -> Path:
        return self.settings.data_dir / "work" / job.id

    @contextmanager
    def _work(self, job: Job) -> Iterator[Path]:
        folder = self._folder(job)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def _aspect(probes: dict[str, Probe]) -> float:
    """Width / height of the picture that gives the video its shape."""
    role = shape_role(probes)
    if role is None:
        return TEXT_ASPECT
    probe = probes[role]
    if not probe.width or not probe.height:  # the check of the role refuses such files
        raise InvalidInput(f"input.{role}: has no size")
    return probe.width / probe.height


def _of(name: str, number: int, of: str = "") -> str:
    """The name of a file of the first sample as that of another one, in the second pass with `of` before it."""
    return f"{of}{number}-{name}" if number else of + name


def _stamp(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None
