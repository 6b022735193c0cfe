"""Predicted memory against hand-computed numbers, against the real classes, and what is chosen from it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan_vace import WanVACETransformer3DModel
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

from live_memory import LiveMemory, fused_as_on_cuda
from tiny_checkpoint import CONFIGS, OLD_VAE, ONE_PICTURE, S2V, TI2V, TWO_EXPERTS, TWO_PICTURES, VACE, folder_configs
from wan_pipelines import vae as vae_module
from wan_pipelines.activations import Sample, block_phases, denoise_bytes, image_bytes, text_bytes
from wan_pipelines.clip_vision import embed_pictures
from wan_pipelines.conditioning import Conditioning, condition_video
from wan_pipelines.denoise import Guidance, denoise
from wan_pipelines.errors import PlacementError
from wan_pipelines.footprint import (
    Part,
    bundled_configs,
    count_part,
    footprint,
    transformer_weights,
)
from wan_pipelines.load import load_checkpoint
from wan_pipelines.offload import parts_of
from wan_pipelines.peaks import MODES, RESIDENCES, peak
from wan_pipelines.placement import HOST_RESERVE, RESERVE, choose, largest_plan, reach
from wan_pipelines.profile import list_profiles, load_profile
from wan_pipelines.samplers import make_sampler
from wan_pipelines.text import encode_text
from wan_pipelines.vae import encode_frames, stream_decode
from wan_pipelines.vae_memory import decode_bytes, encode_bytes

pytest_plugins = ("pipeline_fixtures",)
ARCHITECTURES = CONFIGS / "architectures"
TRANSFORMERS = {kind.__name__: kind for kind in (WanTransformer3DModel, WanVACETransformer3DModel)}
#: Wan-Video repositories, instantiated on the meta device
PUBLISHED = {
    "wan2.1-t2v-1.3b": 1.419,
    "wan-t2v-14b": 14.288,
    "wan2.1-i2v-14b": 16.395,
    "wan2.1-flf2v-14b": 16.396,
    "wan2.1-vace-1.3b": 2.154,
    "wan2.1-vace-14b": 17.338,
    "wan2.2-i2v-a14b": 14.289,
    "wan2.2-ti2v-5b": 5.000,
}
VAES = {"wan2.1-vae": 0.127, "wan2.2-vae": 0.705}
GIB = 2**30


def config(name):
    return json.loads((ARCHITECTURES / f"{name}.json").read_text())


def on_meta(name, dtype=torch.bfloat16):
    """The real class, with the dtype rule that its loader applies."""
    settings = {key: value for key, value in config(name).items() if not key.startswith("_")}
    with torch.device("meta"):
        model = TRANSFORMERS[config(name)["_class_name"]](**settings).eval()
        for path, parameter in model.named_parameters():
            kept = set(model._keep_in_fp32_modules) & set(path.split("."))
            parameter.data = parameter.data.to(torch.float32 if kept else dtype)
    return model


def sizes(module):
    return sum(p.numel() for p in module.parameters()), sum(p.nbytes for p in module.parameters())


def a14b(dtype="bfloat16", name="wan2.2-i2v-a14b"):
    profile = load_profile(name, CONFIGS)
    return profile, footprint(bundled_configs(profile, CONFIGS), profile, dtype)


def plan_of(profile, frames, resolution="720P"):
    """One sample of so many frames."""
    return replace(largest_plan(profile, resolution), sample_frames=frames, segments=())


# --- weights


@pytest.mark.parametrize(("name", "billions"), PUBLISHED.items())
def test_transformers_have_the_published_number_of_parameters(name, billions):
    assert round(count_part("transformer", config(name), "bfloat16").parameters / 1e9, 3) == billions


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_are_counted_as_their_classes_are_built(name):
    """Parameters and bytes, in all and block by block."""
    part, model = count_part("transformer", config(name), "bfloat16"), on_meta(name)
    assert (part.parameters, part.bytes) == sizes(model)
    blocks = [*getattr(model, "vace_blocks", []), *model.blocks]
    assert list(part.blocks) == [sizes(block)[1] for block in blocks]


@pytest.mark.parametrize(("name", "billions"), VAES.items())
def test_autoencoders_are_counted_as_their_class_is_built(name, billions):
    settings = {key: value for key, value in config(name).items() if not key.startswith("_")}
    with torch.device("meta"):
        model = AutoencoderKLWan(**settings)
    part = count_part("vae", config(name), "bfloat16")
    assert (part.parameters, part.bytes) == sizes(model)
    assert round(part.parameters / 1e9, 3) == billions


def plain(name):
    """A config without what only describes it."""
    return {key: value for key, value in config(name).items() if not key.startswith("_")}


def test_text_and_image_encoder_are_counted_as_their_classes_are_built():
    with torch.device("meta"):
        text = UMT5EncoderModel(UMT5Config(**plain("umt5-xxl")))
        image = CLIPVisionModel(CLIPVisionConfig(**plain("clip-vit-h")))
    for part, name, model, billions in (
        ("text_encoder", "umt5-xxl", text, 5.681),
        ("image_encoder", "clip-vit-h", image, 0.631),
    ):
        counted = count_part(part, config(name), "float32")
        assert (counted.parameters, counted.bytes) == sizes(model)
        assert round(counted.parameters / 1e9, 3) == billions


@pytest.mark.parametrize("spec", [TWO_EXPERTS, OLD_VAE, TI2V, VACE, ONE_PICTURE, TWO_PICTURES], ids=repr)
def test_every_part_of_a_loaded_miniature_has_the_predicted_bytes(tiny, spec):
    model = tiny(spec)
    half = load_checkpoint(model.profile, model.folder, torch.device("cpu"), "bfloat16")
    for dtype, checkpoint in (("float32", model.checkpoint), ("bfloat16", half)):
        parts = footprint(folder_configs(model.folder), model.profile, dtype).parts
        found = {name: sizes(module) for name, module in parts_of(checkpoint).items()}
        assert {name: (part.parameters, part.bytes) for name, part in parts.items()} == found


def test_fp8_holds_one_byte_for_each_weight_of_a_linear_layer_in_a_block():
    """A block of A14B: eight matrices of 5120x5120 and two of 5120x13824; one scale for each of its rows."""
    full, small = (count_part("transformer", config("wan2.2-i2v-a14b"), "bfloat16", fp8=fp8) for fp8 in (False, True))
    matrices, rows = 8 * 5120**2 + 2 * 5120 * 13824, 9 * 5120 + 13824
    assert full.blocks[0] - small.blocks[0] == matrices - 4 * rows
    assert full.rest == small.rest
    assert (round(full.bytes / 1e9, 1), round(small.bytes / 1e9, 1)) == (28.6, 14.6)


def test_vace_blocks_run_first_and_the_first_one_has_another_projection():
    outside, blocks = transformer_weights(config("wan2.1-vace-14b"))
    counts = [block.parameters for block in blocks]
    assert len(counts) == 8 + 40
    assert counts[0] - counts[1] == counts[1] - counts[8] == 5120**2 + 5120
    assert outside.matrices == 0


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("scheduler", {}, "part scheduler cannot be counted"),
        ("transformer", {"_class_name": "WanS2VTransformer"}, "class WanS2VTransformer cannot be counted"),
    ],
)
def test_what_has_no_formula_is_refused_by_name(name, settings, message):
    with pytest.raises(PlacementError, match=message):
        count_part(name, settings, "bfloat16")


def test_a_footprint_needs_configs_and_a_dtype_that_it_knows(tmp_path):
    profile, _ = a14b()
    with pytest.raises(PlacementError, match="no config for text_encoder, vae"):
        footprint({"transformer": config("wan2.2-i2v-a14b")}, profile, "bfloat16")
    with pytest.raises(PlacementError, match=r"dtype: must be one of .* \(got 'float64'\)"):
        footprint(bundled_configs(profile, CONFIGS), profile, "float64")
    with pytest.raises(PlacementError, match=r"wan2.2-i2v-a14b.json"):
        bundled_configs(profile, tmp_path)
    with pytest.raises(PlacementError, match="model tiny names no architecture"):
        bundled_configs(load_profile("tiny", CONFIGS), CONFIGS)


# --- activations


def test_the_greedy_moment_of_a14b_is_the_residual_behind_the_feed_forward():
    """720P, 81 frames: 21 x 45 x 80 = 75,600 tokens of 5120 values in bfloat16. a = 774,144,000 bytes.

    Alive then: input, sum, normalised input, attention, feed-forward (5 a), and three float32 tensors (6 a).
    """
    sample = Sample(latent=(21, 90, 160), text_len=512, element=2)
    a = 75_600 * 5120 * 2
    phases = block_phases(config("wan2.2-i2v-a14b"), 75_600 * 5120, sample)
    assert phases["residual"] == 11 * a == 8_515_584_000
    assert phases["rotary"] == 9 * a
    assert phases["norm"] == 8 * a
    assert phases["feed forward"] == 4 * a + 2 * 75_600 * 13824 * 2
    assert max(phases, key=phases.__getitem__) == "residual"


def test_the_greedy_moment_of_ti2v_5b_is_gelu_beside_modulation_per_token():
    """704P, 121 frames: 31 x 22 x 40 = 27,280 tokens of 3072. Rows of modulation: 6 in bfloat16, 6 in float32, temb."""
    sample = Sample(latent=(31, 44, 80), text_len=512, element=2, per_token=True)
    a = 27_280 * 3072 * 2
    phases = block_phases(config("wan2.2-ti2v-5b"), 27_280 * 3072, sample)
    assert phases["feed forward"] == (6 + 12 + 1) * a + 4 * a + 2 * 27_280 * 14336 * 2
    assert max(phases, key=phases.__getitem__) == "feed forward"
    once = block_phases(config("wan2.2-ti2v-5b"), 27_280 * 3072, replace(sample, per_token=False))
    assert once["feed forward"] == phases["feed forward"] - 19 * a


def test_vace_keeps_the_answers_of_its_second_stack():
    sample = Sample(latent=(21, 90, 160), text_len=512, element=2)
    plain, vace = (denoise_bytes(config(name), sample) for name in ("wan-t2v-14b", "wan2.1-vace-14b"))
    control = 96 * 21 * 90 * 160 * (4 + 2)  # in float32, and cast
    assert vace - plain == (8 + 1) * 75_600 * 5120 * 2 + control


FORWARDS = [
    ("wan2.2-i2v-a14b", (21, 90, 160), torch.bfloat16),
    ("wan2.2-i2v-a14b", (21, 60, 104), torch.float32),
    ("wan2.1-i2v-14b", (21, 90, 160), torch.bfloat16),
    ("wan2.1-t2v-1.3b", (21, 60, 104), torch.bfloat16),
    ("wan2.2-ti2v-5b", (31, 44, 80), torch.bfloat16),
    ("wan2.1-vace-1.3b", (21, 60, 104), torch.bfloat16),
]


@pytest.mark.parametrize(("name", "latent", "dtype"), FORWARDS)
def test_a_forward_at_full_size_asks_for_what_is_predicted(monkeypatch, name, latent, dtype):
    """The real class with real sizes on the meta device, every tensor counted as long as it lives: within 2 %."""
    settings = config(name)
    model = on_meta(name, dtype)
    model.blocks = model.blocks[:3]  # all are alike
    inputs = forward_inputs(settings, latent, dtype, per_token=name == "wan2.2-ti2v-5b")
    known = [*model.parameters(), *model.buffers(), *(t for t in inputs.values() if isinstance(t, torch.Tensor))]
    with torch.inference_mode(), fused_as_on_cuda(monkeypatch), LiveMemory(known) as live:
        model(**inputs)
    pictures = 257 if "encoder_hidden_states_image" in inputs else 0
    sample = Sample(latent, 512, dtype.itemsize, inputs["timestep"].ndim == 2, image_tokens=pictures)
    assert live.peak == pytest.approx(denoise_bytes(settings, sample) - loop_bytes(settings, sample), rel=0.02)


def forward_inputs(settings, latent, dtype, *, per_token):
    """What the loop gives to the model."""
    tokens = latent[0] * latent[1] * latent[2] // 4
    with torch.device("meta"):
        inputs = {
            "hidden_states": torch.empty(1, settings["in_channels"], *latent, dtype=dtype),
            "timestep": torch.empty(1, tokens) if per_token else torch.empty(1),
            "encoder_hidden_states": torch.empty(1, 512, 4096, dtype=dtype),
            "return_dict": False,
        }
        if settings["image_dim"]:
            inputs["encoder_hidden_states_image"] = torch.empty(1, 257, 1280, dtype=dtype)
        if "vace_layers" in settings:
            inputs["control_hidden_states"] = torch.empty(1, 96, *latent, dtype=dtype)
            inputs["control_hidden_states_scale"] = torch.ones(len(settings["vace_layers"]), dtype=dtype, device="cpu")
    return inputs


def loop_bytes(settings, sample):
    """What lies around the forward: six latents, conditions, the model's input, two encoded texts."""
    z, extra = settings["out_channels"], settings["in_channels"] - settings["out_channels"]
    control = settings.get("vace_in_channels", 0)
    values = sample.latent[0] * sample.latent[1] * sample.latent[2]
    latents = (4 * (6 * z + extra + control) + sample.element * (settings["in_channels"] + control)) * values
    return latents + 2 * 512 * 4096 * sample.element


