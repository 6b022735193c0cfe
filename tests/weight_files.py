"""Writes the parts of a miniature, which lies in diffusers layout, in every other layout that people have.

The names are put down here once more, from the classes to the files, so that the tables of the loaders are held
against something; `test_weights_kinds.py` holds them against diffusers' own converters.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

State = dict[str, Tensor]
FP8 = torch.float8_e4m3fn
STEMS = {
    "transformer": "diffusion_pytorch_model",
    "transformer_2": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "image_encoder": "model",
    "audio_encoder": "model",
}
CLASSES = {
    "text_encoder": "UMT5EncoderModel",
    "image_encoder": "CLIPVisionModel",
    "audio_encoder": "Wav2Vec2Model",
}


def read_part(folder: Path, part: str) -> State:
    """The tensors of a part of a diffusers folder, in memory of their own."""
    return {name: tensor.clone() for name, tensor in load_file(folder / part / f"{STEMS[part]}.safetensors").items()}


def write_configs(folder: Path, config_dir: Path) -> Path:
    """Bundled configs for the miniature: what `configs/architectures` is for the published weights."""
    target = config_dir / "architectures"
    target.mkdir(parents=True)
    for part in ("transformer", "vae", "text_encoder", "image_encoder", "audio_encoder"):
        if (path := folder / part / "config.json").is_file():
            config = json.loads(path.read_text())
            named = {"_class_name": CLASSES.get(part, config.get("_class_name")), **config}
            (target / f"small-{part.replace('_', '-')}.json").write_text(json.dumps(named))
    return config_dir


# names of the original code


def _swap(name: str, pairs: Mapping[str, str]) -> str:
    for ours, theirs in pairs.items():
        if re.match(rf"{re.escape(ours)}(\.|$)", name):
            return theirs + name.removeprefix(ours)
    return name


TOP = {
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "condition_embedder.image_embedder.pos_embed": "img_emb.emb_pos",
    "proj_out": "head.head",
    "scale_shift_table": "head.modulation",
    "causal_audio_encoder": "casual_audio_encoder",
}
BLOCK = {
    "attn1.to_q": "self_attn.q",
    "attn1.to_k": "self_attn.k",
    "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o",
    "attn1.norm_q": "self_attn.norm_q",
    "attn1.norm_k": "self_attn.norm_k",
    "attn2.to_q": "cross_attn.q",
    "attn2.to_k": "cross_attn.k",
    "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o",
    "attn2.norm_q": "cross_attn.norm_q",
    "attn2.norm_k": "cross_attn.norm_k",
    "attn2.add_k_proj": "cross_attn.k_img",
    "attn2.add_v_proj": "cross_attn.v_img",
    "attn2.norm_added_k": "cross_attn.norm_k_img",
    "norm2": "norm3",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "scale_shift_table": "modulation",
    "proj_in": "before_proj",
    "proj_out": "after_proj",
}
TEXT = {"shared": "token_embedding", "encoder.final_layer_norm": "norm"}
TEXT_BLOCK = {
    "layer.0.layer_norm": "norm1",
    "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
    "layer.0.SelfAttention": "attn",
    "layer.1.layer_norm": "norm2",
    "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
    "layer.1.DenseReluDense.wi_1": "ffn.fc1",
    "layer.1.DenseReluDense.wo": "ffn.fc2",
}
TEXT_GGML = {"shared": "token_embd", "encoder.final_layer_norm": "enc.output_norm"}
TEXT_BLOCK_GGML = {
    "layer.0.layer_norm": "attn_norm",
    "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b",
    "layer.0.SelfAttention.q": "attn_q",
    "layer.0.SelfAttention.k": "attn_k",
    "layer.0.SelfAttention.v": "attn_v",
    "layer.0.SelfAttention.o": "attn_o",
    "layer.1.layer_norm": "ffn_norm",
    "layer.1.DenseReluDense.wi_0": "ffn_gate",
    "layer.1.DenseReluDense.wi_1": "ffn_up",
    "layer.1.DenseReluDense.wo": "ffn_down",
}
RESIDUAL = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}
SIDE = {
    "conv_in": "conv1",
    "norm_out": "head.0",
    "conv_out": "head.2",
    "mid_block.attentions.0": "middle.1",
}


INJECTOR = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o"}


def transformer_name(name: str) -> str:
    block = re.fullmatch(r"((?:vace_)?blocks\.\d+)\.(.+)", name)
    if attention := re.fullmatch(r"(audio_injector\.injector\.\d+)\.(.+)", name):
        return f"{attention[1]}.{_swap(attention[2], INJECTOR)}"
    return f"{block[1]}.{_swap(block[2], BLOCK)}" if block else _swap(name, TOP)


def audio_name(name: str) -> str:
    """As in a model that writes down what it hears, saved before torch 2.1."""
    return "wav2vec2." + re.sub(
        r"parametrizations\.weight\.original([01])$", lambda m: "weight_" + "gv"[int(m[1])], name
    )


def text_name(name: str) -> str:
    block = re.fullmatch(r"encoder\.block\.(\d+)\.(.+)", name)
    return f"blocks.{block[1]}.{_swap(block[2], TEXT_BLOCK)}" if block else _swap(name, TEXT)


def text_name_ggml(name: str) -> str:
    block = re.fullmatch(r"encoder\.block\.(\d+)\.(.+)", name)
    return f"enc.blk.{block[1]}.{_swap(block[2], TEXT_BLOCK_GGML)}" if block else _swap(name, TEXT_GGML)


def vae_name(name: str, res_blocks: int, nested: bool) -> str:
    """`nested`: a list per level, as Wan 2.2 has it; Wan 2.1 numbers all blocks of a side through."""
    side = re.fullmatch(r"(encoder|decoder)\.(.+)", name)
    if side is None:
        return _swap(name, {"quant_conv": "conv1", "post_quant_conv": "conv2"})
    here, rest = side[1], side[2]
    if middle := re.fullmatch(r"mid_block\.resnets\.(\d)\.(.+)", rest):
        return f"{here}.middle.{2 * int(middle[1])}.{_swap(middle[2], RESIDUAL)}"
    names = _nested(here, rest, res_blocks) if nested else _flat(here, rest, res_blocks)
    return f"{here}.{names or _swap(rest, SIDE)}"


def _nested(here: str, rest: str, res_blocks: int) -> str | None:
    samples = "downsamples" if here == "encoder" else "upsamples"
    if block := re.fullmatch(r"(?:down|up)_blocks\.(\d+)\.resnets\.(\d+)\.(.+)", rest):
        return f"{samples}.{block[1]}.{samples}.{block[2]}.{_swap(block[3], RESIDUAL)}"
    if last := re.fullmatch(r"(?:down|up)_blocks\.(\d+)\.(?:down|up)sampler\.(.+)", rest):
        return f"{samples}.{last[1]}.{samples}.{res_blocks + (here == 'decoder')}.{last[2]}"
    return None


def _flat(here: str, rest: str, res_blocks: int) -> str | None:
    if here == "encoder":
        block = re.fullmatch(r"down_blocks\.(\d+)\.(.+)", rest)
        return f"downsamples.{block[1]}.{_swap(block[2], RESIDUAL)}" if block else None
    if block := re.fullmatch(r"up_blocks\.(\d+)\.resnets\.(\d+)\.(.+)", rest):
        return f"upsamples.{int(block[1]) * (res_blocks + 2) + int(block[2])}.{_swap(block[3], RESIDUAL)}"
    if last := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.(.+)", rest):
        return f"upsamples.{int(last[1]) * (res_blocks + 2) + res_blocks + 1}.{last[2]}"
    return None


def clip_original(state: State) -> State:
    """Wan's CLIP file: query, key and value in one, and the text half, of which a few tensors stand for all."""
    state = {name.removeprefix("vision_model."): tensor for name, tensor in state.items()}
    width = state["pre_layrnorm.weight"].shape[0]
    out: State = {
        "visual.patch_embedding.weight": state["embeddings.patch_embedding.weight"],
        "visual.cls_embedding": state["embeddings.class_embedding"].view(1, 1, -1),
        "visual.pos_embedding": state["embeddings.position_embedding.weight"][None],
        "visual.head": torch.ones(width, 8),
        "textual.token_embedding.weight": torch.ones(4, 8),
        "log_scale": torch.tensor(2.66),
    }
    for theirs, ours in (("pre_norm", "pre_layrnorm"), ("post_norm", "post_layernorm")):
        out |= {f"visual.{theirs}.{leaf}": state[f"{ours}.{leaf}"] for leaf in ("weight", "bias")}
    for index in range(len([name for name in state if name.endswith("layer_norm1.weight")])):
        out |= _clip_block(state, f"encoder.layers.{index}", f"visual.transformer.{index}")
    return out


