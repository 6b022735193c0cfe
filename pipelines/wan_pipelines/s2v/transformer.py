"""The transformer of Wan2.2-S2V, put together from diffusers' Wan layers."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import AttentionMixin
from diffusers.models.embeddings import Timesteps
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_wan import WanTimeTextImageEmbedding, WanTransformerBlock
from torch import Tensor, nn

from wan_pipelines.s2v.audio_encoder import CausalAudioEncoder
from wan_pipelines.s2v.frame_packer import FramePacker
from wan_pipelines.s2v.injector import AudioInjector
from wan_pipelines.s2v.rope import Grid, S2VRotaryPosEmbed

#: rows of `trainable_cond_mask`: what a token is
NOISY, REFERENCE, MOTION = range(3)
Tables = tuple[Tensor, Tensor]


class WanS2VTransformerBlock(WanTransformerBlock):
    """Wan's block over two kinds of tokens: noisy ones, and behind them those that are known without noise.

    diffusers' own forward could be told by a modulation per token, which would be six times as large as the tokens.
    """

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  theirs says Tensor for the pair of tables
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, rotary_emb: Tables, noisy: int
    ) -> Tensor:
        """Tokens [B, S, D], of which the first `noisy` have the modulation temb[:, 0] and the others temb[:, 1].

        `temb` is [B, 2, 6, D], text states [B, L, D].
        """
        table = self.scale_shift_table[:, None] + temb.float()
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = table.unbind(2)  # [B, 2, D] each
        sides = [noisy, hidden_states.shape[1] - noisy]
        normed = _modulated(self.norm1, hidden_states, shift, scale, sides)
        hidden_states = _added(hidden_states, self.attn1(normed, None, None, rotary_emb), gate, sides)
        normed = self.norm2(hidden_states.float()).type_as(hidden_states)
        hidden_states = hidden_states + self.attn2(normed, encoder_hidden_states, None, None)
        normed = _modulated(self.norm3, hidden_states, ffn_shift, ffn_scale, sides)
        return _added(hidden_states, self.ffn(normed), ffn_gate, sides)


def _modulated(norm: nn.Module, tokens: Tensor, shift: Tensor, scale: Tensor, sides: list[int]) -> Tensor:
    """Normalised, scaled and shifted in float32, each side by its own row of [B, 2, D]."""
    done = [
        (norm(part.float()) * (1 + scale[:, i, None]) + shift[:, i, None]).type_as(tokens)
        for i, part in enumerate(tokens.split(sides, dim=1))
    ]
    return torch.cat(done, dim=1)


def _added(tokens: Tensor, change: Tensor, gate: Tensor, sides: list[int]) -> Tensor:
    """The residual in float32, each side of the change weighed by its own row of [B, 2, D]."""
    both = zip(tokens.split(sides, dim=1), change.split(sides, dim=1), strict=True)
    done = [(old.float() + new.float() * gate[:, i, None]).type_as(tokens) for i, (old, new) in enumerate(both)]
    return torch.cat(done, dim=1)


class ExactTimesteps(Timesteps):
    """Sinusoids of timesteps, with angles in float64 as in the published code.

    diffusers' float32 angles are off by up to 6e-5 at timesteps near 1000, and that reaches every token.
    """

    def forward(self, timesteps: Tensor) -> Tensor:
        """[n] to [n, channels] in float32, cosines first."""
        half = self.num_channels // 2
        powers = torch.arange(half, dtype=torch.float64, device=timesteps.device) / half
        angles = timesteps.double()[:, None] * 10000.0**-powers
        return torch.cat([angles.cos(), angles.sin()], dim=1).float()


class WanS2VTransformer3DModel(ModelMixin, ConfigMixin, AttentionMixin):
    """Noise to velocity, told by text, sound, a reference picture, what came before, and poses.

    Source: Wan-Video/Wan2.2 wan/modules/s2v/model_s2v.py with the settings of wan/configs/wan_s2v_14B.py (frame
    packer instead of motioner, AdaIN before the attention, timestep 0 for known tokens). The defaults are the 14B.
    """

    _no_split_modules: ClassVar = ["WanS2VTransformerBlock"]
    _repeated_blocks: ClassVar = ["WanS2VTransformerBlock"]
    _skip_layerwise_casting_patterns: ClassVar = [
        "patch_embedding",
        "condition_embedder",
        "norm",
        "causal_audio_encoder",
    ]
    #: as in diffusers' own, and the audio encoder, which is small: its rounding would reach every block
    _keep_in_fp32_modules: ClassVar = [
        "rope",
        "time_embedder",
        "scale_shift_table",
        "norm1",
        "norm2",
        "norm3",
        "causal_audio_encoder",
    ]

    @register_to_config
    def __init__(  # noqa: PLR0913  diffusers keeps each argument in the config
        self,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        eps: float = 1e-6,
        rope_max_seq_len: int = 1024,
        pose_channels: int = 16,
        audio_dim: int = 1024,
        audio_layers: int = 25,
        audio_tokens: int = 4,
        audio_inject_layers: Sequence[int] = (0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39),
        motion_frames: int = 73,
        motion_buckets: tuple[int, int, int] = (1, 2, 16),
        reference_time: int = 30,
    ) -> None:
        """`audio_dim`, `audio_layers`: of the speech model. `audio_tokens`: local ones for each latent frame.

        `motion_frames`: video frames (4m + 1) before the clip for which the audio encoder hears its beginning.
        `motion_buckets`: latent frames of the frame packer, from the newest on. `reference_time`: where in time the
        reference lies, in latent frames.
        """
        super().__init__()
        width = num_attention_heads * attention_head_dim
        patch: tuple[int, int, int] = tuple(patch_size)  # pyright: ignore[reportAssignmentType]
        self.rope = S2VRotaryPosEmbed(attention_head_dim, patch, rope_max_seq_len)
        self.patch_embedding = nn.Conv3d(in_channels, width, kernel_size=patch, stride=patch)
        self.cond_encoder = nn.Conv3d(pose_channels, width, kernel_size=patch, stride=patch)
        self.frame_packer = FramePacker(in_channels, width, patch, motion_buckets)
        self.trainable_cond_mask = nn.Embedding(3, width)
        self.condition_embedder = WanTimeTextImageEmbedding(width, freq_dim, 6 * width, text_dim)
        self.condition_embedder.timesteps_proj = ExactTimesteps(freq_dim, True, 0)
        self.causal_audio_encoder = CausalAudioEncoder(audio_dim, audio_layers, width, audio_tokens)
        self.blocks = nn.ModuleList(
            WanS2VTransformerBlock(width, ffn_dim, num_attention_heads, cross_attn_norm=cross_attn_norm, eps=eps)
            for _ in range(num_layers)
        )
        self.audio_injector = AudioInjector(width, num_attention_heads, audio_inject_layers)
        self.norm_out = FP32LayerNorm(width, eps, elementwise_affine=False)
        self.proj_out = nn.Linear(width, out_channels * prod(patch))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, width) / width**0.5)

    def forward(  # noqa: PLR0913  one argument for each thing that it is told, as in diffusers' models
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        audio_features: Tensor,
        reference_latents: Tensor,
        motion_latents: Tensor | None = None,
        pose_latents: Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Velocity [B, z, T, h, w] of noisy latents of that shape at timesteps [B], in 0..1000.

        Text states are [B, L, text_dim], padded with zeros. `audio_features` [B, layers, A, 4T] are the speech model's
        states, one for each video frame; all zeros is the unconditional pass. `reference_latents` [B, z, 1, h, w];
        `motion_latents` [B, z, M, h, w] end where the clip begins, None drops the motion tokens; `pose_latents`
        [B, z, T, h, w], None is no pose. Raises ValueError for audio of another length than the latents.
        """
        audio = self.causal_audio_encoder(audio_features, self.config["motion_frames"])
        if audio.local.shape[1] != hidden_states.shape[2]:
            raise ValueError(f"audio of {audio.local.shape[1]} latent frames, latents of {hidden_states.shape[2]}")
        size = [side // patch for side, patch in zip(hidden_states.shape[2:], self.config["patch_size"], strict=True)]
        noisy = prod(size)
        rotary = self.rope.at(self._grids(hidden_states, motion_latents is not None))
        tokens = self._tokens(hidden_states, reference_latents, motion_latents, pose_latents)
        temb, modulation, text = self._conditions(timestep, encoder_hidden_states)
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, text, modulation, rotary, noisy)
            tokens = self.audio_injector(index, tokens, noisy, audio)
        velocity = self._unpatch(self._head(tokens[:, :noisy], temb), size)
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)

    def _grids(self, latents: Tensor, with_motion: bool) -> list[Grid]:
        """Where noisy, reference and motion tokens lie."""
        sides = zip(latents.shape[2:], self.config["patch_size"], strict=True)
        frames, rows, columns = (tuple(range(side // patch)) for side, patch in sides)
        grids = [Grid(frames, rows, columns), Grid((self.config["reference_time"],), rows, columns)]
        return [*grids, *self.frame_packer.grids(*latents.shape[3:])] if with_motion else grids

    def _tokens(self, latents: Tensor, reference: Tensor, motion: Tensor | None, pose: Tensor | None) -> Tensor:
        """All tokens [B, S, D], in the order of their grids."""
        noisy = self.patch_embedding(latents)
        if pose is not None:
            noisy = noisy + self.cond_encoder(pose)
        elif (bias := self.cond_encoder.bias) is not None:
            noisy = noisy + bias[:, None, None, None]  # all that is left of a pose of zeros
        pieces = [noisy.flatten(2).transpose(1, 2), self.patch_embedding(reference).flatten(2).transpose(1, 2)]
        pieces += [] if motion is None else [self.frame_packer(motion)]
        marks = self.trainable_cond_mask.weight
        return torch.cat([piece + marks[kind].to(piece) for kind, piece in enumerate(pieces)], dim=1)

    def _conditions(self, timestep: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embedded time [B, D], modulation [B, 2, 6, D] of noisy and of known tokens, text [B, L, D]."""
        steps = torch.cat([timestep, timestep.new_zeros(1)])  # known tokens are at timestep 0
        temb, projected, text, _ = self.condition_embedder(steps, text)
        rows = projected.unflatten(1, (6, -1))
        known = rows[-1:].expand(len(timestep), -1, -1)
        return temb[:-1], torch.stack([rows[:-1], known], dim=1), text

    def _head(self, tokens: Tensor, temb: Tensor) -> Tensor:
        shift, scale = (self.scale_shift_table + temb[:, None].float()).chunk(2, dim=1)
        return self.proj_out((self.norm_out(tokens.float()) * (1 + scale) + shift).type_as(tokens))

    def _unpatch(self, tokens: Tensor, size: list[int]) -> Tensor:
        """[B, T * H * W, patch * z] to [B, z, T, h, w]."""
        patch = self.config["patch_size"]
        cells = tokens.view(len(tokens), *size, *patch, -1)
        cells = cells.permute(0, 7, 1, 4, 2, 5, 3, 6)
        return cells.flatten(6, 7).flatten(4, 5).flatten(2, 3)
