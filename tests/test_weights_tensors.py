"""Weight files as sets of named tensors."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

import weight_files as files
from wan_pipelines.errors import CheckpointError
from wan_pipelines.weights.tensors import open_tensors

VALUES = {"a": torch.arange(6.0).view(2, 3), "b.c": torch.ones(4, dtype=torch.bfloat16)}


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt", "bin", "ckpt"])
def test_one_file(tmp_path, suffix):
    path = tmp_path / f"weights.{suffix}"
    files.save(VALUES, path)
    tensors = open_tensors([path])
    assert tensors.shapes() == {"a": (2, 3), "b.c": (4,)}
    assert tensors.dtypes() == {"a": "float32", "b.c": "bfloat16"}
    for name, value in VALUES.items():
        assert torch.equal(tensors.read(name), value)
        assert tensors.read(name).dtype == value.dtype
        assert tensors.packed(name) is None
        assert tensors.source(name) == path
    half = tensors.read_as("a", torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half.float(), VALUES["a"])


def test_shards_are_one_set(tmp_path):
    files.save({"a": VALUES["a"]}, tmp_path / "x-00001-of-00002.safetensors")
    files.save({"b.c": VALUES["b.c"]}, tmp_path / "x-00002-of-00002.safetensors")
    paths = sorted(tmp_path.iterdir())
    tensors = open_tensors(paths)
    assert tensors.shapes() == {"a": (2, 3), "b.c": (4,)}
    assert [tensors.source(name) for name in ("a", "b.c")] == paths
    assert torch.equal(tensors.read("b.c"), VALUES["b.c"])


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_writing_into_a_tensor_does_not_touch_the_file(tmp_path, suffix):
    path = tmp_path / f"weights.{suffix}"
    files.save(VALUES, path)
    before = path.read_bytes()
    tensor = open_tensors([path]).read("a")
    tensor.fill_(9.0)
    assert path.read_bytes() == before
    assert torch.equal(open_tensors([path]).read("a"), VALUES["a"])


def test_a_mapped_tensor_outlives_its_file(tmp_path):
    path = tmp_path / "weights.safetensors"
    files.save(VALUES, path)
    tensor = open_tensors([path]).read("a")
    path.unlink()
    assert torch.equal(tensor, VALUES["a"])


def file_behind(tensor: torch.Tensor) -> str:
    """Path of the file whose mapping holds a tensor's memory; empty for memory of the process's own."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, path = line.split(maxsplit=5) if line.count("/") else (line.split()[0], "")
        first, last = (int(end, 16) for end in span.split("-"))
        if first <= tensor.data_ptr() < last:
            return path
    return ""


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "gguf"])
def test_what_needs_no_conversion_is_mapped_and_what_does_is_not(tmp_path, suffix):
    path = tmp_path / f"weights.{suffix}"
    values = torch.arange(8192.0).view(64, 128)
    if suffix == "gguf":
        write_gguf(path, {"a": (values.numpy(), "F32")})
    else:
        files.save({"a": values}, path)
    tensors = open_tensors([path])
    assert file_behind(tensors.read("a")) == file_behind(tensors.read_as("a", torch.float32)) == str(path)
    assert file_behind(tensors.read_as("a", torch.bfloat16)) != str(path)
    assert torch.equal(tensors.read_as("a", torch.bfloat16), values.bfloat16())


def test_numbers_of_every_dtype(tmp_path):
    dtypes = [
        torch.float64,
        torch.float16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.int8,
        torch.uint8,
        torch.int64,
    ]
    state = {str(dtype).removeprefix("torch."): torch.ones(3).to(dtype) for dtype in dtypes}
    files.save(state, tmp_path / "weights.safetensors")
    tensors = open_tensors([tmp_path / "weights.safetensors"])
    assert all(name == dtype for name, dtype in tensors.dtypes().items())
    assert {name: tensors.read(name).dtype for name in state} == {name: value.dtype for name, value in state.items()}


def write_gguf(path, tensors: dict[str, tuple[np.ndarray, str]], shapes: dict[str, list[int]] | None = None) -> None:
    writer = gguf.GGUFWriter(path, "wan")
    for name, shape in (shapes or {}).items():
        writer.add_array(f"comfy.gguf.orig_shape.{name}", shape)
    for name, (values, kind) in tensors.items():
        chosen = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(values, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf(tmp_path):
    values = np.random.default_rng(0).standard_normal((4, 64), dtype=np.float32)
    kinds = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "Q8_0": "gguf.Q8_0", "Q4_0": "gguf.Q4_0"}
    path = tmp_path / "wan.gguf"
    write_gguf(path, {kind: (values, kind) for kind in kinds} | {"five": (values.reshape(4, 2, 2, 2, 8), "F32")})
    tensors = open_tensors([path])
    assert tensors.shapes() == dict.fromkeys(kinds, (4, 64)) | {"five": (4, 2, 2, 2, 8)}
    assert tensors.dtypes() == kinds | {"five": "float32"}
    for kind, most in {"F32": 0, "F16": 2e-3, "BF16": 2e-2, "Q8_0": 2e-2, "Q4_0": 0.5}.items():
        assert (tensors.read(kind).float() - torch.from_numpy(values)).abs().max() <= most
    assert torch.equal(tensors.read("five"), torch.from_numpy(values).view(4, 2, 2, 2, 8))
    assert tensors.packed("F16") is None
    packed = tensors.packed("Q8_0")
    assert packed is not None
    assert (packed.dtype, packed.shape) == (torch.uint8, (4, 2 * 34))  # 32 codes and a half-precision scale


def test_gguf_notes_the_shape_of_what_it_had_to_flatten(tmp_path):
    values = np.arange(64, dtype=np.float32).reshape(2, 32)
    write_gguf(tmp_path / "wan.gguf", {"conv": (values, "F32")}, {"conv": [2, 4, 8]})
    tensors = open_tensors([tmp_path / "wan.gguf"])
    assert tensors.shapes() == {"conv": (2, 4, 8)}
    assert torch.equal(tensors.read("conv"), torch.arange(64.0).view(2, 4, 8))
    write_gguf(tmp_path / "bad.gguf", {"conv": (values, "F32")}, {"conv": [2, 4, 9]})
    with pytest.raises(CheckpointError, match=r"bad\.gguf: conv: 64 values are noted as \[2, 4, 9\]"):
        open_tensors([tmp_path / "bad.gguf"])


def test_no_files():
    with pytest.raises(CheckpointError, match="no weight files"):
        open_tensors([])


def test_a_file_that_is_not_there(tmp_path):
    for suffix in ("safetensors", "pth", "gguf"):
        with pytest.raises(CheckpointError, match=rf"gone\.{suffix}: Unable to load weights: "):
            open_tensors([tmp_path / f"gone.{suffix}"])
