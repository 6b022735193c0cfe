"""Every sampling number of every profile, written out once more by hand, so that a wrong one cannot slip in.

The numbers are those of the original repositories (Wan-Video/Wan2.1, Wan-Video/Wan2.2) and, for "fast" and
"distilled", of ModelTC/LightX2V. The parameter counts are those of the published checkpoints.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import diffusers
import pytest
import torch
import transformers

from wan_pipelines.plan import plan_sigmas
from wan_pipelines.profile import list_profiles, load_profile
from wan_pipelines.s2v.transformer import WanS2VTransformer3DModel

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
HD = ("1280x720", "720x1280")
SD = ("832x480", "480x832")
S2V = (*HD, *SD, "1024x704", "704x1024", "1280x704", "704x1280")
DISTILLED = (1000.0, 937.5, 833.3333, 625.0, 0.0)


@dataclass(frozen=True, slots=True)
class Row:
    """What one model with one preset must say."""

    sampler: str
    shift: float
    steps: int
    guidance: tuple[float, float]  # high, low
    boundary: float | None
    fps: int
    frames: int
    sizes: tuple[str, ...]


TABLE = {
    "wan2.2-i2v-a14b": Row("unipc", 5, 40, (3.5, 3.5), 0.9, 16, 81, (*HD, *SD)),
    "wan2.2-i2v-a14b:fast": Row("euler", 5, 4, (1, 1), 0.9, 16, 81, (*HD, *SD)),
    "wan2.2-i2v-a14b:distilled": Row("euler", 5, 4, (1, 1), 0.9, 16, 81, (*HD, *SD)),
    "wan2.2-i2v-a14b:svi": Row("unipc", 5, 40, (3.5, 3.5), 0.9, 16, 81, (*HD, *SD)),
    "wan2.2-t2v-a14b": Row("unipc", 12, 40, (4, 3), 0.875, 16, 81, (*HD, *SD)),
    "wan2.2-t2v-a14b:fast": Row("euler", 5, 4, (1, 1), 0.875, 16, 81, (*HD, *SD)),
    "wan2.2-t2v-a14b:distilled": Row("euler", 5, 4, (1, 1), 0.875, 16, 81, (*HD, *SD)),
    "wan2.2-ti2v-5b": Row("unipc", 5, 50, (5, 5), None, 24, 121, ("1280x704", "704x1280")),
    "wan2.2-s2v-14b": Row("unipc", 3, 40, (4.5, 4.5), None, 16, 80, S2V),
    "wan2.1-i2v-14b-720p": Row("unipc", 5, 40, (5, 5), None, 16, 81, HD),
    "wan2.1-i2v-14b-720p:fast": Row("euler", 5, 4, (1, 1), None, 16, 81, HD),
    "wan2.1-i2v-14b-720p:distilled": Row("euler", 5, 4, (1, 1), None, 16, 81, HD),
    "wan2.1-flf2v-14b-720p": Row("unipc", 16, 50, (5, 5), None, 16, 81, HD),
    "wan2.1-vace-14b": Row("unipc", 16, 50, (5, 5), None, 16, 81, (*HD, *SD)),
    "wan2.1-vace-1.3b": Row("unipc", 16, 50, (5, 5), None, 16, 81, SD),
    "wan2.1-t2v-1.3b": Row("unipc", 8, 50, (6, 6), None, 16, 81, SD),  # README for this one; 5 and 5 for all others
}
#: high-noise steps of all steps
SPLITS = {
    "wan2.2-i2v-a14b": (15, 40),
    "wan2.2-i2v-a14b:fast": (2, 4),
    "wan2.2-i2v-a14b:distilled": (2, 4),
    "wan2.2-t2v-a14b": (26, 40),
    "wan2.2-t2v-a14b:fast": (2, 4),
    "wan2.2-t2v-a14b:distilled": (2, 4),
}
SHARED_NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，"
    "静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
NEGATIVES = {
    "wan2.1-i2v-14b-720p": "镜头晃动，" + SHARED_NEGATIVE,
    "wan2.1-flf2v-14b-720p": "镜头切换，镜头晃动，" + SHARED_NEGATIVE,
    "wan2.2-s2v-14b": (
        "画面模糊，最差质量，画面模糊，细节模糊不清，情绪激动剧烈，手快速抖动，字幕，丑陋的，残缺的，多余的手指，"
        "画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，"
        "背景人很多，倒着走"
    ),
}
LORAS = {
    "wan2.2-i2v-a14b:fast": [
        ("high", "lightx2v/Wan2.2-Distill-Loras", "wan2.2_i2v_A14b_high_noise_lora_rank64_lightx2v_4step_1022"),
        ("low", "lightx2v/Wan2.2-Distill-Loras", "wan2.2_i2v_A14b_low_noise_lora_rank64_lightx2v_4step_1022"),
    ],
    "wan2.2-t2v-a14b:fast": [
        ("high", "lightx2v/Wan2.2-Distill-Loras", "wan2.2_t2v_A14b_high_noise_lora_rank64_lightx2v_4step_1217"),
        ("low", "lightx2v/Wan2.2-Distill-Loras", "wan2.2_t2v_A14b_low_noise_lora_rank64_lightx2v_4step_1217"),
    ],
    "wan2.1-i2v-14b-720p:fast": [
        ("high", "lightx2v/Wan2.1-Distill-Loras", "wan2.1_i2v_lora_rank64_lightx2v_4step"),
    ],
    # these have it inside
    "wan2.2-i2v-a14b:distilled": [],
    "wan2.2-t2v-a14b:distilled": [],
    "wan2.1-i2v-14b-720p:distilled": [],
}
#: inputs, needed ones, text alone, CLIP pictures
TAKES = {
    "wan2.2-i2v-a14b": (("first_frame", "last_frame", "first_clip"), (), False, 0),
    "wan2.2-t2v-a14b": ((), (), True, 0),
    "wan2.2-ti2v-5b": (("first_frame",), (), True, 0),
    "wan2.2-s2v-14b": (("first_frame", "last_frame", "driving_audio"), ("driving_audio",), False, 0),
    "wan2.1-i2v-14b-720p": (("first_frame",), (), False, 1),
    "wan2.1-flf2v-14b-720p": (("first_frame", "last_frame"), ("last_frame",), False, 2),
    "wan2.1-vace-14b": (("first_frame", "last_frame", "first_clip"), (), True, 0),
    "wan2.1-vace-1.3b": (("first_frame", "last_frame", "first_clip"), (), True, 0),
    "wan2.1-t2v-1.3b": ((), (), True, 0),
}
REPOSITORIES = {
    "wan2.2-i2v-a14b": ("Wan-AI/Wan2.2-I2V-A14B-Diffusers", "Wan-AI/Wan2.2-I2V-A14B"),
    "wan2.2-t2v-a14b": ("Wan-AI/Wan2.2-T2V-A14B-Diffusers", "Wan-AI/Wan2.2-T2V-A14B"),
    "wan2.2-ti2v-5b": ("Wan-AI/Wan2.2-TI2V-5B-Diffusers", "Wan-AI/Wan2.2-TI2V-5B"),
    "wan2.2-s2v-14b": (None, "Wan-AI/Wan2.2-S2V-14B"),
    "wan2.1-i2v-14b-720p": ("Wan-AI/Wan2.1-I2V-14B-720P-Diffusers", "Wan-AI/Wan2.1-I2V-14B-720P"),
    "wan2.1-flf2v-14b-720p": ("Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers", "Wan-AI/Wan2.1-FLF2V-14B-720P"),
    "wan2.1-vace-14b": ("Wan-AI/Wan2.1-VACE-14B-diffusers", "Wan-AI/Wan2.1-VACE-14B"),
    "wan2.1-vace-1.3b": ("Wan-AI/Wan2.1-VACE-1.3B-diffusers", "Wan-AI/Wan2.1-VACE-1.3B"),
    "wan2.1-t2v-1.3b": ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan-AI/Wan2.1-T2V-1.3B"),
}
#: parameters in millions, as the original classes have them
TRANSFORMERS = {
    "wan2.2-i2v-a14b": 14_289,
    "wan2.2-t2v-a14b": 14_288,
    "wan2.2-ti2v-5b": 5_000,
    "wan2.2-s2v-14b": 16_296,
    "wan2.1-i2v-14b-720p": 16_395,
    "wan2.1-flf2v-14b-720p": 16_396,
    "wan2.1-vace-14b": 17_338,
    "wan2.1-vace-1.3b": 2_154,
    "wan2.1-t2v-1.3b": 1_419,
}
OTHER_PARTS = {
    "umt5-xxl": 5_681,
    "clip-vit-h": 631,
    "wav2vec2-large-xlsr-53": 315,
    "wan2.1-vae": 127,
    "wan2.2-vae": 705,
}


def model(name: str):
    stem, _, preset = name.partition(":")
    profile = load_profile(stem, CONFIGS)
    return profile.with_preset(preset) if preset else profile


def test_no_profile_and_no_preset_is_missing_from_the_table():
    large = [profile for profile in list_profiles(CONFIGS) if profile.weights_from == "repository"]
    presets = [profile.with_preset(name).served_as for profile in large for name in profile.presets]
    assert sorted([*(profile.name for profile in large), *presets]) == sorted(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_sampling_numbers(name: str):
    profile, row = model(name), TABLE[name]
    assert (profile.sampler, profile.shift, profile.steps) == (row.sampler, row.shift, row.steps)
    assert (profile.guidance_high, profile.guidance_low) == row.guidance
    assert profile.is_guided == (row.guidance[0] > 1)
    assert (profile.boundary, profile.fps, profile.trained_frames) == (row.boundary, row.fps, row.frames)
    assert profile.trained_sizes == row.sizes
    assert len(plan_sigmas(profile)) == row.steps + 1


@pytest.mark.parametrize("name", LORAS)
def test_distilled_weights_and_their_noise_levels(name: str):
    profile = model(name)
    found = [(lora.expert, lora.repository, lora.file.removesuffix(".safetensors")) for lora in profile.loras]
    assert found == LORAS[name]
    assert {lora.strength for lora in profile.loras} <= {1.0}
    assert profile.own_weights == (not found)
    assert [1000 * sigma for sigma in plan_sigmas(profile)] == pytest.approx(DISTILLED)


def test_the_preset_for_long_videos_has_its_pair_and_its_chaining():
    profile = model("wan2.2-i2v-a14b:svi")
    stem = "version-2.0/SVI_Wan2.2-I2V-A14B_{}_noise_lora_v2.0_pro.safetensors"
    found = [(lora.expert, lora.repository, lora.file) for lora in profile.loras]
    assert found == [(name, "vita-video-gen/svi-model", stem.format(name)) for name in ("high", "low")]
    assert (profile.chaining, profile.prefix_frames, profile.native_frames) == ("svi", 5, 81)


#: most seconds, most frames of one sample, how longer videos go on
LENGTHS = {
    "wan2.2-i2v-a14b": (15, 81, "prefix"),
    "wan2.2-t2v-a14b": (15, 81, "windows"),  # nothing can be told to it
    "wan2.2-ti2v-5b": (15, 121, "prefix"),
    "wan2.2-s2v-14b": (15, None, None),  # has clips
    "wan2.1-i2v-14b-720p": (15, 81, "prefix"),
    "wan2.1-flf2v-14b-720p": (5, None, None),  # always sees both ends
    "wan2.1-vace-14b": (15, 81, "prefix"),
    "wan2.1-vace-1.3b": (15, 81, "prefix"),
    "wan2.1-t2v-1.3b": (15, 81, "windows"),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_how_long_a_video_gets(name: str):
    profile = model(name)
    assert (profile.max_seconds, profile.native_frames, profile.chaining) == LENGTHS[name]


@pytest.mark.parametrize("name", [name for name in LORAS if name.endswith(":distilled")])
def test_distilled_weights_have_the_numbers_of_fast_without_its_additions(name: str):
    fast = model(name.replace(":distilled", ":fast"))
    assert replace(fast, preset="distilled", loras=(), own_weights=True) == model(name)


@pytest.mark.parametrize("name", SPLITS)
def test_the_boundary_splits_the_steps_between_the_experts(name: str):
    profile = model(name)
    assert profile.boundary is not None
    high = sum(int(1000 * sigma) >= 1000 * profile.boundary for sigma in plan_sigmas(profile)[:-1])
    assert (high, profile.steps) == SPLITS[name]


@pytest.mark.parametrize("name", TAKES)
def test_what_a_model_takes(name: str):
    profile = model(name)
    assert (profile.inputs, profile.needs, profile.text_only, profile.clip_pictures) == TAKES[name]
    assert (profile.repository, profile.original_repository) == REPOSITORIES[name]
    assert profile.licence == "Apache-2.0"


@pytest.mark.parametrize("name", TAKES)
def test_the_negative_prompt_is_the_authors_own(name: str):
    assert model(name).negative_prompt == NEGATIVES.get(name, SHARED_NEGATIVE)


@pytest.mark.parametrize("name", TAKES)
def test_every_number_names_its_source(name: str):
    lines = (CONFIGS / "models" / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    bare = [
        line
        for before, line in zip(["", *lines], lines, strict=False)
        if line.partition(" = ")[2][:1].isdigit() and "#" not in line and not before.startswith("#")
    ]
    follows = {"guidance_low", "strength"}  # beside guidance_high and expert, which have it
    assert [line for line in bare if line.partition(" ")[0] not in follows] == []


def test_all_of_them_can_run():
    assert [profile.name for profile in list_profiles(CONFIGS) if profile.cannot_run] == []


def test_the_one_that_chains_clips_says_how():
    profile = model("wan2.2-s2v-14b")
    assert (profile.clip_frames, profile.motion_frames, profile.size_multiple) == (80, 73, 64)
    assert profile.max_seconds == 15
    config = json.loads((CONFIGS / "architectures" / "wan2.2-s2v-14b.json").read_text())
    assert config["motion_frames"] == profile.motion_frames
    others = [p for p in list_profiles(CONFIGS) if p.conditioning != "s2v"]
    assert {(p.clip_frames, p.motion_frames) for p in others} == {(None, None)}


def parameters(architecture: str) -> float:
    """Millions of parameters of a bundled config, built without memory."""
    path = CONFIGS / "architectures" / f"{architecture}.json"
    given = {key: value for key, value in json.loads(path.read_text()).items() if not key.startswith("_")}
    kind = json.loads(path.read_text())["_class_name"]
    with torch.device("meta"):
        if kind == WanS2VTransformer3DModel.__name__:
            built = WanS2VTransformer3DModel(**given)
        elif hasattr(diffusers, kind):
            built = getattr(diffusers, kind)(**given)
        else:
            cls = getattr(transformers, kind)
            built = cls(cls.config_class(**given))
    return sum(parameter.numel() for parameter in built.parameters()) / 1e6


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_architecture_has_the_parameters_of_the_checkpoint(name: str):
    profile = model(name)
    assert profile.architecture is not None
    assert round(parameters(profile.architecture)) == TRANSFORMERS[name]


@pytest.mark.parametrize("part", OTHER_PARTS)
def test_the_shared_parts_have_the_parameters_of_theirs(part: str):
    assert round(parameters(part)) == OTHER_PARTS[part]
