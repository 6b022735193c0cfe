"""The stages of a job on real files: what a clip, an image or nothing at all becomes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from media_samples import make_clip, make_image, psnr, read_audio, read_video
from queue_fixtures import make_job, make_settings
from tiny_checkpoint import CONCAT
from wan_pipelines.errors import PlacementError
from wan_pipelines.renderer import Renderer
from wan_server.errors import InvalidInput
from wan_server.files import FileStore
from wan_server.job import Job
from wan_server.output import Ingredients
from wan_server.progress import Pace, Reporter
from wan_server.renderers import Renderers
from wan_server.stages import Stages

pytest_plugins = ("pipeline_fixtures",)
PLAIN = {"prompt": "a sea", "requested": False, "applied": False, "model": None, "note": None}


@pytest.fixture
def stages(tiny, tmp_path) -> Stages:
    model = tiny(CONCAT)
    settings = make_settings(tmp_path / "data")
    settings.data_dir.mkdir()
    renderer = Renderer(model.profile, model.checkpoint, torch.device("cpu"))
    return Stages(settings, FileStore(settings), Renderers({"tiny": renderer}))


@pytest.fixture
def submit(stages) -> Callable[..., Job]:
    """A job on these files, by role."""

    def make(duration: int, **media: Path) -> Job:
        files = {
            role: stages.files.ingest(path, filename=path.name, content_type=None).id for role, path in media.items()
        }
        wish = {"prompt": "a sea", "resolution": "720P", "duration": duration}
        return make_job(input=wish, files=files, seed=3)

    return make


def report(phase: str) -> Reporter:
    return Reporter(phase, lambda event: None, lambda: None, Pace())


def planned(stages: Stages, job: Job) -> Any:
    prepared = stages.prepare(job, report("prepare"))
    return prepared, stages.plan(job, prepared, PLAIN)


def test_a_clip_decides_length_and_shape(stages, submit, tmp_path):
    tall = make_clip(tmp_path / "a.mp4", (448, 256), 2.5, 10, rotation=90)
    _, plan = planned(stages, submit(4, first_clip=tall))
    assert (plan.width, plan.height) == (726, 1270)
    assert (plan.frames, plan.clip_frames, plan.prefix_frames, plan.sample_frames) == (64, 40, 17, 41)


def test_a_clip_as_long_as_the_video_is_refused_with_the_numbers(stages, submit, tmp_path):
    job = submit(3, first_clip=make_clip(tmp_path / "a.mp4", (320, 240), 3.0, 10))
    with pytest.raises(InvalidInput, match=r"input\.duration: .* \(got 3 s and a clip of 3 s\)"):
        stages.prepare(job, report("prepare"))


def test_a_job_that_memory_has_no_room_for_ends_before_its_prompt_is_extended(stages, submit, monkeypatch):
    def refuse(*_: object) -> None:
        raise PlacementError("not enough memory for 1280x720: free are 1.0 GB on the device")

    monkeypatch.setattr(Renderer, "place", refuse)
    with pytest.raises(PlacementError, match=r"free are 1\.0 GB"):
        stages.prepare(submit(2), report("prepare"))


def test_no_media_is_a_video_from_text_in_widescreen(stages, submit):
    _, plan = planned(stages, submit(2))
    assert (plan.width, plan.height, plan.clip_frames) == (1280, 720, 0)


def test_the_prompt_of_a_clip_is_extended_without_a_picture(stages, submit, tmp_path):
    job = submit(4, first_clip=make_clip(tmp_path / "a.mp4", (320, 240), 2.0, 10))
    prepared = stages.prepare(job, report("prepare"))
    assert stages.prompt(job, prepared, report("prompt"))["prompt"] == "a sea"


@pytest.mark.parametrize("with_sound", [True, False])
def test_from_a_clip_to_a_video_that_begins_with_it(stages, submit, tmp_path, with_sound):
    clip = make_clip(tmp_path / "a.mov", (320, 240), 2.0, 10, audio=with_sound)
    job = submit(3, first_clip=clip, last_frame=make_image(tmp_path / "last.jpg", (640, 480)))
    prepared, plan = planned(stages, job)
    encoded = stages.encode(job, plan, prepared, report("encode"))
    stages.denoise(job, plan, report("denoise"))
    decoded = stages.decode(job, plan, prepared, report("decode"))
    with stages.files.local(decoded["file"]) as video:
        frames = read_video(video)
        heard = read_audio(video)[0] if with_sound else None
    assert frames.shape == (48, 832, 1104, 3)
    small = [frame[::4, ::4] for frame in frames]
    own = read_video(clip)
    assert min(psnr(small[k], _nearest(own[k * 10 // 16], small[k].shape)) for k in (0, 8, 16, 31)) > 22
    assert heard is None or abs(heard[:, : 48_000 * 2]).max() > 0.3 > 0.01 > abs(heard[:, 48_000 * 2 + 4800 :]).max()
    made = Ingredients(plan.to_json(), prepared, PLAIN, encoded, decoded["file"], decoded["facts"])
    (meta,) = stages.publish(job, made)["output_meta"]["outputs"]
    facts = {name: meta["extra"][name] for name in ("task_type", "clip_frames", "prefix_frames", "has_audio")}
    assert facts == {"task_type": "continuation", "clip_frames": 32, "prefix_frames": 17, "has_audio": with_sound}


def _nearest(picture, shape):
    """The picture at another size, by its nearest pixels."""
    rows = torch.linspace(0, picture.shape[0] - 1, shape[0]).round().long().numpy()
    columns = torch.linspace(0, picture.shape[1] - 1, shape[1]).round().long().numpy()
    return picture[rows][:, columns]
