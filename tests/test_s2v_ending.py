"""A chain of clips that ends on a picture: which frames are steered, how far, and what becomes of the others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from callbacks import StopError, nothing
from test_s2v_render import CPU, short_plan
from test_s2v_speech import write_wave
from tiny_checkpoint import CONCAT, CONFIGS, S2V, small_plan
from wan_pipelines.conditioning import Conditioning
from wan_pipelines.denoise import Experts
from wan_pipelines.errors import PlanError
from wan_pipelines.framing import condition_image
from wan_pipelines.pixels import load_image
from wan_pipelines.plan import RenderPlan
from wan_pipelines.renderer import Media, Renderer
from wan_pipelines.s2v.clips import Chain, ChainSpec, make_chain
from wan_pipelines.s2v.ending import STILL_FRAMES, pulls, steered
from wan_pipelines.s2v.miniature import make_transformer
from wan_pipelines.s2v.speech import RATE
from wan_pipelines.samplers import make_sampler
from wan_pipelines.tiny import TEXT_DIM
from wan_pipelines.vae import stream_decode

pytest_plugins = ("pipeline_fixtures",)
LEVELS = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0, 1.0])


@dataclass(frozen=True, slots=True)
class Pair:
    """One job with a last frame and the same without: what is told, latents, and frames [32, 3, H, W] in [0, 1]."""

    renderer: Renderer
    plan: RenderPlan
    folder: Path
    told: dict[str, Tensor]
    ended: dict[str, Tensor]
    free: dict[str, Tensor]
    ended_frames: Tensor
    free_frames: Tensor


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Media:
    folder = tmp_path_factory.mktemp("media")
    for name, photo in (("first", "cat"), ("last", "astronaut")):
        Image.open(CONFIGS / "samples" / f"{photo}.jpg").resize((64, 64)).save(folder / f"{name}.png")
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, 3 * RATE)
    return Media(folder / "first.png", folder / "last.png", driving_audio=write_wave(folder / "sound.wav", noise))


@pytest.fixture(scope="module")
def pair(tiny, media, tmp_path_factory) -> Pair:
    model, folder = tiny(S2V), tmp_path_factory.mktemp("pair")
    checkpoint = replace(model.checkpoint, **trained_autoencoder())
    renderer = Renderer(model.profile, checkpoint, CPU, checkpoint_every_s=0)
    plan = short_plan(model, sigmas=(1.0, 0.8, 0.5, 0.0))
    for name, given in (("ended", media), ("free", replace(media, last_frame=None))):
        renderer.encode(plan, given, folder / f"{name}.c", nothing)
        renderer.denoise(plan, folder / f"{name}.c", folder / name, nothing)
    told, ended, free = (load_file(folder / name) for name in ("ended.c", "ended", "free"))
    with torch.inference_mode():
        chains = [renderer._chain(chain_of(plan), folder / name) for name in ("ended", "free")]
        frames = [torch.cat(list(chain.frames(made))) for chain, made in zip(chains, (ended, free), strict=True)]
    return Pair(renderer, plan, folder, told, ended, free, *frames)


def trained_autoencoder() -> dict[str, Any]:
    """The embedded checkpoint's, with a random transformer for its latents: random ones do not bring a picture back."""
    vae: Any = AutoencoderKLWan.from_pretrained(CONFIGS / "tiny" / "vae")
    size: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 32, "num_layers": 2, "ffn_dim": 128}
    size |= {"text_dim": TEXT_DIM, "freq_dim": 64, "in_channels": vae.config["z_dim"]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = make_transformer({**size, "out_channels": vae.config["z_dim"]})
    return {"vae": vae.eval(), "experts": Experts(transformer)}


def chain_of(plan: RenderPlan) -> Chain:
    assert plan.clips is not None
    return plan.clips


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * (a - b).square().mean().log10().item()


@pytest.mark.parametrize("seconds", range(1, 16))
def test_the_video_ends_within_the_pinned_latent_frame(seconds):
    chain = make_chain(ChainSpec(), seconds, seed=0)
    last, levels = chain.clips[-1], chain.free_below
    assert len(levels) == last.latent_frames
    end = levels.index(0)
    assert levels[end - 3 : end + 1] == (0.75, 0.5, 0.25, 0)
    assert set(levels[: end - 3] + levels[end + 1 :]) <= {1.0}
    sampled = range(last.begins + 4 * end, last.begins + 4 * end + 4)
    assert 16 * seconds - 1 in sampled
    assert chain.still == range(sampled.start, 16 * seconds)
    assert len(chain.still) == 3  # the first clip begins three frames early, so a whole second ends in a third frame
    assert chain.steered == range(16 * seconds - 15, 16 * seconds)


def test_what_is_steered_fits_in_a_short_last_clip():
    spec = ChainSpec(fps=24, clip_frames=16, least_frames=8, motion_frames=9)
    chain = make_chain(spec, 3, seed=0)  # the first clip shows 17, the others 16; 7 are left
    assert (chain.clips[-1].start, chain.still, chain.steered) == (65, range(69, 72), range(65, 72))
    assert chain.free_below == (0.5, 0.0)


def test_pulls_fall_from_the_end_and_let_go_one_after_the_other():
    assert pulls(LEVELS, 1.0).tolist() == [0, 1, 1, 1, 1, 0]
    assert pulls(LEVELS, 0.75).tolist() == pytest.approx([0, 0, 1, 1, 1, 0])
    assert pulls(LEVELS, 0.4375).tolist() == pytest.approx([0, 0, 0, 0.5, 1, 0])
    assert pulls(LEVELS, 0.2).tolist() == [0, 0, 0, 0, 1, 0]
    for low, high in ((0.1, 0.3), (0.3, 0.6), (0.6, 0.9)):
        assert (pulls(LEVELS, low) <= pulls(LEVELS, high)).all()


def test_the_clean_estimate_moves_as_far_as_it_is_pulled():
    noise = torch.Generator().manual_seed(0)
    latents, velocity = torch.randn(2, 1, 4, 6, 2, 2, generator=noise)
    ending = torch.randn(1, 4, 1, 2, 2, generator=noise)
    sigma, before = 0.4375, latents - 0.4375 * velocity
    after = latents - sigma * steered(velocity, latents, sigma, ending, LEVELS)
    for t, share in enumerate(pulls(LEVELS, sigma).tolist()):
        wanted = (1 - share) * before[:, :, t] + share * ending[:, :, 0]
        assert torch.allclose(after[:, :, t], wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["euler", "unipc"])
def test_either_sampler_arrives_at_the_picture_whatever_the_model_says(name):
    sampler, noise = make_sampler(name, (1.0, 0.9, 0.6, 0.3, 0.0)), torch.Generator().manual_seed(0)
    latents, ending = torch.randn(1, 4, 6, 2, 2, generator=noise), torch.randn(1, 4, 1, 2, 2, generator=noise)
    start, levels = latents, []
    while sampler.position < 4:
        velocity = 5 * torch.randn(latents.shape, generator=noise)
        levels.append(sampler.sigma)
        line = sampler.sigma * start + (1 - sampler.sigma) * ending
        assert torch.allclose(latents[:, :, 4], line[:, :, 4], atol=1e-4)  # the picture under the noise of this level
        latents = sampler.step(steered(velocity, latents, sampler.sigma, ending, LEVELS), latents)
    assert levels == pytest.approx([1.0, 0.9, 0.6, 0.3], abs=1e-4)
    assert torch.allclose(latents[:, :, 4], ending[:, :, 0], atol=1e-4)
    assert (latents[:, :, 3] - ending[:, :, 0]).abs().max() > 0.1


def test_without_an_ending_nothing_is_touched():
    velocity = torch.ones(1, 4, 6, 2, 2)
    assert Conditioning(torch.zeros(1, 1, 1)).steer(velocity, velocity, 0.5) is velocity


def test_the_picture_is_told_held_still(pair, media):
    assert pair.told["ending"].shape == (1, 24, 1, 8, 8)
    assert "free_below" not in pair.told
    assert media.last_frame is not None
    shown = condition_image(load_image(media.last_frame), pair.plan)
    still = shown[None, :, None].expand(1, 3, STILL_FRAMES, 64, 64)
    vae: Any = pair.renderer.checkpoint.vae
    with torch.inference_mode():
        latents = vae.encode(still).latent_dist.mode()[:, :, -1:]
    mean, std = (torch.tensor(vae.config[f"latents_{name}"]).view(1, -1, 1, 1, 1) for name in ("mean", "std"))
    assert torch.allclose(pair.told["ending"], (latents - mean) / std, atol=1e-4)


def test_the_last_clip_ends_at_it_and_those_before_stay_as_they_were(pair):
    assert pair.ended.keys() == pair.free.keys()
    for name in pair.ended.keys() - {"latents.1"}:
        assert torch.equal(pair.ended[name], pair.free[name])
    levels, found = chain_of(pair.plan).free_below, pair.ended["latents.1"]
    assert levels == (0.75, 0.5, 0.25, 0.0)
    away = (found - pair.told["ending"]).abs().amax(dim=(0, 1, 3, 4))
    assert away[-1] < 1e-4
    assert (away[:-1] > 0.1).all()  # the model had the last word
    assert torch.equal(pair.ended_frames[:17], pair.free_frames[:17])
    assert chain_of(pair.plan).steered == range(17, 32)


def test_the_last_shown_frame_is_the_picture(pair):
    """Held against what the autoencoder makes of the still."""
    with torch.inference_mode():
        trip = torch.cat(list(stream_decode(pair.renderer.checkpoint.vae, pair.told["ending"].expand(1, 24, 12, 8, 8))))
    assert psnr(pair.free_frames[-1], trip[-1]) < 15
    assert psnr(pair.ended_frames[-1], trip[-1]) > 26


def test_it_comes_gently(pair):
    """Latent frame by latent frame nearer, in no step by half of the way that a free video would have to jump."""
    ending = pair.told["ending"]
    free, *away = [
        (made[:, :, t : t + 1] - ending).norm().item()
        for made, t in ((pair.free["latents.1"], 3), *((pair.ended["latents.1"], t) for t in range(4)))
    ]
    nearer = [before - after for before, after in pairwise((free, *away))]
    assert min(nearer) > 0
    assert max(nearer) < free / 2


@pytest.mark.parametrize("last", [2, 4, 5])
def test_it_goes_on_with_the_same_bits(pair, tmp_path, last):
    """Stopped in the first clip, and after each step of the one that is steered."""
    given = (pair.plan, pair.folder / "ended.c", tmp_path / "l")
    steps: list[int] = []

    def stop(done: int, total: int) -> None:
        if done == last:
            raise StopError

    with pytest.raises(StopError):
        pair.renderer.denoise(*given, stop, checkpoint=tmp_path / "mark")
    pair.renderer.denoise(*given, lambda done, total: steps.append(done), checkpoint=tmp_path / "mark")
    assert min(steps) == last + 1
    found = load_file(tmp_path / "l")
    assert all(torch.equal(found[name], tensor) for name, tensor in pair.ended.items())


def test_sound_is_still_needed_and_a_clip_has_no_place(pair, media, tmp_path):
    with pytest.raises(PlanError, match=r"input\.driving_audio: model tiny-s2v needs it"):
        pair.renderer.encode(pair.plan, replace(media, driving_audio=None), tmp_path / "c", nothing)
    given = replace(media, first_frame=None, first_clip=media.first_frame)
    with pytest.raises(PlanError, match=r"input\.first_clip: .* \(it takes first_frame, last_frame, driving_audio\)"):
        pair.renderer.encode(pair.plan, given, tmp_path / "c", nothing)


def test_other_families_are_told_of_a_last_frame_as_before(tiny, media, tmp_path):
    model = tiny(CONCAT)
    assert not {"ending", "free_below"} & set(_told(model, media, tmp_path))


def _told(model: Any, media: Media, folder: Path) -> dict[str, Tensor]:
    renderer = Renderer(model.profile, model.checkpoint, CPU)
    renderer.encode(small_plan(model.profile), replace(media, driving_audio=None), folder / "c", nothing)
    return load_file(folder / "c")
