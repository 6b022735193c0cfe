"""How long a job will take and wait: its work is counted, the speed is learnt from the jobs that finished lately.

Until a model has finished a job, its speed is taken for that of the device. Knows no database.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, Final

from wan_pipelines.effort import plan_effort
from wan_pipelines.errors import PipelineError
from wan_pipelines.footprint import bundled_configs
from wan_pipelines.plan import PlanRequest, RenderPlan, make_plan
from wan_pipelines.profile import Profile, checkpoint_folder, load_served
from wan_server.choice import SHORTEST_CLIP_S
from wan_server.job import Job
from wan_server.media import ROLES
from wan_server.settings import Settings

REFRESH_S: Final = 10.0
#: operations a second of a device on which nothing was measured yet: a large GPU in bfloat16 (published figures for Wan
#: lie between 100 and 650 TFLOP/s), and two cores of a CPU
SPEEDS: Final = {"cuda": 3e14, "cpu": 1e11}
#: convolutions of the autoencoder run at about a quarter of the speed of the transformer's matrices (the embedded model
#: on a CPU: 13 and 55 GFLOP/s)
AUTOENCODER_COST: Final = 4.0
#: to scale, convert and compress one pixel of the file takes a CPU as long as so many operations
PIXEL_COST: Final = 2500.0

Work = Callable[[Job], float | None]


class Workload:
    """The work of jobs, in operations. Every model's files are read once."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.known: dict[str, tuple[Profile, dict[str, Any]]] = {}

    def of(self, job: Job) -> float | None:
        """None for a job that cannot be planned here: its model is gone, or the job will be refused."""
        try:
            profile, configs = self._model(job.model)
            plan = make_plan(profile, self._request(job))
        except PipelineError:
            return None
        shown = PIXEL_COST * plan.width * plan.height * plan.shown_frames
        return shown + _counted(plan, configs, profile.text_len)

    def _request(self, job: Job) -> PlanRequest:
        """The shape does not matter: a resolution is a number of pixels. A clip of unknown length is the shortest."""
        media = tuple(role for role in ROLES if role in job.files or role in job.remote)
        clip_s = job.options.get("clip_seconds") or SHORTEST_CLIP_S
        return PlanRequest(
            prompt="",
            negative_prompt=None,
            resolution=str(job.input.get("resolution") or "1080P"),
            aspect=16 / 9,
            seconds=int(job.input.get("duration") or 5),
            seed=0,
            media=media,
            clip_seconds=clip_s if "first_clip" in media else None,
            output_fps=self.settings.frame_rate,
            hd_route=None if self.settings.hd_route == "profile" else self.settings.hd_route,
        )

    def _model(self, name: str) -> tuple[Profile, dict[str, Any]]:
        if name not in self.known:
            profile = load_served(name, self.settings.configs)
            self.known[name] = profile, self._configs(profile)
        return self.known[name]

    def _configs(self, profile: Profile) -> dict[str, Any]:
        """Of transformer and autoencoder; empty for weights that name no architecture and are not there yet."""
        if profile.architecture is not None:
            return dict(bundled_configs(profile, self.settings.configs))
        folder = checkpoint_folder(profile, self.settings.weights, self.settings.configs)
        paths = {part: folder / part / "config.json" for part in ("transformer", "vae")}
        if not all(path.is_file() for path in paths.values()):
            return {}
        return {part: json.loads(path.read_text(encoding="utf-8")) for part, path in paths.items()}


class Estimator:
    """Seconds per unit of work: the median over finished jobs of the same model, renewed every ten seconds."""

    def __init__(
        self, finished: Callable[[], list[tuple[Job, float]]], work: Work, clock: Callable[[], float] = time.time
    ) -> None:
        self.finished = finished
        self.work = work
        self.clock = clock
        self.read_at = float("-inf")
        self.rates: dict[str, float] = {}

    def rate(self, model: str, device: str | None = None) -> float | None:
        """Seconds per unit of work of a model; before its first job finished that of its device, if that is known."""
        if self.clock() - self.read_at > REFRESH_S:
            self.read_at = self.clock()
            self.rates = self._measured()
        supposed = SPEEDS.get(device or "")
        return self.rates.get(model) or (1 / supposed if supposed else None)

    def run(self, job: Job, device: str | None = None) -> float | None:
        """Seconds that a worker needs for the job."""
        rate, work = self.rate(job.model, device), self.work(job)
        return None if rate is None or work is None else rate * work

    def wait(self, job: Job, ahead: int, devices: Sequence[str]) -> float | None:
        """Seconds until the job's result with `ahead` jobs of about its size before it.

        `devices` has one for each worker, as "cuda" or "cpu"; before the first one is ready only measured speeds count.
        """
        own = self.run(job, min(devices, key=lambda device: SPEEDS.get(device, 0.0), default=None))
        return None if own is None else own * (ahead / max(1, len(devices)) + 1)

    def _measured(self) -> dict[str, float]:
        by_model: dict[str, list[float]] = {}
        for job, seconds in self.finished():
            if work := self.work(job):
                by_model.setdefault(job.model, []).append(seconds / work)
        return {model: median(rates) for model, rates in by_model.items()}


def _counted(plan: RenderPlan, configs: dict[str, Any], text_len: int) -> float:
    """The operations of the model; of one whose configs are not there, nothing."""
    if not configs:
        return 0.0
    effort = plan_effort(plan, configs["transformer"], configs["vae"], text_len)
    return effort.denoise + AUTOENCODER_COST * effort.autoencoder
