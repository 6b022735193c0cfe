"""Arithmetic of quantised weights."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import nn

import weight_files as files
from wan_pipelines.errors import CheckpointError
from wan_pipelines.weights.quantised import (
    COMFY_NOTE,
    GgufLinear,
    QuantisedLinear,
    can_keep_blocks,
    dequantise,
    find_companions,
    is_finite,
)
from wan_pipelines.weights.tensors import open_tensors


def linear(rows: int = 48, columns: int = 64) -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(columns, rows)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
@pytest.mark.parametrize("scale", [None, torch.tensor(0.25), torch.tensor([0.25]), torch.full((48, 1), 0.25)])
def test_codes_times_scale(dtype, scale):
    codes = torch.randint(-7, 8, (48, 64)).to(dtype)
    layer = QuantisedLinear(linear(), codes, scale, torch.float32)
    factor = 1.0 if scale is None else 0.25
    assert torch.equal(layer.dequantise(), codes.float() * factor)
    x = torch.randn(5, 64)
    wanted = nn.functional.linear(x, codes.float() * factor, layer.bias)
    assert torch.equal(layer(x), wanted)


def test_each_row_has_its_own_scale():
    codes = torch.ones(3, 2, 1, 2, 2).to(torch.int8)
    whole = dequantise(codes, torch.tensor([[1.0], [2.0], [3.0]]))
    assert torch.equal(whole, torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1, 1).expand(3, 2, 1, 2, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_input_s_dtype_is_that_of_the_product(dtype):
    layer = QuantisedLinear(linear(), torch.ones(48, 64, dtype=torch.int8), torch.tensor(0.5), torch.bfloat16)
    assert layer(torch.ones(2, 64, dtype=dtype)).dtype == dtype
    assert layer.weight.dtype == torch.bfloat16
    assert (layer.in_features, layer.out_features) == (64, 48)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float8_e4m3fn, 1 / 16), (torch.int8, 0.5 / 127)])
def test_requantised_within_half_a_step(dtype, most):
    layer = QuantisedLinear(linear(), torch.zeros(48, 64, dtype=dtype), None, torch.float32)
    weight = torch.randn(48, 64) * torch.logspace(-6, 6, 48)[:, None]
    layer.requantise(weight)
    assert layer.codes.dtype == dtype
    reach = weight.abs().amax(dim=1, keepdim=True) if dtype == torch.int8 else weight.abs()
    floor = weight.abs().amax(dim=1, keepdim=True) * 1e-5  # below the smallest fp8 number
    assert ((layer.dequantise() - weight).abs() <= reach * most * 1.001 + floor).all()


def test_quantised_layers_move_and_keep_their_codes():
    layer = QuantisedLinear(linear(), torch.ones(48, 64, dtype=torch.int8), torch.tensor(0.5), torch.float32)
    names = dict(layer.to("meta").named_parameters())
    assert {name: (value.dtype, value.requires_grad) for name, value in names.items()} == {
        "codes": (torch.int8, False),
        "scale": (torch.float32, False),
        "bias": (torch.float32, True),
    }


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_blocks_are_made_whole_as_the_gguf_package_does(kind):
    block = gguf.GGMLQuantizationType[kind]
    codes = gguf.quants.quantize(linear().weight.detach().numpy(), block)
    layer = GgufLinear(linear(), torch.from_numpy(codes), kind, torch.float32)
    wanted = torch.from_numpy(gguf.quants.dequantize(codes, block))
    assert (layer.dequantise() - wanted).abs().max() <= wanted.abs().max() * 2e-3  # its scales are half precision
    assert layer.bias is not None
    assert torch.equal(layer(torch.eye(64)), layer.dequantise().T + layer.bias)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"])
def test_blocks_that_only_llama_cpp_writes(kind):
    """Any bytes are codes; these have no byte from which a scale could be large or not a number."""
    block = gguf.GGMLQuantizationType[kind]
    block_size, type_size = gguf.GGML_QUANT_SIZES[block]
    rows, blocks = 6, 256 // block_size
    codes = np.random.default_rng(0).integers(0, 0x38, (rows, blocks * type_size), dtype=np.uint8)
    layer = GgufLinear(linear(rows, 256), torch.from_numpy(codes), kind, torch.float32)
    wanted = torch.from_numpy(gguf.quants.dequantize(codes, block))
    assert layer.dequantise().shape == wanted.shape == (rows, 256)
    assert (layer.dequantise() - wanted).abs().max() <= wanted.abs().max() * 2e-3
    assert wanted.std() > 0


def test_blocks_that_layers_cannot_hold_are_made_whole():
    assert can_keep_blocks("Q4_K")
    assert not can_keep_blocks("IQ1_S")


def test_kinds_of_numbers_that_are_looked_at():
    fp8 = torch.ones(9).to(torch.float8_e4m3fn)
    assert is_finite(fp8)
    assert is_finite(torch.tensor([1, 2]))
    assert is_finite(torch.empty(0))
    fp8.view(torch.uint8)[8] = 0xFF
    assert not is_finite(fp8)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for bad in (float("nan"), float("inf"), float("-inf")):
            values = torch.zeros(70_000, dtype=dtype)
            assert is_finite(values)
            values[69_999] = bad
            assert not is_finite(values)


def companions_of(folder: Path, state: files.State):
    files.save(state, folder / "wan.safetensors")
    return find_companions(open_tensors([folder / "wan.safetensors"]))


def test_companions(tmp_path):
    weight = torch.ones(4, 2, dtype=torch.int8)
    found = companions_of(
        tmp_path,
        {
            "a.weight": weight,
            "a.scale_weight": torch.ones(()),
            "a.scale_input": torch.ones(()),
            "b.weight": weight.clone(),
            "b.weight_scale": torch.ones(4, 1),
            "b.input_scale": torch.ones(1),
            "b.comfy_quant": files.comfy_note("int8_tensorwise"),
            "scaled_fp8": torch.empty(0),
        },
    )
    assert found.scales == {"a.weight": "a.scale_weight", "b.weight": "b.weight_scale"}
    assert found.unused == {"a.scale_input", "b.input_scale", "b.comfy_quant", "scaled_fp8"}


@pytest.mark.parametrize("marked", [True, False])
def test_a_lost_scale_is_a_missing_key(tmp_path, marked):
    """Codes of a file with scales mean nothing without; a file without any scale holds plain fp8."""
    codes = {name: torch.ones(4, 2).to(files.FP8) for name in ("a.weight", "b.weight")}
    companions_of(tmp_path, codes)
    more = {"scaled_fp8": torch.empty(0)} if marked else {"a.scale_weight": torch.ones(())}
    with pytest.raises(CheckpointError, match=r"wan\.safetensors: missing keys: the scales of (a\.weight, )?b\.weight"):
        companions_of(tmp_path, {**codes, **more})


def test_int8_without_a_scale_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"missing keys: the scales of a\.weight"):
        companions_of(tmp_path, {"a.weight": torch.ones(4, 2, dtype=torch.int8)})


@pytest.mark.parametrize("text", [b"", b"{", b"[1]"])
def test_a_format_that_is_no_json(tmp_path, text):
    note = torch.tensor(list(text), dtype=torch.uint8)
    with pytest.raises(CheckpointError, match=r"wan\.safetensors: a\.comfy_quant is not (JSON|a JSON object)"):
        companions_of(tmp_path, {"a.weight": torch.ones(2, 2), "a.comfy_quant": note})


def test_formats_in_the_header_are_read(tmp_path):
    """ComfyUI's later files say it there, and a format that is not known must not pass for another."""
    from safetensors.torch import save_file

    path = tmp_path / "wan.safetensors"
    for kind, known in (("float8_e4m3fn", True), ("mxfp8", False)):
        note = f'{{"format_version": "1.0", "layers": {{"a": {{"format": "{kind}"}}}}}}'
        save_file({"a.weight": torch.ones(2, 2)}, path, {COMFY_NOTE: note})
        if known:
            find_companions(open_tensors([path]))
        else:
            with pytest.raises(CheckpointError, match=r"wan\.safetensors: a: format mxfp8 is not supported"):
                find_companions(open_tensors([path]))
