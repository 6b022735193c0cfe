"""Names in LoRA files, and the layers of diffusers' Wan transformers that they mean. No torch.

Three styles are in use:

- diffusers and peft: `transformer.blocks.0.attn1.to_q.lora_A.weight`
- ComfyUI, lightx2v and the original code: `diffusion_model.blocks.0.self_attn.q.lora_down.weight`
- musubi-tuner and kohya's scripts: `lora_unet_blocks_0_self_attn_q.lora_down.weight`

Only names in the tables below are known. The layers of the original code are those of Wan-Video/Wan2.1
wan/modules/model.py and vace_model.py, and of Wan-Video/Wan2.2 wan/modules/s2v.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

#: what a tensor is to its layer: half of a low-rank pair, its alpha, or a difference to add as it is
Role = Literal["down", "up", "up_bias", "alpha", "weight", "bias"]

_SUFFIXES: dict[str, Role] = {
    ".lora_A.weight": "down",
    ".lora_A.default.weight": "down",  # peft with its adapter's name
    ".lora_down.weight": "down",
    ".lora.down.weight": "down",
    ".lora_B.weight": "up",
    ".lora_B.default.weight": "up",
    ".lora_up.weight": "up",
    ".lora.up.weight": "up",
    ".lora_B.bias": "up_bias",
    ".lora_B.default.bias": "up_bias",
    ".alpha": "alpha",
    ".diff": "weight",
    ".diff_b": "bias",
}
#: lightx2v: difference of the modulation table of a block or of the head
_MODULATION_SUFFIX = ".diff_m"
#: parts of a key that belong to other methods
_OTHER_METHODS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_w": "LoHa",
    "lokr_w": "LoKr",
    "lokr_t": "LoKr",
    "oft_": "OFT",
    "lora_mid": "a LoRA of three factors",
}
_PREFIXES = ("base_model.model.", "model.", "diffusion_model.", "transformer.")
_FLAT_PREFIX = "lora_unet_"
TABLE = "scale_shift_table"

_ATTENTION = {name: f"to_{name}" for name in "qkv"} | {"o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_PICTURE = {"k_img": "add_k_proj", "v_img": "add_v_proj", "norm_k_img": "norm_added_k"}
_IN_BLOCK = {
    **{f"self_attn.{name}": f"attn1.{target}" for name, target in _ATTENTION.items()},
    **{f"cross_attn.{name}": f"attn2.{target}" for name, target in (_ATTENTION | _PICTURE).items()},
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "norm3": "norm2",  # the only block norm with weights has another number in diffusers
    "modulation": TABLE,
    "before_proj": "proj_in",
    "after_proj": "proj_out",
}
_EMBEDDER = "condition_embedder"
_PICTURE_EMBEDDER = f"{_EMBEDDER}.image_embedder"
_OUTSIDE = {
    "patch_embedding": "patch_embedding",
    "vace_patch_embedding": "vace_patch_embedding",
    "text_embedding.0": f"{_EMBEDDER}.text_embedder.linear_1",
    "text_embedding.2": f"{_EMBEDDER}.text_embedder.linear_2",
    "time_embedding.0": f"{_EMBEDDER}.time_embedder.linear_1",
    "time_embedding.2": f"{_EMBEDDER}.time_embedder.linear_2",
    "time_projection.1": f"{_EMBEDDER}.time_proj",
    "img_emb.proj.0": f"{_PICTURE_EMBEDDER}.norm1",
    "img_emb.proj.1": f"{_PICTURE_EMBEDDER}.ff.net.0.proj",
    "img_emb.proj.3": f"{_PICTURE_EMBEDDER}.ff.net.2",
    "img_emb.proj.4": f"{_PICTURE_EMBEDDER}.norm2",
    "head.head": "proj_out",
    "head.modulation": TABLE,
}


def _both(table: dict[str, str]) -> dict[str, str]:
    """Original names and diffusers' own."""
    return table | {target: target for target in table.values()}


def _flat(table: dict[str, str]) -> dict[str, str]:
    return {name.replace(".", "_"): target for name, target in _both(table).items()}


_BLOCK_NAMES, _OUTSIDE_NAMES = _both(_IN_BLOCK), _both(_OUTSIDE)
_FLAT_BLOCK_NAMES, _FLAT_OUTSIDE_NAMES = _flat(_IN_BLOCK), _flat(_OUTSIDE)
_BLOCK = re.compile(r"((?:vace_)?blocks)[._](\d+)[._](.+)")
#: what S2V has behind some blocks
_AUDIO = re.compile(r"audio_injector[._](injector|injector_adain_layers)[._](\d+)[._](.+)")
_AUDIO_NAMES = _both(_ATTENTION) | _flat(_ATTENTION) | {"linear": "linear"}


@dataclass(frozen=True, slots=True)
class LoraKey:
    """Where one tensor of a LoRA file belongs."""

    #: module in diffusers' transformer, or the modulation table's own name
    layer: str
    role: Role


def parse_key(key: str) -> LoraKey | None:
    """What a key means; None for a key that is not known."""
    if key.endswith(_MODULATION_SUFFIX):
        layer = layer_name(f"{key.removesuffix(_MODULATION_SUFFIX)}.modulation")
        return None if layer is None else LoraKey(layer, "weight")
    for suffix, role in _SUFFIXES.items():
        if key.endswith(suffix):
            layer = layer_name(key.removesuffix(suffix))
            return None if layer is None else LoraKey(layer, role)
    return None


def layer_name(name: str) -> str | None:
    """The name in diffusers of a layer that any of the styles names; None when there is no such layer."""
    if name.startswith(_FLAT_PREFIX):
        return _look_up(name.removeprefix(_FLAT_PREFIX), _FLAT_BLOCK_NAMES, _FLAT_OUTSIDE_NAMES)
    return _look_up(_without_prefix(name), _BLOCK_NAMES, _OUTSIDE_NAMES)


def own_layer_name(key: str) -> str:
    """The layer of a key as the model that the file was trained with names it."""
    suffix = next((suffix for suffix in _SUFFIXES if key.endswith(suffix)), "")
    return _without_prefix(key.removesuffix(suffix))


def _without_prefix(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _look_up(name: str, in_block: dict[str, str], outside: dict[str, str]) -> str | None:
    if audio := _AUDIO.fullmatch(name):
        kind, number, rest = audio.groups()
        return f"audio_injector.{kind}.{int(number)}.{_AUDIO_NAMES[rest]}" if rest in _AUDIO_NAMES else None
    found = _BLOCK.fullmatch(name)
    if found is None:
        return outside.get(name)
    blocks, number, rest = found.groups()
    return f"{blocks}.{int(number)}.{in_block[rest]}" if rest in in_block else None


def other_method(key: str) -> str | None:
    """The method, other than LoRA, that a key belongs to: DoRA, LoHa, LoKr, OFT."""
    return next((method for part, method in _OTHER_METHODS.items() if part in key), None)


def parameter_name(key: LoraKey) -> str:
    """The parameter that a weight, bias or low-rank pair is added to."""
    if key.layer.endswith(TABLE):
        return key.layer
    return f"{key.layer}.{'bias' if key.role in ('bias', 'up_bias') else 'weight'}"


def is_for_pictures(layer: str) -> bool:
    """Whether only models that see a CLIP encoder's pictures (Wan 2.1 I2V, FLF2V) have this layer."""
    return layer.startswith(_PICTURE_EMBEDDER) or any(f".attn2.{name}" in layer for name in _PICTURE.values())
