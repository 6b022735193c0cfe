"""Weights in fp8, int8 and GGUF's blocks: kept as they are and made whole in each forward, or made whole at loading.

Layouts of scales, all of them factors on the stored numbers, one per tensor or one per row:
`<layer>.scale_weight` (ComfyUI fp8_scaled, with a marker `scaled_fp8`), `<layer>.weight_scale` beside
`<layer>.comfy_quant` (ComfyUI since 2025-11, QUANTIZATION.md there), `<layer>.weight_scale` alone (lightx2v
lightx2v/common/ops/mm/mm_weight.py, and `wanbox weights convert`). Scales of activations serve kernels that multiply
in fp8; here activations stay in the compute dtype, and these scales have no effect.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from diffusers.quantizers.gguf.utils import GGUFParameter, dequantize_functions, dequantize_gguf_tensor
from gguf import GGMLQuantizationType
from torch import Tensor, nn
from torch.nn import functional

from wan_pipelines.errors import CheckpointError
from wan_pipelines.weights.kinds import ACTIVATION_SCALES, COMFY_FORMAT, COMFY_MARKER, SCALES, is_companion, some
from wan_pipelines.weights.tensors import TensorSet, dtype_name

FLOATS8 = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
CODES = (*FLOATS8, "int8")
#: formats of `comfy_quant` whose weights are codes times scales
COMFY_FORMATS = (*FLOATS8, "int8_tensorwise")
#: entry of a safetensors header with the same information as the `comfy_quant` tensors
COMFY_NOTE = "_quantization_metadata"
#: values that are looked at in one go
CHUNK = 1 << 24
_HIGHEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0, torch.int8: 127.0}


@dataclass(frozen=True, slots=True)
class Companions:
    """Which tensors belong to quantised weights."""

    #: name of the scales by name of the weight
    scales: Mapping[str, str]
    #: known tensors without effect here
    unused: frozenset[str]


def find_companions(tensors: TensorSet) -> Companions:
    """Scales and markers of a file.

    Raises CheckpointError for a format that is not known, for scales that do not fit, and for codes whose scale is
    lost: without it they would be loaded as other numbers.
    """
    shapes, dtypes = tensors.shapes(), tensors.dtypes()
    scales, unused = {}, set()
    for name in shapes:
        owner = _owner(name)
        if name.endswith(COMFY_MARKER) or (owner in shapes and name.endswith(ACTIVATION_SCALES)):
            unused.add(name)
        elif name.endswith(COMFY_FORMAT) and dtypes[name] == "uint8":
            _check_format(tensors.source(name), name, bytes(tensors.read(name).tolist()))
            unused.add(name)
        elif owner in shapes and name.endswith(SCALES):
            _check_scale(tensors.source(name), name, shapes[name], shapes[owner])
            scales[owner] = name
    _check_note(tensors)
    _check_scaled(tensors, scales, has_scales=bool(scales or unused))
    return Companions(scales, frozenset(unused))


def is_quantised(tensors: TensorSet) -> bool:
    """Whether any weight is stored in another form than floating point of 16 bits or more; reads headers only."""
    return any(dtype in CODES or tensors.packed(name) is not None for name, dtype in tensors.dtypes().items())


def stored_bytes(tensors: TensorSet) -> int:
    """What the tensors take in their files; reads headers only."""
    shapes, total = tensors.shapes(), 0
    for name, dtype in tensors.dtypes().items():
        packed = tensors.packed(name)
        total += packed.nbytes if packed is not None else prod(shapes[name]) * getattr(torch, dtype).itemsize
    return total


def _owner(name: str) -> str:
    """The weight that a companion would belong to."""
    return f"{name.rpartition('.')[0]}.weight"


def _check_note(tensors: TensorSet) -> None:
    """The formats that a safetensors header tells."""
    note = tensors.notes().get(COMFY_NOTE)
    if note is None:
        return
    path = tensors.source(next(iter(tensors.shapes())))
    layers = _parsed(path, COMFY_NOTE, note).get("layers", {})
    for layer, settings in layers.items() if isinstance(layers, dict) else ():
        _check_settings(path, layer, settings)


def _check_format(path: Path, name: str, text: bytes) -> None:
    _check_settings(path, name, _parsed(path, name, text))


def _parsed(path: Path, name: str, text: bytes | str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: {name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: {name} is not a JSON object")
    return value


def _check_settings(path: Path, name: str, settings: Any) -> None:
    settings = settings if isinstance(settings, dict) else {"format": settings}
    kind = settings.get("format")
    what = f"{kind} with rotation" if settings.get("convrot") else kind
    if what not in COMFY_FORMATS:
        raise CheckpointError(f"{path}: {name}: format {what} is not supported; {', '.join(COMFY_FORMATS)} are")


def _check_scaled(tensors: TensorSet, scales: Mapping[str, str], *, has_scales: bool) -> None:
    """Plain fp8 has no scales at all; int8 always has."""
    needy = CODES if has_scales else ("int8",)
    lost = [
        name
        for name, dtype in tensors.dtypes().items()
        if dtype in needy and name not in scales and not is_companion(name)
    ]
    if lost:
        raise CheckpointError(f"{tensors.source(lost[0])}: missing keys: the scales of {some(lost)}")


def _check_scale(path: Path, name: str, scale: tuple[int, ...], weight: tuple[int, ...]) -> None:
    rows = weight[0] if weight else 1
    if scale not in ((), (1,), (1, 1), (rows,), (rows, 1)):
        raise CheckpointError(
            f"{path}: {name}: {list(scale)} scales for {rows} rows; one, or one per row, is supported"
        )


def dequantise(codes: Tensor, scale: Tensor | None) -> Tensor:
    """float32 [out, ...] from codes of the same shape and one scale, or one per row."""
    values = codes.to(torch.float32)
    return values if scale is None else values.mul_(scale.float().reshape(-1, *[1] * (codes.ndim - 1)))


def is_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite; integers always are finite."""
    if not values.is_floating_point() or not values.numel():
        return True
    if values.dtype in FLOATS8.values():
        return all(bool(torch.isfinite(chunk.float()).all()) for chunk in values.reshape(-1).split(CHUNK))
    low, high = values.aminmax()
    return bool(torch.isfinite(low) & torch.isfinite(high))


