"""Tiny checkpoints, profiles, plans and pictures for the pipeline tests."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
TI2V = TinySpec("expand_timesteps")
TEXT = TinySpec("text", vae22=False)
VACE = TinySpec("vace", vae22=False)
S2V = TinySpec("s2v", vae22=False)
ONE_PICTURE = TinySpec(clip_pictures=1, vae22=False)
TWO_PICTURES = TinySpec(clip_pictures=2, vae22=False)
#: profiles whose inputs and text go with a layout
BASES = {
    "concat": "tiny",
    "expand_timesteps": "tiny-ti2v",
    "text": "wan2.1-t2v-1.3b",
    "vace": "wan2.1-vace-1.3b",
    "s2v": "tiny-s2v",
}


@dataclass(frozen=True, slots=True)
class TinyModel:
    profile: Profile
    folder: Path
    checkpoint: Checkpoint


def small_profile(spec: TinySpec) -> Profile:
    """The profile of a miniature in this layout: one sample of 64x64, four steps, otherwise as the large models."""
    return replace(
        load_profile(BASES[spec.conditioning], CONFIGS),
        weights_from="random",
        repository=None,
        original_repository=None,
        architecture=None,
        conditioning=spec.conditioning,
        boundary=spec.boundary,
        clip_pictures=spec.clip_pictures,
        chaining=None,
        native_frames=None,
        size_multiple=32 if spec.vae22 else 16,
        sample_pixels=64 * 64,
        text_len=512,
        motion_frames=9 if spec.conditioning == "s2v" else None,  # as `s2v/miniature.py` builds it
        steps=4,
        shift=5.0,
        guidance_high=3.5,
        guidance_low=3.5,
    )


def folder_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """The configs of a checkpoint in diffusers layout, by part; empty when it is in no such layout."""
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/config.json")}


def small_plan(profile: Profile, **changes) -> RenderPlan:
    """Nine frames of 64x64, shown at that size. The texts are long enough to matter among 512 tokens.

    The numbers are the same whatever the video begins with, but for `changes`.
    """
    prompt, negative = "a cat runs over wet grass, " * 9, "blurred, grey, still; " * 9
    media = (*(("first_frame",) if "first_frame" in profile.inputs else ()), *profile.needs)
    plan = make_plan(profile, PlanRequest(prompt, negative, "720P", 1.0, 1, seed=5, media=media))
    return replace(plan, **{"width": 64, "height": 64, "frames": 9, "sample_frames": 9, **changes})


def noise_image(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
