"""GGUF files: block-quantised weights of ggml (QuantStack, city96). Reads them by the `gguf` package.

The names inside are those of the model that was converted; a text encoder made by llama.cpp has llama.cpp's names.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor, dequantize
from torch import Tensor

from wan_pipelines.errors import CheckpointError
from wan_pipelines.weights.tensors import Entry, FileTensors

PREFIX = "gguf."
_PLAIN = {
    GGMLQuantizationType.F64: "float64",
    GGMLQuantizationType.F32: "float32",
    GGMLQuantizationType.F16: "float16",
    GGMLQuantizationType.BF16: "bfloat16",
    GGMLQuantizationType.I8: "int8",
}
#: where converters note the true shape of a tensor that they had to reshape (city96/ComfyUI-GGUF tools/convert.py)
_TRUE_SHAPE = "comfy.gguf.orig_shape."


class GgufFile(FileTensors):
    """One `.gguf` file, mapped."""

    def __init__(self, path: Path) -> None:
        try:
            # "c": copy on write, so that torch may have the memory
            self._reader = GGUFReader(path, "c")
        except (OSError, ValueError, IndexError, KeyError, OverflowError, TypeError) as error:
            raise CheckpointError(f"{path}: Unable to load weights: no GGUF file, or damaged: {error}") from error
        self.path = path
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        super().__init__(path, {name: self._entry(tensor) for name, tensor in self._tensors.items()})

    def read(self, name: str) -> Tensor:
        tensor, shape = self._tensors[name], self._entries[name].shape
        if tensor.tensor_type == GGMLQuantizationType.BF16:
            return torch.from_numpy(tensor.data).view(torch.bfloat16).reshape(shape)
        if tensor.tensor_type in _PLAIN:
            return torch.from_numpy(tensor.data).reshape(shape)
        try:
            return torch.from_numpy(dequantize(tensor.data, tensor.tensor_type)).reshape(shape)
        except NotImplementedError as error:
            raise CheckpointError(f"{self.path}: {name}: {error}") from error

    def packed(self, name: str) -> Tensor | None:
        tensor = self._tensors[name]
        return None if tensor.tensor_type in _PLAIN else torch.from_numpy(tensor.data)

    def _entry(self, tensor: ReaderTensor) -> Entry:
        dtype = _PLAIN.get(tensor.tensor_type, PREFIX + tensor.tensor_type.name)
        return Entry(self._true_shape(tensor), dtype)

    def _true_shape(self, tensor: ReaderTensor) -> tuple[int, ...]:
        field = self._reader.get_field(_TRUE_SHAPE + tensor.name)
        if field is None:
            return tuple(int(size) for size in reversed(tensor.shape))
        shape = tuple(int(size) for size in field.contents())
        if math.prod(shape) != tensor.n_elements:
            raise CheckpointError(f"{self.path}: {tensor.name}: {tensor.n_elements} values are noted as {list(shape)}")
        return shape
