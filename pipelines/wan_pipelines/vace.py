"""What VACE is told of a video: which frames are known and what they show.

Source: Wan-Video/Wan2.1 wan/vace.py. A frame is either kept, and then shown in the inactive half while the reactive
half is grey, or to be made, and then it is grey in both. Grey is 127.5 of 255, 0 in [-1, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from wan_pipelines.conditioning import Conditioning
from wan_pipelines.profile import TEMPORAL_STRIDE

#: one channel for each of the 8x8 pixels of a latent
MASK_CHANNELS = 64


def prepare_vace(
    prompt: Tensor,
    negative: Tensor | None,
    inactive: Tensor,
    reactive: Tensor,
    *,
    prefix_frames: int,
    with_last: bool,
) -> Conditioning:
    """VACE family. `inactive` [1, z, T, h, w] of the known frames on grey, `reactive` of grey alone."""
    frames = (inactive.shape[2] - 1) * TEMPORAL_STRIDE + 1
    mask = mask_channels(unknown_frames(frames, prefix_frames, with_last).to(inactive), inactive.shape)
    return Conditioning(prompt, negative, vace=torch.cat([inactive, reactive, mask], dim=1))


def unknown_frames(frames: int, prefix_frames: int, with_last: bool) -> Tensor:
    """[frames]: 1 for the frames that are to be made, 0 for the known ones at the start and the end."""
    unknown = torch.ones(frames)
    unknown[:prefix_frames] = 0
    if with_last:
        unknown[-1] = 0
    return unknown


def mask_channels(unknown: Tensor, shape: torch.Size) -> Tensor:
    """[1, 64, T, h, w] for latents of `shape`, from one value for each pixel frame.

    A latent frame takes the value of one pixel frame, the one in the middle of its share of the video. That is how
    the weights were trained, although a single known frame at either end hardly ever is that one: the model then
    finds it in the inactive half only.
    """
    _, _, count, height, width = shape
    chosen = functional.interpolate(unknown[None, None], size=count, mode="nearest-exact")  # [1, 1, T]
    return chosen[..., None, None].expand(1, MASK_CHANNELS, count, height, width)
