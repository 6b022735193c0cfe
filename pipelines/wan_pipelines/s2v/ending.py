"""A chain of clips that ends on a given picture, which the weights of S2V have no place for: its last clip is steered.

The loop's estimate of the clean latents is moved to those of the picture, held still: all the way and to the end in the
latent frame that the video ends in, and ever shorter in the few before it, each down to a noise level of its own. Below
that level the model goes on freely from what it was brought to, so what comes before the end is made by the model and
is no cross-fade, and still moves to the sound. Related: SDEdit (arXiv 2108.01073), where one noise level is for the
whole picture, and Differential Diffusion (arXiv 2306.00950), where every pixel has its own.

Estimates are moved and not the latents: a sampler that remembers earlier estimates stays consistent, and at the last
noise level the latents arrive at the picture's own. Why these numbers: docs/decisions/0016-s2v-ending.md.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor

#: frames that a still is held for until its latents have come to rest, 4n+1: the autoencoder looks that far back
STILL_FRAMES: Final = 73
#: pulls of frames whose level is 1 are 0 / LEAST
LEAST: Final = 1e-6


def pulls(free_below: Tensor, sigma: float) -> Tensor:
    """How far each latent frame is moved at noise level `sigma`, from 0 to 1: [T] like `free_below`.

    A frame is free below its own level, and moved all the way in the upper half of what lies above it. At level 0 it is
    never free.
    """
    share = 2 * (sigma - free_below) / (1 - free_below).clamp(min=LEAST)
    return share.clamp(0, 1).masked_fill(free_below == 0, 1)


def steered(velocity: Tensor, latents: Tensor, sigma: float, ending: Tensor, free_below: Tensor) -> Tensor:
    """The velocity (noise - data, [1, z, T, h, w]) whose clean estimate is moved towards `ending` [1, z, 1, h, w].

    Flow matching estimates clean latents as x - sigma v, so v = (x - ending) / sigma leads straight to the ending.
    """
    share = pulls(free_below, sigma)[:, None, None]  # [T, 1, 1]
    return velocity + share * ((latents - ending) / sigma - velocity)
