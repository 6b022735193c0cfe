"""How many parameters and bytes the parts of a checkpoint have, counted from their configs. No torch.

The configs are the ones that diffusers and transformers write beside the weights (`config.json`). What a key that is
left out means is taken from the classes there. Buffers, a megabyte or so, are not counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from wan_pipelines.errors import PlacementError
from wan_pipelines.profile import Profile
from wan_pipelines.s2v.memory import is_s2v, outside_blocks, wav2vec2_parameters
from wan_pipelines.vae_layers import decoder_layers, encoder_layers, parameters_of

Config = Mapping[str, Any]

#: bytes of one value
ELEMENT = {"float32": 4, "bfloat16": 2, "float16": 2}
FLOAT32 = 4
#: parts that hold the blocks of the denoiser, the only ones with weights in fp8
EXPERTS = ("transformer", "transformer_2")
PARTS = ("text_encoder", "image_encoder", "audio_encoder", "vae", *EXPERTS)
#: latent channels of the Wan 2.2 autoencoder, by which its transformers are known
VAE22_CHANNELS = 48


@dataclass(frozen=True, slots=True)
class Weights:
    """Parameters of a module, by how they are stored."""

    #: those that follow the dtype of the run
    plain: int = 0
    #: those that stay float32: modulation tables, time embedding, affine norms (`_keep_in_fp32_modules` of diffusers)
    float32: int = 0
    #: of `plain`, matrices of linear layers inside a block: one byte each in fp8
    matrices: int = 0
    #: their output rows, one float32 scale each in fp8
    rows: int = 0

    def __add__(self, other: Weights) -> Weights:
        return Weights(
            self.plain + other.plain,
            self.float32 + other.float32,
            self.matrices + other.matrices,
            self.rows + other.rows,
        )

    @property
    def parameters(self) -> int:
        return self.plain + self.float32

    def bytes(self, element: int, *, fp8: bool = False) -> int:
        """Bytes when a value of the run's dtype takes `element`."""
        full = self.plain * element + self.float32 * FLOAT32
        return full - self.matrices * (element - 1) + self.rows * FLOAT32 if fp8 else full


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a checkpoint as it lies in memory."""

    parameters: int
    bytes: int
    #: bytes of each block that can be streamed by itself, in the order in which they run
    blocks: tuple[int, ...] = ()

    @property
    def rest(self) -> int:
        """Bytes outside the blocks."""
        return self.bytes - sum(self.blocks)


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a checkpoint takes: its parts in bytes, and the configs from which its activations follow."""

    model: str
    #: by name: text_encoder, image_encoder, audio_encoder, vae, transformer, transformer_2
    parts: Mapping[str, Part]
    #: the same with the blocks of the denoiser in fp8
    parts_fp8: Mapping[str, Part]
    configs: Mapping[str, Config]
    #: bytes of one value of an activation in transformers and text encoder
    element: int
    conditioning: str
    text_len: int
    #: pictures that the image encoder sees
    pictures: int = 0
    #: whether the denoiser's blocks are in fp8 (or another quantised form); None while that is still open
    fp8: bool | None = None


def footprint(configs: Mapping[str, Config], profile: Profile, dtype: str) -> Footprint:
    """The footprint of a checkpoint with these configs, by part name, run in `dtype` (VAE, CLIP, wav2vec2: float32).

    A second expert without a config of its own is like the first one. Raises PlacementError for a part or a dtype
    that cannot be counted.
    """
    if dtype not in ELEMENT:
        raise PlacementError(f"dtype: must be one of {', '.join(ELEMENT)} (got {dtype!r})")
    given = dict(configs)
    if profile.boundary is not None:
        given.setdefault("transformer_2", given["transformer"])
    if missing := sorted({"transformer", "text_encoder", "vae"} - given.keys()):
        raise PlacementError(f"model {profile.name}: no config for {', '.join(missing)}")
    parts = {name: count_part(name, config, dtype) for name, config in given.items()}
    fp8 = {name: count_part(name, given[name], dtype, fp8=True) for name in EXPERTS if name in given}
    return Footprint(
        model=profile.name,
        parts=parts,
        parts_fp8={**parts, **fp8},
        configs=given,
        element=ELEMENT[dtype],
        conditioning=profile.conditioning,
        text_len=profile.text_len,
        pictures=profile.clip_pictures,
    )


def bundled_configs(profile: Profile, config_dir: Path) -> dict[str, Config]:
    """The configs in `config_dir/architectures` of a profile that names its architecture. Raises PlacementError."""
    if profile.architecture is None:
        raise PlacementError(f"model {profile.name} names no architecture")
    folder = config_dir / "architectures"
    transformer = _read(folder / f"{profile.architecture}.json")
    vae = "wan2.2-vae" if transformer["out_channels"] == VAE22_CHANNELS else "wan2.1-vae"
    stems = {"text_encoder": "umt5-xxl", "vae": vae}
    stems |= {"image_encoder": "clip-vit-h"} if profile.clip_pictures else {}
    stems |= {"audio_encoder": "wav2vec2-large-xlsr-53"} if profile.conditioning == "s2v" else {}
    return {"transformer": transformer, **{part: _read(folder / f"{stem}.json") for part, stem in stems.items()}}


