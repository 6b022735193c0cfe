"""Checkpoint folders: what is loaded, and which broken ones are refused with which words."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan_vace import WanVACETransformer3DModel
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModel

from tiny_checkpoint import CONCAT, CONFIGS, TI2V, TWO_EXPERTS, TWO_PICTURES, VACE, small_profile
from wan_pipelines.errors import CheckpointError
from wan_pipelines.load import ensure_checkpoint, load_checkpoint
from wan_pipelines.profile import checkpoint_folder, load_profile
from wan_pipelines.tiny import build_tiny

pytest_plugins = ("pipeline_fixtures",)
CPU = torch.device("cpu")
DIT = "transformer/diffusion_pytorch_model.safetensors"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / DIT)
        change(tensors)
        save_file(tensors, folder / DIT, {"format": "pt"})

    return edit


def edit_json(name: str, **changes) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / name
        data = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in data.items() if value != "drop"}))

    return edit


def test_two_experts_are_loaded_in_their_roles(tiny):
    model = tiny(TWO_EXPERTS)
    experts = model.checkpoint.experts
    high = load_file(model.folder / DIT)["proj_out.weight"]
    low = load_file(model.folder / "transformer_2/diffusion_pytorch_model.safetensors")["proj_out.weight"]
    assert torch.equal(experts.high.proj_out.weight, high)
    assert torch.equal(experts.low.proj_out.weight, low)
    assert not torch.equal(high, low)


def test_dtype_is_that_of_the_transformer_and_never_of_the_vae(tiny):
    checkpoint = load_checkpoint(small_profile(CONCAT), tiny(CONCAT).folder, CPU, "bfloat16")
    assert checkpoint.experts.high.dtype == torch.bfloat16
    assert checkpoint.experts.high.blocks[0].norm2.weight.dtype == torch.float32  # pyright: ignore
    assert checkpoint.text_encoder.dtype == torch.bfloat16
    assert checkpoint.vae.dtype == torch.float32
    assert tiny(CONCAT).checkpoint.experts.high.dtype == torch.float32


def test_image_encoder_is_loaded_in_float32_where_the_profile_shows_pictures(tiny):
    model = tiny(TWO_PICTURES)
    checkpoint = load_checkpoint(model.profile, model.folder, CPU, "bfloat16")
    assert isinstance(checkpoint.image_encoder, CLIPVisionModel)
    assert checkpoint.image_encoder.dtype == torch.float32
    assert not checkpoint.image_encoder.training
    weight = load_file(model.folder / "image_encoder/model.safetensors")
    state = checkpoint.image_encoder.state_dict()
    assert len(weight) == len(state)
    assert all(torch.equal(state[name], value) for name, value in weight.items())
    assert tiny(CONCAT).checkpoint.image_encoder is None


def test_vace_has_its_own_class(tiny):
    model = tiny(VACE)
    assert isinstance(model.checkpoint.experts.high, WanVACETransformer3DModel)
    assert isinstance(tiny(CONCAT).checkpoint.experts.high, WanTransformer3DModel)


def test_weights_ask_for_no_gradients(tiny):
    checkpoint = tiny(TWO_PICTURES).checkpoint
    parts = (checkpoint.text_encoder, checkpoint.vae, checkpoint.experts.high, checkpoint.image_encoder)
    assert not any(value.requires_grad for part in parts for value in part.parameters())


def test_unknown_dtype_is_refused(tiny):
    with pytest.raises(CheckpointError, match=r"dtype: must be one of float32, bfloat16, float16 \(got 'int3'\)"):
        load_checkpoint(small_profile(CONCAT), tiny(CONCAT).folder, CPU, "int3")


def test_nothing_is_left_in_training_mode(tiny):
    checkpoint = tiny(TWO_EXPERTS).checkpoint
    parts = (checkpoint.text_encoder, checkpoint.vae, checkpoint.experts.high, checkpoint.experts.low)
    assert not any(part.training for part in parts)


def test_loading_opens_no_connection(tiny, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    load_checkpoint(small_profile(CONCAT), tiny(CONCAT).folder, CPU, None)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model_index.json").unlink(), "model_index.json is missing: no checkpoint"),
        (lambda f: (f / "model_index.json").write_text("{"), "model_index.json is not JSON"),
        (lambda f: (f / "model_index.json").write_text("[]"), "model_index.json is not a JSON object"),
        (edit_json("model_index.json", vae="drop"), "model_index.json does not list vae"),
        (edit_json("model_index.json", image_encoder=["transformers", "X"]), "image_encoder is missing, but"),
        (lambda f: shutil.rmtree(f / "vae"), "vae is missing, but model_index.json lists it"),
        (lambda f: (f / "vae/config.json").unlink(), "vae/config.json is missing"),
        (lambda f: (f / DIT).unlink(), "transformer: .*no file named diffusion_pytorch_model.safetensors"),
        (lambda f: (f / DIT).write_bytes(b"x" * 99), f"{DIT}: Unable to load weights"),
        (
            lambda f: (f / "text_encoder/model.safetensors").write_bytes(b"x" * 99),
            "text_encoder/model.safetensors: .*header",
        ),
        (lambda f: (f / "tokenizer/tokenizer.json").unlink(), "tokenizer: "),
        (edit_weights(lambda t: t.pop("proj_out.bias")), "transformer: missing keys: proj_out.bias"),
        (edit_weights(lambda t: t.update(extra=torch.ones(1))), "transformer: unexpected keys: extra"),
        (edit_weights(lambda t: t.update({"proj_out.bias": torch.ones(3)})), "transformer: .*proj_out.bias"),
        (edit_json("model_index.json", expand_timesteps=True), "expand_timesteps is True, the profile's"),
        (edit_json("model_index.json", transformer_2=["diffusers", "X"]), "transformer_2 is missing, but"),
        (edit_json("vae/config.json", _class_name="AutoencoderKL"), "vae/config.json: class AutoencoderKL is not"),
        (edit_json("text_encoder/config.json", model_type="t5"), "text_encoder/config.json: model type t5 is not"),
        (edit_json("transformer/config.json", num_layers=3), "transformer: missing keys: blocks.2.* and 2[0-9] more"),
        (edit_json("transformer/config.json", num_layers="two"), "transformer: its config makes no model: "),
        (lambda f: (f / "transformer/config.json").write_text("{"), "transformer/config.json is not JSON"),
    ],
)
def test_broken_folder_is_refused(tiny, tmp_path, damage, message):
    folder = tmp_path / "copy"
    shutil.copytree(tiny(CONCAT).folder, folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(small_profile(CONCAT), folder, CPU, None)
    assert str(folder) in str(caught.value)


def test_number_of_experts_must_fit_the_profile(tiny):
    with pytest.raises(CheckpointError, match=r"has 1 transformers, the profile's boundary is 0\.9"):
        load_checkpoint(small_profile(TWO_EXPERTS), tiny(CONCAT).folder, CPU, None)


def test_input_channels_must_fit_the_conditioning(tiny, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tiny(TI2V).folder, folder)
    edit_json("model_index.json", expand_timesteps=False)(folder)
    with pytest.raises(CheckpointError, match="has 16 input channels, conditioning concat needs 36"):
        load_checkpoint(small_profile(CONCAT), folder, CPU, None)


def test_random_checkpoint_is_built_once_and_the_same_each_time(tmp_path):
    profile = load_profile("tiny-ti2v", CONFIGS)
    for name in ("a", "b"):
        ensure_checkpoint(profile, tmp_path / "weights" / name)
    first, second = (contents(tmp_path / "weights" / name) for name in ("a", "b"))
    assert first == second
    assert sum(map(len, first.values())) < 6_000_000
    before = (tmp_path / "weights/a/model_index.json").stat().st_mtime_ns
    ensure_checkpoint(profile, tmp_path / "weights/a")
    assert (tmp_path / "weights/a/model_index.json").stat().st_mtime_ns == before
    assert sorted(p.name for p in (tmp_path / "weights").iterdir()) == ["a", "b"]


@pytest.mark.parametrize(("source", "repository"), [("shipped", None), ("repository", "owner/name")])
def test_other_weights_are_not_built(tmp_path, source, repository):
    profile = replace(load_profile("tiny-ti2v", CONFIGS), weights_from=source, repository=repository)
    ensure_checkpoint(profile, tmp_path / "tiny")
    assert not (tmp_path / "tiny").exists()


def test_shipped_checkpoint_fits_its_profile():
    """Stored in half precision, loaded as every other one; its strides are those that the sizes are made for."""
    profile = load_profile("tiny", CONFIGS)
    folder = checkpoint_folder(profile, CONFIGS / "nowhere", CONFIGS)
    checkpoint = load_checkpoint(profile, folder, CPU, None)
    patch = checkpoint.experts.high.config["patch_size"][1]
    assert checkpoint.vae_stride * patch == profile.size_multiple
    assert {checkpoint.experts.high.dtype, checkpoint.text_encoder.dtype, checkpoint.vae.dtype} == {torch.float32}
    assert checkpoint.tokenizer.model_max_length >= profile.text_len
    assert sum(path.stat().st_size for path in folder.rglob("*")) <= 15e6


def test_half_precision_on_disk_is_cast_on_loading(tiny, tmp_path):
    folder = tmp_path / "half"
    shutil.copytree(tiny(CONCAT).folder, folder)
    for path in folder.rglob("*.safetensors"):
        save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    checkpoint = load_checkpoint(small_profile(CONCAT), folder, CPU, None)
    assert {checkpoint.experts.high.dtype, checkpoint.text_encoder.dtype, checkpoint.vae.dtype} == {torch.float32}
    whole = tiny(CONCAT).checkpoint.vae.encoder.conv_in.weight
    assert torch.equal(checkpoint.vae.encoder.conv_in.weight, whole.half().float())


def test_building_leaves_the_random_state_alone(tmp_path):
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    build_tiny(CONCAT, tmp_path / "tiny")
    assert torch.equal(torch.rand(1), wanted)


def test_second_builder_keeps_what_the_first_one_made(tmp_path):
    build_tiny(CONCAT, tmp_path / "tiny")
    before = contents(tmp_path / "tiny")
    build_tiny(replace(CONCAT, seed=1), tmp_path / "tiny")
    assert contents(tmp_path / "tiny") == before


def test_build_does_not_replace_a_folder_of_something_else(tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "notes.txt").write_text("mine")
    with pytest.raises(OSError, match="not empty"):
        build_tiny(CONCAT, tmp_path / "tiny")
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]
