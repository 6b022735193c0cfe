"""Names of tensors, from every layout to those of the diffusers and transformers classes. No torch.

A name that is in no table stays as it is: a file that already has the names of the classes passes unchanged, and
whatever is foreign shows as an unexpected key. Sources: the modules of Wan-Video/Wan2.1 and Wan2.2 (`wan/modules/`
model.py, vace_model.py, s2v/, t5.py, vae.py, vae2_2.py, clip.py) beside the classes, and llama.cpp's names of T5.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

Part = Literal["transformer", "text_encoder", "vae", "image_encoder", "audio_encoder", "lora"]
#: from a name in the file to the name in the model; None for what is known and not used
Rename = Callable[[str], str | None]

#: what ComfyUI and others put in front of a transformer's names
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.")
#: llama.cpp's names of a text encoder
GGML_BLOCK = re.compile(r"enc\.blk\.(\d+)\.(.+)")
_TITLES: dict[Part, str] = {
    "vae": "VAE",
    "image_encoder": "image encoder (CLIP)",
    "audio_encoder": "audio encoder (wav2vec2)",
    "lora": "LoRA",
}


def title(part: Part) -> str:
    """A part in words."""
    return _TITLES.get(part, part.replace("_", " "))


def _attention(theirs: str, ours: str) -> dict[str, str]:
    plain = {f"{theirs}.{name}": f"{ours}.to_{name}" for name in "qkv"}
    norms = {f"{theirs}.norm_{name}": f"{ours}.norm_{name}" for name in "qk"}
    return {**plain, **norms, f"{theirs}.o": f"{ours}.to_out.0"}


_EMBEDDER = "condition_embedder"
_TRANSFORMER = {
    "text_embedding.0": f"{_EMBEDDER}.text_embedder.linear_1",
    "text_embedding.2": f"{_EMBEDDER}.text_embedder.linear_2",
    "time_embedding.0": f"{_EMBEDDER}.time_embedder.linear_1",
    "time_embedding.2": f"{_EMBEDDER}.time_embedder.linear_2",
    "time_projection.1": f"{_EMBEDDER}.time_proj",
    "img_emb.proj.0": f"{_EMBEDDER}.image_embedder.norm1",
    "img_emb.proj.1": f"{_EMBEDDER}.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": f"{_EMBEDDER}.image_embedder.ff.net.2",
    "img_emb.proj.4": f"{_EMBEDDER}.image_embedder.norm2",
    "img_emb.emb_pos": f"{_EMBEDDER}.image_embedder.pos_embed",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
    "casual_audio_encoder": "causal_audio_encoder",
}
_TRANSFORMER_BLOCK = {
    "modulation": "scale_shift_table",
    # the original runs norm1, norm3, norm2; only the one before the cross attention has weights
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    **_attention("self_attn", "attn1"),
    **_attention("cross_attn", "attn2"),
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
    "before_proj": "proj_in",
    "after_proj": "proj_out",
}
_AUDIO_ATTENTION = {**{name: f"to_{name}" for name in "qkv"}, "o": "to_out.0"}
_TEXT = {
    "token_embedding": "shared",
    "norm": "encoder.final_layer_norm",
    "token_embd": "shared",
    "enc.output_norm": "encoder.final_layer_norm",
}
_TEXT_ATTENTION, _TEXT_FORWARD = "layer.0.SelfAttention", "layer.1.DenseReluDense"
_TEXT_BLOCK = {
    "norm1": "layer.0.layer_norm",
    **{f"attn.{name}": f"{_TEXT_ATTENTION}.{name}" for name in "qkvo"},
    "pos_embedding.embedding": f"{_TEXT_ATTENTION}.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": f"{_TEXT_FORWARD}.wi_0",
    "ffn.fc1": f"{_TEXT_FORWARD}.wi_1",
    "ffn.fc2": f"{_TEXT_FORWARD}.wo",
}
_TEXT_BLOCK_GGML = {
    "attn_norm": "layer.0.layer_norm",
    **{f"attn_{name}": f"{_TEXT_ATTENTION}.{name}" for name in "qkvo"},
    "attn_rel_b": f"{_TEXT_ATTENTION}.relative_attention_bias",
    "ffn_norm": "layer.1.layer_norm",
    "ffn_gate": f"{_TEXT_FORWARD}.wi_0",
    "ffn_up": f"{_TEXT_FORWARD}.wi_1",
    "ffn_down": f"{_TEXT_FORWARD}.wo",
}
_VAE = {
    "conv1": "quant_conv",
    "conv2": "post_quant_conv",
}
_VAE_SIDE = {
    "conv1": "conv_in",
    "head.0": "norm_out",
    "head.2": "conv_out",
    "middle.0": "mid_block.resnets.0",
    "middle.1": "mid_block.attentions.0",
    "middle.2": "mid_block.resnets.1",
}
_VAE_RESIDUAL = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}
_PICTURE = {
    "patch_embedding": "embeddings.patch_embedding",
    "cls_embedding": "embeddings.class_embedding",
    "pos_embedding": "embeddings.position_embedding.weight",
    "pre_norm": "pre_layrnorm",
    "post_norm": "post_layernorm",
}
_PICTURE_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}


def renamer(part: Part, names: Iterable[str]) -> Rename:
    """The function from the names of a file of this part to the names of the model's parameters."""
    names = set(names)
    match part:
        case "transformer":
            prefix = _prefix(names)
            return lambda name: _transformer(name.removeprefix(prefix))
        case "text_encoder":
            has_shared = any(_text(name) == "shared.weight" for name in names)
            return lambda name: _text_with_embedding(name, has_shared)
        case "vae":
            per_level = _blocks_per_level(names)
            return lambda name: _vae(name, per_level)
        case "image_encoder":
            return _picture
        case "audio_encoder":
            return _audio
        case "lora":
            return lambda name: name


