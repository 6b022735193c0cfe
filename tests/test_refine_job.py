"""A job in two passes as the worker runs it: every stage once, progress that only rises, and what is told of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from dbos import DBOS

from media_samples import make_image
from queue_fixtures import make_job, make_settings
from tiny_checkpoint import TWO_EXPERTS, small_plan
from wan_pipelines.hd import Refine
from wan_pipelines.noise_levels import flow_sigmas, unshifted
from wan_pipelines.renderer import Renderer
from wan_server.files import FileStore
from wan_server.job import Event, Job
from wan_server.output_schema import AppOutput
from wan_server.progress import Pace
from wan_server.renderers import Renderers
from wan_server.stages import Stages
from wan_server.workflow import JobRunner

pytest_plugins = ("pipeline_fixtures",)


@dataclass(slots=True)
class Idle:
    """A desk and a queue for one job that nobody cancels."""

    name: str = "here"

    def is_stopping(self) -> bool:
        return False

    def is_running_on(self, job_id: str, worker: str) -> bool:
        return True


@pytest.fixture
def stages(tiny, tmp_path) -> Stages:
    model = tiny(TWO_EXPERTS)
    settings = make_settings(tmp_path / "data")
    settings.data_dir.mkdir()
    renderer = Renderer(model.profile, model.checkpoint, torch.device("cpu"))
    return Stages(settings, FileStore(settings), Renderers({"tiny": renderer}))


def run(stages: Stages, job: Job, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], list[str], list[Event]]:
    """The output, the steps and the lines of a job. Its steps run here, without a database."""
    steps: list[str] = []
    lines: list[Event] = []

    def run_step(options: Any, work: Any) -> Any:
        steps.append(options["name"])
        return work()

    monkeypatch.setattr(DBOS, "run_step", run_step)
    monkeypatch.setattr(DBOS, "write_stream", lambda _, event: lines.append(Event.from_json(event)))
    idle: Any = Idle()
    return JobRunner(stages.settings, stages, idle, idle, Pace())._stages(job), steps, lines


def test_both_passes_are_steps_of_the_job(stages, tmp_path, monkeypatch):
    file = stages.files.ingest(make_image(tmp_path / "a.png", (320, 300), "PNG"), filename="a.png", content_type=None)
    job = make_job(
        input={"prompt": "", "resolution": "1080P", "duration": 1, "prompt_extend": False},
        files={"first_frame": file.id},
    )
    spec = Refine(64, 64, flow_sigmas("unipc", 3, 5.0, unshifted(0.625, 5.0)))
    size = {"width": 96, "height": 90, "sample_width": 96, "sample_height": 96}
    plan = small_plan(stages.renderers.profile("tiny"), **size, frames=5, sample_frames=5, refine=spec)
    monkeypatch.setattr(Stages, "plan", lambda *_: plan)
    output, steps, lines = run(stages, job, monkeypatch)
    assert steps == ["prepare", "prompt", "plan", "encode", "denoise", "denoise", "decode", "publish"]
    progress = [line.progress for line in lines]
    assert progress == sorted(progress)
    texts = [line.text.partition(",")[0] for line in lines if line.phase == "denoise"]
    ends = (f"denoising: 1 of {plan.steps}", f"denoising: {plan.steps} of {plan.steps}")
    assert [text for text in texts if text in (*ends, "refining: 1 of 3", "refining: 3 of 3")] == [
        *ends,
        "refining: 1 of 3",
        "refining: 3 of 3",
    ]
    AppOutput.model_validate(output)
    (video,) = output["output_meta"]["outputs"]
    assert (video["width"], video["height"]) == (96, 90)
    told = {name: video["extra"][name] for name in ("route", "refined_from", "refine_strength", "refine_steps")}
    assert told == {"route": "refine", "refined_from": "64x64", "refine_strength": 0.625, "refine_steps": 3}
    assert (video["extra"]["sampled_width"], video["extra"]["sampled_height"]) == (96, 96)
    assert not stages.files.scratch_get(job.id, "begun.safetensors", tmp_path / "gone")
