"""`wanbox weights check`: good, incomplete and damaged folders, from headers and from values."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from wan_pipelines.errors import CheckpointError
from wan_pipelines.preset import LoraFile
from wan_pipelines.profile import Profile, load_profile
from wan_pipelines.tiny import TinySpec, build_tiny
from wan_pipelines.weights.check import examine, look_deep
from wan_pipelines.weights.convert import convert
from wan_pipelines.weights.convert_plan import Target
from wan_pipelines.weights.receipt import Entry, Receipt, write_receipt
from wan_server.weights_cli import weights_app
from weight_files import write_comfy, write_configs, write_original

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
MATRIX = "blocks.0.attn1.to_q.weight"
MODEL = """
title = "Mini"
weights = "a miniature with two experts"
licence = "Apache-2.0"
repository = "acme/mini"
architecture = "small-transformer"
conditioning = "concat"
inputs = ["first_frame"]
fps = 16
max_frames = 81
size_multiple = 32
sampler = "unipc"
steps = 4
shift = 5.0
guidance_high = 3.5
guidance_low = 3.5
boundary = 0.9
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "original"
    build_tiny(TinySpec(boundary=0.9), folder)
    return folder


@pytest.fixture(scope="module")
def configs(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config folder that knows the miniature, as the real one knows the real models."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "models").mkdir()
    (folder / "models/mini.toml").write_text(MODEL)
    write_configs(original, folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "mini")


@pytest.fixture
def mini(configs: Path) -> Profile:
    return load_profile("mini", configs)


def rewrite(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_good_folder_serves_its_profile(folder: Path, configs: Path):
    report = examine(folder, configs)
    assert report.problems == ()
    assert report.serves == ("mini",)
    rows = {part.where: part for part in report.parts}
    assert rows[TRANSFORMER].kind == "transformer small-transformer, diffusers"
    assert rows[TRANSFORMER].dtypes == (f"float32 {rows[TRANSFORMER].tensors}",)
    assert rows[TRANSFORMER].size == (folder / TRANSFORMER).stat().st_size
    assert rows[VAE].kind == "VAE small-vae, diffusers"
    assert look_deep(folder, lambda size: None) == []


def test_a_converted_folder_serves_it_too(folder: Path, configs: Path, tmp_path: Path):
    convert(folder, tmp_path / "fp8", "fp8", lambda size: None)
    report = examine(tmp_path / "fp8", configs)
    assert report.serves == ("mini",), report.problems
    row = next(part for part in report.parts if part.where == TRANSFORMER)
    assert row.kind == "transformer small-transformer, diffusers, fp8"
    assert any(dtype.startswith("float8_e4m3fn") for dtype in row.dtypes)
    assert look_deep(tmp_path / "fp8", lambda size: None) == []


@pytest.mark.parametrize("write", [write_original, write_comfy])
@pytest.mark.parametrize("dtype", ["bfloat16", "fp8"])
def test_every_layout_is_found_and_stays_what_it_is(
    folder: Path, configs: Path, tmp_path: Path, write: Callable[[Path, Path], None], dtype: Target
):
    write(folder, tmp_path / "source")
    before = examine(tmp_path / "source", configs)
    assert before.serves == ("mini",), before.problems
    convert(tmp_path / "source", tmp_path / "target", dtype, lambda size: None)
    after = examine(tmp_path / "target", configs)
    assert after.serves == ("mini",), after.problems
    assert after.size < before.size


def test_one_file_is_examined_alone(folder: Path, configs: Path):
    report = examine(folder / TRANSFORMER, configs)
    assert [(part.where, part.kind) for part in report.parts] == [
        (Path(TRANSFORMER).name, "transformer small-transformer, diffusers")
    ]
    assert report.problems == ()


@pytest.mark.parametrize("part", ["transformer_2", "vae", "text_encoder", "tokenizer"])
def test_a_missing_part_is_named(folder: Path, configs: Path, part: str):
    shutil.rmtree(folder / part)
    report = examine(folder, configs)
    assert report.serves == ()
    assert len(report.problems) == 1
    assert f"for mini: {folder / part} is missing" in report.problems[0]


def test_every_damage_is_listed_at_once(folder: Path, configs: Path):
    os.truncate(folder / VAE, 1000)
    rewrite(folder / TRANSFORMER, lambda tensors: tensors.pop(MATRIX))
    second = folder / "transformer_2/diffusion_pytorch_model.safetensors"
    rewrite(second, lambda tensors: tensors.update({"extra.weight": torch.zeros(3)}))
    problems = examine(folder, configs).problems
    assert any(VAE in line for line in problems)
    assert any(TRANSFORMER in line and f"missing keys: {MATRIX}" in line for line in problems)
    assert any("transformer_2" in line and "unexpected keys: extra.weight" in line for line in problems)


def test_a_missing_shard_is_named(folder: Path, configs: Path):
    (folder / TRANSFORMER).rename(folder / "transformer/diffusion_pytorch_model-00001-of-00002.safetensors")
    assert any("00002-of-00002.safetensors is missing" in line for line in examine(folder, configs).problems)


def test_only_a_deep_look_sees_values(folder: Path, configs: Path):
    rewrite(folder / TRANSFORMER, lambda tensors: tensors[MATRIX].__setitem__((0, 0), float("inf")))
    assert examine(folder, configs).problems == ()
    seen = []
    assert look_deep(folder, seen.append) == [f"{folder / TRANSFORMER}: values that are not finite: {MATRIX}"]
    assert sum(seen) == examine(folder, configs).size


def test_fetched_files_are_held_against_what_the_hub_listed(folder: Path, configs: Path):
    size = (folder / VAE).stat().st_size
    entries = {
        VAE: Entry("acme/mini", "c" * 40, VAE, size, "0" * 64),
        "gone.json": Entry("acme/mini", "c" * 40, "", 2, ""),
    }
    write_receipt(folder, Receipt("diffusers", entries))
    assert any("gone.json: is missing or cut" in line for line in examine(folder, configs).problems)
    assert f"{folder / VAE}: is not what acme/mini has (sha256 differs)" in look_deep(folder, lambda size: None)


def with_loras(profile: Profile) -> Profile:
    loras = (LoraFile("acme/loras", "deep/high.safetensors"), LoraFile("acme/loras", "deep/low.safetensors", "low"))
    return replace(profile, preset="fast", loras=loras)


def write_lora(path: Path, *names: str) -> None:
    path.parent.mkdir(exist_ok=True)
    halves = [f"diffusion_model.blocks.0.self_attn.q.lora_{name}.weight" for name in names]
    save_file({half: torch.ones(2, 2) for half in halves}, path)


def test_the_additions_of_a_preset_belong_to_it(folder: Path, configs: Path, mini: Profile):
    (problem,) = examine(folder, configs, with_loras(mini)).problems
    missing = "deep/high.safetensors of acme/loras, deep/low.safetensors of acme/loras"
    assert problem.startswith(f"for mini: {folder}: missing LoRA files: {missing}; `wanbox weights get mini:fast`")
    write_lora(folder / "loras/high.safetensors", "down", "up")
    write_lora(folder / "elsewhere/low.safetensors", "down", "up")
    report = examine(folder, configs, with_loras(mini))
    assert (report.serves, report.problems) == (("mini",), ())


def test_additions_that_cannot_be_read_are_all_named(folder: Path, configs: Path, mini: Profile):
    write_lora(folder / "loras/high.safetensors", "down")
    write_lora(folder / "loras/low.safetensors", "down", "up")
    rewrite(folder / "loras/low.safetensors", lambda tensors: next(iter(tensors.values())).fill_(float("nan")))
    (problem,) = examine(folder, configs, with_loras(mini)).problems
    assert re.search(r"high\.safetensors: .*: the other half of the pair is missing; .*low\.saf.*: holds NaN", problem)
    write_lora(folder / "other/low.safetensors", "down", "up")
    (folder / "loras/low.safetensors").rename(folder / "low.safetensors")
    (problem,) = examine(folder, configs, with_loras(mini)).problems
    assert "several files could be deep/low.safetensors" in problem


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_weights_of_something_else_serve_nothing(folder: Path, configs: Path):
    empty(folder)
    save_file({"unet.conv.weight": torch.zeros(2, 2)}, folder / "other.safetensors")
    report = examine(folder, configs)
    assert report.parts[0].kind == "not known"
    (problem,) = report.problems
    assert problem.startswith(f"{folder}: no transformer of a known profile; {folder / 'other.safetensors'}: no Wan")


def test_another_size_is_told_with_its_numbers(folder: Path, configs: Path):
    rewrite(folder / TRANSFORMER, drop_last_block)
    (folder / TRANSFORMER).rename(folder.parent / "short.safetensors")
    empty(folder)
    (folder.parent / "short.safetensors").rename(folder / "short.safetensors")
    report = examine(folder, configs)
    assert report.parts[0].kind.startswith("transformer of another size (width 64, layers 1, input channels 36,")
    assert "short.safetensors: no known transformer: it has width 64, layers 1" in report.problems[0]
    assert "known are small-transformer (width 64, layers 2" in report.problems[0]


def drop_last_block(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.startswith("blocks.1.")]:
        del tensors[name]


def test_weights_that_one_brings_are_not_said_to_be_fetched(folder: Path, configs: Path, mini: Profile):
    own = replace(mini, preset="distilled", own_weights=True)
    assert examine(folder, configs, own).serves == ("mini",)
    with pytest.raises(CheckpointError, match="is not there; they are brought by oneself"):
        examine(folder / "absent", configs, own)


def wanbox(configs: Path, data_dir: Path, *words: str) -> Result:
    environment = {"COLUMNS": "250", "WANBOX_CONFIG_DIR": str(configs), "WANBOX_DATA_DIR": str(data_dir)}
    return CliRunner().invoke(weights_app, words, env=environment)


def test_the_commands_convert_and_check(folder: Path, configs: Path, tmp_path: Path):
    target = tmp_path / "weights/mini"
    target.parent.mkdir()
    made = wanbox(configs, tmp_path, "convert", str(folder), str(target), "--dtype", "fp8")
    assert made.exit_code == 0, made.stderr
    assert re.search(r"mini: \d\.\d\d MB -> fp8: \d\.\d\d MB", made.stdout)
    assert f"copied as it is: {VAE}: the VAE keeps its dtype" in made.stdout
    good = wanbox(configs, tmp_path, "check", "mini", "--deep")
    assert (good.exit_code, "serves: mini" in good.stdout) == (0, True), good.output
    (target / TRANSFORMER).unlink()
    bad = wanbox(configs, tmp_path, "check", str(target))
    assert bad.exit_code == 1, bad.output
    assert "problem: " in bad.stdout
    assert wanbox(configs, tmp_path, "check", "nothing").exit_code == 2
