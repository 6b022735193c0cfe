"""What S2V takes in memory beyond other Wan models, counted from configs. No torch.

Sources: `transformer.py` and its parts beside this file; transformers models/wav2vec2/modeling_wav2vec2.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import prod
from typing import Any

Config = Mapping[str, Any]
FLOAT32 = 4
#: samples per second of a speech model
RATE = 16_000
#: patches of the frame packer's three buckets, in multiples of the model's own
COARSENESS = (1, 2, 4)


def is_s2v(config: Config) -> bool:
    """Whether a transformer's config is that of S2V."""
    return config.get("_class_name") == "WanS2VTransformer3DModel" or "audio_inject_layers" in config


def outside_blocks(config: Config, width: int) -> tuple[int, int]:
    """Parameters beside those that every Wan transformer has: of the run's dtype, and float32."""
    patch = prod(config["patch_size"])
    packers = sum(_linear(config["in_channels"] * patch * times**3, width) for times in COARSENESS)
    injector = 4 * _linear(width, width) + 2 * width + _linear(width, 2 * width)
    poses = _linear(config["pose_channels"] * patch, width)
    plain = poses + packers + 3 * width + len(config["audio_inject_layers"]) * injector
    return plain, _audio_encoder(config, width)


def _audio_encoder(config: Config, width: int) -> int:
    audio, tokens = config["audio_dim"], config["audio_tokens"]
    convolutions = [(audio, width // 4 * tokens), (audio, width // 4), (width // 4, width // 2), (width // 2, width)]
    return sum(_linear(3 * i, o) for i, o in convolutions) + _linear(width, width) + width + config["audio_layers"]


def known_tokens(config: Config, height: int, width: int) -> int:
    """Tokens beside the noisy ones: of the reference, and of motion in all three sizes."""
    patch = config["patch_size"]
    sizes = [tuple(side * times for side in patch) for times in COARSENESS]
    motion = sum(
        (frames // size[0]) * (height // size[1]) * (width // size[2])
        for frames, size in zip(config["motion_buckets"], sizes, strict=True)
    )
    return (height // patch[1]) * (width // patch[2]) + motion


def wav2vec2_parameters(config: Config) -> int:
    """Of Wav2Vec2Model, with the embedding of masked states that training needs."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    channels, kernels = config["conv_dim"], config["conv_kernel"]
    norms = channels if config.get("feat_extract_norm", "group") == "layer" else channels[:1]
    convolutions = sum(i * o * k for (i, o), k in zip(pairwise((1, *channels)), kernels, strict=True))
    convolutions += (sum(channels) if config.get("conv_bias") else 0) + 2 * sum(norms)
    taps = config["num_conv_pos_embeddings"]
    positions = width * width // config["num_conv_pos_embedding_groups"] * taps + taps + width
    layer = 4 * _linear(width, width) + _linear(width, inner) + _linear(inner, width) + 4 * width
    projection = 2 * channels[-1] + _linear(channels[-1], width)
    has_mask = config.get("mask_time_prob", 0.05) > 0 or config.get("mask_feature_prob", 0.0) > 0
    ends = 2 * width + (width if has_mask else 0)
    return convolutions + projection + positions + config["num_hidden_layers"] * layer + ends


def wav2vec2_bytes(config: Config, seconds: float) -> int:
    """One pass of the speech model over so much sound, in float32: the first convolution's answer before and behind
    GELU, or the position convolution's weight, which is put together each time, or the states of all layers."""
    stride, *_ = config["conv_stride"]
    width, samples = config["hidden_size"], int(seconds * RATE)
    wave = samples + 2 * samples // stride * config["conv_dim"][0]
    states = samples // prod(config["conv_stride"])
    positions = width * width // config["num_conv_pos_embedding_groups"] * config["num_conv_pos_embeddings"]
    layers = states * ((config["num_hidden_layers"] + 8) * width + 3 * config["intermediate_size"])
    return FLOAT32 * max(wave, positions + 3 * states * width, layers)


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs
