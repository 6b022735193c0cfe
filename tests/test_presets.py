"""The presets of the real profiles on miniatures: which expert runs how often, at which timesteps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from callbacks import nothing
from parity_peers import count, recording
from tiny_checkpoint import CONCAT, CONFIGS, TinyModel, noise_image
from wan_pipelines.errors import CheckpointError, RenderError
from wan_pipelines.plan import PlanRequest, RenderPlan, make_plan
from wan_pipelines.preset import LoraFile
from wan_pipelines.profile import load_served
from wan_pipelines.renderer import Media, Renderer
from wan_pipelines.samplers import make_sampler
from wan_pipelines.tiny import TinySpec, tiny_spec

pytest_plugins = ("pipeline_fixtures",)
CPU = torch.device("cpu")
DISTILLED = [1000, 937.5, 833.333, 625]


def open_model(model: str, tiny: Callable[[TinySpec], TinyModel]) -> tuple[Renderer, RenderPlan]:
    """The profile as it is served, on the miniature of its layout; five frames of the smallest size."""
    profile = load_served(model, CONFIGS)
    renderer = Renderer(profile, tiny(tiny_spec(profile)).checkpoint, CPU)
    media = ("first_frame",) if "first_frame" in profile.inputs else ()
    plan = make_plan(profile, PlanRequest("a cat", "grey", "720P", 1.0, 1, seed=0, media=media))
    side = profile.size_multiple
    small = {"width": side, "height": side, "sample_width": side, "sample_height": side}
    return renderer, replace(plan, **small, frames=5, sample_frames=5)


@pytest.mark.parametrize(
    ("model", "high", "low", "negative_used"),
    [
        ("wan2.2-i2v-a14b", 15 * 2, 25 * 2, True),
        ("wan2.2-i2v-a14b:fast", 2, 2, False),
        ("wan2.2-i2v-a14b:distilled", 2, 2, False),
        ("wan2.2-t2v-a14b", 26 * 2, 14 * 2, True),
        ("wan2.2-t2v-a14b:fast", 2, 2, False),
        ("wan2.2-t2v-a14b:distilled", 2, 2, False),
        ("wan2.2-ti2v-5b", 50 * 2, 0, True),
        ("wan2.1-i2v-14b-720p", 40 * 2, 0, True),
        ("wan2.1-i2v-14b-720p:fast", 4, 0, False),
        ("wan2.1-i2v-14b-720p:distilled", 4, 0, False),
    ],
)
def test_forwards_of_each_expert(tiny, tmp_path, model, high, low, negative_used):
    renderer, plan = open_model(model, tiny)
    noise_image(0).save(tmp_path / "i.png")
    media = Media(tmp_path / "i.png") if "first_frame" in renderer.profile.inputs else Media()
    report = renderer.encode(plan, media, tmp_path / "c", nothing)
    experts = renderer.checkpoint.experts
    with recording(experts.high, experts.low) as said:
        renderer.denoise(plan, tmp_path / "c", tmp_path / "l", nothing)
    assert (count(said, "high"), count(said, "low")) == (high, low)
    assert report.negative_used is negative_used


@pytest.mark.parametrize("model", ["wan2.2-i2v-a14b", "wan2.2-t2v-a14b", "wan2.1-i2v-14b-720p"])
@pytest.mark.parametrize("preset", ["fast", "distilled"])
def test_distilled_models_run_at_the_timesteps_of_its_distillation(tiny, model, preset):
    _, plan = open_model(f"{model}:{preset}", tiny)
    assert plan.sampler == "euler"
    assert make_sampler(plan.sampler, plan.sigmas).timesteps == pytest.approx(DISTILLED, abs=1e-3)


def test_a_plan_of_another_preset_is_refused(tiny, tmp_path):
    """The weights may be others: `fast` has low-rank additions."""
    renderer, plan = open_model("wan2.2-i2v-a14b:fast", tiny)
    slow = replace(renderer, profile=load_served("wan2.2-i2v-a14b", CONFIGS))
    with pytest.raises(RenderError, match=r"the plan is for model wan2\.2-i2v-a14b:fast, this worker has wan2\.2-i2v"):
        slow.encode(plan, Media(), tmp_path / "c", nothing)


def test_a_preset_is_not_loaded_without_its_additions(tiny):
    """Four steps of weights that were not distilled would be a smear, and nobody would know why."""
    model = tiny(CONCAT)
    distilled = replace(model.profile, loras=(LoraFile("owner/name", "additions.safetensors"),))
    with pytest.raises(CheckpointError, match=r"missing LoRA files: additions\.safetensors of owner/name"):
        Renderer.load(distilled, model.folder, "cpu")
