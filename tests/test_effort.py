"""The count of operations against published figures, and against what the plans add up to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wan_pipelines.effort import Effort, decode_operations, encode_operations, forward_operations, plan_effort
from wan_pipelines.footprint import bundled_configs
from wan_pipelines.plan import PlanRequest, RenderPlan, make_plan
from wan_pipelines.profile import load_profile

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TERA = 1e12


def config(stem: str) -> dict[str, Any]:
    return json.loads((CONFIGS / "architectures" / f"{stem}.json").read_text(encoding="utf-8"))


def planned(model: str, seconds: int = 5, resolution: str = "720P", **given: Any) -> tuple[RenderPlan, Effort]:
    profile = load_profile(model, CONFIGS)
    media = ("first_frame", *profile.needs) if profile.inputs else ()
    plan = make_plan(profile, PlanRequest("", None, resolution, 16 / 9, seconds, seed=1, **{"media": media, **given}))
    configs = bundled_configs(profile, CONFIGS)
    return plan, plan_effort(plan, configs["transformer"], configs["vae"], profile.text_len)


@pytest.mark.parametrize(
    ("stem", "tokens", "tera"),
    [
        ("wan2.1-t2v-1.3b", 32_760, 283),
        ("wan2.1-t2v-1.3b", 75_600, 1250),
        ("wan2.2-ti2v-5b", 63_240, 2045),
        ("wan2.2-i2v-a14b", 75_600, 6523),
        ("wan2.2-i2v-a14b", 171_360, 28_226),
    ],
)
def test_a_forward_is_what_torch_counts(stem: str, tokens: int, tera: float):
    """FlopCounterMode of torch over the models of diffusers on the meta device."""
    assert forward_operations(config(stem), tokens, 512) / TERA == pytest.approx(tera, rel=0.01)


@pytest.mark.parametrize(
    ("stem", "width", "height", "frames", "decoded", "encoded"),
    [
        ("wan2.1-vae", 832, 480, 81, 275, 164),
        ("wan2.1-vae", 1280, 720, 81, 639, 382),
        ("wan2.1-vae", 1920, 1080, 81, 1457, 878),
        ("wan2.2-vae", 1280, 704, 121, 2011, 383),
    ],
)
def test_the_autoencoder_is_what_torch_counts(
    stem: str, width: int, height: int, frames: int, decoded: float, encoded: float
):
    assert decode_operations(config(stem), width, height, frames) / TERA == pytest.approx(decoded, rel=0.01)
    assert encode_operations(config(stem), width, height, frames) / TERA == pytest.approx(encoded, rel=0.01)


def test_second_controls_count_as_blocks():
    plain, control = config("wan2.1-t2v-1.3b"), config("wan2.1-vace-1.3b")
    more = 1 + len(control["vace_layers"]) / control["num_layers"]
    assert forward_operations(control, 1000, 512) == pytest.approx(more * forward_operations(plain, 1000, 512))


def test_every_forward_of_every_segment_counts():
    plan, effort = planned("wan2.2-i2v-a14b", 15)
    assert [segment.latent_frames for segment in plan.segments] == [18, 18, 17, 17]
    transformer = config("wan2.2-i2v-a14b")
    forwards = sum(forward_operations(transformer, latents * 3600, 512) for latents in (18, 18, 17, 17))
    assert effort.denoise == pytest.approx(80 * forwards)  # 40 steps, all guided
    assert effort.autoencoder == pytest.approx(decode_operations(config("wan2.1-vae"), 1280, 720, 4 * 70))


def test_a_longer_video_in_segments_costs_hardly_more_than_its_length():
    ratio = planned("wan2.2-i2v-a14b", 15)[1].denoise / planned("wan2.2-i2v-a14b", 5)[1].denoise
    assert 2.8 < ratio < 3.0  # docs/decisions/0014-segments.md: 2.9


def test_windows_count_as_the_model_sees_them():
    whole, short = (planned("wan2.2-t2v-a14b", seconds)[1] for seconds in (15, 5))
    assert 3 < whole.denoise / short.denoise < 3.3


def test_two_passes_are_half_of_1080p_in_one():
    """The ratio of docs/decisions/0015-1080p.md; direct is far more than the pixels say, because of attention."""
    small, refined = planned("wan2.2-i2v-a14b")[1], planned("wan2.2-i2v-a14b", resolution="1080P")[1]
    direct = planned("wan2.2-i2v-a14b", resolution="1080P", hd_route="direct")[1]
    assert refined.denoise / direct.denoise == pytest.approx(0.48, abs=0.005)
    assert direct.denoise / small.denoise == pytest.approx(28_226 / 6523, rel=0.01)
    again = encode_operations(config("wan2.1-vae"), 1920, 1088, 84)
    assert refined.autoencoder == pytest.approx(small.autoencoder + direct.autoencoder + again)


def test_steps_without_guidance_are_one_forward():
    """Distilled weights; and guidance of the low-noise expert alone, which has 25 of the 40 steps."""
    profile = load_profile("wan2.2-i2v-a14b", CONFIGS)
    configs = bundled_configs(profile, CONFIGS)
    forward = forward_operations(configs["transformer"], 75_600, 512)

    def forwards(**changes: float) -> float:
        plan = replace(planned("wan2.2-i2v-a14b")[0], **changes)
        return plan_effort(plan, configs["transformer"], configs["vae"], 512).denoise / forward

    assert forwards(guidance_high=1.0, guidance_low=1.0) == pytest.approx(40)
    assert forwards(guidance_high=1.0) == pytest.approx(65)
    fast = make_plan(profile.with_preset("fast"), PlanRequest("", None, "720P", 16 / 9, 5, seed=1))
    assert plan_effort(fast, configs["transformer"], configs["vae"], 512).denoise / forward == pytest.approx(4)


def test_clips_of_a_chain_count_with_what_they_are_told():
    five, fifteen = (planned("wan2.2-s2v-14b", seconds)[1] for seconds in (5, 15))
    transformer = config("wan2.2-s2v-14b")
    alone = forward_operations(transformer, 21 * 3600, 512)
    assert five.denoise > 80 * alone
    assert fifteen.denoise / five.denoise == pytest.approx(3, abs=0.2)
