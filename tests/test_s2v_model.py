"""The S2V transformer: the published weights fit, the answers are the published code's, and what each input does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import weight_files as files
from s2v_golden import CHAIN, GOLDEN, GUIDANCE, MOTION_LATENTS, OURS, TEXT_LEN, TIMESTEP, random_inputs, random_weights
from wan_pipelines.s2v.frame_packer import FramePacker
from wan_pipelines.s2v.rope import Grid, S2VRotaryPosEmbed
from wan_pipelines.s2v.transformer import WanS2VTransformer3DModel
from wan_pipelines.samplers import make_sampler
from wan_pipelines.weights.assemble import build
from wan_pipelines.weights.keys import renamer
from wan_pipelines.weights.kinds import read_config

ARCHITECTURE = "wan2.2-s2v-14b"
#: largest difference from the published code, at answers of standard deviation 1.3
LIMIT = 1e-5
#: and after two clips of four guided steps each
CHAIN_LIMIT = 1e-3


@pytest.fixture(scope="module")
def model() -> Iterator[WanS2VTransformer3DModel]:
    """One thread: the tensors are too small to share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield golden_model()
    torch.set_num_threads(threads)


def golden_model() -> WanS2VTransformer3DModel:
    """The miniature with the golden weights."""
    made = WanS2VTransformer3DModel(**OURS).eval().requires_grad_(False)
    shapes = {files.transformer_name(name): tuple(value.shape) for name, value in made.state_dict().items()}
    rename = renamer("transformer", shapes)
    made.load_state_dict({str(rename(name)): value for name, value in random_weights(shapes).items()})
    return made


def velocity(model: WanS2VTransformer3DModel, inputs: dict[str, Tensor], **changes: Tensor | None) -> Tensor:
    text = torch.nn.functional.pad(inputs["text"], (0, 0, 0, TEXT_LEN - inputs["text"].shape[1]))
    arguments = {
        "hidden_states": inputs["latents"],
        "timestep": torch.tensor([TIMESTEP]),
        "encoder_hidden_states": text,
        "audio_features": inputs["audio"],
        "reference_latents": inputs["reference"],
        "motion_latents": inputs.get("motion"),
        "pose_latents": inputs.get("pose"),
        **changes,
    }
    return model(**arguments, return_dict=False)[0]


