"""What torch holds besides the weights at the worst moment of each stage, in bytes. No torch.

Each function follows the eager code of diffusers, transformers and `vae.py` and adds up the tensors that are alive at
the same time, those that a caller's variable keeps included. Counted is what is asked of the allocator, with fused
attention and fused RMS norm, as on CUDA; what cuDNN takes for itself comes on top (docs/decisions/0011-placement.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from wan_pipelines.footprint import FLOAT32, inner_width, is_vace
from wan_pipelines.profile import TEMPORAL_STRIDE
from wan_pipelines.s2v.memory import is_s2v, known_tokens

Config = Mapping[str, Any]

INT64 = 8
#: float32 tensors of the latents' size during a forward: the latents, the first of both predictions, and what UniPC
#: remembers: two predictions, the sample before the last step and its own correction of it
LATENTS_ALIVE = 6


@dataclass(frozen=True, slots=True)
class Sample:
    """What is computed at once, in the model's own units."""

    #: latent frames, height and width
    latent: tuple[int, int, int]
    text_len: int
    #: bytes of one value of an activation
    element: int
    #: each token has its own timestep (Wan 2.2 TI2V-5B)
    per_token: bool = False
    #: linear layers make their weight whole in each forward (fp8)
    fp8: bool = False
    #: tokens of the image encoder
    image_tokens: int = 0
    #: latent frames of the whole sample, of which a forward sees a window; None is what it sees
    whole: int | None = None


def denoise_bytes(config: Config, sample: Sample) -> int:
    """One forward of the transformer inside the loop, with the latents and conditions around it."""
    noisy = prod(sample.latent) // prod(config["patch_size"])
    tokens = noisy + (known_tokens(config, *sample.latent[1:]) if is_s2v(config) else 0)
    wide = tokens * inner_width(config)  # values of one activation
    lasting = _rotary_bytes(config, tokens) + _context_bytes(config, sample) + _latents_bytes(config, sample)
    stack = 0
    if is_vace(config):
        # the answers of all blocks of the second stack wait for the first one, and its last state is still held
        stack = (len(config["vace_layers"]) + 1) * wide * sample.element
    if is_s2v(config):
        phases = two_sided_phases(config, wide, noisy * inner_width(config), sample)
    else:
        phases = block_phases(config, wide, sample)
    return lasting + stack + max(phases.values())


def block_phases(config: Config, wide: int, sample: Sample) -> dict[str, int]:
    """Bytes alive in one transformer block at its greedy moments, for activations of `wide` values.

    Letters: x what the caller keeps, n normalised input, q k v o of the attention. A cast of bfloat16 to float32
    makes a new tensor, one of float32 does not.
    """
    a, full = wide * sample.element, wide * FLOAT32
    cast = 0 if sample.element == FLOAT32 else full
    inner = a // inner_width(config) * config["ffn_dim"]
    matrix = inner_width(config) * config["ffn_dim"] if sample.fp8 else 0
    tables = 0
    phases = {}
    if sample.per_token:
        # six rows of modulation per token: as projected, and with the block's table added in float32; and temb
        tables = 6 * a + 6 * full + a
        phases["modulation"] = a + 7 * a + 6 * cast + 6 * full
    scale = full if sample.per_token else 0  # 1 + scale
    images = 2 * a if config.get("added_kv_proj_dim") else 0
    return phases | {
        "rotary": tables + 6 * a + 3 * full // 2,  # x n q k v, the rotated one, two products and their difference
        "self attention": tables + 7 * a,  # x n q k v o, projected
        "cross attention": tables + 7 * a + images,  # x, the sum, n, the last output, q o, projected
        "norm": tables + 4 * a + max(cast + full, 2 * full + scale),  # x, the sum, n, the last output
        "feed forward": tables + 4 * a + 2 * inner,  # before and behind GELU
        # the input of the second layer, and its weight made whole in float32 and cast
        "fp8": tables + 4 * a + inner + matrix * (FLOAT32 + (sample.element if cast else 0)),
        "residual": tables + 5 * a + max(2 * cast + full, cast + 2 * full),  # the same and ffn(n)
    }


