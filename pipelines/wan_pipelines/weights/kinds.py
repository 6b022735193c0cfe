"""What a weight file is: which part of which architecture, in which layout, found by names and shapes of tensors.

File names are not trusted, and neither is diffusers' own guess, which takes I2V-A14B, TI2V-5B and Fun-InP-1.3B for
other models. No torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wan_pipelines.errors import CheckpointError
from wan_pipelines.profile import find_config_dir
from wan_pipelines.weights.keys import GGML_BLOCK, PREFIXES, Part, renamer

Layout = Literal["diffusers", "original", "comfy", "lightx2v", "gguf"]
Quantised = Literal["fp8", "fp8_scaled", "int8", "gguf"] | None
Shapes = Mapping[str, tuple[int, ...]]
#: numbers that tell the architectures of a part apart; None where a damaged file does not say
Traits = dict[str, int | None]

#: part of the class that a bundled config names
PARTS: dict[str, Part] = {
    "WanTransformer3DModel": "transformer",
    "WanVACETransformer3DModel": "transformer",
    "WanS2VTransformer3DModel": "transformer",
    "UMT5EncoderModel": "text_encoder",
    "AutoencoderKLWan": "vae",
    "CLIPVisionModel": "image_encoder",
    "Wav2Vec2Model": "audio_encoder",
}
#: names that only one part has, in any layout, after a transformer's prefix
_MARKS: dict[Part, re.Pattern[str]] = {
    "audio_encoder": re.compile(r"(wav2vec2\.)?(feature_extractor\.conv_layers|feature_projection)\."),
    "image_encoder": re.compile(r"(visual\.transformer|(vision_model\.)?encoder\.layers)\.\d+\."),
    "vae": re.compile(r"(encoder|decoder)\.(downsamples|upsamples|down_blocks|up_blocks|middle|mid_block)\."),
    "text_encoder": re.compile(
        r"encoder\.block\.\d+\.layer\.|enc\.blk\.\d+\.|blocks\.\d+\.ffn\.gate\.|token_embedding\."
    ),
    "transformer": re.compile(r"blocks\.\d+\.(self_attn|cross_attn|attn1|attn2|ffn|modulation)|patch_embedding\."),
}
_LORA = re.compile(r"\.(lora_(down|up|A|B)\b|alpha$|diff(_b)?$)|^lora_")
#: companions of quantised weights, by the end of their names
SCALES = (".scale_weight", ".weight_scale")
ACTIVATION_SCALES = (".scale_input", ".input_scale")
COMFY_FORMAT = ".comfy_quant"
#: a tensor without values by which ComfyUI knows a file with scales
COMFY_MARKER = "scaled_fp8"


@dataclass(frozen=True, slots=True)
class Kind:
    """What a set of tensors is."""

    part: Part
    #: stem of the config in `configs/architectures`; "lora" for low-rank additions
    architecture: str
    layout: Layout
    quantised: Quantised


def config_folder(config_dir: Path | None = None) -> Path:
    """The bundled configs: in the given folder, else in the one that came with wanbox."""
    return (config_dir or find_config_dir()) / "architectures"


def read_config(architecture: str, config_dir: Path | None = None) -> dict[str, Any]:
    """The config of an architecture. Raises CheckpointError naming those there are."""
    folder = config_folder(config_dir)
    if architecture not in (known := sorted(path.stem for path in folder.glob("*.json"))):
        raise CheckpointError(f"architecture {architecture!r} is unknown; {folder} has {', '.join(known) or 'none'}")
    return json.loads((folder / f"{architecture}.json").read_text(encoding="utf-8"))


def detect(shapes: Shapes, dtypes: Mapping[str, str] | None = None, config_dir: Path | None = None) -> Kind:
    """What these tensors are. Raises CheckpointError saying what was seen and what is known.

    Without dtypes, plain fp8 and GGUF files cannot be told from others: `quantised` is what the names say.
    """
    names = [name for name in shapes if not is_companion(name)]
    part = part_of(names)
    quantised = quantised_as(shapes, dtypes or {})
    layout = _layout(part, shapes, names, quantised)
    if part == "lora":
        return Kind(part, "lora", layout, quantised)
    return Kind(part, _architecture(part, measure(part, shapes), config_dir), layout, quantised)


def measure(part: Part, shapes: Shapes) -> Traits:
    """What the tensors of a part, under the names of any layout, say of its architecture."""
    names = [name for name in shapes if not is_companion(name)]
    rename = renamer(part, names)
    return traits_of_tensors(part, {new: shapes[name] for name in names if (new := rename(name))})


def is_companion(name: str) -> bool:
    """Whether a tensor belongs to a quantised weight and is no weight itself."""
    return name.endswith((*SCALES, *ACTIVATION_SCALES, COMFY_FORMAT, COMFY_MARKER))


def part_of(names: Sequence[str]) -> Part:
    """The part that has tensors of these names. Raises CheckpointError when none does."""
    if any(_LORA.search(name) for name in names):
        return "lora"
    bare = [_without_prefix(name) for name in names]
    for part, mark in _MARKS.items():
        if any(mark.match(name) for name in bare):
            return part
    raise CheckpointError(f"no Wan model, text encoder, VAE, CLIP or LoRA: its keys are {some(names)}")


def _without_prefix(name: str) -> str:
    return next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)


def quantised_as(shapes: Shapes, dtypes: Mapping[str, str]) -> Quantised:
    """How a file's weights are quantised, by its dtypes and by the companions of its weights."""
    found = set(dtypes.values())
    if any(dtype.startswith("gguf.") for dtype in found) or any(GGML_BLOCK.match(name) for name in shapes):
        return "gguf"
    if "int8" in found:
        return "int8"
    if any(name.endswith((".scale_weight", COMFY_FORMAT, COMFY_MARKER)) for name in shapes):
        return "fp8_scaled"
    has_scales = any(name.endswith(".weight_scale") for name in shapes)
    return "fp8" if has_scales or any(dtype.startswith("float8") for dtype in found) else None


