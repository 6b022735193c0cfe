"""The three stages: files in, files out, stopping anywhere, going on from a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import pytest
import torch
from safetensors.torch import load_file

from callbacks import StopError, nothing, stop_at
from tiny_checkpoint import CONCAT, TI2V, noise_image, small_plan
from wan_pipelines.errors import PlanError, RenderError
from wan_pipelines.framing import condition_image, frames_between, visible
from wan_pipelines.pixels import load_image
from wan_pipelines.placed import LoadOptions
from wan_pipelines.plan import RenderPlan
from wan_pipelines.renderer import Media, Renderer
from wan_pipelines.tensorfile import load_tensors, read_metadata, save_tensors
from wan_pipelines.vae import encode_frames

pytest_plugins = ("pipeline_fixtures",)
CPU = torch.device("cpu")


@pytest.fixture
def renderer(tiny) -> Renderer:
    model = tiny(CONCAT)
    return Renderer(model.profile, model.checkpoint, CPU, checkpoint_every_s=0)


@pytest.fixture
def plan(renderer) -> RenderPlan:
    return small_plan(renderer.profile)


@pytest.fixture
def media(tmp_path) -> Media:
    (tmp_path / "in").mkdir()
    noise_image(0).save(tmp_path / "in" / "first.png")
    return Media(tmp_path / "in" / "first.png")


@pytest.fixture
def work(tmp_path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def conditioning(renderer, plan, media, work) -> Path:
    renderer.encode(plan, media, work / "conditioning", nothing)
    return work / "conditioning"


@pytest.fixture
def latents(renderer, plan, conditioning, work) -> Path:
    renderer.denoise(plan, conditioning, work / "latents", nothing)
    return work / "latents"


def test_from_plan_to_video(renderer, plan, latents, work):
    seen: list[tuple[int, int]] = []
    facts = renderer.decode(plan, latents, work / "out.mp4", None, lambda *args: seen.append(args))
    assert (facts.width, facts.height, facts.fps, facts.frames, facts.has_audio) == (64, 64, 16, 9, False)
    assert seen == [(1, 9), (5, 9), (9, 9)]
    with av.open(str(work / "out.mp4")) as file:
        assert sum(1 for _ in file.decode(video=0)) == 9


def test_frames_beyond_the_duration_are_not_shown(renderer, plan, latents, work):
    """A 4n+1 sample of 81 frames makes 80 frames of video; here 9 make 8."""
    plan_8 = replace(plan, frames=8)
    save_tensors(work / "l8", load_tensors(latents, CPU), {"plan": plan_8.key, "known": "1"})
    assert renderer.decode(plan_8, work / "l8", work / "out.mp4", None, nothing).frames == 8


def test_load_builds_the_random_checkpoint(renderer, tmp_path):
    loaded = Renderer.load(renderer.profile, tmp_path / "weights" / "tiny", "cpu", checkpoint_every_s=7)
    assert (tmp_path / "weights" / "tiny" / "model_index.json").is_file()
    assert loaded.checkpoint_every_s == 7
    assert loaded.checkpoint.experts.high.dtype == torch.float32


def test_bfloat16_stays_near_float32(renderer, plan, media, latents, work, tiny):
    half = Renderer.load(renderer.profile, tiny(CONCAT).folder, "cpu", options=LoadOptions(dtype="bfloat16"))
    half.encode(plan, media, work / "c16", nothing)
    half.denoise(plan, work / "c16", work / "l16", nothing)
    result = load_file(work / "l16")["latents"]
    assert result.dtype == torch.float32
    assert 0 < (result - load_file(latents)["latents"]).abs().max() < 0.1


def test_report_counts_tokens(renderer, plan, media, work):
    long = replace(plan, prompt="y" * 5000, negative_prompt="z" * 600)
    report = renderer.encode(long, media, work / "c", nothing)
    assert (report.prompt_tokens, report.prompt_tokens_dropped) == (512, 4489)
    assert (report.negative_tokens_dropped, report.negative_used) == (89, True)


def test_unguided_plan_does_not_use_the_negative_prompt(renderer, plan, media, work):
    report = renderer.encode(replace(plan, guidance_high=1.0), media, work / "c", nothing)
    assert not report.negative_used
    assert set(load_file(work / "c")) == {"prompt", "concat"}


def test_family_decides_what_is_encoded(tiny, media, work):
    model = tiny(TI2V)
    Renderer(model.profile, model.checkpoint, CPU).encode(small_plan(model.profile), media, work / "c", nothing)
    assert {name: tuple(x.shape) for name, x in load_file(work / "c").items()} == {
        "prompt": (1, 512, 32),
        "negative": (1, 512, 32),
        "clean": (1, 16, 1, 4, 4),
    }


def test_last_frame_is_refused_by_the_family_that_has_none(tiny, media, work):
    model = tiny(TI2V)
    both = Media(media.first_frame, media.first_frame)
    with pytest.raises(PlanError, match=r"input\.last_frame: model tiny-ti2v does not take it"):
        Renderer(model.profile, model.checkpoint, CPU).encode(small_plan(model.profile), both, work / "c", nothing)
    assert not list(work.iterdir())


def test_a_picture_is_needed_unless_the_profile_says_otherwise(renderer, plan, work):
    strict = replace(renderer, profile=replace(renderer.profile, text_only=False))
    with pytest.raises(PlanError, match="makes no video from text alone"):
        strict.encode(plan, Media(), work / "c", nothing)
    assert not list(work.iterdir())


def test_text_alone_is_a_grey_video_of_which_nothing_is_known(renderer, plan, work):
    renderer.encode(plan, Media(), work / "c", nothing)
    concat = load_file(work / "c")["concat"]
    assert not concat[:, :4].any()
    grey = [torch.zeros(1, 3, 1, 64, 64), *[torch.zeros(1, 3, 4, 64, 64)] * 2]
    assert torch.equal(concat[:, 4:], encode_frames(renderer.checkpoint.vae, grey))
    renderer.denoise(plan, work / "c", work / "l", nothing)
    assert renderer.decode(plan, work / "l", work / "out.mp4", None, nothing).frames == 9


def test_text_alone_with_per_token_timesteps_has_no_clean_frame(tiny, work):
    model = tiny(TI2V)
    plan = small_plan(model.profile)
    renderer = Renderer(model.profile, model.checkpoint, CPU)
    renderer.encode(plan, Media(), work / "c", nothing)
    assert set(load_file(work / "c")) == {"prompt", "negative"}
    renderer.denoise(plan, work / "c", work / "l", nothing)
    assert load_file(work / "l")["latents"].shape == (1, 16, 3, 4, 4)


def test_digest_tells_files_and_roles_apart(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
    a, b = tmp_path / "a", tmp_path / "b"
    media = [Media(), Media(a), Media(b), Media(a, b), Media(b, a), Media(None, a), Media(first_clip=a)]
    assert len({m.digest() for m in media}) == len(media)


def test_plan_of_another_model_is_refused(renderer, plan, media, work):
    with pytest.raises(RenderError, match="the plan is for model other, this worker has tiny"):
        renderer.encode(replace(plan, model="other"), media, work / "c", nothing)


def test_files_of_another_plan_are_refused(renderer, plan, conditioning, latents, work):
    other = replace(plan, seed=6)
    with pytest.raises(RenderError, match="conditioning was made for another plan"):
        renderer.denoise(other, conditioning, work / "out", nothing)
    with pytest.raises(RenderError, match="latents was made for another plan"):
        renderer.decode(other, latents, work / "out", None, nothing)
    assert not (work / "out").exists()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_encode_stops_at_any_beat_and_leaves_nothing(renderer, plan, media, work, count):
    with pytest.raises(StopError):
        renderer.encode(plan, media, work / "c", stop_at(count))
    assert not list(work.iterdir())


def test_decode_stops_at_any_chunk_and_leaves_nothing(renderer, plan, latents, work):
    with pytest.raises(StopError):
        renderer.decode(plan, latents, work / "out.mp4", None, stop_at(2))
    assert sorted(p.name for p in work.iterdir()) == ["conditioning", "latents"]


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
@pytest.mark.parametrize("sampler", ["unipc", "euler"])
def test_denoise_goes_on_from_its_checkpoint_bit_for_bit(renderer, plan, media, work, sampler, stop):
    plan = replace(plan, sampler=sampler)
    renderer.encode(plan, media, work / "c", nothing)
    renderer.denoise(plan, work / "c", work / "whole", nothing)
    with pytest.raises(StopError):
        renderer.denoise(plan, work / "c", work / "parts", stop_at(stop), checkpoint=work / "checkpoint")
    assert not (work / "parts").exists()
    steps: list[int] = []
    again = work / "checkpoint"
    renderer.denoise(plan, work / "c", work / "parts", lambda done, total: steps.append(done), checkpoint=again)
    assert steps == list(range(stop + 1, 5))
    assert torch.equal(load_file(work / "parts")["latents"], load_file(work / "whole")["latents"])


def test_checkpoint_of_other_work_is_ignored(renderer, plan, media, conditioning, latents, work):
    """Same plan but another picture, another plan, no safetensors at all: each starts from the first step."""
    noise_image(9).save(work / "other.png")
    renderer.encode(plan, Media(work / "other.png"), work / "other", nothing)
    renderer.denoise(plan, work / "other", work / "x", nothing, checkpoint=work / "picture")
    other_plan = replace(plan, seed=6)
    renderer.encode(other_plan, media, work / "other", nothing)
    renderer.denoise(other_plan, work / "other", work / "x", nothing, checkpoint=work / "plan")
    (work / "broken").write_bytes(b"no tensors")
    for name in ("picture", "plan", "broken", "absent"):
        steps: list[int] = []
        out = work / "out"
        renderer.denoise(plan, conditioning, out, lambda done, _, s=steps: s.append(done), checkpoint=work / name)
        assert steps == [1, 2, 3, 4]
        assert torch.equal(load_file(out)["latents"], load_file(latents)["latents"])


def test_checkpoints_are_written_no_more_often_than_asked(renderer, plan, conditioning, work):
    patient = replace(renderer, checkpoint_every_s=3600)
    patient.denoise(plan, conditioning, work / "l", nothing, checkpoint=work / "checkpoint")
    assert not (work / "checkpoint").exists()


def test_seed_decides_the_video(renderer, plan, media, work):
    results = []
    for seed in (1, 1, 2):
        seeded = replace(plan, seed=seed)
        renderer.encode(seeded, media, work / "c", nothing)
        renderer.denoise(seeded, work / "c", work / "l", nothing)
        results.append(load_file(work / "l")["latents"])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_latents_that_are_not_finite_make_no_video(renderer, plan, latents, work):
    broken = load_tensors(latents, CPU)["latents"] * float("nan")
    save_tensors(latents, {"latents": broken}, read_metadata(latents))
    with pytest.raises(RenderError, match="decode: latent frame 0 of 3 gave pixels that are not finite"):
        renderer.decode(plan, latents, work / "out.mp4", None, nothing)
    assert not (work / "out.mp4").exists()


def test_missing_file_is_named(renderer, plan, work):
    with pytest.raises(RenderError, match="nowhere"):
        renderer.denoise(plan, work / "nowhere", work / "l", nothing)


def test_image_fills_the_window_and_its_edge_is_repeated_outside(renderer, plan, work):
    """64x48 shown in a sample of 64x64: eight rows above and below repeat the edge, and are cut off again."""
    image = noise_image(1, 64, 48)
    image.save(work / "i.png")
    framed = replace(plan, height=48)
    pixels = condition_image(load_image(work / "i.png"), framed)
    assert pixels.shape == (3, 64, 64)
    assert torch.equal(pixels[:, :8], pixels[:, 8:9].expand(3, 8, 64))
    shown = visible(pixels[None], framed)[0]
    assert shown.shape == (3, 48, 64)
    assert torch.equal(
        ((shown + 1) * 127.5).round().byte(), torch.tensor(bytearray(image.tobytes())).view(48, 64, 3).permute(2, 0, 1)
    )


def test_stream_is_cut_to_the_frames_and_no_further_chunk_is_made():
    made = []

    def chunks():
        for size in (1, 4, 4, 4):
            made.append(size)
            yield torch.arange(sum(made) - size, sum(made)).view(size, 1, 1, 1)

    assert [len(chunk) for chunk in frames_between(chunks(), 0, 8)] == [1, 4, 3]
    assert made == [1, 4, 4]
    made.clear()
    pieces = [chunk.flatten().tolist() for chunk in frames_between(chunks(), 5, 11)]
    assert pieces == [[], [], [5, 6, 7, 8], [9, 10]]


def test_failed_write_keeps_the_old_file(work):
    save_tensors(work / "t", {"x": torch.ones(1)}, {})
    with pytest.raises(AttributeError):
        save_tensors(work / "t", {"x": None}, {})  # pyright: ignore[reportArgumentType]
    assert load_file(work / "t")["x"] == 1
    assert [p.name for p in work.iterdir()] == ["t"]
