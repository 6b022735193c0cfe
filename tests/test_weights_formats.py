"""One small random model in every format: all give the same forward output, quantised ones within a stated error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import weight_files as files
from tiny_checkpoint import TI2V, TWO_EXPERTS, TWO_PICTURES, VACE
from wan_pipelines.load import load_checkpoint
from wan_pipelines.tiny import TinySpec
from wan_pipelines.weights.assemble import Precision, load_part
from wan_pipelines.weights.folder import scan
from wan_pipelines.weights.quantised import GgufLinear, QuantisedLinear

pytest_plugins = ("pipeline_fixtures",)
CPU = torch.device("cpu")
#: largest relative error of the output: 1e-6 is float32 added up in another order
ERRORS = {
    "bf16": 0.01,
    "fp8": 0.05,  # e4m3 has three bits behind the point: 1/16 of a weight at most
    "int8": 0.01,
    "f16": 0.001,
    "q8": 0.01,
    "q4": 0.1,
}
#: layout and quantisation that each file must be recognised as
KINDS = {
    "diffusers": ("diffusers", None),
    "diffusers-shards": ("diffusers", None),
    "diffusers-bf16": ("diffusers", None),
    "diffusers-fp8": ("diffusers", "fp8"),
    "original-shards": ("original", None),
    "original-pth": ("original", None),
    "comfy": ("comfy", None),
    "comfy-fp8-scaled": ("comfy", "fp8_scaled"),
    "comfy-fp8-noted": ("comfy", "fp8_scaled"),
    "comfy-int8-noted": ("comfy", "int8"),
    "lightx2v-fp8": ("lightx2v", "fp8"),
    "lightx2v-int8": ("lightx2v", "int8"),
    "lightx2v-blocks": ("original", None),
    "plain-fp8": ("original", "fp8"),
    "plain-fp8-all": ("comfy", "fp8"),
    "gguf-f16": ("gguf", None),
    "gguf-bf16": ("gguf", None),
    "gguf-q8": ("gguf", "gguf"),
    "gguf-q4": ("gguf", "gguf"),
    "gguf-q8-all": ("gguf", "gguf"),
}


@dataclass(frozen=True, slots=True)
class Small:
    """A miniature, its configs as bundled ones, and what its transformer answers."""

    folder: Path
    config_dir: Path
    state: files.State
    output: Tensor


def answer(model: nn.Module) -> Tensor:
    """Noise, mask and condition latents, text and two pictures through the transformer."""
    given = torch.Generator().manual_seed(7)
    hidden, text, pictures = (
        torch.randn(size, generator=given) for size in ((1, 36, 2, 4, 4), (1, 512, 32), (2, 257, 48))
    )
    dtype = model.get_parameter("patch_embedding.weight").dtype
    inputs = (hidden.to(dtype), torch.tensor([500.0]), text.to(dtype), pictures.to(dtype))
    with torch.inference_mode():
        return model(*inputs, return_dict=False)[0].float()


@pytest.fixture(scope="module")
def small(tiny, tmp_path_factory) -> Small:
    model = tiny(TWO_PICTURES)
    config_dir = files.write_configs(model.folder, tmp_path_factory.mktemp("configs"))
    state = files.read_part(model.folder, "transformer")
    return Small(model.folder, config_dir, state, answer(model.checkpoint.experts.high))


def load(folder: Path, config_dir: Path, precision: Precision) -> nn.Module:
    (found,) = scan(folder, config_dir).found
    return load_part(found.source, precision)


def time_embedder(model: nn.Module) -> nn.Module:
    return model.get_submodule("condition_embedder.time_embedder")


def error(output: Tensor, wanted: Tensor) -> float:
    return float((output - wanted).norm() / wanted.norm())


def test_every_format_is_expected_to_be_something():
    assert KINDS.keys() == files.TRANSFORMER_FORMATS.keys()


@pytest.mark.parametrize("name", files.TRANSFORMER_FORMATS)
def test_transformer_answers_the_same_from_every_format(small, tmp_path, name):
    files.TRANSFORMER_FORMATS[name](small.state, tmp_path)
    (found,) = scan(tmp_path, small.config_dir).found
    assert (found.kind.layout, found.kind.quantised) == KINDS[name]
    assert (found.kind.part, found.kind.architecture) == ("transformer", "small-transformer")
    whole = load_part(found.source, Precision(torch.float32, keep_quantised=False))
    most = next((value for key, value in ERRORS.items() if key in name), 1e-6)
    assert error(answer(whole), small.output) <= most
    assert {value.dtype for value in whole.parameters()} == {torch.float32}
    assert not any(isinstance(module, QuantisedLinear | GgufLinear) for module in whole.modules())


@pytest.mark.parametrize("name", [name for name, (_, quantised) in KINDS.items() if quantised])
def test_kept_layers_answer_as_whole_ones(small, tmp_path, name):
    files.TRANSFORMER_FORMATS[name](small.state, tmp_path)
    kept = load(tmp_path, small.config_dir, Precision(torch.float32))
    whole = load(tmp_path, small.config_dir, Precision(torch.float32, keep_quantised=False))
    layers = [module for module in kept.modules() if isinstance(module, QuantisedLinear | GgufLinear)]
    in_blocks = sum(files.is_linear(key, value) for key, value in small.state.items())
    assert len(layers) > in_blocks if name.endswith("-all") else len(layers) == in_blocks
    assert not any(isinstance(module, QuantisedLinear | GgufLinear) for module in time_embedder(kept).modules())
    assert {layer.codes.dtype.itemsize for layer in layers} == {1}
    rounding = 2e-3 if "gguf" in name else 1e-6  # the blocks' scales are made whole in half precision
    assert error(answer(kept), answer(whole)) <= rounding


@pytest.mark.parametrize("name", ["diffusers", "comfy-fp8-scaled", "gguf-q8"])
def test_bfloat16_keeps_in_float32_what_the_class_does(small, tmp_path, name):
    files.TRANSFORMER_FORMATS[name](small.state, tmp_path)
    model = load(tmp_path, small.config_dir, Precision(torch.bfloat16))
    dtypes = {key: value.dtype for key, value in model.named_parameters() if "codes" not in key and ".scale" not in key}
    islands = ("time_embedder", "scale_shift_table", "norm2")
    assert {dtypes[key] for key in dtypes if any(part in key.split(".") for part in islands)} == {torch.float32}
    assert dtypes["patch_embedding.weight"] == dtypes["proj_out.weight"] == torch.bfloat16
    assert model.dtype == torch.bfloat16
    assert error(answer(model), small.output) <= ERRORS["fp8"]


def test_a_vace_transformer_from_original_names(tiny, tmp_path):
    model = tiny(VACE)
    config_dir = files.write_configs(model.folder, tmp_path / "configs")
    state = files.named(files.read_part(model.folder, "transformer"), files.transformer_name)
    assert "vace_blocks.0.before_proj.weight" in state
    files.save(state, tmp_path / "files" / "vace.safetensors")
    loaded = load(tmp_path / "files", config_dir, Precision(torch.float32))
    for name, value in model.checkpoint.experts.high.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def text_states(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        return model(torch.arange(3, 60)[None]).last_hidden_state


TEXT_FORMATS: dict[str, Callable[[files.State, Path], None]] = {
    "original": lambda s, f: files.save(files.text_original(s), f / "models_t5_umt5-xxl-enc-bf16.pth"),
    "comfy": lambda s, f: files.save(files.without_copy(s), f / "umt5_xxl.safetensors"),
    "both names": lambda s, f: files.save(
        {**s, "encoder.embed_tokens.weight": s["shared.weight"].clone()}, f / "umt5_xxl.safetensors"
    ),
    "other name": lambda s, f: files.save(
        {("encoder.embed_tokens.weight" if k == "shared.weight" else k): v for k, v in s.items()}, f / "t5.safetensors"
    ),
    "gguf-f16": lambda s, f: files.save_gguf(files.named(s, files.text_name_ggml), f / "t5.gguf", "F16", "t5encoder"),
    "gguf-q8": lambda s, f: files.save_gguf(files.named(s, files.text_name_ggml), f / "t5.gguf", "Q8_0", "t5encoder"),
}


@pytest.mark.parametrize("name", TEXT_FORMATS)
@pytest.mark.parametrize("keep", [False, True], ids=["whole", "kept"])
def test_text_encoder_answers_the_same_from_every_format(tiny, small, tmp_path, name, keep):
    TEXT_FORMATS[name](files.without_copy(files.read_part(small.folder, "text_encoder")), tmp_path)
    model = load(tmp_path, small.config_dir, Precision(torch.float32, keep))
    wanted = text_states(tiny(TWO_PICTURES).checkpoint.text_encoder)
    assert error(text_states(model), wanted) <= next((ERRORS[key] for key in ("f16", "q8") if key in name), 1e-6)


def test_a_kept_text_encoder_multiplies_in_the_compute_dtype(small, tmp_path):
    """The class casts to the dtype of `wo.weight`, which must not be that of the codes."""
    codes, scales = files.quantised(
        files.without_copy(files.read_part(small.folder, "text_encoder")), files.FP8, per_row=False
    )
    named = {f"{name.removesuffix('weight')}scale_weight": scale for name, scale in scales.items()}
    files.save({**codes, **named}, tmp_path / "umt5_xxl_fp8_e4m3fn_scaled.safetensors")
    kept, whole = (load(tmp_path, small.config_dir, Precision(torch.float32, keep)) for keep in (True, False))
    assert isinstance(kept.encoder.block[0].layer[1].DenseReluDense.wo, QuantisedLinear)  # pyright: ignore
    assert error(text_states(kept), text_states(whole)) <= 1e-6


@pytest.mark.parametrize("spec", [TI2V, TWO_PICTURES], ids=["nested 2.2", "flat 2.1"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_vae_is_the_same_from_the_original_names(tiny, tmp_path, spec, suffix):
    model = tiny(spec)
    config_dir = files.write_configs(model.folder, tmp_path / "configs")
    files.save(files.vae_original(model.folder), tmp_path / "files" / f"vae.{suffix}")
    vae = load(tmp_path / "files", config_dir, Precision(torch.float32))
    wanted = model.checkpoint.vae.state_dict()
    assert vae.state_dict().keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in vae.state_dict().items())


@pytest.mark.parametrize("form", ["original", "comfy"])
def test_image_encoder_is_the_same_from_every_format(tiny, small, tmp_path, form):
    state = files.read_part(small.folder, "image_encoder")
    if form == "original":
        files.save(files.clip_original(state), tmp_path / "models_clip.pth")
    else:
        bare = {f"vision_model.{name.removeprefix('vision_model.')}": value for name, value in state.items()}
        files.save({**bare, "visual_projection.weight": torch.ones(2, 2)}, tmp_path / "clip_vision_h.safetensors")
    model = load(tmp_path, small.config_dir, Precision(torch.float32))
    wanted = tiny(TWO_PICTURES).checkpoint.image_encoder.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("spec", [TWO_PICTURES, TWO_EXPERTS, VACE], ids=["pictures", "experts", "vace"])
@pytest.mark.parametrize("write", [files.write_original, files.write_comfy], ids=["original", "comfy"])
def test_whole_folders_load_as_the_diffusers_folder_does(tiny, tmp_path, spec: TinySpec, write):
    model = tiny(spec)
    config_dir = files.write_configs(model.folder, tmp_path / "configs")
    write(model.folder, tmp_path / "weights")
    loaded = load_checkpoint(model.profile, tmp_path / "weights", CPU, None, config_dir=config_dir)
    wanted = model.checkpoint
    assert (loaded.image_encoder is None) == (wanted.image_encoder is None)
    pairs = [
        (loaded.experts.high, wanted.experts.high),
        (loaded.experts.low, wanted.experts.low),
        (loaded.text_encoder, wanted.text_encoder),
        (loaded.vae, wanted.vae),
        (loaded.image_encoder, wanted.image_encoder),
    ]
    for ours, theirs in pairs:
        if theirs is not None:
            state = theirs.state_dict()
            assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())
            assert not ours.training
            assert type(ours) is type(theirs)
    assert loaded.tokenizer("a cat")["input_ids"] == wanted.tokenizer("a cat")["input_ids"]
