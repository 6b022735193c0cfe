"""VACE: what is kept, what is to be made, and how the model hears of it; held against diffusers' own functions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.wan.pipeline_wan_vace import WanVACEPipeline
from safetensors.torch import load_file

from callbacks import nothing
from media_samples import make_clip
from tiny_checkpoint import VACE, noise_image, small_plan
from wan_pipelines.conditioning import Conditioning
from wan_pipelines.denoise import Guidance, denoise
from wan_pipelines.framing import condition_image
from wan_pipelines.pixels import load_image
from wan_pipelines.renderer import Media, Renderer
from wan_pipelines.samplers import make_sampler
from wan_pipelines.vace import MASK_CHANNELS, mask_channels, prepare_vace, unknown_frames
from wan_pipelines.vae import encode_frames

pytest_plugins = ("pipeline_fixtures",)
CPU = torch.device("cpu")
TEXT = torch.zeros(1, 8, 4)


@pytest.fixture
def renderer(tiny) -> Renderer:
    model = tiny(VACE)
    return Renderer(model.profile, model.checkpoint, CPU)


@pytest.fixture
def media(tmp_path) -> Media:
    for index, name in enumerate(("first", "last")):
        noise_image(index).save(tmp_path / f"{name}.png")
    clip = make_clip(tmp_path / "clip.mp4", (64, 64), 0.5, 16)
    return Media(tmp_path / "first.png", tmp_path / "last.png", clip)


def context(renderer: Renderer, media: Media, folder: Path, **changes) -> torch.Tensor:
    plan = small_plan(renderer.profile, **changes)
    renderer.encode(plan, media, folder / "c", nothing)
    tensors = load_file(folder / "c")
    assert set(tensors) == {"prompt", "negative", "vace"}
    return tensors["vace"]


@pytest.mark.parametrize("with_last", [False, True])
@pytest.mark.parametrize("known", [0, 1, 5, 17])
@pytest.mark.parametrize("frames", [21, 81])
def test_mask_is_that_of_diffusers(tiny, frames, known, with_last):
    """Its pipeline needs only two numbers of its parts to make a mask."""
    checkpoint = tiny(VACE).checkpoint
    pipeline = WanVACEPipeline(None, None, checkpoint.vae, None, checkpoint.experts.high)  # pyright: ignore
    unknown = unknown_frames(frames, known, with_last)
    pixels = unknown[None, None, :, None, None].expand(1, 3, frames, 64, 96)
    theirs = pipeline.prepare_masks(pixels, [[]])  # pyright: ignore[reportArgumentType]
    ours = mask_channels(unknown, torch.Size((1, 16, (frames - 1) // 4 + 1, 8, 12)))
    assert ours.shape == (1, MASK_CHANNELS, (frames - 1) // 4 + 1, 8, 12)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("known", "with_last", "made"),
    [
        (0, False, [1] * 21),
        (1, True, [1] * 21),  # the frames in the middle of the first and the last share are unknown
        (5, False, [0] + [1] * 20),
        (17, False, [0] * 4 + [1] * 17),
    ],
)
def test_which_latent_frames_are_marked_as_known(known, with_last, made):
    latents = torch.zeros(1, 16, 21, 2, 2)
    conditioning = prepare_vace(TEXT, None, latents, latents, prefix_frames=known, with_last=with_last)
    assert conditioning.vace is not None
    assert conditioning.vace.shape == (1, 96, 21, 2, 2)
    assert conditioning.vace[0, 32:].flatten(2).std(dim=2).max() == 0
    assert conditioning.vace[0, -1, :, 0, 0].tolist() == made


@torch.no_grad()
def test_known_frames_are_in_the_inactive_half_and_the_rest_is_grey(renderer, media, tmp_path):
    vae = renderer.checkpoint.vae
    found = context(renderer, Media(media.first_frame, media.last_frame), tmp_path)
    video = torch.zeros(1, 3, 9, 64, 64)  # 127.5 of 255
    grey = encode_frames(vae, [video[:, :, :1], *video[:, :, 1:].split(4, dim=2)])
    plan = small_plan(renderer.profile)
    video[0, :, 0] = condition_image(load_image(tmp_path / "first.png"), plan)
    video[0, :, 8] = condition_image(load_image(tmp_path / "last.png"), plan)
    shown = encode_frames(vae, [video[:, :, :1], *video[:, :, 1:].split(4, dim=2)])
    assert torch.equal(found[:, :16], shown)
    assert torch.equal(found[:, 16:32], grey)
    assert (shown - grey).abs().max() > 0.1


def test_text_alone_is_grey_in_both_halves_and_all_to_be_made(renderer, tmp_path):
    found = context(renderer, Media(), tmp_path)
    assert torch.equal(found[:, :16], found[:, 16:32])
    assert found[:, 32:].eq(1).all()


def test_a_last_frame_needs_no_first_one(renderer, media, tmp_path):
    alone = context(renderer, Media(last_frame=media.last_frame), tmp_path)
    neither = context(renderer, Media(), tmp_path)
    assert torch.equal(alone[:, :, :2], neither[:, :, :2])
    assert not torch.equal(alone[:, :16, 2], neither[:, :16, 2])


def test_the_end_of_a_clip_is_kept(renderer, media, tmp_path):
    of_clip = {"frames": 12, "clip_frames": 8, "prefix_frames": 5, "sample_frames": 9}
    found = context(renderer, Media(first_clip=media.first_clip), tmp_path, **of_clip)
    assert found[0, -1, :, 0, 0].tolist() == [0, 0, 1]


def test_the_grey_half_costs_as_little_as_a_grey_video(renderer, media, tmp_path):
    calls: list[int] = []
    hook = renderer.checkpoint.vae.encoder.conv_in.register_forward_hook(lambda *_: calls.append(1))
    context(renderer, Media(media.first_frame), tmp_path, frames=65, sample_frames=65)
    hook.remove()
    assert len(calls) < 17 + 5


@torch.no_grad()
def test_the_scale_says_how_much_the_context_counts(tiny, renderer, media, tmp_path):
    plan = small_plan(renderer.profile)
    renderer.encode(plan, Media(media.first_frame), tmp_path / "c", nothing)
    given = Conditioning(**load_file(tmp_path / "c"))
    experts = tiny(VACE).checkpoint.experts
    noise = torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert given.vace is not None
    other = replace(given, vace=given.vace.flip(3))

    def run(conditioning: Conditioning) -> torch.Tensor:
        return denoise(experts, noise, conditioning, make_sampler("euler", plan.sigmas), Guidance(1, 1), nothing)

    scales = [torch.full((2,), scale) for scale in (0.0, 0.5, 1.0)]
    none, half, whole = (run(replace(given, vace_scale=scale)) for scale in scales)
    assert torch.equal(whole, run(given))
    assert (whole - half).abs().max() > 1e-2
    assert torch.equal(none, run(replace(other, vace_scale=scales[0])))
    assert (whole - run(other)).abs().max() > 1e-2