@pytest.mark.parametrize("spec", [OLD_VAE, TI2V, VACE], ids=["concat", "per token", "vace"])
def test_the_loop_of_a_miniature_asks_for_what_is_predicted(tiny, spec):
    """Really computed, the solver and guidance included: within 25 %, although a CPU has no fused RMS norm."""
    model = tiny(spec)
    transformer = model.checkpoint.experts.high
    stride, (width, height) = model.checkpoint.vae_stride, (256, 192)
    latent = (5, height // stride, width // stride)
    text = torch.zeros(1, 512, transformer.config["text_dim"])
    given = {
        "concat": {"concat": torch.zeros(1, 20, *latent)},
        "expand_timesteps": {"clean": torch.zeros(1, 16, 1, *latent[1:])},
        "vace": {"vace": torch.zeros(1, 96, *latent)},
    }[spec.conditioning]
    known = [*transformer.parameters(), *transformer.buffers()]
    with torch.inference_mode(), LiveMemory(known) as live:
        conditions = Conditioning(text.clone(), text.clone(), **{name: t.clone() for name, t in given.items()})
        sampler = make_sampler("unipc", (1.0, 0.8, 0.5, 0.0))
        start = torch.zeros(1, 16, *latent)
        denoise(model.checkpoint.experts, start, conditions, sampler, Guidance(3.0, 3.0), lambda *_: None)
    sample = Sample(latent, 512, 4, per_token=spec.conditioning == "expand_timesteps")
    assert live.peak == pytest.approx(denoise_bytes(dict(transformer.config), sample), rel=0.25)


@pytest.mark.parametrize(
    ("name", "width", "height", "decode", "encode"),
    # GB, as in docs/decisions/0011-placement.md
    [("wan2.1-vae", 1280, 720, 18.0, 20.3), ("wan2.2-vae", 1280, 704, 19.4, 8.2)],
)
def test_the_autoencoder_at_full_size_asks_for_what_is_predicted(monkeypatch, name, width, height, decode, encode):
    """The real class behind our streaming, with real sizes on the meta device: within 2 %."""
    settings = plain(name)
    stride = settings["scale_factor_spatial"]
    with torch.device("meta"):
        model = AutoencoderKLWan(**settings).eval()
        latents = torch.empty(1, settings["z_dim"], 4, height // stride, width // stride)
        picture = torch.empty(1, 3, height, width)
    silence_values(monkeypatch, model)
    known = [*model.parameters(), latents, picture]
    with torch.inference_mode(), fused_as_on_cuda(monkeypatch), LiveMemory(known) as live:
        for _ in stream_decode(model, latents):
            pass
    assert live.peak == pytest.approx(decode_bytes(settings, width, height, 4), rel=0.02)
    assert live.peak / 1e9 == pytest.approx(decode, rel=0.02)
    for frames in (17, 1):
        with torch.inference_mode(), fused_as_on_cuda(monkeypatch), LiveMemory(known) as live:
            encode_frames(model, condition_video(picture, None, frames))
        assert live.peak == pytest.approx(encode_bytes(settings, width, height, 1, frames), rel=0.02)
        assert frames == 1 or live.peak / 1e9 == pytest.approx(encode, rel=0.02)


def silence_values(monkeypatch, model):
    """Nothing on the meta device has a value: all is finite, and nothing ever is the same."""
    zeros = torch.zeros(1, model.config["z_dim"], 1, 1, 1, device="meta")
    monkeypatch.setattr(torch, "isfinite", lambda _: torch.ones((), dtype=torch.bool))
    monkeypatch.setattr(torch, "equal", lambda *_: False)
    monkeypatch.setattr(vae_module, "_statistics", lambda _: (zeros, zeros))


@pytest.mark.parametrize("spec", [OLD_VAE, TWO_EXPERTS], ids=["wan2.1", "wan2.2"])
def test_the_autoencoder_of_a_miniature_asks_for_what_is_predicted(tiny, spec):
    """Really computed on a CPU: within 25 %."""
    vae = tiny(spec).checkpoint.vae
    settings, width, height = dict(vae.config), 96, 64
    stride = settings["scale_factor_spatial"]
    known = [*vae.parameters()]
    with torch.inference_mode(), LiveMemory(known) as live:
        for _ in stream_decode(vae, torch.zeros(1, 16, 4, height // stride, width // stride)):
            pass
    assert live.peak == pytest.approx(decode_bytes(settings, width, height, 4), rel=0.25)
    with torch.inference_mode(), LiveMemory(known) as live:
        encode_frames(vae, condition_video(torch.zeros(1, 3, height, width), None, 17))
    assert live.peak == pytest.approx(encode_bytes(settings, width, height, 1, 17), rel=0.25)


def test_text_at_full_size_asks_for_what_is_predicted():
    """Small beside its 11.4 GB of weights: only the order of size counts."""
    settings = plain("umt5-xxl")
    with torch.device("meta"):
        model = UMT5EncoderModel(UMT5Config(**{**settings, "num_layers": 2})).bfloat16().eval()
        ids = torch.zeros(1, 512, dtype=torch.long)
    with torch.inference_mode(), LiveMemory([*model.parameters(), ids]) as live:
        model(ids)
    assert live.peak == pytest.approx(text_bytes(settings, 512, 2), rel=0.4)
    assert live.peak < 0.02 * count_part("text_encoder", settings, "bfloat16").bytes


def test_the_encoders_of_a_miniature_ask_for_less_than_predicted(tiny):
    checkpoint = tiny(ONE_PICTURE).checkpoint
    encoder = checkpoint.text_encoder
    with torch.inference_mode(), LiveMemory(encoder.parameters()) as live:
        states = encode_text(checkpoint.tokenizer, encoder, "a cat " * 100, 512)
    assert states.tokens == 512
    assert 0.4 < live.peak / text_bytes(encoder.config.to_dict(), 512, 4) < 1.25
    clip = checkpoint.image_encoder
    assert clip is not None
    with torch.inference_mode(), LiveMemory(clip.parameters()) as live:
        embed_pictures(clip, torch.zeros(1, 3, 64, 64))
    assert live.peak < 2 * image_bytes(clip.config.to_dict(), 1, 64, 64)


# --- what is chosen


def test_everything_resident_is_the_sum_of_the_parts():
    """A14B: twice 28.6, 11.4 and 0.5 GB; encoding the condition needs the most beside them."""
    profile, needs = a14b()
    found = peak(needs, plan_of(profile, 81), "resident")
    assert {name: round(part.bytes / 1e9, 2) for name, part in needs.parts.items()} == {
        "transformer": 28.64,
        "transformer_2": 28.64,
        "text_encoder": 11.36,
        "vae": 0.51,
    }
    assert {stage.weights for stage in found.by_stage.values()} == {sum(part.bytes for part in needs.parts.values())}
    assert found.device_bytes == found.by_stage["encode"].bytes
    assert found.host_bytes == needs.parts["transformer"].bytes


def test_offloaded_parts_are_on_the_device_in_their_stage_only():
    profile, needs = a14b()
    stages = peak(needs, plan_of(profile, 81), "offload_parts").by_stage
    weights = {name: part.bytes for name, part in needs.parts.items()}
    assert {stage: size.weights for stage, size in stages.items()} == {
        "text": weights["text_encoder"],
        "encode": weights["vae"],
        "denoise": weights["transformer"],  # one expert at a time
        "decode": weights["vae"],
    }


def test_without_the_text_encoder_the_rest_stays():
    profile, needs = a14b()
    found = peak(needs, plan_of(profile, 81), "offload_text")
    stays = sum(part.bytes for name, part in needs.parts.items() if name != "text_encoder")
    text = needs.parts["text_encoder"].bytes
    assert {stage: size.weights - stays for stage, size in found.by_stage.items()} == {
        "text": text,
        "encode": 0,
        "denoise": 0,
        "decode": 0,
    }
    assert found.host_bytes == text + needs.parts["transformer"].bytes + 512 * 2**20


def test_streamed_blocks_take_two_places_and_pinned_room_for_two():
    profile, needs = a14b()
    found = peak(needs, plan_of(profile, 81), "offload_layers")
    part = needs.parts["transformer"]
    block = 8 * 5120**2 + 2 * 5120 * 13824
    assert part.blocks[0] == pytest.approx(2 * block, rel=0.001)  # 0.70 GB
    assert found.by_stage["denoise"].weights == part.rest + 2 * part.blocks[0]
    assert found.host_bytes == sum(p.bytes for p in needs.parts.values()) + 2 * 2**30


def test_activations_are_the_same_in_every_mode_but_for_the_weights_made_whole():
    profile, needs = a14b()
    plan = plan_of(profile, 81)
    found = {mode: peak(needs, plan, mode) for mode in MODES}
    for stage in ("text", "encode", "denoise", "decode"):
        assert len({found[mode].by_stage[stage].activations for mode in MODES}) == 1
    tiny_plan = replace(plan, sample_width=64, sample_height=64, sample_frames=5)
    full, small = (peak(needs, tiny_plan, mode).by_stage["denoise"].activations for mode in ("resident", "fp8"))
    assert small - full > 5120 * 13824 * 6 * 0.9


def test_stages_follow_the_family():
    plans = {}
    for name in ("wan2.1-t2v-1.3b", "wan2.1-i2v-14b-720p", "wan2.2-ti2v-5b"):
        profile, needs = a14b(name=name)
        plans[name] = peak(needs, plan_of(profile, 81), "offload_parts").by_stage
    assert "encode" not in plans["wan2.1-t2v-1.3b"]
    assert "image" not in plans["wan2.2-ti2v-5b"]
    assert plans["wan2.1-i2v-14b-720p"]["image"].weights == 4 * 630_766_080
    one_frame, video = (plans[name]["encode"].activations for name in ("wan2.2-ti2v-5b", "wan2.1-i2v-14b-720p"))
    assert one_frame < video / 5


def test_a_prompt_alone_needs_no_encoder_and_no_timestep_per_token():
    profile, needs = a14b(name="wan2.2-ti2v-5b")
    plan = plan_of(profile, 121)
    with_picture, alone = (peak(needs, plan, "offload_parts", known=known).by_stage for known in (1, 0))
    assert "encode" not in alone
    assert alone["denoise"].activations < with_picture["denoise"].activations / 2


def test_a_prompt_alone_is_followed_by_segments_that_know_a_picture():
    profile, needs = a14b(name="wan2.2-ti2v-5b")
    plan = replace(largest_plan(profile), sample_frames=121)
    with_picture, alone = (peak(needs, plan, "offload_parts", known=known).by_stage for known in (1, 0))
    assert len(plan.segments) == 4
    assert with_picture == alone


def test_the_sample_of_the_longest_video_is_as_long_as_that_of_any_other():
    profile = load_profile("wan2.2-i2v-a14b", CONFIGS)
    assert (largest_plan(profile).sample_frames, largest_plan(profile).seconds) == (81, 15)
    assert largest_plan(profile, seconds=4).sample_frames == 65


def test_the_best_mode_that_fits_is_chosen():
    """A14B, 720P, 81 frames: cards of 141, 80, 48 and 32 GB; the VAE in float32 sets the lowest bound."""
    profile, needs = a14b()
    plan = plan_of(profile, 81)
    table = {139 * GIB: "resident", 79 * GIB: "offload_text", 44 * GIB: "offload_parts", 31 * GIB: "offload_layers"}
    assert {free: choose(needs, plan, free, 128 * GIB).mode for free in table} == table


def test_fp8_is_the_last_resort_and_helps_where_host_memory_is_short():
    profile, needs = a14b()
    plan = plan_of(profile, 81)
    chosen = choose(needs, plan, 44 * GIB, 48 * GIB)
    assert (chosen.mode, chosen.residence, chosen.fp8) == ("fp8_offload_parts", "offload_parts", True)
    assert "; offload_parts needs 71.8 GB of host memory; " in chosen.sentence


def test_the_limits_are_exact_to_the_byte():
    profile, needs = a14b()
    plan = plan_of(profile, 81)
    chosen = choose(needs, plan, 139 * GIB, 128 * GIB, "offload_layers")
    verdict = chosen.verdicts[-1]
    worst = chosen.peak.by_stage[verdict.stage]
    assert verdict.device == worst.bytes + int(0.06 * worst.activations) + RESERVE
    assert verdict.host == chosen.peak.host_bytes + HOST_RESERVE
    assert choose(needs, plan, verdict.device, verdict.host, "offload_layers").mode == "offload_layers"
    for device, host, missing in (
        (verdict.device - 1, verdict.host, "on the device in stage encode"),
        (verdict.device, verdict.host - 1, "of host memory"),
    ):
        with pytest.raises(PlacementError, match=missing):
            choose(needs, plan, device, host, "offload_layers")


def test_what_fits_nowhere_is_refused_with_the_numbers_of_every_mode():
    profile, needs = a14b()
    with pytest.raises(PlacementError) as refused:
        choose(needs, plan_of(profile, 81, "1080P"), int(24e9), int(64e9))
    message = str(refused.value)
    assert message.startswith("not enough memory for 1920x1088 and 81 frames with model wan2.2-i2v-a14b: ")
    assert "free are 24.0 GB on the device and 64.0 GB of host memory" in message
    assert all(f"; {mode} needs " in message for mode in MODES)
    assert "fp8_offload_layers needs 50.1 GB on the device in stage encode" in message


def test_a_wish_is_granted_or_refused_and_never_exchanged():
    profile, needs = a14b()
    plan = plan_of(profile, 81)
    assert choose(needs, plan, 139 * GIB, None, "offload_layers").mode == "offload_layers"
    assert choose(needs, plan, 139 * GIB, None, "auto_fp8").mode == "fp8"
    with pytest.raises(PlacementError, match="resident needs 9"):
        choose(needs, plan, 79 * GIB, None, "resident")
    with pytest.raises(PlacementError, match=r"placement: must be one of auto, auto_fp8, resident, .*\(got 'fast'\)"):
        choose(needs, plan, 79 * GIB, None, "fast")


def test_weights_that_are_loaded_keep_their_precision():
    profile, needs = a14b()
    plan = plan_of(profile, 81)
    for settled in (True, False):
        modes = [verdict.peak.mode for verdict in tried(replace(needs, fp8=settled), plan)]
        assert modes == [mode for mode in MODES if mode.startswith("fp8") == settled]
    with pytest.raises(PlacementError, match=r"fp8 cannot be, the weights of model .* are in full precision"):
        choose(replace(needs, fp8=False), plan, 139 * GIB, None, "fp8")


def tried(needs, plan):
    """Verdicts on all modes in question: room is found for the last one only."""
    settled = [mode for mode in MODES if mode.startswith("fp8") == needs.fp8]
    low = min(choose(needs, plan, 10**12, None, mode).verdicts[-1].device for mode in settled)
    return choose(needs, plan, low, None).verdicts


def test_without_a_device_everything_is_resident_in_host_memory():
    profile, needs = a14b("float32", "wan2.1-t2v-1.3b")
    plan = largest_plan(profile)
    placement = choose(needs, plan, None, 128 * GIB)
    assert placement.mode == "resident"
    assert placement.verdicts[-1].host >= placement.peak.device_bytes + HOST_RESERVE
    with pytest.raises(PlacementError, match=r"free are 16.0 GB of host memory; resident needs \d+\.\d GB of host"):
        choose(needs, plan, None, int(16e9))


def test_a_placement_reports_what_it_weighed():
    profile, needs = a14b()
    placement = choose(needs, plan_of(profile, 81), int(85e9), 128 * GIB)
    report = json.loads(json.dumps(placement.to_json()))
    assert report["mode"] == "offload_text"
    assert [row["fits"] for row in report["considered"]] == [False, True]
    assert report["free_device"] == 85_000_000_000
    assert report["stages"]["denoise"]["weights"] == sum(p.bytes for n, p in needs.parts.items() if n != "text_encoder")
    assert placement.sentence == (
        "offload_text: 79.9 GB with margin, most of all in stage encode, because resident needs "
        "91.3 GB on the device in stage encode; free are 85.0 GB on the device and 137.4 GB of host memory"
    )


def test_the_reach_is_the_longest_video_that_fits():
    """VACE-14B at 720P needs the most in the loop, so it gets shorter as memory does."""
    profile, needs = a14b(name="wan2.1-vace-14b")
    found = [reach(needs, profile, "720P", free * GIB, 128 * GIB, "offload_parts") for free in (99, 47, 41)]
    assert [(r.resolution, r.seconds) for r in found] == [("720P", profile.max_seconds), ("720P", 4), ("720P", 2)]
    assert all(r.placement.mode == "offload_parts" for r in found)
    with pytest.raises(PlacementError, match=r"1280x720 and 17 frames with model wan2\.1-vace-14b"):
        reach(needs, profile, "720P", 20 * GIB, 128 * GIB)


def test_more_pixels_and_frames_need_more():
    profile, needs = a14b()
    table = [(81, "720P"), (121, "720P"), (121, "1080P")]
    found = [peak(needs, plan_of(profile, *row), "offload_layers") for row in table]
    for stage in ("denoise", "decode"):
        grown = [p.by_stage[stage].activations for p in found]
        assert grown == sorted(set(grown))


@pytest.mark.parametrize("profile", [p for p in list_profiles(CONFIGS) if not p.cannot_run], ids=lambda p: p.name)
def test_every_profile_fits_a_large_gpu_and_no_matchbox(profile, tiny):
    configs = bundled_configs(profile, CONFIGS) if profile.architecture else None
    if configs is None:
        spec = S2V if profile.conditioning == "s2v" else TI2V
        configs = folder_configs(CONFIGS / profile.name) or folder_configs(tiny(spec).folder)
    needs = footprint(configs, profile, "bfloat16")
    assert choose(needs, largest_plan(profile), 139 * GIB, 256 * GIB).residence in RESIDENCES.values()
    with pytest.raises(PlacementError, match="not enough memory"):
        choose(needs, largest_plan(profile), 64 * 2**20, 64 * 2**20)


def test_a_part_without_blocks_is_all_rest():
    assert Part(10, 40).rest == 40
    assert Part(10, 40, (10, 20)).rest == 10
