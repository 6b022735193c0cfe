"""Converted checkpoints: sizes, values within the format's error, interruptions, damaged sources."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from wan_pipelines.errors import CheckpointError
from wan_pipelines.tiny import TinySpec, build_tiny
from wan_pipelines.weights import convert_plan
from wan_pipelines.weights.convert import convert, quantise, run_conversion
from wan_pipelines.weights.convert_plan import Target, plan_conversion
from wan_pipelines.weights.shards import Slot, header_of, is_written, open_shard

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
MATRIX = "blocks.0.attn1.to_q.weight"
STOPPED = RuntimeError("stopped by the test")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature with two experts, float32 everywhere."""
    folder = tmp_path_factory.mktemp("checkpoints") / "original"
    build_tiny(TinySpec(boundary=0.9), folder)
    return folder


@pytest.fixture
def sharded(original: Path, tmp_path: Path) -> Path:
    """The same with the first expert in three shards, as the published ones are."""
    folder = tmp_path / "sharded"
    (folder / "transformer").mkdir(parents=True)
    (folder / "transformer/config.json").write_bytes((original / "transformer/config.json").read_bytes())
    tensors = load_file(original / TRANSFORMER)
    names = sorted(tensors)
    weight_map = {}
    for number in range(3):
        name = f"diffusion_pytorch_model-0000{number + 1}-of-00003.safetensors"
        part = {key: tensors[key] for key in names[number::3]}
        save_file(part, folder / "transformer" / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "transformer/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def ignore(size: int) -> None:
    pass


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def dequantised(path: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(path)
    scales = {name: tensors.pop(name) for name in list(tensors) if name.endswith("_scale")}
    return {
        name: t.float() * scales[f"{name}_scale"][:, None] if f"{name}_scale" in scales else t
        for name, t in tensors.items()
    }


def test_bfloat16_halves_the_transformers_and_keeps_the_rest(original: Path, tmp_path: Path):
    target = tmp_path / "bf16"
    conversion = convert(original, target, "bfloat16", ignore)
    assert tree(target) == tree(original)
    before, after = load_file(original / TRANSFORMER), load_file(target / TRANSFORMER)
    assert after.keys() == before.keys()
    assert torch.equal(after[MATRIX], before[MATRIX].bfloat16())
    assert torch.equal(after["patch_embedding.weight"], before["patch_embedding.weight"].bfloat16())
    kept = {name for name, tensor in after.items() if tensor.dtype is torch.float32}
    assert {"scale_shift_table", "blocks.0.scale_shift_table", "blocks.0.norm2.weight"} <= kept
    assert "condition_embedder.time_embedder.linear_1.weight" in kept
    assert all(torch.equal(after[name], before[name]) for name in kept)
    matrices = sum(tensor.nbytes for tensor in before.values() if tensor.ndim > 1)
    assert (target / TRANSFORMER).stat().st_size < (original / TRANSFORMER).stat().st_size - 0.45 * matrices
    for path in ("vae/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json", "model_index.json"):
        assert (target / path).read_bytes() == (original / path).read_bytes()
    assert load_file(target / TEXT)["shared.weight"].dtype is torch.bfloat16
    written = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    assert conversion.bytes_after == pytest.approx(written, rel=0.1)


def test_loading_the_copy_is_loading_the_original_in_bfloat16(original: Path, tmp_path: Path):
    convert(original, tmp_path / "bf16", "bfloat16", ignore)
    models = [
        WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.bfloat16)
        for folder in (original, tmp_path / "bf16")
    ]
    first, second = (model.state_dict() for model in models)
    assert {name: (t.dtype, t.shape) for name, t in first.items()} == {
        name: (t.dtype, t.shape) for name, t in second.items()
    }
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("step", ["float32", "bfloat16"])
def test_fp8_is_within_the_error_of_the_format(original: Path, tmp_path: Path, step: str):
    source = original
    if step == "bfloat16":
        source = tmp_path / "bf16"
        convert(original, source, "bfloat16", ignore)
    convert(source, tmp_path / "fp8", "fp8", ignore)
    before, stored, after = (
        load_file(source / TRANSFORMER),
        load_file(tmp_path / "fp8" / TRANSFORMER),
        dequantised(tmp_path / "fp8" / TRANSFORMER),
    )
    assert after.keys() == before.keys()
    small = {name for name, tensor in stored.items() if tensor.dtype is torch.float8_e4m3fn}
    assert small == {name for name, t in before.items() if name.startswith("blocks.") and t.ndim == 2}
    for name in small:
        exact, scale = before[name].float(), stored[f"{name}_scale"]
        assert scale.shape == exact.shape[:1]
        allowed = torch.maximum(exact.abs() / 16, scale[:, None] * 2**-10) * 1.001
        assert bool(((after[name] - exact).abs() <= allowed).all()), name
    assert stored["condition_embedder.text_embedder.linear_1.weight"].dtype is torch.bfloat16


def test_rows_keep_their_own_scale():
    weight = torch.tensor([[1e-6, -2e-6], [3e4, 1.0], [0.0, 0.0]])
    values, scale = quantise(weight)
    back = values.float() * scale[:, None]
    assert back[0].tolist() == pytest.approx([1e-6, -2e-6], rel=1 / 16)
    assert back[1, 0] == pytest.approx(3e4)
    assert back[2].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "shape", "is_matrix"),
    [
        ("blocks.0.self_attn.q.weight", (8, 8), True),
        ("model.diffusion_model.blocks.12.ffn.2.weight", (8, 16), True),
        ("vace_blocks.0.before_proj.weight", (8, 8), True),
        ("blocks.0.norm3.weight", (8,), False),
        ("text_embedding.0.weight", (8, 8), False),
        ("head.head.weight", (8, 8), False),
        ("blocks.0.modulation", (1, 6, 8), False),
    ],
)
def test_matrices_are_known_in_every_layout(name: str, shape: tuple[int, ...], is_matrix: bool):
    assert convert_plan._is_block_matrix(name, shape) == is_matrix


