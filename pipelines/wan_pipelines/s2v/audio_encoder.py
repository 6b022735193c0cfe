"""States of a speech model to audio tokens of latent frames, without a look ahead."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from wan_pipelines.profile import TEMPORAL_STRIDE


@dataclass(frozen=True, slots=True)
class AudioTokens:
    """What is heard in each latent frame."""

    #: [B, T, tokens + 1, D]: what the frame's tokens look at; the last one is the same everywhere
    local: Tensor
    #: [B, T, D]: what shifts and scales the frame's tokens
    whole: Tensor


class CausalConv1d(nn.Module):
    """A convolution over time of kernel 3 that sees the present and the past; the first value is repeated before it."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel_size=3, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, F, inputs] to [B, ceil(F / stride), outputs]."""
        padded = functional.pad(x.transpose(1, 2), (2, 0), mode="replicate")
        return self.conv(padded).transpose(1, 2)


class _FrameEncoder(nn.Module):
    """Three convolutions, of which two halve the rate: frames of video to latent frames.

    Source: Wan-Video/Wan2.2 wan/modules/s2v/auxi_blocks.py, MotionEncoder_tc; the names are those of its weights.
    """

    def __init__(self, audio_dim: int, width: int, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.conv1_local = CausalConv1d(audio_dim, width // 4 * tokens)
        self.conv1_global = CausalConv1d(audio_dim, width // 4)
        self.conv2 = CausalConv1d(width // 4, width // 2, stride=2)
        self.conv3 = CausalConv1d(width // 2, width, stride=2)
        self.final_linear = nn.Linear(width, width)
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, 1, width))

    def forward(self, x: Tensor) -> AudioTokens:
        """[B, F, A] of F video frames to the tokens of ceil(F / 4) latent frames."""
        split = self.conv1_local(x).unflatten(2, (self.tokens, -1))  # [B, F, n, D/4]
        heard = self._condense(split.transpose(1, 2).flatten(0, 1))  # [B * n, T, D]
        local = heard.unflatten(0, (-1, self.tokens)).transpose(1, 2)  # [B, T, n, D]
        padding = self.padding_tokens.expand(*local.shape[:2], -1, -1)
        whole = self.final_linear(self._condense(self.conv1_global(x)))
        return AudioTokens(torch.cat([local, padding], dim=2), whole)

    def _condense(self, x: Tensor) -> Tensor:
        """[B, F, D/4] to [B, ceil(F / 4), D]; local and global tokens share these weights."""
        x = self.conv3(self._active(self.conv2(self._active(x))))
        return self._active(x)

    def _active(self, x: Tensor) -> Tensor:
        return functional.silu(functional.layer_norm(x, x.shape[-1:], eps=1e-6))


class CausalAudioEncoder(nn.Module):
    """A learned mean over the layers of the speech model, then the encoder of frames.

    Source: Wan-Video/Wan2.2 wan/modules/s2v/audio_utils.py and model_s2v.py (forward).
    """

    def __init__(self, audio_dim: int, layers: int, width: int, tokens: int) -> None:
        super().__init__()
        self.encoder = _FrameEncoder(audio_dim, width, tokens)
        self.weights = nn.Parameter(torch.full((1, layers, 1, 1), 0.01))

    def forward(self, features: Tensor, frames_before: int) -> AudioTokens:
        """Features [B, layers, A, F] of a clip of F = 4T video frames to the tokens of its T latent frames.

        Its first features are repeated over `frames_before` = 4m + 1 video frames, and what those gave is dropped.
        """
        features = features.to(self.weights.dtype)
        before = features[..., :1].expand(*features.shape[:-1], frames_before)
        weights = functional.silu(self.weights)
        mean = (torch.cat([before, features], dim=-1) * weights / weights.sum(dim=1, keepdim=True)).sum(dim=1)
        tokens = self.encoder(mean.transpose(1, 2))
        latents_before = (frames_before + TEMPORAL_STRIDE - 1) // TEMPORAL_STRIDE
        return AudioTokens(tokens.local[:, latents_before:], tokens.whole[:, latents_before:])
