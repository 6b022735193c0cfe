"""Audio into the noisy tokens, behind some of the blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.models.normalization import AdaLayerNorm
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import Tensor, nn

from wan_pipelines.s2v.audio_encoder import AudioTokens


class AudioInjector(nn.Module):
    """Cross attention of each latent frame with its own audio tokens; what comes in is scaled by the frame's sound.

    Source: Wan-Video/Wan2.2 wan/modules/s2v/audio_utils.py, AudioInjector_WAN with adain mode "attn_norm"; the names
    are those of its weights.
    """

    def __init__(self, width: int, heads: int, blocks: Sequence[int]) -> None:
        """`blocks`: numbers of the transformer blocks behind which there is audio."""
        super().__init__()
        self._place = {block: index for index, block in enumerate(blocks)}
        self.injector = nn.ModuleList(_cross_attention(width, heads) for _ in blocks)
        self.injector_adain_layers = nn.ModuleList(
            AdaLayerNorm(width, output_dim=2 * width, chunk_dim=1) for _ in blocks
        )

    def forward(self, block: int, tokens: Tensor, noisy: int, audio: AudioTokens) -> Tensor:
        """Tokens [B, S, D] behind a block, with audio added to the first `noisy` = T * n, frame by frame."""
        if block not in self._place:
            return tokens
        index, frames = self._place[block], audio.local.shape[1]
        per_frame = tokens[:, :noisy].unflatten(1, (frames, -1)).flatten(0, 1)  # [B * T, n, D]
        whole, local = (part.flatten(0, 1).to(tokens.dtype) for part in (audio.whole, audio.local))
        normed = self.injector_adain_layers[index](per_frame, temb=whole)
        heard = self.injector[index](normed, local).unflatten(0, (-1, frames)).flatten(1, 2)
        return torch.cat([tokens[:, :noisy] + heard, tokens[:, noisy:]], dim=1)


def _cross_attention(width: int, heads: int) -> WanAttention:
    size = width // heads
    return WanAttention(width, heads, size, eps=1e-6, cross_attention_dim_head=size, processor=WanAttnProcessor())
