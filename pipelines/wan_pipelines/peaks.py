"""Predicted memory of a plan, by stage and by the way in which the weights are kept. No torch.

The prediction is what the allocator is asked for (`footprint.py`, `activations.py`, `vae_memory.py`), without a
margin: that belongs to the choice (`placement.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from wan_pipelines import activations, vae_memory
from wan_pipelines.footprint import EXPERTS, PARTS, Footprint, Part
from wan_pipelines.plan import RenderPlan
from wan_pipelines.profile import TEMPORAL_STRIDE
from wan_pipelines.s2v.memory import wav2vec2_bytes

Residence = Literal["resident", "offload_text", "offload_parts", "offload_layers"]
Mode = Literal[
    "resident",
    "offload_text",
    "offload_parts",
    "offload_layers",
    "fp8",
    "fp8_offload_text",
    "fp8_offload_parts",
    "fp8_offload_layers",
]
Stage = Literal["text", "image", "audio", "encode", "denoise", "decode"]

#: best first: all weights on the device; only what reads prompt, pictures and sound comes for its stage; every part
#: comes for its stage; blocks stream through two places. Weights in fp8 are not the ones that were published, so they
#: come last.
MODES: tuple[Mode, ...] = get_args(Mode)
RESIDENCES: Mapping[Mode, Residence] = MappingProxyType(dict(zip(MODES, 2 * get_args(Residence), strict=True)))
#: the parts that stay on the device
STAYS: Mapping[Residence, frozenset[str]] = MappingProxyType(
    {
        "resident": frozenset(PARTS),
        "offload_text": frozenset({"vae", *EXPERTS}),
        "offload_parts": frozenset(),
        "offload_layers": frozenset(),
    }
)
#: the parts that compute in each stage
STAGES: Mapping[Stage, tuple[str, ...]] = MappingProxyType(
    {
        "text": ("text_encoder",),
        "image": ("image_encoder",),
        "audio": ("audio_encoder",),
        "encode": ("vae",),
        "denoise": EXPERTS,
        "decode": ("vae",),
    }
)
#: pinned memory through which parts travel, both halves
FERRY = 2 * 256 * 2**20
#: blocks on the device at a time when they are streamed
PLACES = 2


@dataclass(frozen=True, slots=True)
class StagePeak:
    """Bytes on the device at the worst moment of a stage."""

    weights: int
    activations: int

    @property
    def bytes(self) -> int:
        return self.weights + self.activations


@dataclass(frozen=True, slots=True)
class Peak:
    """Predicted memory of one plan in one mode."""

    mode: Mode
    by_stage: Mapping[Stage, StagePeak]
    #: weights that lie in host memory, with the pinned memory that they travel through
    host_bytes: int

    @property
    def device_bytes(self) -> int:
        return max(stage.bytes for stage in self.by_stage.values())


def peak(footprint: Footprint, plan: RenderPlan, mode: Mode, known: int = 1) -> Peak:
    """Predicted peak of every stage. `known` counts the pictures at the start that condition the video.

    Of several segments this is the peak of the longest, and of decoding all of them.
    """
    parts = footprint.parts_fp8 if is_fp8(mode) else footprint.parts
    residence = RESIDENCES[mode]
    computing = _activations(footprint, plan, known, fp8=is_fp8(mode))
    stages: dict[Stage, StagePeak] = {
        stage: StagePeak(_weights(parts, stage, residence), size) for stage, size in computing.items()
    }
    return Peak(mode, stages, _host_bytes(parts, residence))


def is_fp8(mode: Mode) -> bool:
    """Whether the denoiser's blocks hold their weights in fp8."""
    return mode.startswith("fp8")


def _weights(parts: Mapping[str, Part], stage: Stage, residence: Residence) -> int:
    """Bytes of weights on the device in this stage: what stays, and what comes, of two experts one at a time."""
    stays = sum(part.bytes for name, part in parts.items() if name in STAYS[residence])
    comes = [parts[name] for name in STAGES[stage] if name in parts and name not in STAYS[residence]]
    if residence == "offload_layers":
        return stays + max(part.rest + PLACES * max(part.blocks, default=0) for part in comes)
    return stays + max((part.bytes for part in comes), default=0)