def _clip_block(state: State, ours: str, theirs: str) -> State:
    names = {
        "layer_norm1": "norm1",
        "layer_norm2": "norm2",
        "self_attn.out_proj": "attn.proj",
        "mlp.fc1": "mlp.0",
        "mlp.fc2": "mlp.2",
    }
    leaves = ("weight", "bias")
    plain = {f"{theirs}.{new}.{leaf}": state[f"{ours}.{old}.{leaf}"] for old, new in names.items() for leaf in leaves}
    fused = {
        f"{theirs}.attn.to_qkv.{leaf}": torch.cat([state[f"{ours}.self_attn.{q}_proj.{leaf}"] for q in "qkv"])
        for leaf in leaves
    }
    return {**plain, **fused}


def named(state: State, name: Callable[[str], str], prefix: str = "") -> State:
    return {prefix + name(key): tensor for key, tensor in state.items()}


def text_original(state: State) -> State:
    return named(without_copy(state), text_name)


def without_copy(state: State) -> State:
    """Without the second name of the embedding, which some files have."""
    return {name: tensor for name, tensor in state.items() if name != "encoder.embed_tokens.weight"}


# quantised weights


def is_linear(name: str, tensor: Tensor) -> bool:
    """The layers that published files quantise: those of the blocks."""
    return tensor.ndim == 2 and name.startswith(("blocks.", "encoder.block.")) and "relative" not in name


