"""A setting brings videos to another frame rate: from the plan to the file and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks import StopError, nothing, stop_at
from media_samples import make_audio, make_clip, psnr, read_audio, read_video
from queue_fixtures import make_job, make_settings
from tiny_checkpoint import CONCAT, CONFIGS, small_plan
from wan_pipelines.plan import PlanRequest, RenderPlan, make_plan
from wan_pipelines.profile import load_served
from wan_pipelines.renderer import Renderer
from wan_pipelines.tensorfile import save_tensors
from wan_server.files import FileStore
from wan_server.output import Ingredients, output_of
from wan_server.output_schema import AppOutput
from wan_server.probe import probe_file
from wan_server.render import _maker
from wan_server.renderers import Renderers
from wan_server.settings import SettingsError, load_settings
from wan_server.stages import Stages

pytest_plugins = ("pipeline_fixtures",)
PLAIN = {"prompt": "a sea", "requested": False, "applied": False, "model": None, "note": None}


@pytest.fixture
def renderer(tiny) -> Renderer:
    model = tiny(CONCAT)
    return Renderer(model.profile, model.checkpoint, torch.device("cpu"))


@pytest.fixture
def work(tmp_path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def sampled(renderer: Renderer, plan: RenderPlan, work: Path) -> Path:
    """Latents of the plan, smooth random ones."""
    size = (plan.sample_height // 16, plan.sample_width // 16)
    shape = (1, renderer.checkpoint.vae.config["z_dim"], (plan.sample_frames - 1) // 4 + 1, *size)
    save_tensors(
        work / "latents",
        {"latents": 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))},
        {"plan": plan.key, "known": "1"},
    )
    return work / "latents"


def one_second(renderer: Renderer, **changes: Any) -> RenderPlan:
    return small_plan(renderer.profile, **{"frames": 16, "sample_frames": 17, **changes})


@pytest.mark.parametrize("fps", [24, 30])
def test_the_file_has_the_rate_and_the_length_that_were_asked_for(renderer, work, tmp_path, fps):
    plan = one_second(renderer, output_fps=fps)
    sound = make_audio(tmp_path / "a.wav", 3.0)
    latents = sampled(renderer, plan, work)
    seen: list[tuple[int, int]] = []
    facts = renderer.decode(plan, latents, work / "out.mp4", sound, lambda *done: seen.append(done))
    assert (facts.fps, facts.frames, facts.seconds, facts.audio_seconds) == (fps, fps, 1.0, 1.0)
    assert seen == [(1, 16), (5, 16), (9, 16), (13, 16), (16, 16)]
    assert len(read_video(work / "out.mp4")) == fps
    assert read_audio(work / "out.mp4")[0].shape[1] == pytest.approx(48_000, abs=1024)
    probe = probe_file(work / "out.mp4")
    assert (probe.seconds, probe.fps) == (1.0, fps)


def test_a_decode_that_was_stopped_is_done_again_with_the_same_bytes(renderer, work):
    plan = one_second(renderer, output_fps=24)
    latents = sampled(renderer, plan, work)
    renderer.decode(plan, latents, work / "whole.mp4", None, nothing)
    before = set(work.iterdir())
    with pytest.raises(StopError):
        renderer.decode(plan, latents, work / "out.mp4", None, stop_at(3))
    assert set(work.iterdir()) == before
    renderer.decode(plan, latents, work / "out.mp4", None, nothing)
    assert (work / "out.mp4").read_bytes() == (work / "whole.mp4").read_bytes()


def test_a_clip_brings_its_own_frames_at_the_new_rate(renderer, work, tmp_path):
    """The clip has 24 frames a second, the model makes 16: at 24 all of the clip's frames are in the video."""
    clip = make_clip(tmp_path / "a.mp4", (64, 64), 1.0, 24)
    counts = {"frames": 32, "clip_frames": 16, "prefix_frames": 13, "sample_frames": 29, "handover_frames": 8}
    plan = small_plan(renderer.profile, output_fps=24, **counts)
    latents = sampled(renderer, plan, work)
    facts = renderer.decode(plan, latents, work / "out.mp4", None, nothing, clip)
    assert (facts.frames, facts.seconds) == (48, 2.0)
    frames, own = read_video(work / "out.mp4"), read_video(clip)
    assert min(psnr(mine, theirs) for mine, theirs in zip(frames[:24], own, strict=True)) > 30
    native = replace(plan, output_fps=None)
    plain = sampled(renderer, native, work)
    renderer.decode(native, plain, work / "native.mp4", None, nothing, clip)
    new = read_video(work / "native.mp4")
    assert psnr(frames[24], new[16]) > 25
    assert psnr(frames[27], new[18]) > 25