def count_part(name: str, config: Config, dtype: str, *, fp8: bool = False) -> Part:
    """The part `name` with this config. Raises PlacementError for a name or a class that is unknown."""
    if name in _EXACT:
        count = _EXACT[name](config)
        return Part(count, count * FLOAT32)
    if name == "text_encoder":
        outside, blocks = umt5_weights(config)
    elif name in EXPERTS:
        outside, blocks = transformer_weights(config)
    else:
        raise PlacementError(f"part {name} cannot be counted")
    whole = sum(blocks, start=outside)
    element = ELEMENT[dtype]
    return Part(
        parameters=whole.parameters,
        bytes=whole.bytes(element, fp8=fp8),
        blocks=tuple(block.bytes(element, fp8=fp8) for block in blocks),
    )


def transformer_weights(config: Config) -> tuple[Weights, tuple[Weights, ...]]:
    """Outside the blocks, and each block in the order in which they run (those of VACE come first).

    Source: diffusers models/transformers/transformer_wan.py and transformer_wan_vace.py.
    """
    kind = config.get("_class_name", "WanTransformer3DModel")
    if kind not in ("WanTransformer3DModel", "WanVACETransformer3DModel", "WanS2VTransformer3DModel"):
        raise PlacementError(f"a transformer of class {kind} cannot be counted")
    width = inner_width(config)
    block = _block(config, width)
    control = ()
    if is_vace(config):
        behind = block + _linear(width, width)
        control = (behind + _linear(width, width), *[behind] * (len(config["vace_layers"]) - 1))
    outside = _outside(config, width)
    if is_s2v(config):
        outside += Weights(*outside_blocks(config, width))
    return outside, (*control, *[block] * config["num_layers"])


def is_vace(config: Config) -> bool:
    """Whether the transformer has the second stack of blocks."""
    return config.get("_class_name") == "WanVACETransformer3DModel" or "vace_layers" in config


def inner_width(config: Config) -> int:
    """Values of one token of a transformer."""
    return config["num_attention_heads"] * config["attention_head_dim"]


def umt5_weights(config: Config) -> tuple[Weights, tuple[Weights, ...]]:
    """Outside the blocks, and each block. Source: transformers models/umt5/modeling_umt5.py, UMT5EncoderModel."""
    width, inner = config["d_model"], config["num_heads"] * config["d_kv"]
    gated = str(config.get("feed_forward_proj", "gated-gelu")).startswith("gated")
    bias = config.get("relative_attention_num_buckets", 32) * config["num_heads"]
    block = 4 * width * inner + (3 if gated else 2) * width * config["d_ff"] + bias + 2 * width
    outside = config["vocab_size"] * width + width
    return Weights(outside), (Weights(block),) * config["num_layers"]


def clip_parameters(config: Config) -> int:
    """Source: transformers models/clip/modeling_clip.py, CLIPVisionModel."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    pixels = config.get("num_channels", 3) * config["patch_size"] ** 2
    tokens = (config["image_size"] // config["patch_size"]) ** 2 + 1
    layer = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
    return width + pixels * width + tokens * width + 4 * width + config["num_hidden_layers"] * layer


def vae_parameters(config: Config) -> int:
    """Source: diffusers models/autoencoders/autoencoder_kl_wan.py, both layouts."""
    latent = config["z_dim"]
    quant = (2 * latent) ** 2 + 2 * latent + latent**2 + latent
    blocks = (*encoder_layers(config), *decoder_layers(config))
    return quant + sum(parameters_of(layer) for block in blocks for layer in block.layers)


#: parts that are float32 always
_EXACT = {"vae": vae_parameters, "image_encoder": clip_parameters, "audio_encoder": wav2vec2_parameters}


def _read(path: Path) -> Config:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PlacementError(f"{path}: {error}") from error


def _outside(config: Config, width: int) -> Weights:
    """Patch, time, text and image embeddings and the head."""
    patch = prod(config["patch_size"])
    text, pixels = config["text_dim"], config["in_channels"] * patch
    embedders = [_linear(pixels, width), _linear(width, 6 * width), _linear(text, width), _linear(width, width)]
    if is_vace(config):
        embedders.append(_linear(config["vace_in_channels"] * patch, width))
    picture = config.get("image_dim")
    if picture is not None:
        embedders += [_linear(picture, picture), _linear(picture, width)]
        embedders.append(Weights(picture * (config.get("pos_embed_seq_len") or 0), 2 * picture + 2 * width))
    head = _linear(width, (config.get("out_channels") or config["in_channels"]) * patch)
    time = config["freq_dim"] * width + width + width * width + width
    whole = sum((*embedders, head), start=Weights(float32=time + 2 * width))
    return Weights(whole.plain, whole.float32)  # none of them is held in fp8


def _block(config: Config, width: int) -> Weights:
    linears = [_linear(width, width)] * 8
    linears += [_linear(width, config["ffn_dim"]), _linear(config["ffn_dim"], width)]
    norms = 4 * width  # of queries and keys, in self and cross attention
    if (added := config.get("added_kv_proj_dim")) is not None:
        linears += [_linear(added, width)] * 2
        norms += width
    affine = 2 * width if config.get("cross_attn_norm", True) else 0
    return _sum(linears) + Weights(plain=norms, float32=affine + 6 * width)


def _linear(inputs: int, outputs: int) -> Weights:
    return Weights(plain=inputs * outputs + outputs, matrices=inputs * outputs, rows=outputs)


def _sum(weights: Iterable[Weights]) -> Weights:
    return sum(weights, start=Weights())
