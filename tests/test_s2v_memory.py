"""Predicted memory of S2V against its real classes."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2Model

from live_memory import LiveMemory, fused_as_on_cuda
from tiny_checkpoint import CONFIGS, S2V, folder_configs
from wan_pipelines.activations import Sample, denoise_bytes
from wan_pipelines.footprint import count_part, footprint
from wan_pipelines.load import load_checkpoint
from wan_pipelines.offload import parts_of
from wan_pipelines.s2v.memory import known_tokens, wav2vec2_bytes
from wan_pipelines.s2v.transformer import WanS2VTransformer3DModel

pytest_plugins = ("pipeline_fixtures",)


def config(name):
    return json.loads((CONFIGS / "architectures" / f"{name}.json").read_text())


def plain(name):
    return {key: value for key, value in config(name).items() if not key.startswith("_")}


def on_meta(dtype=torch.bfloat16):
    """The real class, with the dtype rule that its loader applies."""
    with torch.device("meta"):
        model = WanS2VTransformer3DModel(**plain("wan2.2-s2v-14b")).eval()
        for path, parameter in model.named_parameters():
            kept = set(model._keep_in_fp32_modules) & set(path.split("."))
            parameter.data = parameter.data.to(torch.float32 if kept else dtype)
    return model


def sizes(module):
    return sum(p.numel() for p in module.parameters()), sum(p.nbytes for p in module.parameters())


def test_the_transformer_is_counted_as_its_class_is_built():
    part, model = count_part("transformer", config("wan2.2-s2v-14b"), "bfloat16"), on_meta()
    assert (part.parameters, part.bytes) == sizes(model)
    assert part.parameters == 16_295_755_609
    assert list(part.blocks) == [sizes(block)[1] for block in model.blocks]


@pytest.mark.parametrize("changes", [{}, {"feat_extract_norm": "group", "conv_bias": False, "mask_time_prob": 0.0}])
def test_the_audio_encoder_is_counted_as_its_class_is_built(changes):
    settings = {**plain("wav2vec2-large-xlsr-53"), **changes}
    with torch.device("meta"):
        model = Wav2Vec2Model(Wav2Vec2Config(**settings))
    part = count_part("audio_encoder", settings, "bfloat16")
    assert (part.parameters, part.bytes) == sizes(model)


def test_every_part_of_the_loaded_miniature_has_the_predicted_bytes(tiny):
    model = tiny(S2V)
    half = load_checkpoint(model.profile, model.folder, torch.device("cpu"), "bfloat16")
    for dtype, checkpoint in (("float32", model.checkpoint), ("bfloat16", half)):
        parts = footprint(folder_configs(model.folder), model.profile, dtype).parts
        found = {name: sizes(module) for name, module in parts_of(checkpoint).items()}
        assert {name: (part.parameters, part.bytes) for name, part in parts.items()} == found


def test_tokens_at_704x1280():
    """Reference 3520; motion 3520 in the model's own patches, 880 twice and 880 four times as coarse."""
    assert known_tokens(config("wan2.2-s2v-14b"), 88, 160) == 3520 + 3520 + 880 + 880


@pytest.mark.parametrize(
    ("latent", "dtype"), [((20, 88, 160), torch.bfloat16), ((20, 60, 104), torch.float32), ((3, 8, 8), torch.bfloat16)]
)
def test_a_forward_at_full_size_asks_for_what_is_predicted(monkeypatch, latent, dtype):
    """Real sizes on the meta device, every tensor counted as long as it lives: within 2 %, of a large sample."""
    settings, model = config("wan2.2-s2v-14b"), on_meta(dtype)
    model.blocks = model.blocks[:3]  # all are alike; there is audio behind the first
    frames, height, width = latent
    with torch.device("meta"):
        inputs = {
            "hidden_states": torch.empty(1, 16, *latent, dtype=dtype),
            "timestep": torch.empty(1),
            "encoder_hidden_states": torch.empty(1, 512, 4096, dtype=dtype),
            "audio_features": torch.empty(1, 25, 1024, 4 * frames, dtype=dtype),
            "reference_latents": torch.empty(1, 16, 1, height, width, dtype=dtype),
            "motion_latents": torch.empty(1, 16, 19, height, width, dtype=dtype),
        }
    known = [*model.parameters(), *model.buffers(), *inputs.values()]
    with torch.inference_mode(), fused_as_on_cuda(monkeypatch), LiveMemory(known) as live:
        model(**inputs, return_dict=False)
    sample = Sample(latent, 512, dtype.itemsize)
    around = loop_bytes(latent, dtype.itemsize)
    assert live.peak == pytest.approx(denoise_bytes(settings, sample) - around, rel=0.02 if height > 8 else 0.3)


def loop_bytes(latent, element):
    """What lies around the forward: six latents, conditions, the model's input, two encoded texts."""
    frames, height, width = latent
    known = 16 * 20 * height * width + 25 * 1024 * 4 * frames
    return 16 * frames * height * width * (6 * 4 + element) + known * (4 + element) + 2 * 512 * 4096 * element


@pytest.mark.parametrize("seconds", [2, 15])
def test_the_audio_encoder_asks_for_what_is_predicted(monkeypatch, seconds):
    with torch.device("meta"):
        model = Wav2Vec2Model(Wav2Vec2Config(**plain("wav2vec2-large-xlsr-53"))).eval()
        sound = torch.empty(1, 16_000 * seconds)
    with torch.inference_mode(), fused_as_on_cuda(monkeypatch), LiveMemory([*model.parameters(), sound]) as live:
        model(sound, output_hidden_states=True)
    assert live.peak == pytest.approx(wav2vec2_bytes(plain("wav2vec2-large-xlsr-53"), seconds), rel=0.1)