def test_without_a_wish_and_at_its_own_rate_nothing_changes():
    profile = load_served("tiny", CONFIGS)
    request = PlanRequest("", None, "720P", 1.0, 2, seed=1)
    assert make_plan(profile, request) == make_plan(profile, replace(request, output_fps=16))
    plan = make_plan(profile, replace(request, output_fps=24))
    assert (plan.fps, plan.frames, plan.shown_fps, plan.shown_frames) == (16, 32, 24, 48)
    assert RenderPlan.from_json(plan.to_json()) == plan
    assert plan.key != make_plan(profile, request).key


def test_the_setting_reaches_the_plan(renderer, tmp_path):
    settings = make_settings(tmp_path / "data", output_fps="30")
    settings.data_dir.mkdir()
    stages = Stages(settings, FileStore(settings), Renderers({"tiny": renderer}))
    job = make_job(input={"prompt": "", "resolution": "720P", "duration": 2})
    plan = stages.plan(job, {"probes": {}}, PLAIN)
    assert (plan.output_fps, plan.shown_frames) == (30, 60)


def test_other_rates_are_refused_at_the_start(monkeypatch):
    monkeypatch.setenv("WANBOX_OUTPUT_FPS", "25")
    with pytest.raises(SettingsError, match="WANBOX_OUTPUT_FPS"):
        load_settings()
    monkeypatch.setenv("WANBOX_OUTPUT_FPS", "24")
    assert load_settings().frame_rate == 24
    monkeypatch.delenv("WANBOX_OUTPUT_FPS")
    assert load_settings().frame_rate is None


def test_a_batch_at_another_rate_is_made_anew(tmp_path):
    makers = {_maker(make_settings(tmp_path, output_fps=rate)) for rate in ("native", "24", "30")}
    assert makers == {"tiny", "tiny@24", "tiny@30"}


@pytest.mark.parametrize(("fps", "frames"), [(None, 80), (24, 120), (30, 150)])
def test_both_rates_are_told(fps, frames):
    profile = load_served("wan2.2-i2v-a14b", CONFIGS)
    plan = make_plan(profile, PlanRequest("a sea", None, "720P", 16 / 9, 5, seed=1, output_fps=fps))
    facts = {"width": 1280, "height": 720, "seconds": 5.0, "fps": plan.shown_fps, "frames": plan.shown_frames}
    encoded = {"prompt_tokens_dropped": 0, "negative_tokens_dropped": 0, "negative_used": True}
    made = Ingredients(
        plan.to_json(),
        {"files": {"first_frame": "f"}, "probes": {}, "notes": []},
        {"note": None},
        encoded,
        "f",
        facts | {"has_audio": False, "audio_seconds": 0.0},
    )
    job = make_job(input={"resolution": "720P", "duration": 5, "prompt": "a sea"})
    output = output_of(job, profile, "http://x/v.mp4", made)
    AppOutput.model_validate(output)
    (said,) = output["output_meta"]["outputs"]
    assert (said["fps"], said["seconds"], said["extra"]["frames"]) == (fps or 16, 5.0, frames)
    assert said["extra"]["native_fps"] == 16
    assert said["extra"].get("interpolation") == (None if fps is None else "minterpolate")
    assert said["extra"].get("native_frames") == (None if fps is None else 80)
