"""Damaged weight files: a clear error naming file and key, and nothing half-loaded."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import weight_files as files
from tiny_checkpoint import TI2V, TWO_PICTURES
from wan_pipelines.errors import CheckpointError
from wan_pipelines.load import load_checkpoint
from wan_pipelines.weights.assemble import Precision, build, fill, load_part
from wan_pipelines.weights.folder import scan
from wan_pipelines.weights.keys import renamer
from wan_pipelines.weights.kinds import read_config
from wan_pipelines.weights.tensors import open_tensors

pytest_plugins = ("pipeline_fixtures",)
CPU = torch.device("cpu")
#: a file of each container, with the layer of the first block that is damaged in it
CONTAINERS = ["comfy", "original-pth", "gguf-q8", "diffusers-fp8", "comfy-fp8-scaled", "lightx2v-int8"]
Edit = Callable[[files.State], object]


@pytest.fixture(scope="module")
def config_dir(tiny, tmp_path_factory) -> Path:
    return files.write_configs(tiny(TWO_PICTURES).folder, tmp_path_factory.mktemp("configs"))


@pytest.fixture
def state(tiny) -> files.State:
    return files.read_part(tiny(TWO_PICTURES).folder, "transformer")


def written(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def load(folder: Path, config_dir: Path) -> nn.Module:
    contents = scan(folder, config_dir)
    return load_part(contents.one("transformer").source, Precision(torch.float32))


def fails(folder: Path, config_dir: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder, config_dir)
    return str(caught.value)


def unread(folder: Path) -> str:
    """How an error begins that names a file which cannot be read."""
    return f"{folder}: no transformer found; cannot be read: "


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("share", [0.98, 0.5, 0.001])
def test_truncated(state, config_dir, tmp_path, name, share):
    files.TRANSFORMER_FORMATS[name](state, tmp_path)
    path = written(tmp_path)[-1]
    os.truncate(path, int(path.stat().st_size * share))
    assert fails(tmp_path, config_dir).startswith(f"{unread(tmp_path)}{path}: Unable to load weights: ")


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "gguf"])
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"x" * 5000], ids=["empty", "page", "junk"])
def test_something_else_under_the_name(config_dir, tmp_path, suffix, content):
    path = tmp_path / f"wan.{suffix}"
    path.write_bytes(content)
    assert fails(tmp_path, config_dir).startswith(f"{unread(tmp_path)}{path}: Unable to load weights: ")


@pytest.mark.parametrize("name", CONTAINERS)
def test_missing_key(state, config_dir, tmp_path, name):
    del state["blocks.1.attn1.norm_q.weight"], state["proj_out.bias"]
    files.TRANSFORMER_FORMATS[name](state, tmp_path)
    message = fails(tmp_path, config_dir)
    where = written(tmp_path)[0] if len(written(tmp_path)) == 1 else tmp_path
    assert message == f"{where}: missing keys: blocks.1.attn1.norm_q.weight, proj_out.bias"


@pytest.mark.parametrize("name", CONTAINERS)
def test_extra_key(state, config_dir, tmp_path, name):
    state["audio_injector.weight"] = torch.ones(3)
    files.TRANSFORMER_FORMATS[name](state, tmp_path)
    message = fails(tmp_path, config_dir)
    assert re.search(r": unexpected keys: [\w.]*audio_injector\.weight \(([\w.-]+)\)$", message)
    assert message.rpartition("(")[2].rstrip(")") in {path.name for path in written(tmp_path)}


@pytest.mark.parametrize("name", CONTAINERS)
def test_wrong_shape(state, config_dir, tmp_path, name):
    state["blocks.1.attn1.norm_q.weight"] = torch.ones(65)
    files.TRANSFORMER_FORMATS[name](state, tmp_path)
    message = fails(tmp_path, config_dir)
    assert re.search(r": wrong shapes: [\w.]*norm_q\.weight is \[65\], the model has \[64\] \([\w.-]+\)$", message)


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_value_that_is_not_finite(state, config_dir, tmp_path, name, value):
    state["blocks.1.attn1.to_q.bias"][5] = value
    state["proj_out.bias"][0] = value
    files.TRANSFORMER_FORMATS[name](state, tmp_path)
    message = fails(tmp_path, config_dir)
    names = r"[\w.]*blocks\.1\.\w+\.(to_)?q\.bias \([\w.-]+\)"
    assert re.search(rf": values that are not finite: {names}, [\w.]*bias \([\w.-]+\)$|bias \(.*{names}$", message)


@pytest.mark.parametrize("name", ["comfy-fp8-scaled", "lightx2v-fp8", "plain-fp8"])
@pytest.mark.parametrize("keep", [True, False])
def test_code_or_scale_that_is_not_finite(state, config_dir, tmp_path, name, keep):
    files.TRANSFORMER_FORMATS[name](state, tmp_path)
    (path,) = written(tmp_path)
    whole = {key: value.clone() for key, value in open_and_read(path).items()}
    code = next(key for key in whole if key.endswith("blocks.0.ffn.0.weight"))
    whole[code].view(torch.uint8)[0, 0] = 0x7F  # NaN in e4m3
    files.save(whole, path)
    found = scan(tmp_path, config_dir).one("transformer")
    with pytest.raises(CheckpointError, match=re.escape(f"{path}: values that are not finite: {code} ({path.name})")):
        load_part(found.source, Precision(torch.float32, keep))


def open_and_read(path: Path) -> files.State:
    tensors = open_tensors([path])
    return {name: tensors.read(name) for name in tensors.shapes()}


def test_wrong_model(tiny, config_dir, tmp_path):
    """Another architecture under the expected name."""
    files.save(files.read_part(tiny(TI2V).folder, "transformer"), tmp_path / "wan2.1_flf2v.safetensors")
    message = fails(tmp_path, config_dir)
    assert "no transformer found; not known: " in message
    assert f"{tmp_path / 'wan2.1_flf2v.safetensors'}: no known transformer: it has width 64, layers 2" in message
    assert "known are small-transformer (width 64, layers 2, input channels 36" in message


def test_another_part_under_the_name(tiny, config_dir, tmp_path):
    files.save(files.vae_original(tiny(TWO_PICTURES).folder), tmp_path / "transformer.safetensors")
    assert fails(tmp_path, config_dir) == f"{tmp_path}: no transformer found"


class Payload:
    """What an attacker would put into a pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.path, "run"))


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "ckpt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_with_code_is_refused_and_not_run(state, config_dir, tmp_path, suffix, zipped):
    path = tmp_path / "weights" / f"wan.{suffix}"
    path.parent.mkdir()
    bad: dict[str, Any] = {**state, "payload": Payload(tmp_path / "proof")}
    torch.save(bad, path, _use_new_zipfile_serialization=zipped)
    message = fails(path.parent, config_dir)
    assert message.startswith(
        f"{unread(path.parent)}{path}: holds Python objects besides tensors, which are never run: "
    )
    assert "write_text" in message or "getattr" in message
    assert not (tmp_path / "proof").exists()