def _layout(part: Part, shapes: Shapes, names: list[str], quantised: Quantised) -> Layout:
    if quantised == "gguf":
        return "gguf"
    marked = any(name.endswith((".scale_weight", COMFY_FORMAT, COMFY_MARKER, "spiece_model")) for name in shapes)
    if marked or any(name.startswith(("model.diffusion_model.", "diffusion_model.")) for name in names):
        return "comfy"
    rename = renamer(part, names)
    if part == "lora":
        return "original" if any(name.startswith("lora_unet_") for name in names) else "diffusers"
    if all(rename(name) in (name, None) or name.startswith("vision_model.") for name in names):
        return "diffusers"
    return "lightx2v" if any(name.endswith(".weight_scale") for name in shapes) else "original"


def traits_of_tensors(part: Part, shapes: Shapes) -> Traits:
    """What the tensors of a part, under the model's names, say of its architecture."""
    match part:
        case "transformer":
            return _transformer_traits(shapes)
        case "text_encoder":
            return _text_traits(shapes)
        case "vae":
            return _vae_traits(shapes)
        case "audio_encoder":
            return _audio_traits(shapes)
        case _:
            return _picture_traits(shapes)


def traits_of_config(config: Mapping[str, Any]) -> Traits:
    """The same numbers from a model's config."""
    match PARTS.get(config["_class_name"]):
        case "transformer":
            return {
                "width": config["num_attention_heads"] * config["attention_head_dim"],
                "layers": config["num_layers"],
                "input channels": config["in_channels"],
                "output channels": config["out_channels"],
                "feed-forward": config["ffn_dim"],
                "text": config["text_dim"],
                "pictures": config.get("image_dim") or 0,
                "picture positions": config.get("pos_embed_seq_len") or 0,
                "VACE blocks": len(config.get("vace_layers") or ()),
                "audio blocks": len(config.get("audio_inject_layers") or ()),
                "audio": config.get("audio_dim") or 0,
            }
        case "text_encoder":
            names = {"tokens": "vocab_size", "width": "d_model", "layers": "num_layers", "feed-forward": "d_ff"}
        case "vae":
            names = {"width": "base_dim", "latent channels": "z_dim", "residual": "is_residual"}
        case _:
            names = {"width": "hidden_size", "layers": "num_hidden_layers", "feed-forward": "intermediate_size"}
    return {trait: int(config[key]) for trait, key in names.items()}


def _transformer_traits(shapes: Shapes) -> Traits:
    patch = shapes.get("patch_embedding.weight", ())
    head = _size(shapes, r"proj_out\.(weight|bias)", 0)
    has_pictures = any(".image_embedder." in name or ".attn2.add_" in name for name in shapes)
    return {
        "width": _size(shapes, r"patch_embedding\.(weight|bias)|blocks\.\d+\.norm2\.weight", 0),
        "layers": _count(shapes, r"blocks\.(\d+)\."),
        "input channels": patch[1] if len(patch) == 5 else None,
        "output channels": head // math.prod(patch[2:]) if head and len(patch) == 5 else None,
        "feed-forward": _size(shapes, r"blocks\.\d+\.ffn\.net\.0\.proj\.(weight|bias)", 0),
        "text": _size(shapes, r"condition_embedder\.text_embedder\.linear_1\.weight", 1),
        "pictures": _size(shapes, r".*\.image_embedder\.norm1\.(weight|bias)", 0) if has_pictures else 0,
        "picture positions": _size(shapes, r".*\.image_embedder\.pos_embed", 1) or 0,
        "VACE blocks": _count(shapes, r"vace_blocks\.(\d+)\."),
        "audio blocks": _count(shapes, r"audio_injector\.injector\.(\d+)\."),
        "audio": _size(shapes, r"causal_audio_encoder\.encoder\.conv1_(local|global)\.conv\.weight", 1) or 0,
    }


