"""Tiny checkpoints, profiles, plans and pictures for the pipeline tests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from wan_pipelines.load import Checkpoint
from wan_pipelines.plan import PlanRequest, RenderPlan, make_plan
from wan_pipelines.profile import Profile, load_profile
from wan_pipelines.tiny import TinySpec

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
CONCAT = TinySpec()
TWO_EXPERTS = TinySpec(boundary=0.9)
OLD_VAE = TinySpec(vae22=False)
TI2V = TinySpec(expand_timesteps=True)


@dataclass(frozen=True, slots=True)
class TinyModel:
    profile: Profile
    folder: Path
    checkpoint: Checkpoint


def small_profile(spec: TinySpec) -> Profile:
    """The profile of a miniature in this layout: a sample of 64x64, four steps, otherwise as the large models."""
    base = load_profile("tiny-ti2v" if spec.expand_timesteps else "tiny", CONFIGS)
    return replace(
        base,
        weights_from="random",
        conditioning="expand_timesteps" if spec.expand_timesteps else "concat",
        boundary=spec.boundary,
        size_multiple=32 if spec.vae22 else 16,
        sample_pixels=64 * 64,
        text_len=512,
        steps=4,
        shift=5.0,
        guidance_high=3.5,
        guidance_low=3.5,
    )


def small_plan(profile: Profile, **changes) -> RenderPlan:
    """Nine frames of 64x64, shown at that size. The texts are long enough to matter among 512 tokens."""
    prompt, negative = "a cat runs over wet grass, " * 9, "blurred, grey, still; " * 9
    plan = make_plan(profile, PlanRequest(prompt, negative, "720P", 1.0, 1, seed=5))
    return replace(plan, **{"width": 64, "height": 64, "frames": 9, "sample_frames": 9, **changes})


def noise_image(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
