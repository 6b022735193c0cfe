"""CLIP states of Wan 2.1: which pictures, how they are squeezed, which layer, and what they change."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from callbacks import nothing
from media_samples import make_clip
from tiny_checkpoint import CONCAT, ONE_PICTURE, S2V, TI2V, TWO_PICTURES, noise_image, small_plan
from wan_pipelines.clip import shown_frames, upright
from wan_pipelines.clip_vision import MEAN, STD, embed_pictures
from wan_pipelines.conditioning import Conditioning
from wan_pipelines.conditions import check_family
from wan_pipelines.denoise import Guidance, denoise
from wan_pipelines.errors import CheckpointError, PlanError, RenderError
from wan_pipelines.framing import condition_image
from wan_pipelines.pixels import load_image
from wan_pipelines.plan import check_media
from wan_pipelines.renderer import Media, Renderer
from wan_pipelines.samplers import make_sampler

pytest_plugins = ("pipeline_fixtures",)
CPU = torch.device("cpu")


def renderer_of(model) -> Renderer:
    return Renderer(model.profile, model.checkpoint, CPU)


def states_of(renderer: Renderer, shown: torch.Tensor) -> torch.Tensor:
    assert renderer.checkpoint.image_encoder is not None
    return embed_pictures(renderer.checkpoint.image_encoder, shown)


def pictures(count: int = 1, width: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, 64, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def media(tmp_path) -> Media:
    for index, name in enumerate(("first", "last")):
        noise_image(index).save(tmp_path / f"{name}.png")
    return Media(tmp_path / "first.png", tmp_path / "last.png")


@torch.no_grad()
def test_the_states_are_those_before_the_last_layer(tiny):
    encoder = tiny(ONE_PICTURE).checkpoint.image_encoder
    shown = pictures(2)
    states = embed_pictures(encoder, shown)
    assert states.shape == (2, 257, 48)
    layers = encoder.encoder.layers
    last: list[torch.Tensor] = []
    hook = layers[-1].register_forward_pre_hook(lambda _, args: last.append(args[0]))
    embed_pictures(encoder, shown)
    hook.remove()
    assert torch.equal(states, last[0])


@torch.no_grad()
def test_colours_are_normalised_as_in_the_training_of_clip(tiny):
    encoder = tiny(ONE_PICTURE).checkpoint.image_encoder
    seen: list[torch.Tensor] = []
    hook = encoder.embeddings.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    embed_pictures(encoder, torch.ones(1, 3, 64, 64))
    hook.remove()
    white = [(1 - mean) / std for mean, std in zip(MEAN, STD, strict=True)]
    assert seen[0][0, :, 5, 5].tolist() == pytest.approx(white)
    assert seen[0].shape == (1, 3, 64, 64)


@torch.no_grad()
def test_the_whole_of_a_wide_picture_is_seen(tiny):
    """CLIP's own preprocessor would cut 32 columns off either side."""
    encoder = tiny(ONE_PICTURE).checkpoint.image_encoder
    wide = pictures(width=128)
    other = wide.clone()
    other[..., :8] *= -1
    assert (embed_pictures(encoder, wide) - embed_pictures(encoder, other)).abs().max() > 0.1


@torch.no_grad()
def test_one_picture_for_image_to_video(tiny, media, tmp_path):
    renderer = renderer_of(tiny(ONE_PICTURE))
    plan = small_plan(renderer.profile)
    renderer.encode(plan, Media(media.first_frame), tmp_path / "c", nothing)
    found = load_file(tmp_path / "c")
    assert set(found) == {"prompt", "negative", "concat", "image"}
    shown = condition_image(load_image(tmp_path / "first.png"), plan)[None]
    assert torch.equal(found["image"], states_of(renderer, shown))


