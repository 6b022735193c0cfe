"""From media to conditioning, family by family: text alone, and known frames whose tokens stay at timestep 0."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from callbacks import nothing
from media_samples import make_clip
from tiny_checkpoint import TEXT, TI2V, VACE, noise_image, small_plan
from wan_pipelines.clip import shown_frames, upright
from wan_pipelines.conditioning import Conditioning
from wan_pipelines.errors import PlanError
from wan_pipelines.framing import condition_image
from wan_pipelines.renderer import Media, Renderer
from wan_pipelines.vae import encode_frames

pytest_plugins = ("pipeline_fixtures",)
CPU = torch.device("cpu")
OF_CLIP = {"frames": 12, "clip_frames": 8, "prefix_frames": 5, "sample_frames": 9}


@pytest.fixture
def clip(tmp_path) -> Path:
    return make_clip(tmp_path / "clip.mp4", (64, 64), 0.5, 16)


@pytest.fixture
def continues(tiny) -> Renderer:
    """Per-token timesteps with the end of a clip."""
    model = tiny(TI2V)
    return Renderer(replace(model.profile, inputs=("first_frame", "first_clip")), model.checkpoint, CPU)


@pytest.mark.parametrize("spec", [TEXT, VACE])
def test_from_text_to_video(tiny, tmp_path, spec):
    model = tiny(spec)
    renderer = Renderer(model.profile, model.checkpoint, CPU)
    plan = small_plan(renderer.profile)
    renderer.encode(plan, Media(), tmp_path / "c", nothing)
    assert set(load_file(tmp_path / "c")) - {"vace"} == {"prompt", "negative"}
    renderer.denoise(plan, tmp_path / "c", tmp_path / "l", nothing)
    assert renderer.decode(plan, tmp_path / "l", tmp_path / "out.mp4", None, nothing).frames == 9


def test_a_text_model_takes_no_picture(tiny, tmp_path):
    model = tiny(TEXT)
    noise_image(0).save(tmp_path / "i.png")
    renderer = Renderer(model.profile, model.checkpoint, CPU)
    with pytest.raises(PlanError, match=r"input\.first_frame: model wan2\.1-t2v-1\.3b does not take it"):
        renderer.encode(small_plan(model.profile), Media(tmp_path / "i.png"), tmp_path / "c", nothing)
    assert not (tmp_path / "c").exists()


@torch.no_grad()
def test_known_frames_of_a_clip_are_clean_latents(continues, clip, tmp_path):
    plan = small_plan(continues.profile, **OF_CLIP)
    continues.encode(plan, Media(first_clip=clip), tmp_path / "c", nothing)
    shown = [condition_image(upright(frame), plan) for frame in shown_frames(clip, plan.fps, 8)][3:]
    video = torch.stack(shown, dim=1)[None]
    clean = encode_frames(continues.checkpoint.vae, [video[:, :, :1], video[:, :, 1:]])
    found = load_file(tmp_path / "c")
    assert found["clean"].shape == (1, 16, 2, 4, 4)
    assert torch.equal(found["clean"], clean)
    timesteps = Conditioning(**found).timesteps(500.0, torch.zeros(1, 16, 3, 4, 4), (1, 2, 2))
    assert timesteps.tolist() == [[0.0] * 8 + [500.0] * 4]


def test_known_frames_of_a_clip_stay_and_the_video_goes_on(continues, clip, tmp_path):
    plan = small_plan(continues.profile, **OF_CLIP)
    continues.encode(plan, Media(first_clip=clip), tmp_path / "c", nothing)
    continues.denoise(plan, tmp_path / "c", tmp_path / "l", nothing)
    latents, clean = load_file(tmp_path / "l")["latents"], load_file(tmp_path / "c")["clean"]
    assert torch.equal(latents[:, :, :2], clean)
    assert not torch.equal(latents[:, :, 2:], torch.zeros_like(latents[:, :, 2:]))
    assert continues.decode(plan, tmp_path / "l", tmp_path / "out.mp4", None, nothing, clip).frames == 12


@pytest.mark.parametrize("count", [1, 3, 10, 12])
def test_vace_stops_at_any_beat_and_leaves_nothing(tiny, tmp_path, count):
    model = tiny(VACE)
    noise_image(0).save(tmp_path / "i.png")
    calls: list[int] = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == count:
            raise KeyboardInterrupt

    renderer = Renderer(model.profile, model.checkpoint, CPU)
    plan = small_plan(model.profile, frames=33, sample_frames=33)
    with pytest.raises(KeyboardInterrupt):
        renderer.encode(plan, Media(tmp_path / "i.png"), tmp_path / "c", stop)
    assert [path.name for path in tmp_path.iterdir()] == ["i.png"]
