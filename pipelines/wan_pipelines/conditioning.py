"""What the model is told besides the noise, as data: every combination of inputs is the same frozen object.

One pure `prepare_*` per family; the denoise loop does not know which one made its conditioning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wan_pipelines.profile import TEMPORAL_STRIDE
from wan_pipelines.s2v.ending import steered


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Tensors that stay the same over all steps."""

    #: text states [1, text_len, D]
    prompt: Tensor
    #: text states of the negative prompt, None when no expert is guided
    negative: Tensor | None = None
    #: extra input channels [1, C, T, h, w]: mask 4 and condition latents z (Wan I2V)
    concat: Tensor | None = None
    #: latents of the first n latent frames, known without noise [1, z, n, h, w] (Wan 2.2 TI2V-5B)
    clean: Tensor | None = None
    #: CLIP states of the known pictures [pictures, tokens, D] (Wan 2.1 I2V and FLF2V)
    image: Tensor | None = None
    #: what the second stack of blocks sees [1, 2z + 64, T, h, w] (VACE)
    vace: Tensor | None = None
    #: how much each block of that stack counts [blocks]; None is 1 for all
    vace_scale: Tensor | None = None
    #: states of the speech model [1, layers, width, 4T], one for each frame (S2V); before a chain, of all its clips
    audio: Tensor | None = None
    #: latents of the picture that every clip shows [1, z, 1, h, w] (S2V)
    reference: Tensor | None = None
    #: latents of what came before the clip [1, z, M, h, w], None when nothing did (S2V)
    motion: Tensor | None = None
    #: latents of the picture that the video ends on, held still [1, z, 1, h, w] (S2V)
    ending: Tensor | None = None
    #: noise levels below which the latent frames of the clip are no longer steered to it [T]; None steers nothing
    free_below: Tensor | None = None

    def pin(self, latents: Tensor) -> Tensor:
        """Latents with the known frames put back: [1, z, T, h, w]."""
        if self.clean is None:
            return latents
        return torch.cat([self.clean, latents[:, :, self.clean.shape[2] :]], dim=2)

    def model_input(self, latents: Tensor) -> Tensor:
        """What the patch embedding sees: [1, z (+ C), T, h, w]."""
        pinned = self.pin(latents)
        return pinned if self.concat is None else torch.cat([pinned, self.concat], dim=1)

    def steer(self, velocity: Tensor, latents: Tensor, sigma: float) -> Tensor:
        """The predicted velocity [1, z, T, h, w] at noise level `sigma`, steered where the video has to end."""
        if self.ending is None or self.free_below is None:
            return velocity
        return steered(velocity, latents, sigma, self.ending, self.free_below)

    def timesteps(self, timestep: float, latents: Tensor, patch: tuple[int, int, int]) -> Tensor:
        """One timestep [1], or one per token [1, S] with 0 on the tokens of known frames."""
        if self.clean is None:
            return torch.full((1,), timestep, device=latents.device)
        frames, height, width = (size // p for size, p in zip(latents.shape[2:], patch, strict=True))
        per_frame = torch.full((frames, height * width), timestep, device=latents.device)
        per_frame[: self.clean.shape[2] // patch[0]] = 0
        return per_frame.reshape(1, -1)

    def model_options(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Arguments of the transformer that only some families have, by their name there."""
        options = {
            "encoder_hidden_states_image": self.image,
            "control_hidden_states": self.vace,
            "control_hidden_states_scale": self.vace_scale,
            "audio_features": self.audio,
            "reference_latents": self.reference,
            "motion_latents": self.motion,
        }
        return {name: tensor.to(dtype) for name, tensor in options.items() if tensor is not None}

    def negative_options(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The same beside the negative prompt, where nothing is heard; pictures stay."""
        unheard = self if self.audio is None else replace(self, audio=torch.zeros_like(self.audio))
        return unheard.model_options(dtype)

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are set, by name."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {name: tensor for name, tensor in fields.items() if tensor is not None}


def condition_video(prefix: Tensor, last: Tensor | None, frames: int) -> Iterator[Tensor]:
    """Pixel video that tells what is known: the known frames at the start, mid-grey, the last frame if any.

    `prefix` is [n, 3, H, W] in [-1, 1] with n = 4m+1, or 0 when only text is known; `last` is [3, H, W]. Yields
    [1, 3, 1, H, W], then [1, 3, 4, H, W] until `frames` = 4n+1 are out. The grey chunks of four are one and the
    same tensor, which lets the VAE notice that nothing changes any more.
    """
    pixels = prefix.transpose(0, 1)[None]  # [1, 3, n, H, W]
    grey = prefix.new_zeros(1, prefix.shape[1], TEMPORAL_STRIDE, *prefix.shape[2:])
    yield pixels[:, :, :1] if len(prefix) else grey[:, :, :1]
    for start in range(1, len(prefix), TEMPORAL_STRIDE):
        yield pixels[:, :, start : start + TEMPORAL_STRIDE]
    unknown = (frames - max(len(prefix), 1)) // TEMPORAL_STRIDE
    yield from (grey for _ in range(unknown if last is None else unknown - 1))
    if last is not None:
        yield torch.cat([grey[:, :, 1:], last[None, :, None]], dim=2)


def prepare_concat(
    prompt: Tensor, negative: Tensor | None, latents: Tensor, *, prefix_frames: int, with_last: bool
) -> Conditioning:
    """Concat family. `latents` [1, z, T, h, w] of `condition_video`, in which so many frames are known."""
    mask = _known_mask(latents, prefix_frames, with_last)
    return Conditioning(prompt, negative, concat=torch.cat([mask, latents], dim=1))


def prepare_clean(prompt: Tensor, negative: Tensor | None, latents: Tensor) -> Conditioning:
    """Per-token-timestep family. `latents` [1, z, n, h, w] of the known frames alone.

    The weights were trained with one known latent frame, a picture; every token has a timestep of its own, so
    several, the end of a clip, are told in the same way.
    """
    return Conditioning(prompt, negative, clean=latents)


def prepare_reference(
    prompt: Tensor, negative: Tensor | None, latents: Tensor, ending: Tensor | None = None
) -> Conditioning:
    """S2V, still without sound. `latents` [1, z, 1, h, w] of the first frame, which the model need not keep.

    `ending`: the same of the last frame, held still, which only the loop is told of.
    """
    return Conditioning(prompt, negative, reference=latents, ending=ending)


def _known_mask(latents: Tensor, prefix_frames: int, with_last: bool) -> Tensor:
    """[1, 4, T, h, w]: row k of latent frame t is 1 when pixel frame 4t+k-3 is known.

    The first latent frame stands for one pixel frame, which is repeated over its four rows.
    """
    _, _, count, height, width = latents.shape
    rows = torch.arange(count * TEMPORAL_STRIDE, device=latents.device)
    frame = (rows - TEMPORAL_STRIDE + 1).clamp(min=0)  # pixel frame of row 4t+k
    known = frame < prefix_frames
    if with_last:
        known[-1] = True
    mask = known.to(latents.dtype).view(count, TEMPORAL_STRIDE).T  # [4, T]
    return mask[None, :, :, None, None].expand(1, TEMPORAL_STRIDE, count, height, width)
