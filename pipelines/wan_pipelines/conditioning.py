"""What the model is told besides the noise, as data: every combination of inputs is the same frozen object.

One pure `prepare_*` per combination; the denoise loop does not know which one made its conditioning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from wan_pipelines.profile import TEMPORAL_STRIDE


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Tensors that stay the same over all steps."""

    #: text states [1, text_len, D]
    prompt: Tensor
    #: text states of the negative prompt, None when no expert is guided
    negative: Tensor | None = None
    #: extra input channels [1, C, T, h, w]: mask 4 and condition latents z (Wan I2V)
    concat: Tensor | None = None
    #: latents of the first n frames, known without noise [1, z, n, h, w] (Wan 2.2 TI2V-5B)
    clean: Tensor | None = None

    def pin(self, latents: Tensor) -> Tensor:
        """Latents with the known frames put back: [1, z, T, h, w]."""
        if self.clean is None:
            return latents
        return torch.cat([self.clean, latents[:, :, self.clean.shape[2] :]], dim=2)

    def model_input(self, latents: Tensor) -> Tensor:
        """What the patch embedding sees: [1, z (+ C), T, h, w]."""
        pinned = self.pin(latents)
        return pinned if self.concat is None else torch.cat([pinned, self.concat], dim=1)

    def timesteps(self, timestep: float, latents: Tensor, patch: tuple[int, int, int]) -> Tensor:
        """One timestep [1], or one per token [1, S] with 0 on the tokens of known frames."""
        if self.clean is None:
            return torch.full((1,), timestep, device=latents.device)
        frames, height, width = (size // p for size, p in zip(latents.shape[2:], patch, strict=True))
        per_frame = torch.full((frames, height * width), timestep, device=latents.device)
        per_frame[: self.clean.shape[2] // patch[0]] = 0
        return per_frame.reshape(1, -1)

    def to(self, device: torch.device) -> Conditioning:
        """The same on another device."""
        return Conditioning(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are set, by name."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {name: tensor for name, tensor in fields.items() if tensor is not None}


def condition_video(first: Tensor, last: Tensor | None, frames: int) -> Iterator[Tensor]:
    """Pixel video that the concat family encodes: first frame, mid-grey, last frame if any.

    Images are [3, H, W] in [-1, 1]; yields [1, 3, 1, H, W], then [1, 3, 4, H, W] until 4n+1 frames are out. The
    grey chunks are one and the same tensor, which lets the VAE notice that nothing changes any more.
    """
    yield first[None, :, None]
    chunks = (frames - 1) // TEMPORAL_STRIDE
    grey = first.new_zeros(1, first.shape[0], TEMPORAL_STRIDE, *first.shape[1:])
    yield from (grey for _ in range(chunks if last is None else chunks - 1))
    if last is not None:
        yield torch.cat([grey[:, :, 1:], last[None, :, None]], dim=2)


def prepare_first_frame(prompt: Tensor, negative: Tensor | None, latents: Tensor) -> Conditioning:
    """Concat family, first frame known. `latents` [1, z, T, h, w] of `condition_video(first, None, ...)`."""
    return Conditioning(prompt, negative, concat=_with_mask(latents, known_last=False))


def prepare_first_last_frame(prompt: Tensor, negative: Tensor | None, latents: Tensor) -> Conditioning:
    """Concat family, both ends known. `latents` [1, z, T, h, w] of `condition_video(first, last, ...)`."""
    return Conditioning(prompt, negative, concat=_with_mask(latents, known_last=True))


def prepare_clean_first_frame(prompt: Tensor, negative: Tensor | None, latents: Tensor) -> Conditioning:
    """Per-token-timestep family, first frame known. `latents` [1, z, 1, h, w] of the image alone."""
    return Conditioning(prompt, negative, clean=latents)


def _with_mask(latents: Tensor, known_last: bool) -> Tensor:
    """Condition latents behind four mask channels: row k of latent frame t is 1 when pixel frame 4t+k-3 is known.

    The first latent frame stands for one pixel frame, which is repeated over its four rows.
    """
    _, _, frames, height, width = latents.shape
    mask = latents.new_zeros(1, TEMPORAL_STRIDE, frames, height, width)
    mask[:, :, 0] = 1
    if known_last:
        mask[:, -1, -1] = 1
    return torch.cat([mask, latents], dim=1)
