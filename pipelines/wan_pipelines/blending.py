"""Long samples in windows (`windows.py`), as tensors: velocities of windows as one, and noise that windows share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wan_pipelines.segments import segment_seed
from wan_pipelines.windows import passed_on, weights


@dataclass(frozen=True, slots=True)
class Blend:
    """The velocity of a sample out of those of its windows."""

    #: latent frames of each, in order; one window is the whole sample, to the last bit
    windows: tuple[range, ...]
    #: gets the number of windows that are done, after each but the last of a step, and may raise to stop
    on_window: Callable[[int], None]

    def velocity(self, predict: Callable[[Tensor], Tensor], latents: Tensor) -> Tensor:
        """Float32, shaped as `latents` [1, z, T, h, w]; `predict` gets some latent frames and gives theirs."""
        if len(self.windows) == 1:
            return predict(latents)
        blended = torch.zeros_like(latents)
        for number, window in enumerate(self.windows):
            if number:
                self.on_window(number)
            part = slice(window.start, window.stop)
            weight = torch.tensor(weights(self.windows, number), device=latents.device).view(1, 1, -1, 1, 1)
            blended[:, :, part] += weight * predict(latents[:, :, part])
        return blended


def draw_noise(shape: tuple[int, ...], windows: Sequence[range], seed: int) -> Tensor:
    """Standard normal noise [1, z, T, h, w] in float32 on the CPU: a seed means the same on every device.

    With several windows each has the noise of the first one, shuffled, so that they agree on a scene: a window's new
    latent frames get the noise of those that it left behind, in another order, so none comes twice within a window.
    That is FreeNoise (arXiv 2310.15169) with the stride of the windows as the unit of its shuffling.
    """
    noise = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)
    for number, (left, new) in enumerate(passed_on(windows), start=1):
        rng = torch.Generator("cpu").manual_seed(segment_seed(seed, number))
        order = torch.randperm(len(left), generator=rng)[: len(new)]
        noise[:, :, new.start : new.stop] = noise[:, :, left.start + order]
    return noise