def _host_bytes(parts: Mapping[str, Part], residence: Residence) -> int:
    """What does not stay on the device rests in host memory; the others pass through it one by one."""
    rests = [part for name, part in parts.items() if name not in STAYS[residence]]
    passes = max((part.bytes for name, part in parts.items() if name in STAYS[residence]), default=0)
    largest = max((size for part in rests for size in part.blocks), default=0)
    pinned = max(FERRY, PLACES * _power_of_two(largest)) if residence == "offload_layers" else FERRY
    return passes + sum(part.bytes for part in rests) + (pinned if rests else 0)


def _activations(footprint: Footprint, plan: RenderPlan, known: int, *, fp8: bool) -> dict[Stage, int]:
    """Bytes by stage, of the stages that the plan has."""
    known = max(known, 1) if len(plan.segments) > 1 else known  # those behind the first one know its end
    configs, size = footprint.configs, (plan.sample_width, plan.sample_height)
    frames = (plan.sample_frames - 1) // TEMPORAL_STRIDE + 1
    # windows may be shorter than the longest, but a shorter video is one sample of that length and fits too
    seen = frames if plan.windowing is None else plan.windowing.longest
    stride = configs["vae"].get("scale_factor_spatial", 8)
    pictures = footprint.pictures if "image_encoder" in configs else 0
    sample = activations.Sample(
        latent=(seen, size[1] // stride, size[0] // stride),
        text_len=footprint.text_len,
        element=footprint.element,
        per_token=footprint.conditioning == "expand_timesteps" and known > 0,
        fp8=fp8,
        image_tokens=activations.image_tokens(configs["image_encoder"], pictures) if pictures else 0,
        whole=None if plan.windowing is None else frames,
    )
    found: dict[Stage, int] = {
        "text": activations.text_bytes(configs["text_encoder"], footprint.text_len, footprint.element)
    }
    if pictures:
        found["image"] = activations.image_bytes(configs["image_encoder"], pictures, *size)
    if "audio_encoder" in configs:
        heard_s = plan.clips.heard_seconds if plan.clips else plan.seconds
        found["audio"] = wav2vec2_bytes(configs["audio_encoder"], heard_s)
    if encoded := _encoded_frames(footprint, plan, known):
        found["encode"] = vae_memory.encode_bytes(configs["vae"], *size, max(known, _prefix(plan)), encoded)
    if plan.refine is not None or plan.sigmas[0] < 1:  # a whole sample is encoded, which waits elsewhere (`refine.py`)
        enlarging = vae_memory.encode_bytes(configs["vae"], *size, TEMPORAL_STRIDE, plan.sample_frames)
        found["encode"] = max(found.get("encode", 0), enlarging)
    found["denoise"] = max(activations.denoise_bytes(configs[n], sample) for n in EXPERTS if n in configs)
    found["decode"] = vae_memory.decode_bytes(configs["vae"], *size, _decoded_latents(plan, frames))
    return found


def _encoded_frames(footprint: Footprint, plan: RenderPlan, known: int) -> int:
    """Frames that go through the VAE's encoder: the whole sample, or only the known ones where each has its time."""
    if footprint.conditioning == "text":
        return 0
    if footprint.conditioning == "expand_timesteps":
        return max(known, _prefix(plan)) if known else 0
    if plan.clips is not None:  # the first frame; between two clips the end of the one before
        return plan.clips.spec.motion_frames if len(plan.clips.clips) > 1 else 1
    return plan.sample_frames


def _prefix(plan: RenderPlan) -> int:
    """Frames at the start of a sample that the model is told of, at most."""
    return max((plan.prefix_frames, *(segment.prefix_frames for segment in plan.segments)))


def _decoded_latents(plan: RenderPlan, frames: int) -> int:
    """Latent frames that are decoded at once: those of the sample, behind what a clip of a chain was told of; all of
    several segments."""
    if plan.clips is None:
        return max(frames, sum(segment.latent_frames for segment in plan.segments))
    told = (plan.clips.spec.motion_frames - 1) // TEMPORAL_STRIDE + 1
    return max((told if clip.number else 1) + clip.latent_frames for clip in plan.clips.clips)


def _power_of_two(size: int) -> int:
    """What torch takes for a pinned tensor of so many bytes."""
    return 1 << (size - 1).bit_length() if size else 0