def two_sided_phases(config: Config, wide: int, noisy: int, sample: Sample) -> dict[str, int]:
    """The same of a block of S2V, which modulates noisy and known tokens one after the other; `noisy` is how many of
    the values are of noisy tokens."""
    a, full, side = wide * sample.element, wide * FLOAT32, noisy * FLOAT32
    half = sample.element != FLOAT32
    inner = a // inner_width(config) * config["ffn_dim"]
    matrix = inner_width(config) * config["ffn_dim"] if sample.fp8 else 0
    return {
        "rotary": 6 * a + 3 * full // 2,
        "self attention": 7 * a,
        "cross attention": 6 * a,  # x, the sum, n, q o, projected
        "norm": 3 * a + max(2 * full if half else full, 2 * side, 2 * a),  # x, the sum, the last n
        "feed forward": 3 * a + 2 * inner,
        "fp8": 3 * a + inner + matrix * (FLOAT32 + (sample.element if half else 0)),
        "residual": 4 * a + max(3 * side if half else 2 * side, 2 * a),  # the same, n and ffn(n)
    }


def text_bytes(config: Config, tokens: int, element: int) -> int:
    """The umT5 encoder over so many tokens: attention scores beside their bias, the arithmetic of the bias on
    distances in int64, or the gated feed-forward."""
    pairs, hidden = tokens * tokens, tokens * config["d_model"]
    held = 2 * hidden * (element + FLOAT32)
    scores = 3 * config["num_heads"] * pairs * element
    return held + max(scores, 6 * pairs * INT64, 3 * tokens * config["d_ff"] * element)


def image_bytes(config: Config, pictures: int, width: int, height: int) -> int:
    """The CLIP encoder, in float32: the states of all layers are kept; the pictures lie beside."""
    tokens = image_tokens(config, pictures)
    hidden = tokens * config["hidden_size"] * FLOAT32
    inner = 3 * tokens * config["intermediate_size"] * FLOAT32
    return (config["num_hidden_layers"] + 8) * hidden + inner + 2 * pictures * 3 * width * height * FLOAT32


def image_tokens(config: Config, pictures: int) -> int:
    """Tokens that the cross attention sees besides the text."""
    return pictures * ((config["image_size"] // config["patch_size"]) ** 2 + 1)


def _rotary_bytes(config: Config, tokens: int) -> int:
    return 2 * tokens * config["attention_head_dim"] * FLOAT32


def _context_bytes(config: Config, sample: Sample) -> int:
    """Both texts as encoded, and what the cross attention makes of one: embedded, key, value and in between."""
    tokens = sample.text_len + sample.image_tokens
    return sample.element * (2 * sample.text_len * config["text_dim"] + 5 * tokens * inner_width(config))


def _latents_bytes(config: Config, sample: Sample) -> int:
    """The loop's own tensors; conditions in float32, and the model's input, which is a copy in the run's dtype."""
    inputs, outputs = config["in_channels"], config.get("out_channels") or config["in_channels"]
    control = config["vace_in_channels"] if is_vace(config) else 0
    lasting = LATENTS_ALIVE * outputs + max(inputs - outputs, 0) + control
    seen = prod(sample.latent)
    loop, window = lasting * FLOAT32 * seen, 0
    if sample.whole is not None:  # the loop's prediction is that of all windows, and the first of both is of one
        loop = loop // sample.latent[0] * sample.whole
        window = outputs * FLOAT32 * seen
    return loop + window + (inputs + control) * sample.element * seen + _heard_bytes(config, sample)


def _heard_bytes(config: Config, sample: Sample) -> int:
    """What S2V is told besides: reference and motion latents, audio features, in float32 and in the run's dtype."""
    if not is_s2v(config):
        return 0
    frames, height, width = sample.latent
    latents = config["in_channels"] * (1 + sum(config["motion_buckets"])) * height * width
    features = config["audio_layers"] * config["audio_dim"] * TEMPORAL_STRIDE * frames
    return (latents + features) * (FLOAT32 + sample.element)
