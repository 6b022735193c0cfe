"""A small sample as the beginning of a larger one: decoded, enlarged and encoded again, then noised.

Latents are no picture, and enlarging them as if they were one misses (figures: docs/decisions/0015-1080p.md). Both
samples show the same window of the video, which lies differently in them: 1280x720 is shown whole, of 1920x1088 the
middle 1080 lines.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor
from torch.nn import functional

from wan_pipelines.conditions import Beat, beating
from wan_pipelines.errors import RenderError
from wan_pipelines.framing import framed, visible
from wan_pipelines.plan import RenderPlan
from wan_pipelines.tensorfile import load_tensors, save_tensors
from wan_pipelines.vae import encode_frames, stream_decode

if TYPE_CHECKING:
    from wan_pipelines.renderer import Renderer


@torch.inference_mode()
def enlarge(renderer: Renderer, plan: RenderPlan, small: Path, out: Path, beat: Beat) -> None:
    """The latents of the first of two passes on the grid of the second, which is `plan`, in `out`.

    `beat` is called before each chunk of frames and may raise.
    """
    latents = load_tensors(small, renderer.device)["latents"]
    with nullcontext() if renderer.placed is None else renderer.placed.keeper.stage("encode"):
        large = enlarged(renderer.checkpoint.vae, latents, plan, beat)
    save_tensors(out, {"latents": large}, {"plan": plan.key})


def enlarged(vae: AutoencoderKLWan, small: Tensor, plan: RenderPlan, beat: Beat) -> Tensor:
    """Latents [1, z, T, h, w] on the grid of the plan [1, z, T, H, W], float32.

    All small frames wait in host memory, 8 bits a value, so that decoder and encoder do not hold theirs together.
    """
    stride = vae.config["scale_factor_spatial"]
    of_small = replace(plan, sample_width=small.shape[-1] * stride, sample_height=small.shape[-2] * stride)
    width, height = plan.visible_size
    decoded = beating(stream_decode(vae, small), beat)
    shown = [(visible(frames, of_small) * 255).round().byte().cpu() for frames in decoded]

    def fitted(frames: Tensor) -> Tensor:
        """[f, 3, h, w] as the encoder takes them: [1, 3, f, H, W] in [-1, 1]."""
        pixels = frames.to(small.device).float() / 255
        larger = functional.interpolate(pixels, size=(height, width), mode="bicubic").clamp(0, 1)
        return framed(larger * 2 - 1, plan).transpose(0, 1)[None]

    return encode_frames(vae, (fitted(frames) for frames in beating(shown, beat)))


def noised(large: Tensor, plan: RenderPlan, noise: Tensor) -> Tensor:
    """Latents at the noise level that the plan begins with. Raises RenderError when they are not on its grid."""
    if large.shape != noise.shape:
        raise RenderError(f"latents of shape {tuple(large.shape)} cannot be refined to {tuple(noise.shape)}")
    sigma = plan.sigmas[0]
    return (1 - sigma) * large + sigma * noise
