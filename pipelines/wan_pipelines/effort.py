"""How much arithmetic a plan takes, counted from its numbers and the configs of the weights. No torch.

A multiplication and its addition are two operations. Counted is what grows with size and length: the forwards of the
transformer, in which attention grows with the square of the tokens, and the autoencoder between latents and frames.
What is done once (texts, pictures) is left out, and so is what only known frames cost in the encoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from wan_pipelines.footprint import inner_width, is_vace
from wan_pipelines.plan import RenderPlan
from wan_pipelines.profile import TEMPORAL_STRIDE
from wan_pipelines.s2v.memory import is_s2v, known_tokens
from wan_pipelines.segments import latents_of
from wan_pipelines.vae_layers import Block, Layer, decoder_layers, encoder_layers, parameters_of

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Effort:
    """Operations of a whole video."""

    #: of all forwards of the transformer
    denoise: float
    #: between latents and frames
    autoencoder: float


def plan_effort(plan: RenderPlan, transformer: Config, vae: Config, text_len: int) -> Effort:
    """Of every pass of every segment, or of every clip of a chain."""
    denoise = autoencoder = 0.0
    for one in plan.passes:
        size = (one.sample_width, one.sample_height)
        tokens = (_tokens(transformer, vae, size, latents) for latents in _seen(one))
        denoise += _forwards(one) * sum(forward_operations(transformer, count, text_len) for count in tokens)
        frames = TEMPORAL_STRIDE * sum(_samples(one))
        autoencoder += decode_operations(vae, *size, frames)
        if one.sigmas[0] < 1:  # what was sampled before is encoded at this size (`refine.py`)
            autoencoder += encode_operations(vae, *size, frames)
    return Effort(denoise, autoencoder)


def forward_operations(config: Config, tokens: int, text_len: int) -> float:
    """One forward of the transformer over so many tokens, without what is outside its blocks.

    In a block a token goes through the four square matrices of its self attention, two of the cross attention (keys and
    values are of the text) and the two of the feed-forward layer; it attends to all tokens and to the text.
    """
    width = inner_width(config)
    blocks = config["num_layers"] + (len(config["vace_layers"]) if is_vace(config) else 0)
    return 4.0 * width * tokens * blocks * (3 * width + config["ffn_dim"] + tokens + text_len)


def decode_operations(config: Config, width: int, height: int, frames: int) -> float:
    """Latents to so many frames through the autoencoder."""
    stride = config.get("scale_factor_spatial", 8)
    return _walk(decoder_layers(config), 1, (height // stride) * (width // stride)) * frames / TEMPORAL_STRIDE


def encode_operations(config: Config, width: int, height: int, frames: int) -> float:
    """So many frames to latents through the autoencoder."""
    patch = config.get("patch_size") or 1
    blocks = encoder_layers(config)
    return _walk(blocks, TEMPORAL_STRIDE, (height // patch) * (width // patch)) * frames / TEMPORAL_STRIDE


def _samples(plan: RenderPlan) -> list[int]:
    """Latent frames of each sample that the video is made of."""
    if plan.clips is not None:
        return [clip.latent_frames for clip in plan.clips.clips]
    return [latents_of(part.sample_frames) for part in plan.parts]


def _seen(plan: RenderPlan) -> list[int]:
    """Latent frames of the samples again, as the transformer sees them: in windows where it does."""
    return _samples(plan) if plan.clips else [len(window) for part in plan.parts for window in part.windows]


def _tokens(transformer: Config, vae: Config, size: tuple[int, int], latents: int) -> int:
    stride = vae.get("scale_factor_spatial", 8)
    height, width = size[1] // stride, size[0] // stride
    known = known_tokens(transformer, height, width) if is_s2v(transformer) else 0
    return latents * height * width // prod(transformer["patch_size"]) + known


def _forwards(plan: RenderPlan) -> int:
    """Forwards of all steps: two where the step is guided."""
    scales = (
        plan.guidance_low if plan.boundary is not None and sigma < plan.boundary else plan.guidance_high
        for sigma in plan.sigmas[:-1]
    )
    return sum(2 if scale > 1 else 1 for scale in scales)


def _walk(blocks: Iterable[Block], frames: int, pixels: int) -> float:
    """Operations of all layers for one latent frame, which begins as so many frames of so many pixels."""
    total, size = 0.0, (frames, pixels)
    for block in blocks:
        for layer in block.layers:
            operations, size = _step(layer, *size)
            total += operations
    return total


def _step(layer: Layer, frames: int, pixels: int) -> tuple[float, tuple[int, int]]:
    """Operations of one layer, and the frames and pixels that it leaves."""
    operations = 2.0 * parameters_of(layer) * frames * pixels
    in_time = 2.0 * layer.inputs**2 * 3 * frames * pixels  # one matrix for each of three frames
    match layer.kind:
        case "attention":
            return operations + 4.0 * layer.inputs * frames * pixels**2, (frames, pixels)
        case "up2d":  # the convolution works on what is enlarged
            return 4 * operations, (frames, 4 * pixels)
        case "up3d":
            return 8 * (operations - 2 * in_time) + 2 * in_time, (2 * frames, 4 * pixels)
        case "down2d":
            return operations / 4, (frames, pixels // 4)
        case "down3d":
            return (operations - in_time) / 4 + in_time / 8, (max(1, frames // 2), pixels // 4)
    return operations, (frames, pixels)