def test_pickle_in_torch_s_old_layout_is_read(state, config_dir, tmp_path):
    torch.save({"state_dict": state}, tmp_path / "wan.pt", _use_new_zipfile_serialization=False)
    model = load(tmp_path, config_dir)
    assert torch.equal(model.get_parameter("proj_out.bias"), state["proj_out.bias"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "w": torch.ones(1)}, "epoch: no tensor"),
        ([torch.ones(1)], "holds no named tensors"),
        ({}, "holds no named tensors"),
    ],
)
def test_pickle_of_something_else(config_dir, tmp_path, content, message):
    torch.save(content, tmp_path / "wan.pth")
    assert fails(tmp_path, config_dir) == f"{unread(tmp_path)}{tmp_path / 'wan.pth'}: {message}"


def test_a_key_in_two_shards(state, config_dir, tmp_path):
    files.save_shards(state, tmp_path, "model")
    first, second, _ = written(tmp_path)
    files.save({**open_and_read(second), "proj_out.bias": torch.ones(64)}, second)
    files.save({**open_and_read(first), "proj_out.bias": torch.ones(64)}, first)
    assert re.search(r"model-0000\d-of-00003\.safetensors: proj_out\.bias is also in ", fails(tmp_path, config_dir))


def test_a_missing_shard(state, config_dir, tmp_path):
    files.save_shards(state, tmp_path, "model")
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    wanted = f"{tmp_path / 'model-00002-of-00003.safetensors'} is missing, but other shards of it are there"
    assert fails(tmp_path, config_dir) == wanted


