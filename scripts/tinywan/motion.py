"""Motion as a second thing to learn: from the middle of the denoiser one can read where each token comes from.

A pan is the same offset everywhere; a zoom needs each token to know its place, which rotary positions do not tell.
Asking for place, motion and offset teaches them long before the pixels do. The readers are thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor, nn

from wan_pipelines.profile import TEMPORAL_STRIDE

#: pixels per latent and latents per token, in height and width
STRIDE, PATCH = 8, 2
#: radians per token: the fastest of the model's own rotary frequencies, in which its attention looks around
FREQUENCIES = (1.0, 0.316, 0.1)
#: blocks after which place and motion are read, the offset that they make together, and the flow of the picture
BLOCKS = (1, 2, 2)
#: numbers that are read at each of them
WIDTHS = (5, 2 + 4 * len(FREQUENCIES), 2)
#: those of the flow
FLOW = slice(-2, None)
#: flow of one pixel per frame, as it is asked for
FLOW_UNIT = 2.0


class Learner(nn.Module):
    """The denoiser, and the readers that it learns with."""

    def __init__(self, denoiser: WanTransformer3DModel) -> None:
        super().__init__()
        self.denoiser = denoiser
        width = denoiser.config["num_attention_heads"] * denoiser.config["attention_head_dim"]
        self.readers = nn.ModuleList(nn.Linear(width, numbers) for numbers in WIDTHS)

    def forward(self, hidden: Tensor, timestep: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity [N, z, T, h, w] and what is read of the motion of each token [N, S, numbers]."""
        seen: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            seen.append(output)

        hooks = [self.denoiser.blocks[block].register_forward_hook(keep) for block in BLOCKS]
        velocity = self.denoiser(hidden, timestep, text, return_dict=False)[0]
        for hook in hooks:
            hook.remove()
        read = [reader(tokens) for reader, tokens in zip(self.readers, seen, strict=True)]
        return velocity, torch.cat(read, dim=-1)

    def look(self, hidden: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """Only what is read of the motion [N, S, numbers]; the blocks behind the last reader are left out."""
        whole = self.denoiser.blocks
        self.denoiser.blocks = whole[: BLOCKS[-1] + 1]
        try:
            return self(hidden, timestep, text)[1]
        finally:
            self.denoiser.blocks = whole

    def renew(self, blocks: int) -> None:
        """Random weights for the readers, the patch embedding and the first so many blocks."""
        for part in (self.readers, self.denoiser.patch_embedding, self.denoiser.blocks[:blocks]):
            for module in part.modules():
                if isinstance(reset := getattr(module, "reset_parameters", None), Callable):
                    reset()


def motion_targets(motion: Tensor, shape: Sequence[int]) -> Tensor:
    """What the readers should read [N, S, numbers], all of about unit size.

    `motion` [N, 3] is the camera in pixels per frame and the log scale per frame; `shape` is that of the latents
    (T, h, w). A latent frame stands for the middle of its four pixel frames. First place (x, y from the centre), pan
    and scale; then the offset that the scale makes, and cosine and sine of the whole offset at FREQUENCIES; then the
    flow of the picture from frame to frame.
    """
    frames, height, width = shape[0], shape[1] // PATCH, shape[2] // PATCH
    x = torch.arange(width, device=motion.device) - (width - 1) / 2
    y = torch.arange(height, device=motion.device) - (height - 1) / 2
    place = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # [h, w, 2] tokens
    latent = torch.arange(frames, device=motion.device)
    time = (TEMPORAL_STRIDE * latent - 1.5).clamp(min=0)  # [T] pixel frames
    camera = motion[:, None] * time[:, None]  # [N, T, 3]: pixels, pixels, log scale since frame 0
    pan = camera[:, :, None, None, :2] / (STRIDE * PATCH)  # [N, T, 1, 1, 2] tokens
    log_scale = camera[:, :, None, None, 2:]  # [N, T, 1, 1, 1]
    stretch = (torch.exp(-log_scale) - 1) * place  # [N, T, h, w, 2] tokens
    angles = (pan + stretch)[..., None] * torch.tensor(FREQUENCIES, device=motion.device)
    codes = torch.cat([angles.cos(), angles.sin()], dim=-1).flatten(4)
    speed = motion[:, None, None, None]  # [N, 1, 1, 1, 3]
    flow = FLOW_UNIT * (speed[..., 2:] * place * STRIDE * PATCH - speed[..., :2])  # [N, 1, h, w, 2]
    size = (len(motion), frames, height, width)
    factors = [place / 4, pan / 4, 4 * log_scale]
    read = [part.expand(*size, part.shape[-1]) for part in (*factors, stretch, codes, flow)]
    return torch.cat(read, dim=-1).flatten(1, 3)