def far(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


@pytest.fixture(scope="module")
def full_size() -> dict[str, tuple[int, ...]]:
    """Names of the published checkpoint and their shapes, from our class."""
    parameters = build(read_config(ARCHITECTURE)).named_parameters()
    return {files.transformer_name(name): tuple(value.shape) for name, value in parameters}


def test_as_many_tensors_and_parameters_as_published(full_size):
    assert len(full_size) == 1260
    assert sum(torch.Size(shape).numel() for shape in full_size.values()) == 16_295_755_609


def test_names_and_shapes_are_the_published_ones(full_size):
    """Put down once more from the published modules, part by part; the rest is the backbone of every Wan 14B."""
    wanted = {f"{name}.{leaf}": shape for name, both in OUTSIDE.items() for leaf, shape in both.items()}
    wanted |= {f"blocks.{n}.{name}": shape for n in range(40) for name, shape in block().items()}
    for n in range(12):
        wanted |= {f"audio_injector.injector.{n}.{name}": shape for name, shape in attention().items()}
        wanted[f"audio_injector.injector_adain_layers.{n}.linear.weight"] = (2 * D, D)
        wanted[f"audio_injector.injector_adain_layers.{n}.linear.bias"] = (2 * D,)
    wanted |= {"casual_audio_encoder.weights": (1, 25, 1, 1), "head.modulation": (1, 2, D)}
    wanted |= {"casual_audio_encoder.encoder.padding_tokens": (1, 1, 1, D), "trainable_cond_mask.weight": (3, D)}
    assert full_size == wanted


D = 5120
Both = dict[str, tuple[int, ...]]


def pair(*weight: int) -> Both:
    return {"weight": weight, "bias": weight[:1]}


def attention() -> Both:
    whole = {f"{name}.{leaf}": shape for name in "qkvo" for leaf, shape in pair(D, D).items()}
    return {**whole, "norm_q.weight": (D,), "norm_k.weight": (D,)}


def block() -> Both:
    found = {f"{kind}_attn.{name}": shape for kind in ("self", "cross") for name, shape in attention().items()}
    layers = {"ffn.0": pair(13824, D), "ffn.2": pair(D, 13824), "norm3": {"weight": (D,), "bias": (D,)}}
    found |= {f"{name}.{leaf}": shape for name, both in layers.items() for leaf, shape in both.items()}
    return {**found, "modulation": (1, 6, D)}


AUDIO = "casual_audio_encoder.encoder"
OUTSIDE: dict[str, Both] = {
    "patch_embedding": pair(D, 16, 1, 2, 2),
    "cond_encoder": pair(D, 16, 1, 2, 2),
    "frame_packer.proj": pair(D, 16, 1, 2, 2),
    "frame_packer.proj_2x": pair(D, 16, 2, 4, 4),
    "frame_packer.proj_4x": pair(D, 16, 4, 8, 8),
    "text_embedding.0": pair(D, 4096),
    "text_embedding.2": pair(D, D),
    "time_embedding.0": pair(D, 256),
    "time_embedding.2": pair(D, D),
    "time_projection.1": pair(6 * D, D),
    "head.head": pair(64, D),
    f"{AUDIO}.conv1_local.conv": pair(D, 1024, 3),
    f"{AUDIO}.conv1_global.conv": pair(D // 4, 1024, 3),
    f"{AUDIO}.conv2.conv": pair(D // 2, D // 4, 3),
    f"{AUDIO}.conv3.conv": pair(D, D // 2, 3),
    f"{AUDIO}.final_linear": pair(D, D),
}


@pytest.mark.parametrize("case", ["first", "later", "unconditional"])
def test_same_as_the_published_code(model, case):
    golden = load_file(GOLDEN)[case]
    assert golden.std() > 1
    assert far(velocity(model, random_inputs()[case]), golden) <= LIMIT


def test_two_chained_clips_are_those_of_the_published_code(model):
    """Published noise levels, our sampler; the second clip goes on from the first one's latents."""
    golden, cases, motion = load_file(CHAIN), random_inputs(), None
    for clip in (cases["first"], cases["later"]):
        sampler, latents = make_sampler("unipc", golden["sigmas"].tolist()), clip["latents"]
        for timestep in sampler.timesteps:
            inputs = {**cases["first"], "latents": latents, "audio": clip["audio"]}
            silent = {**inputs, "text": cases["unconditional"]["text"], "audio": torch.zeros_like(clip["audio"])}
            changes = {"timestep": torch.tensor([timestep]), "motion_latents": motion}
            told, untold = (velocity(model, given, **changes) for given in (inputs, silent))
            latents = sampler.step(untold + GUIDANCE * (told - untold), latents)
        motion = latents
    assert golden["second"].std() > 1
    assert far(motion, golden["second"]) <= CHAIN_LIMIT


@pytest.mark.parametrize("name", ["hidden_states", "audio_features", "reference_latents", "pose_latents"])
def test_every_input_is_looked_at(model, name):
    inputs = random_inputs()["later"]
    key = "latents" if name == "hidden_states" else name.partition("_")[0]
    assert far(velocity(model, inputs, **{name: inputs[key].flip(-1)}), velocity(model, inputs)) > 1000 * LIMIT


@pytest.mark.parametrize("age", [0, 1, 2, 3, MOTION_LATENTS - 1])
def test_every_motion_frame_is_looked_at(model, age):
    inputs = random_inputs()["later"]
    motion = inputs["motion"].clone()
    motion[:, :, MOTION_LATENTS - 1 - age] += 1
    assert far(velocity(model, inputs, motion_latents=motion), velocity(model, inputs)) > 100 * LIMIT


def test_no_pose_is_a_pose_of_zeros(model):
    inputs = random_inputs()["first"]
    zeros = torch.zeros_like(inputs["latents"])
    assert far(velocity(model, inputs, pose_latents=zeros), velocity(model, inputs)) <= LIMIT


def test_missing_motion_frames_are_zeros_before_those_there_are(model):
    inputs = random_inputs()["later"]
    few = inputs["motion"][:, :, -4:]
    padded = torch.cat([torch.zeros_like(inputs["motion"][:, :, :-4]), few], dim=2)
    assert torch.equal(velocity(model, inputs, motion_latents=few), velocity(model, inputs, motion_latents=padded))
    more = torch.cat([few, inputs["motion"]], dim=2)
    assert torch.equal(velocity(model, inputs, motion_latents=more), velocity(model, inputs))


def test_two_of_a_kind_in_one_batch(model):
    inputs = random_inputs()["later"]
    twice = {name: torch.cat([tensor, tensor.flip(-1)]) for name, tensor in inputs.items()}
    timesteps = torch.tensor([TIMESTEP, TIMESTEP])
    assert far(velocity(model, twice, timestep=timesteps)[:1], velocity(model, inputs)) <= LIMIT


def test_sound_is_not_heard_before_its_time(model):
    """The audio encoder looks back only: what changes in the last latent frame changes the tokens of no other."""
    audio = random_inputs()["first"]["audio"]
    later = audio.clone()
    later[..., -4:] += 1
    before, after = (model.causal_audio_encoder(features, 73) for features in (audio, later))
    assert before.local.shape == (1, 3, 5, 96)
    assert before.whole.shape == (1, 3, 96)
    assert torch.equal(before.local[:, :-1], after.local[:, :-1])
    assert far(before.local[:, -1], after.local[:, -1]) > 0.1
    assert far(before.whole[:, -1], after.whole[:, -1]) > 0.1


def test_audio_of_another_length_is_refused(model):
    inputs = random_inputs()["first"]
    with pytest.raises(ValueError, match="audio of 2 latent frames, latents of 3"):
        velocity(model, inputs, audio_features=inputs["audio"][..., :8])


def test_another_size_learns_in_all_its_parameters():
    torch.manual_seed(0)
    small = WanS2VTransformer3DModel(
        **{**OURS, "in_channels": 24, "out_channels": 24, "pose_channels": 24, "num_attention_heads": 2},
        audio_layers=3,
        audio_tokens=2,
        motion_frames=9,
        motion_buckets=(1, 2, 4),
    )
    shapes = {
        "hidden_states": (2, 24, 4, 8, 8),
        "encoder_hidden_states": (2, TEXT_LEN, 32),
        "audio_features": (2, 3, 12, 16),
        "reference_latents": (2, 24, 1, 8, 8),
        "motion_latents": (2, 24, 7, 8, 8),
        "pose_latents": (2, 24, 4, 8, 8),
    }
    inputs = {name: torch.randn(shape) for name, shape in shapes.items()}
    predicted = small(timestep=torch.tensor([300.0, 800.0]), **inputs).sample
    assert predicted.shape == inputs["hidden_states"].shape
    predicted.square().mean().backward()
    assert [name for name, p in small.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_positions_of_motion():
    """Wan-Video/Wan2.2 wan/modules/s2v/motioner.py, for the latents of 704x1280."""
    newest, middle, oldest = FramePacker(1, 4, (1, 2, 2), (1, 2, 16)).grids(88, 160)
    assert newest == Grid((-1,), tuple(range(44)), tuple(range(80)))
    assert middle.times == (-3,)
    assert oldest.times == (-19, -14, -9, -4)
    assert [len(middle.rows), len(middle.columns), len(oldest.rows), len(oldest.columns)] == [22, 40, 11, 20]
    assert (middle.rows[:3], middle.rows[-2:], oldest.columns[:3]) == ((0, 2, 4), (40, 43), (0, 4, 8))


def test_a_smaller_memory():
    packer = FramePacker(3, 8, (1, 2, 2), (1, 2, 4))
    grids = packer.grids(16, 8)
    tokens = packer(torch.randn(1, 3, 7, 16, 8))
    assert tokens.shape == (1, 32 + 8 + 2, 8)
    assert [len(g.times) * len(g.rows) * len(g.columns) for g in grids] == [32, 8, 2]


def test_before_the_video_angles_turn_round():
    rope = S2VRotaryPosEmbed(24, (1, 2, 2), 64)
    (cos, sin), (back_cos, back_sin) = (rope.at([Grid((time,), (0,), (0,))]) for time in (3, -3))
    assert torch.equal(cos, back_cos)
    assert torch.equal(sin, -back_sin)
    assert sin.abs().max() > 0.1


def test_on_a_regular_grid_the_positions_are_those_of_diffusers():
    rope = S2VRotaryPosEmbed(24, (1, 2, 2), 64)
    ours = rope.at([Grid((0, 1, 2), (0, 1), (0, 1, 2, 3))])
    theirs = rope(torch.empty(1, 1, 3, 4, 8))
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


def test_saved_and_read_as_diffusers_does(model, tmp_path):
    model.save_pretrained(tmp_path)
    again: Any = WanS2VTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert again.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert again.causal_audio_encoder.weights.dtype == torch.float32
    inputs = {name: tensor.bfloat16() for name, tensor in random_inputs()["later"].items()}
    close = velocity(again, inputs).float()
    golden = load_file(GOLDEN)["later"]
    assert (close - golden).std() < 0.05 * golden.std()