def test_shards_beside_the_whole_file_in_a_diffusers_folder(tiny, tmp_path):
    model = tiny(TI2V)
    shutil.copytree(model.folder, tmp_path / "copy")
    files.save_shards(files.read_part(model.folder, "transformer"), tmp_path / "copy/transformer", files.STEMS["vae"])
    with pytest.raises(CheckpointError, match=r"transformer: has both diffusion_pytorch_model\.safetensors and shards"):
        load_checkpoint(model.profile, tmp_path / "copy", CPU, None)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.update({"blocks.0.attn1.to_q.scale_weight": torch.ones(4)}), r"\[4\] scales for 64 rows"),
        (lambda s: s.update({"blocks.0.attn1.to_q.weight_scale": torch.ones(2, 2)}), r"\[2, 2\] scales for 64 rows"),
        (lambda s: s.update({"blocks.0.attn1.to_q.comfy_quant": files.comfy_note("nvfp4")}), "format nvfp4 is not"),
        (
            lambda s: s.update({"blocks.0.attn1.to_q.weight_scale_2": torch.ones(1)}),
            "unexpected keys: .*weight_scale_2",
        ),
        (lambda s: s.update({"nowhere.weight_scale": torch.ones(1)}), "unexpected keys: nowhere.weight_scale"),
    ],
)
def test_quantisation_that_is_not_known(state, config_dir, tmp_path, edit: Edit, message):
    edit(state)
    files.save(state, tmp_path / "wan.safetensors")
    assert re.search(message, text := fails(tmp_path, config_dir)), text
    assert str(tmp_path / "wan.safetensors") in text


def test_rotated_int8_is_refused(state, config_dir, tmp_path):
    """ComfyUI's `convrot`: the codes mean something only after a rotation of the activations."""
    note = torch.tensor(list(b'{"format": "int8_tensorwise", "convrot": true}'), dtype=torch.uint8)
    files.save({**state, "blocks.0.attn1.to_q.comfy_quant": note}, tmp_path / "wan.safetensors")
    assert "format int8_tensorwise with rotation is not supported" in fails(tmp_path, config_dir)


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "nan"])
def test_nothing_is_half_loaded(state, config_dir, tmp_path, damage):
    """The model is on the meta device after the error as it was before, in every one of its tensors."""
    edits: dict[str, Edit] = {
        "missing": lambda s: s.pop("proj_out.bias"),
        "extra": lambda s: s.update(extra=torch.ones(1)),
        "shape": lambda s: s.update({"proj_out.bias": torch.ones(2)}),
        "nan": lambda s: s["proj_out.bias"].fill_(float("nan")),
    }
    codes, scales = files.quantised(state, files.FP8, per_row=True)
    state = {**codes, **{f"{name}_scale": scale for name, scale in scales.items()}}
    edits[damage](state)
    files.save(state, tmp_path / "wan.safetensors")
    model = build(read_config("small-transformer", config_dir))
    before = [(name, type(module)) for name, module in model.named_modules()]
    tensors = open_tensors([tmp_path / "wan.safetensors"])
    with pytest.raises(CheckpointError):
        fill(model, tensors, renamer("transformer", tensors.shapes()), torch.float32, keep_quantised=True)
    assert all(value.is_meta for value in model.parameters())
    assert [(name, type(module)) for name, module in model.named_modules()] == before


def test_a_folder_without_weights_and_one_that_is_not_there(tiny, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            CheckpointError, match=re.escape(f"{folder / 'model_index.json'} is missing: no checkpoint")
        ):
            load_checkpoint(tiny(TI2V).profile, folder, CPU, None)


def test_formats_that_are_not_read(tmp_path):
    (tmp_path / "weights.onnx").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"weights\.onnx: not a format that is read; these are: \.safetensors, "):
        open_tensors([tmp_path / "weights.onnx"])