@torch.no_grad()
def test_two_pictures_in_their_order_for_first_and_last_frame(tiny, media, tmp_path):
    renderer = renderer_of(tiny(TWO_PICTURES))
    plan = small_plan(renderer.profile)
    renderer.encode(plan, media, tmp_path / "c", nothing)
    paths = (tmp_path / "first.png", tmp_path / "last.png")
    shown = torch.stack([condition_image(load_image(path), plan) for path in paths])
    assert torch.equal(load_file(tmp_path / "c")["image"], states_of(renderer, shown))


@torch.no_grad()
def test_only_the_window_that_is_shown_is_seen(tiny, tmp_path):
    renderer = renderer_of(tiny(ONE_PICTURE))
    noise_image(1, 64, 48).save(tmp_path / "i.png")
    plan = small_plan(renderer.profile, height=48)
    renderer.encode(plan, Media(tmp_path / "i.png"), tmp_path / "c", nothing)
    window = condition_image(load_image(tmp_path / "i.png"), plan)[None, :, 8:56]
    assert torch.equal(load_file(tmp_path / "c")["image"], states_of(renderer, window))


@torch.no_grad()
def test_of_a_clip_its_last_frame_is_seen(tiny, tmp_path):
    renderer = renderer_of(tiny(ONE_PICTURE))
    clip = make_clip(tmp_path / "a.mp4", (64, 64), 0.5, 16)
    plan = small_plan(renderer.profile, frames=12, clip_frames=8, prefix_frames=5, sample_frames=9)
    renderer.encode(plan, Media(first_clip=clip), tmp_path / "c", nothing)
    *_, last = shown_frames(clip, plan.fps, plan.clip_frames)
    shown = condition_image(upright(last), plan)[None]
    assert torch.equal(load_file(tmp_path / "c")["image"], states_of(renderer, shown))


@pytest.mark.parametrize("spec", [ONE_PICTURE, TWO_PICTURES])
@torch.no_grad()
def test_other_states_make_another_video(tiny, media, tmp_path, spec):
    """With two pictures, their order does too: each has its own learned positions."""
    renderer = renderer_of(tiny(spec))
    plan = small_plan(renderer.profile)
    renderer.encode(plan, media, tmp_path / "c", nothing)
    given = Conditioning(**load_file(tmp_path / "c"))
    assert given.image is not None
    changed = given.image.flip(0 if spec == TWO_PICTURES else 2)
    noise = torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def run(conditioning: Conditioning) -> torch.Tensor:
        sampler = make_sampler("euler", plan.sigmas)
        return denoise(renderer.checkpoint.experts, noise, conditioning, sampler, Guidance(1, 1), nothing)

    assert (run(given) - run(replace(given, image=changed))).abs().max() > 1e-2


def test_a_missing_picture_is_refused(tiny, media, tmp_path):
    renderer = renderer_of(tiny(TWO_PICTURES))
    plan = small_plan(renderer.profile)
    with pytest.raises(RenderError, match=r"must see 2 pictures \(got 1\)"):
        renderer.encode(plan, Media(media.first_frame), tmp_path / "c", nothing)
    needs = replace(renderer.profile, needs=("last_frame",), text_only=False)
    with pytest.raises(PlanError, match=r"input\.last_frame: model tiny needs it"):
        check_media(needs, ("first_frame",))


@pytest.mark.parametrize(
    ("spec", "changes", "message"),
    [
        (CONCAT, {"clip_pictures": 1}, "model tiny needs an image encoder, which its weights do not have"),
        (ONE_PICTURE, {"text_len": 128}, "text_len must be 512 beside an image encoder"),
        (TI2V, {"inputs": ("first_frame", "last_frame")}, "conditioning expand_timesteps has no place for last_frame"),
        (S2V, {"inputs": ("first_frame", "first_clip", "driving_audio")}, "s2v has no place for first_clip"),
        (S2V, {"motion_frames": 73}, "is told of 9 frames before a clip, the profile says 73"),
    ],
)
def test_a_profile_that_promises_too_much_is_refused(tiny, spec, changes, message):
    model = tiny(spec)
    check_family(model.profile, model.checkpoint)
    with pytest.raises(CheckpointError, match=message):
        check_family(replace(model.profile, **changes), model.checkpoint)