def test_shards_get_a_new_index(sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(convert_plan, "SHARD_BYTES", 60_000)
    target = tmp_path / "bf16"
    convert(sharded, target, "bfloat16", ignore)
    folder = target / "transformer"
    index = json.loads((folder / "diffusion_pytorch_model.safetensors.index.json").read_text())
    files = {path.name for path in folder.glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files
    assert len(files) > 1
    held = {}
    for name in files:
        with safe_open(folder / name, framework="pt") as file:
            held |= dict.fromkeys(file.keys(), name)
    assert held == index["weight_map"]


def test_an_interrupted_conversion_goes_on(sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(convert_plan, "SHARD_BYTES", 60_000)
    conversion = plan_conversion(sharded, tmp_path / "bf16", "bfloat16")
    shards = [shard.path for shard in conversion.groups[0].shards]
    left = [len(conversion.groups[0].shards[0].steps) + 2]

    def stop(size: int) -> None:
        left[0] -= 1
        if not left[0]:
            raise STOPPED

    with pytest.raises(RuntimeError, match="stopped by the test"):
        run_conversion(conversion, stop)
    assert not conversion.target.exists()
    assert tree(conversion.staging) == {shards[0].as_posix(), ".conversion.json", ".lock"}, (
        "one whole shard, no half one"
    )
    stamp = (conversion.staging / shards[0]).stat().st_mtime_ns
    run_conversion(conversion, ignore)
    assert (conversion.target / shards[0]).stat().st_mtime_ns == stamp
    before = load_file(sharded / "transformer/diffusion_pytorch_model-00001-of-00003.safetensors")
    merged = {k: v for path in shards for k, v in load_file(conversion.target / path).items()}
    assert all(
        torch.equal(merged[name].float(), tensor.to(merged[name].dtype).float()) for name, tensor in before.items()
    )
    assert {path.name for path in tmp_path.iterdir()} == {"sharded", "bf16"}


def test_shards_of_another_source_are_thrown_away(sharded: Path, tmp_path: Path):
    conversion = plan_conversion(sharded, tmp_path / "bf16", "bfloat16")
    stale = conversion.staging / conversion.groups[0].shards[0].path
    stale.parent.mkdir(parents=True)
    with open_shard(stale, conversion.groups[0].shards[0].slots):
        pass  # right names and sizes, but zeros
    run_conversion(conversion, ignore)
    assert load_file(conversion.target / conversion.groups[0].shards[0].path)[MATRIX].abs().max() > 0


def test_a_file_becomes_a_file(original: Path, tmp_path: Path):
    target = tmp_path / "expert-fp8.safetensors"
    convert(original / TRANSFORMER, target, "fp8", ignore)
    assert load_file(target)[MATRIX].dtype is torch.float8_e4m3fn
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_a_small_checkpoint_needs_no_conversion(original: Path, tmp_path: Path):
    convert(original, tmp_path / "bf16", "bfloat16", ignore)
    with pytest.raises(CheckpointError, match="nothing in it changes with bfloat16"):
        convert(tmp_path / "bf16", tmp_path / "again", "bfloat16", ignore)


def test_what_is_quantised_is_not_quantised_again(original: Path, tmp_path: Path):
    convert(original, tmp_path / "fp8", "fp8", ignore)
    with pytest.raises(CheckpointError, match="already; convert what it was made from"):
        convert(tmp_path / "fp8", tmp_path / "bf16", "bfloat16", ignore)


def test_a_quantised_part_is_copied_when_others_change(original: Path, tmp_path: Path):
    convert(original, tmp_path / "fp8", "fp8", ignore)
    source = tmp_path / "mixed"
    shutil.copytree(original, source)
    shutil.copy(tmp_path / "fp8" / TRANSFORMER, source / TRANSFORMER)
    conversion = convert(source, tmp_path / "bf16", "bfloat16", ignore)
    assert f"{TRANSFORMER}: the transformer is fp8 already; convert what it was made from" in conversion.kept
    assert (tmp_path / "bf16" / TRANSFORMER).read_bytes() == (source / TRANSFORMER).read_bytes()
    second = load_file(tmp_path / "bf16" / "transformer_2/diffusion_pytorch_model.safetensors")
    assert second[MATRIX].dtype is torch.bfloat16


def damaged(original: Path, folder: Path, change) -> Path:
    """A copy with its first expert changed."""
    folder.mkdir()
    for path in original.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(original)).parent.mkdir(parents=True, exist_ok=True)
            os.link(path, folder / path.relative_to(original))
    tensors = load_file(original / TRANSFORMER)
    change(tensors)
    (folder / TRANSFORMER).unlink()
    save_file(tensors, folder / TRANSFORMER, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("dtype", ["bfloat16", "fp8"])
def test_a_source_that_is_not_finite_is_refused_with_file_and_key(original: Path, tmp_path: Path, dtype: Target):
    source = damaged(original, tmp_path / "bad", lambda tensors: tensors[MATRIX].__setitem__((0, 0), float("nan")))
    with pytest.raises(CheckpointError, match=rf"{TRANSFORMER}: {MATRIX} is not finite"):
        convert(source, tmp_path / "out", dtype, ignore)
    assert not (tmp_path / "out").exists()


def test_numbers_that_float16_cannot_hold_are_refused(original: Path, tmp_path: Path):
    source = damaged(original, tmp_path / "bad", lambda tensors: tensors[MATRIX].__setitem__((0, 0), 1e6))
    with pytest.raises(CheckpointError, match=rf"{MATRIX} is not finite as float16"):
        convert(source, tmp_path / "out", "float16", ignore)


def test_a_truncated_source_is_refused_before_anything_is_written(original: Path, tmp_path: Path):
    source = damaged(original, tmp_path / "bad", lambda tensors: None)
    os.truncate(source / TRANSFORMER, (source / TRANSFORMER).stat().st_size - 100)
    with pytest.raises(CheckpointError, match=TRANSFORMER):
        convert(source, tmp_path / "out", "bfloat16", ignore)
    assert {path.name for path in tmp_path.iterdir()} == {"bad"}


def test_a_missing_shard_is_refused(sharded: Path, tmp_path: Path):
    (sharded / "transformer/diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00003\.safetensors is missing"):
        convert(sharded, tmp_path / "out", "bfloat16", ignore)


def test_targets_that_would_do_harm_are_refused(original: Path, tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/note.txt").touch()
    for target, message in (
        (tmp_path / "full", "is there already"),
        (original / "inside", "lies inside"),
        (tmp_path / "one.safetensors", "a folder becomes a folder"),
        (tmp_path / "no/where", "is no folder"),
    ):
        with pytest.raises(CheckpointError, match=message):
            plan_conversion(original, target, "bfloat16")


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path):
    """Anonymous memory: the source is mapped, and the system may drop its pages."""
    size = 2048
    tensors = {f"blocks.{n}.attn1.to_q.weight": torch.full((size, size), 0.5) for n in range(12)}
    steps = [convert_plan.Step(name, (size, size), torch.float8_e4m3fn) for name in tensors]
    save_file(tensors, tmp_path / "source.safetensors")
    del tensors
    group = convert_plan.Group(
        (tmp_path / "source.safetensors",), (convert_plan.Shard(Path("target.safetensors"), tuple(steps)),), None
    )
    from wan_pipelines.weights.convert import _write_group

    before, peak = anonymous_memory(), [0]
    _write_group(group, tmp_path, lambda done: peak.append(anonymous_memory()))
    tensor = size * size * 4
    assert max(peak) - before < 4 * tensor < len(steps) * tensor / 2


def anonymous_memory() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def test_a_shard_is_whole_or_not_there(tmp_path: Path):
    slots = [Slot("a", torch.float32, (2, 3)), Slot("b", torch.bfloat16, (5,))]
    path = tmp_path / "one.safetensors"
    with suppress(RuntimeError), open_shard(path, slots) as writer:
        writer.put("a", torch.ones(2, 3))
        raise STOPPED
    assert list(tmp_path.iterdir()) == []
    with open_shard(path, slots) as writer:
        writer.put("b", torch.arange(5, dtype=torch.bfloat16))
        writer.put("a", torch.ones(3, 2).T)
        with pytest.raises(ValueError, match="announced"):
            writer.put("a", torch.ones(2, 3).half())
    assert is_written(path, slots)
    assert not is_written(path, slots[:1])
    loaded = load_file(path)
    assert torch.equal(loaded["a"], torch.ones(2, 3))
    assert loaded["b"].tolist() == [0, 1, 2, 3, 4]
    assert len(header_of(slots)) % 8 == 0
