"""Segments as stages of a job: their files in the store, a failure in one of them, and what is published."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from media_samples import make_image
from queue_fixtures import make_job, make_settings, open_queue
from test_stages import PLAIN, report
from tiny_checkpoint import CONCAT
from wan_pipelines.plan import RenderPlan
from wan_pipelines.renderer import Renderer
from wan_server.files import FileStore
from wan_server.job import Event, Job
from wan_server.output import Ingredients
from wan_server.progress import Pace, Reporter
from wan_server.renderers import Renderers
from wan_server.stages import CONDITIONING, LATENTS, Stages
from wan_server.workflow import JobFailed, JobRunner, shares

pytest_plugins = ("pipeline_fixtures",)


class Alone(JobRunner):
    """Runs stages outside the queue: nobody reads the progress, nobody cancels."""

    def _write(self, event: Event) -> None:
        pass

    def _check(self, job: Job) -> None:
        pass


class NoDesk:
    name = "nobody"

    def take(self, job_id: str) -> None: ...
    def release(self, job_id: str) -> None: ...
    def is_stopping(self) -> bool:
        return False


@pytest.fixture
def stages(tiny, tmp_path) -> Stages:
    model = tiny(CONCAT)
    settings = make_settings(tmp_path / "data")
    settings.data_dir.mkdir()
    profile = replace(model.profile, chaining="prefix", native_frames=29, steps=2)
    renderer = Renderer(profile, model.checkpoint, torch.device("cpu"))
    return Stages(settings, FileStore(settings), Renderers({"tiny": renderer}))


@pytest.fixture
def runner(stages) -> Iterator[JobRunner]:
    with open_queue(stages.settings) as queue:
        yield Alone(stages.settings, stages, queue, NoDesk(), Pace())


@pytest.fixture
def job(stages, tmp_path) -> Job:
    picture = make_image(tmp_path / "a.png", (640, 360), "PNG")
    file_id = stages.files.ingest(picture, filename="a.png", content_type=None).id
    wish = {"prompt": "a sea", "resolution": "720P", "duration": 2}
    return make_job(input=wish, files={"first_frame": file_id}, seed=3)


@pytest.fixture
def begun(stages, job) -> tuple[RenderPlan, dict[str, Any], dict[str, Any]]:
    """The plan of two segments, what was prepared, and what was encoded for the first."""
    prepared = stages.prepare(job, report("prepare"))
    plan = stages.plan(job, prepared, PLAIN)
    assert len(plan.segments) == 2
    encoded = stages.encode(job, plan.parts[0], prepared, report("encode"))
    return plan, prepared, encoded


def stored(stages: Stages, job: Job, name: str, folder: Path) -> bytes | None:
    return (folder / name).read_bytes() if stages.files.scratch_get(job.id, name, folder / name) else None


def test_from_segments_to_a_published_video(stages, job, begun):
    plan, prepared, encoded = begun
    seams = []
    for part in plan.parts:
        if part.number:
            seams.append(stages.go_on(job, part, prepared, report("denoise")))
        stages.denoise(job, part, report("denoise"))
    decoded = stages.decode(job, plan, prepared, report("decode"))
    assert decoded["facts"]["frames"] == 32
    made = Ingredients(plan.to_json(), prepared, PLAIN, encoded, decoded["file"], decoded["facts"] | {"seams": seams})
    extra = stages.publish(job, made)["output_meta"]["outputs"][0]["extra"]
    assert [segment["frames"] for segment in extra["segments"]] == [[0, 21], [21, 32]]
    assert set(extra["segments"][1]["colour"]) == {"gain", "offset"}
    assert "colour" not in extra["segments"][0]


def test_a_segment_that_fails_is_tried_again_alone(runner, stages, job, begun, tmp_path):
    plan, prepared, _ = begun
    (first, whole), (second, half) = shares(plan)
    assert (whole.number, half.number, half.ends) == (0, 1, 1.0)
    stages.denoise(job, first, report("denoise"))
    before = stored(stages, job, LATENTS, tmp_path)
    calls: list[int] = []

    def work(reporter: Reporter) -> dict[str, Any]:
        calls.append(1)
        told = stages.go_on(job, second, prepared, reporter)
        if len(calls) == 1:
            raise RuntimeError("the device was busy")
        stages.denoise(job, second, reporter)
        return told

    told = runner._guarded(job, "denoise", work, half, tries=2)
    assert len(calls) == 2
    assert told["colour"]["gain"]
    assert stored(stages, job, LATENTS, tmp_path) == before
    assert stored(stages, job, f"1-{LATENTS}", tmp_path) is not None
    assert stages.decode(job, plan, prepared, report("decode"))["facts"]["frames"] == 32


def test_a_segment_that_goes_on_failing_is_the_end(runner, job, begun):
    plan, _, _ = begun
    calls: list[int] = []

    def work(_: Reporter) -> None:
        calls.append(1)
        raise RuntimeError("the device was busy")

    with pytest.raises(JobFailed, match="internal error in the denoise stage: RuntimeError: the device was busy"):
        runner._guarded(job, "denoise", work, shares(plan)[1][1], tries=2)
    assert len(calls) == 2


def test_what_a_segment_was_told_is_not_made_twice(stages, job, begun, tmp_path):
    plan, prepared, _ = begun
    stages.denoise(job, plan.parts[0], report("denoise"))
    first = stages.go_on(job, plan.parts[1], prepared, report("denoise"))
    made = stored(stages, job, f"1-{CONDITIONING}", tmp_path)
    stages.files.scratch_put(job.id, LATENTS, make_image(tmp_path / "b.png", (64, 64), "PNG"))  # would be refused
    assert stages.go_on(job, plan.parts[1], prepared, report("denoise")) == first
    assert stored(stages, job, f"1-{CONDITIONING}", tmp_path) == made
