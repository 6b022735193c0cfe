"""S2V checkpoints through the loaders, and what acts on loaded weights: LoRA, fp8, blocks that stream."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend
from diffusers.models.transformers.transformer_wan import WanAttention
from safetensors.torch import save_file
from torch import Tensor
from transformers import Wav2Vec2Model

import weight_files as files
from tiny_checkpoint import S2V, TinyModel
from wan_pipelines.errors import CheckpointError
from wan_pipelines.load import load_checkpoint
from wan_pipelines.offload import blocks_of, to_fp8
from wan_pipelines.s2v.transformer import WanS2VTransformer3DModel
from wan_pipelines.streaming import Ferry, Streamer, streamed_bytes
from wan_pipelines.weights.assemble import Precision, build, load_part
from wan_pipelines.weights.folder import scan
from wan_pipelines.weights.lora import HotLora, fuse, read_lora
from wan_pipelines.weights.lora_keys import layer_name
from wan_pipelines.weights.quantised import QuantisedLinear

pytest_plugins = ("pipeline_fixtures",)
CPU = torch.device("cpu")


def transformer_of(model: TinyModel) -> Any:
    """One of its own, which a test may change."""
    fresh = load_checkpoint(model.profile, model.folder, CPU, None).experts.high
    assert isinstance(fresh, WanS2VTransformer3DModel)
    return fresh


@torch.inference_mode()
def answer(model: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    shapes = {
        "hidden_states": (1, 16, 2, 8, 8),
        "encoder_hidden_states": (1, 12, 32),
        "audio_features": (1, 4, 48, 8),
        "reference_latents": (1, 16, 1, 8, 8),
        "motion_latents": (1, 16, 3, 8, 8),
    }
    inputs = {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in shapes.items()}
    return model(timestep=torch.tensor([700.0]), return_dict=False, **inputs)[0].float()


def write_original(model: TinyModel, target: Path) -> None:
    """As the published repository lies on disk."""
    state = files.named(files.read_part(model.folder, "transformer"), files.transformer_name)
    files.save_shards(state, target, "diffusion_pytorch_model")
    files.save(files.text_original(files.read_part(model.folder, "text_encoder")), target / "models_t5_umt5.pth")
    files.save(files.vae_original(model.folder), target / "Wan2.1_VAE.pth")
    heard = files.named(files.read_part(model.folder, "audio_encoder"), files.audio_name)
    heard |= {"lm_head.weight": torch.ones(33, 48), "lm_head.bias": torch.ones(33)}
    files.save(heard, target / "wav2vec2-large-xlsr-53-english" / "model.safetensors")
    shutil.copytree(model.folder / "tokenizer", target / "google" / "umt5-xxl")


def same(ours: torch.nn.Module, theirs: torch.nn.Module) -> bool:
    ours_state, theirs_state = ours.state_dict(), theirs.state_dict()
    equal = [torch.equal(value, theirs_state[name]) for name, value in ours_state.items()]
    return all(equal) and ours_state.keys() == theirs_state.keys()


def test_a_folder_in_the_layout_of_diffusers(tiny):
    checkpoint = tiny(S2V).checkpoint
    assert isinstance(checkpoint.experts.high, WanS2VTransformer3DModel)
    assert isinstance(checkpoint.audio_encoder, Wav2Vec2Model)
    with torch.inference_mode():
        heard = checkpoint.audio_encoder(torch.ones(1, 16_000), output_hidden_states=True)
    assert [tuple(state.shape) for state in heard.hidden_states] == [(1, 49, 48)] * 4


def test_a_folder_in_the_published_layout(tiny, tmp_path):
    model = tiny(S2V)
    write_original(model, tmp_path / "weights")
    config_dir = files.write_configs(model.folder, tmp_path / "configs")
    loaded = load_checkpoint(model.profile, tmp_path / "weights", CPU, None, config_dir=config_dir)
    assert same(loaded.experts.high, model.checkpoint.experts.high)
    assert loaded.audio_encoder is not None
    assert same(loaded.audio_encoder, model.checkpoint.audio_encoder)
    assert torch.equal(answer(loaded.experts.high), answer(model.checkpoint.experts.high))


@pytest.mark.parametrize("name", files.TRANSFORMER_FORMATS)
def test_every_format_gives_the_same(tiny, tmp_path, name):
    """Quantised ones within the error of four bits."""
    model = tiny(S2V)
    files.TRANSFORMER_FORMATS[name](files.read_part(model.folder, "transformer"), tmp_path / "weights")
    (found,) = scan(tmp_path / "weights", files.write_configs(model.folder, tmp_path / "configs")).found
    assert found.kind.architecture == "small-transformer"
    loaded: Any = load_part(found.source, Precision(torch.float32))
    assert type(loaded.causal_audio_encoder.encoder.final_linear) is torch.nn.Linear
    exact = answer(model.checkpoint.experts.high)
    error = (answer(loaded) - exact).norm() / exact.norm()
    assert error < (0.1 if found.kind.quantised or "16" in name else 1e-6)


def test_half_precision_leaves_both_audio_encoders_exact(tiny):
    loaded: Any = load_checkpoint(tiny(S2V).profile, tiny(S2V).folder, CPU, "bfloat16")
    model = loaded.experts.high
    assert {p.dtype for p in loaded.audio_encoder.parameters()} == {torch.float32}
    assert {p.dtype for p in model.causal_audio_encoder.parameters()} == {torch.float32}
    assert {p.dtype for p in model.audio_injector.parameters()} == {torch.bfloat16}
    exact = answer(tiny(S2V).checkpoint.experts.high)
    assert (answer(model, torch.bfloat16) - exact).std() < 0.05 * exact.std()


def test_without_its_audio_encoder(tiny, tmp_path):
    model = tiny(S2V)
    write_original(model, tmp_path / "weights")
    config_dir = files.write_configs(model.folder, tmp_path / "configs")
    shutil.rmtree(tmp_path / "weights" / "wav2vec2-large-xlsr-53-english")
    with pytest.raises(CheckpointError, match=r"no audio encoder \(wav2vec2\) found"):
        load_checkpoint(model.profile, tmp_path / "weights", CPU, None, config_dir=config_dir)


def test_an_audio_encoder_of_another_depth_is_refused(tiny, tmp_path):
    shutil.copytree(tiny(S2V).folder, tmp_path / "weights")
    path = tmp_path / "weights" / "audio_encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 2}))
    with pytest.raises(CheckpointError, match="transformer takes 4 audio states of 48, the encoder has 3 of 48"):
        load_checkpoint(tiny(S2V).profile, tmp_path / "weights", CPU, None)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"sampling_rate": 8000}', "wants sound at 8000 Hz, normalised; here it gets 16000 Hz, normalised"),
        ('{"do_normalize": false, "sampling_rate": 16000}', "wants sound at 16000 Hz, not normalised"),
        ("{", "preprocessor_config.json is not JSON"),
        ('{"do_normalize": true, "sampling_rate": 16000}', None),
    ],
)
def test_a_speech_model_that_hears_otherwise_is_refused(tiny, tmp_path, config, message):
    shutil.copytree(tiny(S2V).folder, tmp_path / "weights")
    (tmp_path / "weights" / "audio_encoder" / "preprocessor_config.json").write_text(config)
    with pytest.raises(CheckpointError, match=message) if message else nullcontext():
        load_checkpoint(tiny(S2V).profile, tmp_path / "weights", CPU, None)


def test_blocks_that_stream_give_the_same(tiny):
    model = transformer_of(tiny(S2V))
    blocks, expected = blocks_of(model), answer(model)
    assert blocks == list(model.blocks)
    ferry = Ferry(CPU, max(streamed_bytes(block) for block in blocks))
    streamer = Streamer(blocks, CPU, ferry)
    try:
        assert torch.equal(answer(model), expected)
    finally:
        streamer.stop()


def test_another_attention_kernel_reaches_every_attention(tiny):
    """As diffusers switches it; the injectors lie outside the blocks and take part."""
    model = transformer_of(tiny(S2V))
    expected = answer(model)
    with attention_backend("native"):  # puts back what the model switches for all others too
        model.set_attention_backend("_native_math")
        layers: list[Any] = [module for module in model.modules() if isinstance(module, WanAttention)]
        assert len(layers) == 2 * len(model.blocks) + len(model.audio_injector.injector)
        assert {layer.processor._attention_backend for layer in layers} == {AttentionBackendName._NATIVE_MATH}
        assert (answer(model) - expected).abs().max() < 1e-5


def test_blocks_in_fp8(tiny):
    model = transformer_of(tiny(S2V))
    expected = answer(model)
    to_fp8(model)
    inside = [m for block in blocks_of(model) for m in block.modules() if type(m) is torch.nn.Linear]
    assert inside == []
    assert isinstance(model.blocks[1].attn2.to_out[0], QuantisedLinear)
    assert (answer(model) - expected).std() < 0.1 * expected.std()


def test_fp8_from_a_file_stays_fp8(tiny, tmp_path):
    shutil.copytree(tiny(S2V).folder, tmp_path / "weights")
    folder = tmp_path / "weights" / "transformer"
    codes, scales = files.quantised(files.read_part(tiny(S2V).folder, "transformer"), files.FP8, per_row=True)
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    files.save(
        {**codes, **{f"{n}_scale": s for n, s in scales.items()}}, folder / "diffusion_pytorch_model.safetensors"
    )
    precision = Precision(torch.float32, keep_quantised=True)
    model: Any = load_checkpoint(tiny(S2V).profile, tmp_path / "weights", CPU, precision).experts.high
    assert isinstance(model.blocks[0].ffn.net[2], QuantisedLinear)
    expected = answer(tiny(S2V).checkpoint.experts.high)
    assert (answer(model) - expected).std() < 0.1 * expected.std()


@pytest.mark.parametrize("add", [fuse, HotLora])
def test_low_rank_additions(tiny, tmp_path, add):
    """Of a block and of an injector, under their published names."""
    model, changed = transformer_of(tiny(S2V)), transformer_of(tiny(S2V))
    layers = {
        "blocks.1.self_attn.q": changed.blocks[1].attn1.to_q,
        "audio_injector.injector.1.o": changed.audio_injector.injector[1].to_out[0],
    }
    additions, draw = {}, torch.Generator().manual_seed(4)
    for name, layer in layers.items():
        up, down = torch.randn(64, 2, generator=draw), torch.randn(2, 64, generator=draw)
        additions |= {f"diffusion_model.{name}.lora_up.weight": up, f"diffusion_model.{name}.lora_down.weight": down}
        layer.weight.data = layer.weight + 0.5 * up @ down
    save_file(additions, tmp_path / "lora.safetensors")
    before, expected = answer(model), answer(changed)
    add(model, read_lora(tmp_path / "lora.safetensors"), 0.5)
    assert (answer(model) - expected).abs().max() < 1e-4
    assert (expected - before).abs().max() > 0.01


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("diffusion_model.audio_injector.injector.11.q", "audio_injector.injector.11.to_q"),
        ("audio_injector.injector.0.to_out.0", "audio_injector.injector.0.to_out.0"),
        ("lora_unet_audio_injector_injector_3_norm_k", "audio_injector.injector.3.norm_k"),
        ("lora_unet_audio_injector_injector_adain_layers_2_linear", "audio_injector.injector_adain_layers.2.linear"),
        ("audio_injector.injector.0.w", None),
    ],
)
def test_names_in_lora_files(name, layer):
    assert layer_name(name) == layer


def test_every_lora_name_of_the_injector_is_a_layer(tiny):
    config = {**tiny(S2V).checkpoint.experts.high.config, "_class_name": "WanS2VTransformer3DModel"}
    modules = dict(build(config).named_modules())
    for name in ("q", "k", "v", "o", "norm_q", "norm_k"):
        assert layer_name(f"audio_injector.injector.1.{name}") in modules
    assert layer_name("audio_injector.injector_adain_layers.1.linear") in modules