def _text_traits(shapes: Shapes) -> Traits:
    return {
        "tokens": _size(shapes, r"shared\.weight", 0),
        "width": _size(
            shapes, r"encoder\.final_layer_norm\.weight|encoder\.block\.\d+\.layer\.0\.layer_norm\.weight", 0
        ),
        "layers": _count(shapes, r"encoder\.block\.(\d+)\."),
        "feed-forward": _size(shapes, r"encoder\.block\.\d+\.layer\.1\.DenseReluDense\.wi_[01]\.weight", 0),
    }


def _vae_traits(shapes: Shapes) -> Traits:
    is_residual = any(re.match(r"encoder\.down_blocks\.\d+\.(resnets|downsampler)\.", name) for name in shapes)
    return {
        "width": _size(shapes, r"encoder\.conv_in\.(weight|bias)", 0),
        "latent channels": _size(shapes, r"post_quant_conv\.(weight|bias)", 0),
        "residual": int(is_residual),
    }


def _picture_traits(shapes: Shapes) -> Traits:
    width = r"(visual\.)?(embeddings\.patch_embedding\.weight|post_layernorm\.(weight|bias))"
    return {
        "width": _size(shapes, width, 0),
        "layers": _count(shapes, r"encoder\.layers\.(\d+)\."),
        "feed-forward": _size(shapes, r"encoder\.layers\.\d+\.mlp\.fc1\.(weight|bias)", 0),
    }


def _audio_traits(shapes: Shapes) -> Traits:
    return {
        "width": _size(shapes, r"encoder\.layer_norm\.(weight|bias)|feature_projection\.projection\.(weight|bias)", 0),
        "layers": _count(shapes, r"encoder\.layers\.(\d+)\."),
        "feed-forward": _size(shapes, r"encoder\.layers\.\d+\.feed_forward\.intermediate_dense\.(weight|bias)", 0),
    }


def _size(shapes: Shapes, pattern: str, axis: int) -> int | None:
    """One side of the first tensor whose name fits."""
    fits = re.compile(pattern)
    return next((shape[axis] for name, shape in shapes.items() if len(shape) > axis and fits.fullmatch(name)), None)


def _count(shapes: Shapes, pattern: str) -> int:
    """How many blocks there are: the highest number and one."""
    return max((int(found[1]) + 1 for name in shapes if (found := re.match(pattern, name))), default=0)


def _architecture(part: Part, seen: Traits, config_dir: Path | None) -> str:
    known = {}
    for path in sorted(config_folder(config_dir).glob("*.json")):
        config = read_config(path.stem, config_dir)
        if PARTS.get(config["_class_name"]) == part:
            known[path.stem] = traits_of_config(config)
    fits = [name for name, traits in known.items() if not differences(seen, traits)]
    if len(fits) == 1:
        return fits[0]
    what = part.replace("_", " ")
    if fits:
        lost = ", ".join(trait for trait, value in seen.items() if value is None)
        raise CheckpointError(f"a {what} that may be any of {', '.join(fits)}: tensors are missing that tell {lost}")
    rows = "; ".join(f"{name} ({describe(traits)})" for name, traits in known.items())
    raise CheckpointError(f"no known {what}: it has {describe(seen)}; known are {rows or 'none'}")


def differences(seen: Traits, wanted: Traits) -> list[str]:
    """The traits in which two architectures differ; what one does not say fits everything."""
    return [
        f"{trait} {seen[trait]} instead of {value}"
        for trait, value in wanted.items()
        if seen.get(trait) is not None and value is not None and seen[trait] != value
    ]


def describe(traits: Traits) -> str:
    """ "width 5120, layers 40"; what is absent or not known is left out."""
    return ", ".join(f"{trait} {value}" for trait, value in traits.items() if value)


def some(items: Iterable[str], most: int = 3) -> str:
    """The first few, and how many more there are."""
    listed = list(items)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
