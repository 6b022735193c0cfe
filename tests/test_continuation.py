"""Going on from a clip: what the model is told of it, and how its own frames and the new ones are joined."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from callbacks import StopError, nothing, stop_at
from media_samples import make_clip, psnr, read_audio, read_video
from tiny_checkpoint import CONCAT, TI2V, noise_image, small_plan
from wan_pipelines.clip import shown_frames, upright
from wan_pipelines.conditioning import prepare_concat
from wan_pipelines.errors import PlanError, RenderError
from wan_pipelines.framing import condition_image
from wan_pipelines.handover import handed_over
from wan_pipelines.pixels import cover_crop, load_image
from wan_pipelines.plan import RenderPlan
from wan_pipelines.renderer import Media, Renderer
from wan_pipelines.tensorfile import load_tensors
from wan_pipelines.vae import encode_frames, stream_decode

pytest_plugins = ("pipeline_fixtures",)
CPU = torch.device("cpu")


@pytest.fixture
def renderer(tiny) -> Renderer:
    model = tiny(CONCAT)
    return Renderer(model.profile, model.checkpoint, CPU)


@pytest.fixture
def plan(renderer) -> RenderPlan:
    """20 frames of the clip and four new ones; the model sees the last 17 of the clip."""
    return small_plan(renderer.profile, frames=24, clip_frames=20, prefix_frames=17, sample_frames=21)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """1.25 s at 24 fps, so that 16 fps shows some frames and leaves out others; with sound."""
    return make_clip(tmp_path_factory.mktemp("clip") / "a.mp4", (96, 96), 1.25, 24, audio=True)


@pytest.fixture
def work(tmp_path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def pictures(clip: Path, plan: RenderPlan) -> list:
    return [upright(frame) for frame in shown_frames(clip, plan.fps, plan.clip_frames)]


@pytest.mark.parametrize("with_last", [False, True])
@torch.no_grad()
def test_the_end_of_the_clip_is_known_and_the_rest_is_grey(renderer, plan, clip, work, with_last):
    noise_image(1).save(work / "last.png")
    renderer.encode(plan, Media(None, work / "last.png" if with_last else None, clip), work / "c", nothing)
    video = torch.zeros(1, 3, 21, 64, 64)
    video[0, :, :17] = torch.stack([condition_image(p, plan) for p in pictures(clip, plan)[3:]], dim=1)
    if with_last:
        video[0, :, 20] = condition_image(load_image(work / "last.png"), plan)
    first, *rest = video[:, :, :1], *video[:, :, 1:].split(4, dim=2)
    latents = encode_frames(renderer.checkpoint.vae, [first, *rest], skip_settled=False)
    concat = load_file(work / "c")["concat"]
    assert torch.equal(concat[:, 4:], latents)
    rows = concat[0, :4, :, 0, 0].T.tolist()
    assert rows == [[1, 1, 1, 1]] * 5 + [[0, 0, 0, 1 if with_last else 0]]


def test_one_frame_of_a_clip_is_a_first_frame_to_the_last_bit(renderer, plan, clip, work):
    pictures(clip, plan)[-1].save(work / "first.png")
    one = replace(plan, prefix_frames=1, sample_frames=5)
    renderer.encode(one, Media(first_clip=clip), work / "clip", nothing)
    as_image = replace(plan, clip_frames=0, prefix_frames=0, frames=5, sample_frames=5)
    renderer.encode(as_image, Media(work / "first.png"), work / "image", nothing)
    ours, theirs = load_file(work / "clip"), load_file(work / "image")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_conditioning_of_one_frame_is_one_known_row_of_four():
    conditioning = prepare_concat(
        torch.zeros(1, 8, 4), None, torch.ones(1, 6, 2, 2, 2), prefix_frames=1, with_last=True
    )
    assert conditioning.concat is not None
    assert conditioning.concat[0, :4, :, 0, 0].T.tolist() == [[1, 1, 1, 1], [0, 0, 0, 1]]


def test_the_clip_comes_first_and_the_sample_goes_on_behind_its_prefix(renderer, plan, clip, work):
    renderer.encode(plan, Media(first_clip=clip), work / "c", nothing)
    renderer.denoise(plan, work / "c", work / "l", nothing)
    seen: list[tuple[int, int]] = []
    out = work / "out.mp4"
    facts = renderer.decode(plan, work / "l", out, clip, lambda *args: seen.append(args), clip)
    assert (facts.frames, facts.has_audio) == (24, True)
    assert seen[-1] == (24, 24)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    own = [cover_crop(picture, 64, 64) for picture in pictures(clip, plan)]
    with torch.inference_mode():
        sampled = torch.cat(list(stream_decode(renderer.checkpoint.vae, load_tensors(work / "l", CPU)["latents"])))
    expected = torch.stack([*own, *sampled[17:21]])
    for frame, wanted in zip(read_video(out), expected, strict=True):
        assert psnr(frame, (wanted * 255).round().byte().permute(1, 2, 0).numpy()) > 30
    assert psnr(read_video(out)[19], read_video(out)[20]) < 25  # random weights: the seam shows


def test_the_last_picture_of_the_clip_is_handed_over_from_what_the_model_shows_of_it(renderer, plan, clip, work):
    plan = replace(plan, handover_frames=3)
    renderer.encode(plan, Media(first_clip=clip), work / "c", nothing)
    renderer.denoise(plan, work / "c", work / "l", nothing)
    renderer.decode(plan, work / "l", work / "out.mp4", None, nothing, clip)
    own = [cover_crop(picture, 64, 64)[None] for picture in pictures(clip, plan)]
    with torch.inference_mode():
        sampled = torch.cat(list(stream_decode(renderer.checkpoint.vae, load_tensors(work / "l", CPU)["latents"])))
        expected = torch.cat(list(handed_over(iter(own), iter([sampled[16:21]]), 3)))
    shown = read_video(work / "out.mp4")
    assert len(shown) == len(expected) == 24
    for frame, wanted in zip(shown, expected, strict=True):
        assert psnr(frame, (wanted * 255).round().byte().permute(1, 2, 0).numpy()) > 30


def test_the_clip_is_heard_and_then_nothing(renderer, plan, clip, work):
    renderer.encode(plan, Media(first_clip=clip), work / "c", nothing)
    renderer.denoise(plan, work / "c", work / "l", nothing)
    facts = renderer.decode(plan, work / "l", work / "out.mp4", clip, nothing, clip)
    assert facts.audio_seconds == pytest.approx(1.25, abs=0.05)
    samples, rate = read_audio(work / "out.mp4")
    assert np.abs(samples[:, :rate]).max() > 0.3
    assert np.abs(samples[:, int(1.35 * rate) :]).max() < 0.01
    loud = np.flatnonzero(np.abs(samples[0]) > 0.1) / rate  # half a frame is 0.031 s
    assert loud[0] < 0.02
    assert loud[-1] == pytest.approx(1.25, abs=0.03)
    assert samples.shape[1] / rate == pytest.approx(1.5, abs=0.05)


@pytest.mark.parametrize("media", [{}, {"first_frame": True}])
def test_a_plan_with_a_clip_needs_the_clip(renderer, plan, clip, work, media):
    noise_image(0).save(work / "i.png")
    given = Media(work / "i.png") if media else Media()
    with pytest.raises(RenderError, match="the plan counts 20 frames of first_clip, which is not what came with it"):
        renderer.encode(plan, given, work / "c", nothing)
    assert not (work / "c").exists()


def test_a_plan_without_a_clip_takes_none(renderer, plan, clip, work):
    with pytest.raises(RenderError, match="the plan counts 0 frames of first_clip"):
        renderer.encode(replace(plan, clip_frames=0), Media(first_clip=clip), work / "c", nothing)
    renderer.encode(plan, Media(first_clip=clip), work / "c", nothing)
    renderer.denoise(plan, work / "c", work / "l", nothing)
    with pytest.raises(RenderError, match="the plan counts 20 frames"):
        renderer.decode(plan, work / "l", work / "out.mp4", None, nothing)


def test_the_family_that_cannot_go_on_from_a_clip_says_so(tiny, clip, work):
    model = tiny(TI2V)
    plan = small_plan(model.profile, clip_frames=4, prefix_frames=1)
    with pytest.raises(PlanError, match=r"input\.first_clip: model tiny-ti2v does not take it"):
        Renderer(model.profile, model.checkpoint, CPU).encode(plan, Media(first_clip=clip), work / "c", nothing)


@pytest.mark.parametrize("at", [1, 10, 20, 23])
@pytest.mark.parametrize("stage", ["encode", "decode"])
def test_work_on_a_clip_stops_anywhere_and_leaves_nothing(renderer, plan, clip, work, stage, at):
    renderer.encode(plan, Media(first_clip=clip), work / "c", nothing)
    renderer.denoise(plan, work / "c", work / "l", nothing)
    stop = stop_at(at)
    stages = {
        "encode": lambda: renderer.encode(plan, Media(first_clip=clip), work / "again", stop),
        "decode": lambda: renderer.decode(plan, work / "l", work / "out.mp4", clip, stop, clip),
    }
    with pytest.raises(StopError):
        stages[stage]()
    assert {path.name for path in work.iterdir()} == {"c", "l"}


def test_a_turned_clip_is_shown_upright(renderer, plan, work):
    turned = make_clip(work / "t.mp4", (96, 64), 1.25, 16, rotation=90)
    tall = replace(plan, width=40, height=60)
    renderer.encode(tall, Media(first_clip=turned), work / "c", nothing)
    renderer.denoise(tall, work / "c", work / "l", nothing)
    renderer.decode(tall, work / "l", work / "out.mp4", None, nothing, turned)
    wanted = cover_crop(pictures(turned, tall)[0], 40, 60)
    assert psnr(read_video(work / "out.mp4")[0], (wanted * 255).byte().permute(1, 2, 0).numpy()) > 28
