"""Random miniatures of what only S2V has; `wan_pipelines/tiny.py` puts them beside the other parts."""

from __future__ import annotations

from typing import Any

from transformers import Wav2Vec2Config, Wav2Vec2Model

from wan_pipelines.s2v.transformer import WanS2VTransformer3DModel

AUDIO_DIM = 48
AUDIO_LAYERS = 3


def make_transformer(size: dict[str, Any]) -> WanS2VTransformer3DModel:
    """`size`: sizes that all of Wan's transformers have. The memory is short: nine frames, in three latent ones."""
    return WanS2VTransformer3DModel(
        **size,
        pose_channels=size["in_channels"],
        audio_dim=AUDIO_DIM,
        audio_layers=AUDIO_LAYERS + 1,
        audio_inject_layers=(0, 1),
        motion_frames=9,
        motion_buckets=(1, 2, 4),
    ).eval()


def make_audio_encoder() -> Wav2Vec2Model:
    """As the published one in kind, with its 50 states a second."""
    config = Wav2Vec2Config(
        hidden_size=AUDIO_DIM,
        num_hidden_layers=AUDIO_LAYERS,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        feat_extract_norm="layer",
        conv_bias=True,
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    return Wav2Vec2Model(config).eval()