def quantised(state: State, dtype: torch.dtype, *, per_row: bool) -> tuple[State, State]:
    """Codes in place of the linear weights, and a scale for each."""
    highest = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    codes, scales = dict(state), {}
    for name, tensor in state.items():
        if is_linear(name, tensor):
            reach = tensor.abs().amax(dim=1, keepdim=True) if per_row else tensor.abs().max()
            scales[name] = scale = reach / highest
            codes[name] = (tensor / scale).round().to(dtype) if dtype == torch.int8 else (tensor / scale).to(dtype)
    return codes, scales


def comfy_note(kind: str) -> Tensor:
    return torch.tensor(list(json.dumps({"format": kind}).encode()), dtype=torch.uint8)


def save(state: State, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, {"format": "pt"})
    else:
        torch.save(state, path)


def save_shards(state: State, folder: Path, stem: str, count: int = 3) -> None:
    names = sorted(state)
    for index in range(count):
        part = {name: state[name] for name in names[index::count]}
        save(part, folder / f"{stem}-{index + 1:05d}-of-{count:05d}.safetensors")


def save_gguf(state: State, path: Path, kind: str, architecture: str = "wan", *, all_in: bool = False) -> None:
    """Linear weights of the blocks, or all that go, in ggml's blocks of `kind`, and the rest in float32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    for name, tensor in state.items():
        fits = tensor.ndim == 2 and tensor.shape[1] % 32 == 0
        chosen = gguf.GGMLQuantizationType[kind if fits and (all_in or "blk." in name or "blocks." in name) else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(tensor.float().numpy(), chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# the transformer in every format: (state under diffusers' names, folder) -> files in it

COMFY = "model.diffusion_model."


def _diffusers_fp8(state: State, folder: Path) -> None:
    codes, scales = quantised(state, FP8, per_row=True)
    flat = {f"{name}_scale": scale.flatten() for name, scale in scales.items()}
    save_shards({**codes, **flat}, folder, "diffusion_pytorch_model")


def _comfy_scaled(state: State, folder: Path) -> None:
    codes, scales = quantised(state, FP8, per_row=False)
    out = named(codes, transformer_name, COMFY)
    for name, scale in scales.items():
        layer = COMFY + transformer_name(name).removesuffix(".weight")
        out[f"{layer}.scale_weight"], out[f"{layer}.scale_input"] = scale, torch.tensor(1.0)
    save({**out, f"{COMFY}scaled_fp8": torch.empty(0, dtype=FP8)}, folder / "wan_fp8_scaled.safetensors")


def _comfy_noted(state: State, folder: Path, dtype: torch.dtype, kind: str) -> None:
    codes, scales = quantised(state, dtype, per_row=False)
    out = named(codes, transformer_name)
    for name, scale in scales.items():
        layer = transformer_name(name).removesuffix(".weight")
        more = {"weight_scale": scale, "input_scale": torch.tensor(1.0), "comfy_quant": comfy_note(kind)}
        out |= {f"{layer}.{leaf}": tensor for leaf, tensor in more.items()}
    save(out, folder / "wan_quantised.safetensors")


def _lightx2v(state: State, folder: Path, dtype: torch.dtype) -> None:
    codes, scales = quantised(state, dtype, per_row=True)
    out = named(codes, transformer_name)
    out |= {f"{transformer_name(name)}_scale": scale for name, scale in scales.items()}
    save(out, folder / "distilled.safetensors")


def _lightx2v_blocks(state: State, folder: Path) -> None:
    out = named(state, transformer_name)
    for index in ("0", "1"):
        inside = {name: tensor for name, tensor in out.items() if name.startswith(f"blocks.{index}.")}
        save(inside, folder / f"block_{index}.safetensors")
    save({name: t for name, t in out.items() if not name.startswith("blocks.")}, folder / "non_block.safetensors")


def _plain_fp8(state: State, folder: Path) -> None:
    codes = {name: tensor.to(FP8) if is_linear(name, tensor) else tensor for name, tensor in state.items()}
    save(named(codes, transformer_name), folder / "wan_fp8_e4m3fn.safetensors")


def _plain_fp8_all(state: State, folder: Path) -> None:
    codes = {name: tensor.to(FP8) if tensor.ndim > 1 else tensor.half() for name, tensor in state.items()}
    save(named(codes, transformer_name, COMFY), folder / "wan_fp8_e4m3fn_all.safetensors")


def _cast(state: State, dtype: torch.dtype) -> State:
    return {name: tensor.to(dtype) for name, tensor in state.items()}


TRANSFORMER_FORMATS: dict[str, Callable[[State, Path], None]] = {
    "diffusers": lambda s, f: save(s, f / "diffusion_pytorch_model.safetensors"),
    "diffusers-shards": lambda s, f: save_shards(s, f, "diffusion_pytorch_model"),
    "diffusers-bf16": lambda s, f: save(_cast(s, torch.bfloat16), f / "diffusion_pytorch_model.safetensors"),
    "diffusers-fp8": _diffusers_fp8,
    "original-shards": lambda s, f: save_shards(named(s, transformer_name), f, "diffusion_pytorch_model"),
    "original-pth": lambda s, f: save(named(s, transformer_name), f / "wan.pth"),
    "comfy": lambda s, f: save(named(s, transformer_name, COMFY), f / "wan.safetensors"),
    "comfy-fp8-scaled": _comfy_scaled,
    "comfy-fp8-noted": lambda s, f: _comfy_noted(s, f, FP8, "float8_e4m3fn"),
    "comfy-int8-noted": lambda s, f: _comfy_noted(s, f, torch.int8, "int8_tensorwise"),
    "lightx2v-fp8": lambda s, f: _lightx2v(s, f, FP8),
    "lightx2v-int8": lambda s, f: _lightx2v(s, f, torch.int8),
    "lightx2v-blocks": _lightx2v_blocks,
    "plain-fp8": _plain_fp8,
    "plain-fp8-all": _plain_fp8_all,
    "gguf-f16": lambda s, f: save_gguf(named(s, transformer_name), f / "wan-F16.gguf", "F16"),
    "gguf-bf16": lambda s, f: save_gguf(named(s, transformer_name), f / "wan-BF16.gguf", "BF16"),
    "gguf-q8": lambda s, f: save_gguf(named(s, transformer_name), f / "wan-Q8_0.gguf", "Q8_0"),
    "gguf-q4": lambda s, f: save_gguf(named(s, transformer_name), f / "wan-Q4_0.gguf", "Q4_0"),
    "gguf-q8-all": lambda s, f: save_gguf(named(s, transformer_name), f / "wan-Q8_0.gguf", "Q8_0", all_in=True),
}


# whole folders


def write_original(tiny: Path, target: Path) -> None:
    """The layout of the original repositories: shards, and a `.pth` for each of the other parts."""
    two = (tiny / "transformer_2").is_dir()
    for part, name in (("transformer", "high_noise_model"), ("transformer_2", "low_noise_model")):
        if (tiny / part).is_dir():
            state = named(read_part(tiny, part), transformer_name)
            save_shards(state, target / name if two else target, "diffusion_pytorch_model")
    save(text_original(read_part(tiny, "text_encoder")), target / "models_t5_umt5-xxl-enc-bf16.pth")
    save(vae_original(tiny), target / "Wan_VAE.pth")
    if (tiny / "image_encoder").is_dir():
        save(clip_original(read_part(tiny, "image_encoder")), target / "models_clip_open-clip.pth")
        (target / "xlm-roberta-large").mkdir()
        (target / "xlm-roberta-large" / "tokenizer.json").write_text("{}")
    shutil.copytree(tiny / "tokenizer", target / "google" / "umt5-xxl")


def write_comfy(tiny: Path, target: Path) -> None:
    """ComfyUI's folders with one file each; two experts are told apart by file name."""
    two = (tiny / "transformer_2").is_dir()
    for part, noise in (("transformer", "high"), ("transformer_2", "low")):
        if (tiny / part).is_dir():
            stem = f"wan_{noise}_noise_14B" if two else "wan"
            state = named(read_part(tiny, part), transformer_name, COMFY)
            save(state, target / "diffusion_models" / f"{stem}.safetensors")
    text = {**without_copy(read_part(tiny, "text_encoder")), "spiece_model": torch.zeros(3, dtype=torch.uint8)}
    save(text, target / "text_encoders" / "umt5.safetensors")
    save(vae_original(tiny), target / "vae" / "wan_vae.safetensors")
    if (tiny / "image_encoder").is_dir():
        clip = {
            f"vision_model.{k.removeprefix('vision_model.')}": v for k, v in read_part(tiny, "image_encoder").items()
        }
        clip["visual_projection.weight"] = torch.ones(4, 4)
        save(clip, target / "clip_vision" / "clip_vision_h.safetensors")
    shutil.copytree(tiny / "tokenizer", target / "tokenizer")


def vae_original(tiny: Path) -> State:
    config = json.loads((tiny / "vae" / "config.json").read_text())
    blocks, nested = config["num_res_blocks"], config["is_residual"]
    return named(read_part(tiny, "vae"), lambda name: vae_name(name, blocks, nested))