def _prefix(names: set[str]) -> str:
    """What stands before the transformer's own names."""
    return next(
        (p for p in PREFIXES if any(re.match(rf"{re.escape(p)}(blocks\.|patch_embedding\.)", n) for n in names)), ""
    )


def _look_up(table: Mapping[str, str], name: str) -> str:
    """The name with its longest known beginning replaced; unchanged when there is none."""
    stem, rest = name, ""
    while stem:
        if stem in table:
            return table[stem] + rest
        stem, dot, last = stem.rpartition(".")
        rest = f"{dot}{last}{rest}"
    return name


def _transformer(name: str) -> str | None:
    if ".norm_added_q." in name:
        return None  # some published I2V files have it; no model ever read it (diffusers ignores it as well)
    if block := re.fullmatch(r"((?:vace_)?blocks\.\d+)\.(.+)", name):
        return f"{block[1]}.{_look_up(_TRANSFORMER_BLOCK, block[2])}"
    if attention := re.fullmatch(r"(audio_injector\.injector\.\d+)\.(.+)", name):
        return f"{attention[1]}.{_look_up(_AUDIO_ATTENTION, attention[2])}"
    return _look_up(_TRANSFORMER, name)


def _text(name: str) -> str | None:
    if name in ("spiece_model", "logit_scale"):
        return None  # ComfyUI's copy of the tokenizer
    if block := re.fullmatch(r"blocks\.(\d+)\.(.+)", name):
        return f"encoder.block.{block[1]}.{_look_up(_TEXT_BLOCK, block[2])}"
    if block := GGML_BLOCK.fullmatch(name):
        return f"encoder.block.{block[1]}.{_look_up(_TEXT_BLOCK_GGML, block[2])}"
    return _look_up(_TEXT, name)


def _text_with_embedding(name: str, has_shared: bool) -> str | None:
    if name == "encoder.embed_tokens.weight":
        return None if has_shared else "shared.weight"  # one tensor under two names
    return _text(name)


def _blocks_per_level(names: set[str]) -> int:
    """Entries of the decoder's flat list per level in the layout of Wan 2.1: residual blocks and one upsampler."""
    first = (int(found[1]) for name in names if (found := re.match(r"decoder\.upsamples\.(\d+)\.resample\.", name)))
    return min(first, default=3) + 1


def _vae(name: str, per_level: int) -> str:
    side = re.fullmatch(r"(encoder|decoder)\.(.+)", name)
    if side is None:
        return _look_up(_VAE, name)
    return f"{side[1]}.{_vae_side(side[1], side[2], per_level)}"


def _vae_side(side: str, name: str, per_level: int) -> str:
    blocks = "down_blocks" if side == "encoder" else "up_blocks"
    if nested := re.fullmatch(r"(?:down|up)samples\.(\d+)\.(?:down|up)samples\.(\d+)\.(.+)", name):  # Wan 2.2
        sampler = "downsampler" if side == "encoder" else "upsampler"
        inner = sampler if _resamples(nested[3]) else f"resnets.{nested[2]}"
        return f"{blocks}.{nested[1]}.{inner}.{_look_up(_VAE_RESIDUAL, nested[3])}"
    if flat := re.fullmatch(r"(?:down|up)samples\.(\d+)\.(.+)", name):  # Wan 2.1
        rest = _look_up(_VAE_RESIDUAL, flat[2])
        if side == "encoder":
            return f"{blocks}.{flat[1]}.{rest}"
        level, index = divmod(int(flat[1]), per_level)
        inner = "upsamplers.0" if _resamples(flat[2]) else f"resnets.{index}"
        return f"{blocks}.{level}.{inner}.{rest}"
    middle = re.fullmatch(r"(middle\.\d+)\.(.+)", name)
    return (
        f"{_VAE_SIDE.get(middle[1], middle[1])}.{_look_up(_VAE_RESIDUAL, middle[2])}"
        if middle
        else _look_up(_VAE_SIDE, name)
    )


def _resamples(name: str) -> bool:
    return name.startswith(("resample.", "time_conv."))


def _picture(name: str) -> str | None:
    """Names of the vision model itself: transformers puts `vision_model.` before them in files."""
    if name.endswith("position_ids") or name.startswith(("visual_projection.", "textual.", "visual.head")):
        return None  # the projection into CLIP's common space, and its text half
    if name in ("log_scale", "logit_scale"):
        return None
    if block := re.fullmatch(r"visual\.transformer\.(\d+)\.(.+)", name):
        return f"encoder.layers.{block[1]}.{_look_up(_PICTURE_BLOCK, block[2])}"
    if name.startswith("visual."):
        return _look_up(_PICTURE, name.removeprefix("visual."))
    return name.removeprefix("vision_model.")


def _audio(name: str) -> str | None:
    """Names of the speech model itself: in files it is part of one that writes down what it hears."""
    if name.startswith(("lm_head.", "quantizer.", "project_q.", "project_hid.")):
        return None
    bare = name.removeprefix("wav2vec2.")
    return re.sub(r"^(encoder\.pos_conv_embed\.conv)\.weight_([gv])$", _weight_norm, bare)


def _weight_norm(found: re.Match[str]) -> str:
    """torch's names for length and direction of a weight, since 2.1."""
    return f"{found[1]}.parametrizations.weight.original{'gv'.index(found[2])}"