class KeptLinear(nn.Module):
    """A linear layer whose weight is stored in another form. `weight` makes it whole, for those who only look."""

    codes: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear, codes: Tensor, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.compute_dtype = compute_dtype
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.register_parameter("bias", linear.bias)

    @property
    def weight(self) -> Tensor:
        """[out, in] in the compute dtype, made anew each time."""
        return self.dequantise().to(self.compute_dtype)

    def dequantise(self) -> Tensor:
        """The weight in float32, [out, in]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.linear(x, self.dequantise().to(x.dtype), bias)

    def extra_repr(self) -> str:
        kind = dtype_name(self.codes.dtype)
        return f"in_features={self.in_features}, out_features={self.out_features}, codes={kind}"


class QuantisedLinear(KeptLinear):
    """fp8 or int8 codes [out, in] with a float32 scale, one or [out]; None means 1."""

    scale: nn.Parameter | None

    def __init__(self, linear: nn.Linear, codes: Tensor, scale: Tensor | None, compute_dtype: torch.dtype) -> None:
        super().__init__(linear, codes, compute_dtype)
        scale = None if scale is None else nn.Parameter(scale.float().reshape(-1), requires_grad=False)
        self.register_parameter("scale", scale)

    def dequantise(self) -> Tensor:
        return dequantise(self.codes, self.scale)

    @torch.no_grad()
    def requantise(self, weight: Tensor) -> None:
        """Take another weight [out, in], with a new scale per row."""
        highest = _HIGHEST[self.codes.dtype]
        scale = weight.float().abs().amax(dim=1, keepdim=True).clamp_(min=1e-12) / highest
        values = weight.float() / scale
        codes = values.round() if self.codes.dtype == torch.int8 else values
        self.codes.data = codes.clamp_(-highest, highest).to(self.codes.dtype)
        self.scale = nn.Parameter(scale.reshape(-1), requires_grad=False)


class GgufLinear(KeptLinear):
    """GGUF's blocks, uint8 [out, bytes of a row]. The arithmetic is diffusers', which works on any device."""

    def __init__(self, linear: nn.Linear, codes: Tensor, block_type: str, compute_dtype: torch.dtype) -> None:
        super().__init__(linear, codes, compute_dtype)
        self.block_type = block_type

    def dequantise(self) -> Tensor:
        block_type = GGMLQuantizationType[self.block_type]
        blocks = GGUFParameter(self.codes.data, quant_type=block_type)  # pyright: ignore[reportCallIssue]
        return dequantize_gguf_tensor(blocks).float()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, block_type={self.block_type}"


def can_keep_blocks(block_type: str) -> bool:
    """Whether `GgufLinear` knows how to make blocks of this type whole."""
    return any(known.name == block_type for known in dequantize_functions)
