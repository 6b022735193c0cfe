"""What was seen before the clip, as few tokens: the older, the coarser."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from wan_pipelines.s2v.memory import COARSENESS
from wan_pipelines.s2v.rope import Grid, spread


class FramePacker(nn.Module):
    """Motion latents to tokens: the newest in the model's own patches, older ones in patches of twice and four times
    their size on every axis.

    Source: Wan-Video/Wan2.2 wan/modules/s2v/motioner.py, FramePackMotioner (drop mode "padd").
    """

    def __init__(self, channels: int, width: int, patch: tuple[int, int, int], buckets: Sequence[int]) -> None:
        """`buckets`: latent frames of each coarseness, from the newest on."""
        super().__init__()
        self.patch, self.buckets = patch, tuple(buckets)
        kernels = [tuple(side * factor for side in patch) for factor in COARSENESS]
        self.proj, self.proj_2x, self.proj_4x = (
            nn.Conv3d(channels, width, kernel_size=kernel, stride=kernel)  # pyright: ignore[reportArgumentType]
            for kernel in kernels
        )

    def forward(self, motion: Tensor) -> Tensor:
        """Motion latents [B, z, M, h, w], oldest first, to tokens [B, S, D], newest bucket first.

        Only the last frames that the buckets hold are looked at; where there are fewer, zeros stand before them.
        """
        missing = max(sum(self.buckets) - motion.shape[2], 0)
        held = nn.functional.pad(motion, (0, 0, 0, 0, missing, 0))[:, :, -sum(self.buckets) :]
        oldest_first = held.split(self.buckets[::-1], dim=2)
        pairs = zip((self.proj, self.proj_2x, self.proj_4x), oldest_first[::-1], strict=True)
        tokens = [project(frames).flatten(2).transpose(1, 2) for project, frames in pairs]
        return torch.cat(tokens, dim=1)

    def grids(self, height: int, width: int) -> tuple[Grid, ...]:
        """Where the tokens of latents of this size lie; coarse ones are spread over the whole frame."""
        rows, columns = height // self.patch[1], width // self.patch[2]
        grids = []
        for age, frames, factor in zip(accumulate(self.buckets), self.buckets, COARSENESS, strict=True):
            times = spread(-age, frames - 1 - age, frames // (self.patch[0] * factor))
            fewer = (height // (self.patch[1] * factor), width // (self.patch[2] * factor))
            grids.append(Grid(times, spread(0, rows - 1, fewer[0]), spread(0, columns - 1, fewer[1])))
        return tuple(grids)
