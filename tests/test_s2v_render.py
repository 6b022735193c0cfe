"""A chain of clips through the three stages, against the published loop written down plainly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from callbacks import StopError, nothing, stop_at
from media_samples import make_audio, read_audio, read_video
from test_s2v_speech import write_wave
from tiny_checkpoint import CONFIGS, S2V, TinyModel, noise_image, small_plan
from wan_pipelines.errors import PlanError, RenderError
from wan_pipelines.footprint import bundled_configs, footprint
from wan_pipelines.framing import condition_image
from wan_pipelines.offload import parts_of
from wan_pipelines.peaks import peak
from wan_pipelines.pixels import load_image
from wan_pipelines.placed import LoadOptions
from wan_pipelines.placement import largest_plan
from wan_pipelines.plan import RenderPlan
from wan_pipelines.profile import load_profile
from wan_pipelines.renderer import Media, Renderer
from wan_pipelines.s2v.chain_render import ChainRender
from wan_pipelines.s2v.clips import ChainSpec
from wan_pipelines.s2v.speech import RATE, SpeechEncoder, hear
from wan_pipelines.samplers import make_sampler
from wan_pipelines.tensorfile import save_tensors

pytest_plugins = ("pipeline_fixtures",)
CPU = torch.device("cpu")
#: 2 s are two clips: 20 frames sampled and 17 shown, then 16 and 15
SHORT = ChainSpec(clip_frames=16, least_frames=8, motion_frames=9)
MOTION = 9


def short_plan(model: TinyModel, **changes: Any) -> RenderPlan:
    """Two clips of 64x64 in two steps."""
    plan = small_plan(model.profile, seconds=2, frames=32, sample_frames=20, chain=SHORT, sigmas=(1.0, 0.7, 0.0))
    return replace(plan, **changes)


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Media:
    folder = tmp_path_factory.mktemp("media")
    noise_image(0).save(folder / "first.png")
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, 5 * RATE)
    return Media(folder / "first.png", driving_audio=write_wave(folder / "sound.wav", noise))


@dataclass(frozen=True, slots=True)
class Made:
    """One finished video with everything on the way, and what the transformer was asked."""

    model: TinyModel
    renderer: Renderer
    plan: RenderPlan
    conditions: Path
    latents: dict[str, Tensor]
    asked: list[dict[str, Tensor]]
    steps: list[tuple[int, int]]


@pytest.fixture(scope="module")
def made(tiny, media, tmp_path_factory) -> Made:
    model, work = tiny(S2V), tmp_path_factory.mktemp("made")
    renderer = Renderer(model.profile, model.checkpoint, CPU, checkpoint_every_s=0)
    plan, steps, asked = short_plan(model), [], []

    def note(_: object, args: tuple, options: dict[str, Any]) -> None:
        asked.append({"noisy": args[0].clone(), **{name: x for name, x in options.items() if name != "return_dict"}})

    handle = model.checkpoint.experts.high.register_forward_pre_hook(note, with_kwargs=True)
    renderer.encode(plan, media, work / "c", nothing)
    renderer.denoise(plan, work / "c", work / "l", lambda *args: steps.append(args))
    handle.remove()
    return Made(model, renderer, plan, work / "c", load_file(work / "l"), asked, steps)


@torch.no_grad()
def published_loop(made: Made, media: Media) -> tuple[dict[str, Tensor], Tensor]:
    """Wan2.2's loop over two clips, with diffusers' own autoencoder in one piece: latents and motion by clip, and the
    frames [3, 32, H, W] in [-1, 1]."""
    vae: Any = made.renderer.checkpoint.vae
    model, plan = made.renderer.checkpoint.experts.high, made.plan
    mean, std = (torch.tensor(vae.config[f"latents_{name}"]).view(1, -1, 1, 1, 1) for name in ("mean", "std"))

    def encode(video: Tensor) -> Tensor:
        return (vae.encode(video).latent_dist.mode() - mean) / std

    def decode(latents: Tensor) -> Tensor:
        return vae.decode(latents * std + mean).sample

    texts, chain = load_file(made.conditions), plan.clips
    assert chain is not None
    assert made.model.checkpoint.audio_encoder is not None
    assert media.first_frame is not None
    assert media.driving_audio is not None
    heard = hear(SpeechEncoder.of(made.model.checkpoint.audio_encoder), media.driving_audio, chain)
    reference = encode(condition_image(load_image(media.first_frame), plan)[None, :, None])
    found, motion, video = {}, None, torch.zeros(1, 3, 0, 64, 64)
    for number, frames in ((0, 20), (1, 16)):
        audio = heard[number][None]
        generator = torch.Generator().manual_seed(plan.seed + number)
        latents = torch.randn(1, 16, frames // 4, 8, 8, generator=generator)
        sampler = make_sampler(plan.sampler, plan.sigmas)
        for timestep in sampler.timesteps:
            told = {"reference_latents": reference, "motion_latents": motion, "return_dict": False}
            time = torch.tensor([timestep])
            cond = model(latents, time, texts["prompt"], audio_features=audio, **told)[0]
            uncond = model(latents, time, texts["negative"], audio_features=0 * audio, **told)[0]
            latents = sampler.step(uncond + plan.guidance_high * (cond - uncond), latents)
        pixels = decode(torch.cat([reference if motion is None else motion, latents], dim=2))[:, :, -frames:]
        video = torch.cat([video, pixels[:, :, 0 if number else 3 :]], dim=2)
        found[f"latents.{number}"] = latents
        if number == 0:
            motion = found["motion.1"] = encode(video[:, :, -MOTION:].clamp(-1, 1))
    return found, video[0, :, :32].clamp(-1, 1)


@torch.inference_mode()
def test_two_clips_are_those_of_the_published_loop(made, media):
    expected, video = published_loop(made, media)
    assert made.latents.keys() == {"reference", *expected}
    for name, tensor in expected.items():
        assert made.latents[name].shape == tensor.shape
        assert (made.latents[name] - tensor).abs().max() < 2e-4 * max(tensor.std().item(), 1)
    assert made.plan.clips is not None
    chain = ChainRender(made.plan.clips, made.renderer.checkpoint.vae, CPU, made.renderer._stage)
    frames = torch.cat(list(chain.frames(made.latents)))
    assert frames.shape == (32, 3, 64, 64)
    assert (2 * frames - 1 - video.transpose(0, 1)).abs().max() < 1e-3


def test_what_each_forward_is_told(made):
    """Two steps with two forwards each, of two clips: the second of each pair hears nothing, pictures stay."""
    assert made.steps[-1] == (4, 4)
    assert len(made.asked) == 8
    for number, asked in enumerate(made.asked):
        frames = 20 if number < 4 else 16
        assert asked["audio_features"].shape == (1, 4, 48, frames)
        assert asked["noisy"].shape == (1, 16, frames // 4, 8, 8)
        assert bool(asked["audio_features"].any()) == (number % 2 == 0)
        assert torch.equal(asked["reference_latents"], made.latents["reference"])
        assert ("motion_latents" in asked) == (number >= 4)
    assert all(torch.equal(asked["motion_latents"], made.latents["motion.1"]) for asked in made.asked[4:])
    first = [made.asked[number]["noisy"][:, :, :4] for number in (0, 4)]
    assert not torch.equal(*first)  # each has its own noise


def test_steps_are_counted_over_all_clips_and_a_stop_is_noticed_between_them(made):
    assert sorted(set(made.steps)) == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert made.steps == sorted(made.steps)
    assert made.steps.count((2, 4)) > 5  # chunks of the autoencoder on the way to the second clip


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 11, 12, 13])
def test_it_goes_on_at_the_clip_and_step_where_it_was(made, tmp_path, count):
    assert count <= len(made.steps)
    work, mark = tmp_path / "l", tmp_path / "checkpoint"
    with pytest.raises(StopError):
        made.renderer.denoise(made.plan, made.conditions, work, stop_at(count), checkpoint=mark)
    assert not work.exists()
    steps: list[tuple[int, int]] = []
    made.renderer.denoise(made.plan, made.conditions, work, lambda *args: steps.append(args), checkpoint=mark)
    done = made.steps[count - 1][0]
    assert min(steps, default=(4, 4))[0] >= min(done, 4)
    assert [step for step in sorted(set(steps)) if step[0] > done] == [(n, 4) for n in range(done + 1, 5)]
    found = load_file(work)
    assert all(torch.equal(found[name], made.latents[name]) for name in made.latents)


def test_a_checkpoint_of_other_sound_is_ignored(made, media, tmp_path):
    other = replace(media, driving_audio=make_audio(tmp_path / "a.wav", 3.0))
    made.renderer.encode(made.plan, other, tmp_path / "c", nothing)
    made.renderer.denoise(made.plan, tmp_path / "c", tmp_path / "other", nothing, checkpoint=tmp_path / "checkpoint")
    made.renderer.denoise(made.plan, made.conditions, tmp_path / "l", nothing, checkpoint=tmp_path / "checkpoint")
    found, others = load_file(tmp_path / "l"), load_file(tmp_path / "other")
    assert torch.equal(found["latents.1"], made.latents["latents.1"])
    assert not torch.equal(others["latents.0"], made.latents["latents.0"])  # it hears


def test_sound_that_ends_early_is_silence_for_the_rest(made, media, tmp_path):
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, RATE)
    short = replace(media, driving_audio=write_wave(tmp_path / "a.wav", noise))
    made.renderer.encode(made.plan, short, tmp_path / "c", nothing)
    heard = load_file(tmp_path / "c")["audio"]
    assert heard.shape == (1, 4, 48, 20 + 16)
    told = heard.abs().amax(dim=(0, 1, 2)) > 0
    assert told[: 3 + 15].all()  # the first clip begins three frames early and hears the beginning held
    assert not told[3 + 16 :].any()


def test_the_sound_of_the_video_is_the_one_that_was_heard(made, media, tmp_path):
    facts = made.renderer.decode(made.plan, _latents(made, tmp_path), tmp_path / "v.mp4", media.driving_audio, nothing)
    assert (facts.frames, facts.seconds, facts.audio_seconds) == (32, 2.0, 2.0)
    assert read_video(tmp_path / "v.mp4").shape == (32, 64, 64, 3)
    sound, rate = read_audio(tmp_path / "v.mp4")
    assert abs(sound.shape[1] / rate - 2.0) <= 1024 / rate


def test_nothing_is_left_when_it_stops(made, media, tmp_path):
    with pytest.raises(StopError):
        made.renderer.encode(made.plan, media, tmp_path / "c", stop_at(2))
    with pytest.raises(StopError):
        made.renderer.decode(made.plan, _latents(made, tmp_path), tmp_path / "v.mp4", None, stop_at(8))
    assert {path.name for path in tmp_path.iterdir()} == {"l", "l-shown-0.safetensors"}


def test_what_was_decoded_for_the_next_clip_is_not_decoded_again(made, media, tmp_path):
    """The same file, whether the frames of the first clip are there, gone, or those of other latents."""
    latents, videos, decoded = _latents(made, tmp_path), [], []
    kept = tmp_path / "l-shown-0.safetensors"
    other = torch.zeros(17, 3, 64, 64, dtype=torch.uint8)
    count = made.renderer.checkpoint.vae.decoder.register_forward_hook(lambda *_: decoded.append(len(videos)))
    for change in (nothing, kept.unlink, lambda: save_tensors(kept, {"frames": other}, {})):
        change()
        made.renderer.decode(made.plan, latents, tmp_path / "v.mp4", media.driving_audio, nothing)
        videos.append((tmp_path / "v.mp4").read_bytes())
    count.remove()
    assert videos[0] == videos[1] == videos[2]
    # latent frames: three of motion and four of the second clip; the picture and five of the first
    assert [decoded.count(number) for number in range(3)] == [3 + 4, 3 + 4 + 1 + 5, 3 + 4 + 1 + 5]


def test_sound_is_needed(made, media, tmp_path):
    with pytest.raises(PlanError, match=r"input\.driving_audio: model tiny-s2v needs it"):
        made.renderer.encode(made.plan, replace(media, driving_audio=None), tmp_path / "c", nothing)


def test_clips_shorter_than_their_motion_are_refused(made, tmp_path):
    spec = replace(SHORT, motion_frames=25)
    plan = replace(made.plan, chain=spec)
    assert plan.clips is not None
    chain = ChainRender(plan.clips, made.renderer.checkpoint.vae, CPU, made.renderer._stage)
    with pytest.raises(RenderError, match="clip 1 is told of more frames than the clip before it has"):
        chain._before(plan.clips.clips[1], made.latents, nothing)


@pytest.mark.parametrize("residence", ["offload_parts", "offload_layers"])
def test_what_comes_and_goes_computes_the_same(tiny, media, tmp_path, residence):
    model, results = tiny(S2V), []
    for wish in ("auto", residence):
        renderer = Renderer.load(model.profile, model.folder, "cpu", options=LoadOptions(placement=wish))
        for part in parts_of(renderer.checkpoint).values():
            for parameter in part.parameters():  # where tensors in a mapped file begin, sums may be rounded otherwise
                parameter.data = parameter.data.clone()
        renderer = replace(renderer, placed=None) if wish == "auto" else renderer
        renderer.encode(short_plan(model), media, tmp_path / "c", nothing)
        renderer.denoise(short_plan(model), tmp_path / "c", tmp_path / "l", nothing)
        results.append(load_file(tmp_path / "c") | load_file(tmp_path / "l"))
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_what_was_heard_is_kept_for_the_next_job(tiny, media, tmp_path):
    options = LoadOptions(speech_cache=tmp_path / "speech")
    renderer = Renderer.load(tiny(S2V).profile, tiny(S2V).folder, "cpu", options=options)
    for _ in range(2):
        renderer.encode(short_plan(tiny(S2V)), media, tmp_path / "c", nothing)
        assert len(list((tmp_path / "speech").iterdir())) == 1


def test_longer_videos_need_no_more_memory():
    profile = load_profile("wan2.2-s2v-14b", CONFIGS)
    needs = footprint(bundled_configs(profile, CONFIGS), profile, "bfloat16")
    ten, fifteen = (peak(needs, largest_plan(profile, seconds=seconds), "resident") for seconds in (10, 15))
    for stage in ("text", "encode", "denoise", "decode"):
        assert ten.by_stage[stage] == fifteen.by_stage[stage]


def _latents(made: Made, folder: Path) -> Path:
    made.renderer.denoise(made.plan, made.conditions, folder / "l", nothing)
    return folder / "l"
