"""Videos in windows through the three stages: what each forward sees, resumed anywhere, stopped between two windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from callbacks import StopError, nothing, stop_at
from live_memory import LiveMemory
from media_samples import read_video
from tiny_checkpoint import TEXT, TinyModel
from wan_pipelines.activations import Sample, denoise_bytes
from wan_pipelines.blending import Blend
from wan_pipelines.conditioning import Conditioning
from wan_pipelines.denoise import Experts, Guidance, denoise
from wan_pipelines.hd import Refinement
from wan_pipelines.plan import PlanRequest, RenderPlan, make_plan
from wan_pipelines.profile import Profile
from wan_pipelines.refine import enlarge
from wan_pipelines.renderer import Media, Renderer
from wan_pipelines.samplers import make_sampler
from wan_pipelines.tiny import TinySpec
from wan_pipelines.windows import Windowing

pytest_plugins = ("pipeline_fixtures",)
CPU = torch.device("cpu")
TWO_TEXT = TinySpec("text", boundary=0.875, vae22=False)
#: frames of the longest window, 12 latent frames: 2 s are one window, 4 s two of 11 and 10, 6 s three of 11
NATIVE = 45
#: two steps above the boundary, one below
STEPS = (1.0, 0.95, 0.7, 0.0)
STEP_COUNT = len(STEPS) - 1


def windowed(profile: Profile) -> Profile:
    return replace(profile, chaining="windows", native_frames=NATIVE, fps=16, max_frames=241)


def text_plan(profile: Profile, seconds: int, **changes: Any) -> RenderPlan:
    """64x64 in three steps, or with `changes`."""
    request = PlanRequest("a cat runs over wet grass, " * 9, "blurred; " * 9, "720P", 1.0, seconds, seed=5, media=())
    return replace(make_plan(profile, request), **{"width": 64, "height": 64, "sigmas": STEPS, **changes})


@dataclass(frozen=True, slots=True)
class Work:
    """A renderer, its plan, and the files of the video in a folder."""

    renderer: Renderer
    plan: RenderPlan
    folder: Path

    def latents(self, on_step: Callable[..., None] = nothing) -> Tensor:
        told, made = self.folder / "told", self.folder / "made"
        if not told.exists():
            self.renderer.encode(self.plan, Media(), told, nothing)
        self.renderer.denoise(self.plan, told, made, on_step, self.folder / "checkpoint")
        return load_file(made)["latents"]


@pytest.fixture
def work(tmp_path) -> Callable[..., Work]:
    """A function that makes one in a new folder."""

    def make(model: TinyModel, seconds: int, profile: Profile | None = None, **changes: Any) -> Work:
        profile = profile or windowed(model.profile)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        renderer = Renderer(profile, model.checkpoint, CPU, checkpoint_every_s=0)
        return Work(renderer, text_plan(profile, seconds, **changes), folder)

    return make


@contextmanager
def forwards(experts: Experts) -> Iterator[list[tuple[str, int]]]:
    """Expert and number of latent frames of every forward, in order."""
    calls: list[tuple[str, int]] = []
    with ExitStack() as stack:
        for name, model in (("high", experts.high), ("low", experts.low)):
            if model is not None:
                hook = model.register_forward_hook(lambda _, given, __, name=name: calls.append((name, seen_by(given))))
                stack.callback(hook.remove)
        yield calls


def seen_by(given: tuple[Tensor, ...]) -> int:
    return given[0].shape[2]


@torch.no_grad()
def test_a_video_that_fits_is_the_plain_one_to_the_last_bit(tiny, work):
    model = tiny(TEXT)
    plain, ours = work(model, 1, replace(model.profile, fps=16)), work(model, 1)
    assert ours.plan.windows == (range(5),)
    made = [job.latents() for job in (plain, ours)]
    noise = torch.randn(1, 16, 5, 8, 8, generator=torch.Generator().manual_seed(5))
    told = Conditioning(**load_file(ours.folder / "told"))
    sampler = make_sampler("unipc", STEPS)
    made.append(denoise(model.checkpoint.experts, noise, told, sampler, Guidance(3.5, 3.5), nothing))
    assert all(torch.equal(one, made[0]) for one in made)
    for job in (plain, ours):
        job.renderer.decode(job.plan, job.folder / "made", job.folder / "v.mp4", None, nothing)
    assert (plain.folder / "v.mp4").read_bytes() == (ours.folder / "v.mp4").read_bytes()


def test_longer_ones_are_seen_in_windows_by_the_expert_of_the_step(tiny, work):
    job = work(tiny(TWO_TEXT), 6, guidance_low=1.0)
    with forwards(job.renderer.checkpoint.experts) as calls:
        latents = job.latents()
    assert latents.shape[2] == 25
    guided, plain = [("high", 11)] * 3 * 2, [("low", 11)] * 3
    assert calls == [*guided, *guided, *plain]


@pytest.mark.parametrize("seconds", [2, 3, 4, 6, 10, 15])
def test_forwards_are_as_many_as_the_video_is_long(tiny, work, seconds):
    """No forward sees more than the weights know, and all of them together see little more than the video."""
    job = work(tiny(TEXT), seconds, sigmas=(1.0, 0.0), guidance_high=1.0)
    with forwards(job.renderer.checkpoint.experts) as calls:
        job.latents()
    seen = [count for _, count in calls]
    latents = 4 * seconds + 1
    assert len(seen) == len(job.plan.windows) == max(1, -(-(latents - 4) // 8))
    assert max(seen) <= 12
    assert sum(seen) == latents + 4 * (len(seen) - 1)


def test_the_same_seed_gives_the_same_video_and_another_does_not(tiny, work):
    one, again, other = (work(tiny(TEXT), 4, seed=seed).latents() for seed in (5, 5, 6))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other, atol=0.1)


def test_every_window_takes_part(tiny, work):
    """The parts of a video that only one window sees differ from those of another seed and from each other."""
    latents = work(tiny(TEXT), 6).latents()
    assert latents.std(dim=(0, 1, 3, 4)).min() > 0.1
    assert torch.isfinite(latents).all()


def test_windows_count_as_steps(tiny, work):
    found: list[tuple[int, int]] = []
    work(tiny(TEXT), 6).latents(lambda *args: found.append(args))
    total = 3 * STEP_COUNT
    assert found == [(done, total) for done in range(1, total + 1)]


@pytest.mark.parametrize("at", [3, 4, 7])
def test_it_goes_on_where_it_was_with_the_same_latents(tiny, work, at):
    """Stopped behind a step or inside one: what is repeated is less than a step."""
    whole = work(tiny(TWO_TEXT), 6).latents()
    cut = work(tiny(TWO_TEXT), 6)
    with pytest.raises(StopError):
        cut.latents(stop_at(at))
    assert not (cut.folder / "made").exists()
    found: list[tuple[int, int]] = []
    assert torch.equal(cut.latents(lambda *args: found.append(args)), whole)
    assert found[0] == (at // 3 * 3 + 1, 3 * STEP_COUNT)


def test_it_stops_between_two_windows(tiny, work):
    job = work(tiny(TEXT), 6)
    with forwards(job.renderer.checkpoint.experts) as calls, pytest.raises(StopError):
        job.latents(stop_at(1))
    assert len(calls) == 2  # one window, guided
    assert not (job.folder / "checkpoint").exists()


def test_the_file_has_every_frame(tiny, work):
    job = work(tiny(TEXT), 3, sigmas=(1.0, 0.0), width=32, height=32, sample_width=32, sample_height=32)
    job.latents()
    done: list[tuple[int, int]] = []
    out = job.folder / "v.mp4"
    facts = job.renderer.decode(job.plan, job.folder / "made", out, None, lambda *args: done.append(args))
    assert (facts.frames, facts.seconds, done[-1]) == (48, 3.0, (48, 48))
    assert read_video(out).shape == (48, 32, 32, 3)


def test_the_second_pass_of_1080p_has_windows_too(tiny, work):
    model = tiny(TWO_TEXT)
    profile = replace(windowed(model.profile), sample_pixels=None, refinement=Refinement(0.625, 2))
    made = make_plan(profile, PlanRequest("a cat", None, "1080P", 1.0, 3, seed=5, media=()))
    assert made.refine is not None
    small = replace(made.refine, sample_width=32, sample_height=32)
    plan = replace(made, width=48, height=48, sample_width=48, sample_height=48, sigmas=STEPS, refine=small)
    job = work(model, 3, profile)
    first, second = plan.passes
    renderer, folder = job.renderer, job.folder
    for name, one in (("told", first), ("fine", second)):
        renderer.encode(one, Media(), folder / name, nothing)
    with forwards(renderer.checkpoint.experts) as calls:
        renderer.denoise(first, folder / "told", folder / "small", nothing)
        enlarge(renderer, second, folder / "small", folder / "begun", nothing)
        renderer.denoise(second, folder / "fine", folder / "made", nothing, None, folder / "begun")
    assert load_file(folder / "made")["latents"].shape == (1, 16, 13, 6, 6)
    assert {count for _, count in calls} == {9, 8}
    assert {name for name, _ in calls[-8:]} == {"low"}


def test_the_loop_asks_for_what_is_predicted(tiny):
    """Really computed, three windows, the solver and guidance included: within 25 %, and less than all at once."""
    model = tiny(TEXT).checkpoint.experts.high
    found = {}
    for longest in (10, 24):
        windows = Windowing(longest, overlap=3).split(24)
        with torch.inference_mode(), LiveMemory([*model.parameters(), *model.buffers()]) as live:
            text = torch.zeros(1, 512, model.config["text_dim"])
            told = Conditioning(text.clone(), text.clone())
            start, sampler = torch.zeros(1, 16, 24, 16, 24), make_sampler("unipc", (1.0, 0.8, 0.0))
            denoise(Experts(model), start, told, sampler, Guidance(3.0, 3.0), nothing, Blend(windows, nothing))
        whole = 24 if longest < 24 else None
        sample = Sample((len(windows[0]), 16, 24), 512, 4, whole=whole)
        assert live.peak == pytest.approx(denoise_bytes(dict(model.config), sample), rel=0.25)
        found[len(windows)] = live.peak
    assert found[3] < 0.75 * found[1]
