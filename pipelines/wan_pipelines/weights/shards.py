"""Safetensors files written tensor by tensor: the header is known beforehand, so no second tensor is in memory.

The library's own writer takes a whole file's tensors at once, which for a shard is 5 GB.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

#: the format's names
CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
#: the header's length is a multiple of this, so that the tensors are aligned
ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor that will be in a file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class ShardWriter:
    """An open file with a place for every tensor, filled in any order."""

    file: BinaryIO
    slots: Mapping[str, tuple[Slot, int]]

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one tensor. Its dtype and shape are those that were announced."""
        slot, offset = self.slots[name]
        if (tensor.dtype, tuple(tensor.shape)) != (slot.dtype, slot.shape):
            raise ValueError(f"{name}: announced {slot.dtype} {slot.shape}, got {tensor.dtype} {tuple(tensor.shape)}")
        self.file.seek(offset)
        self.file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def header_of(slots: Sequence[Slot]) -> bytes:
    """Length and header of a file with these tensors, in this order."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for slot in slots:
        start, end = end, end + slot.size
        entries[slot.name] = {"dtype": CODES[slot.dtype], "shape": slot.shape, "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def in_file_order(slots: Iterable[Slot]) -> list[Slot]:
    """Widest elements first, so that every tensor is aligned to its element."""
    return sorted(slots, key=lambda slot: (-slot.dtype.itemsize, slot.name))


def is_written(path: Path, slots: Sequence[Slot]) -> bool:
    """Whether a file with exactly these tensors is there, whole."""
    header = header_of(slots)
    if not path.is_file() or path.stat().st_size != len(header) + sum(slot.size for slot in slots):
        return False
    with path.open("rb") as file:
        return file.read(len(header)) == header


@contextmanager
def open_shard(path: Path, slots: Sequence[Slot]) -> Iterator[ShardWriter]:
    """Write a file; it appears under its name when the block ends without an error, and not at all otherwise."""
    header = header_of(slots)
    places, offset = {}, len(header)
    for slot in slots:
        places[slot.name] = (slot, offset)
        offset += slot.size
    partial = path.with_name(f"{path.name}.tmp")
    try:
        with partial.open("wb") as file:
            file.write(header)
            file.truncate(offset)
            yield ShardWriter(file, places)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def split(slots: Sequence[Slot], limit: int) -> list[list[Slot]]:
    """In order, as many to a file as `limit` bytes allow; at least one."""
    shards: list[list[Slot]] = [[]]
    room = limit
    for slot in slots:
        if shards[-1] and slot.size > room:
            shards.append([])
            room = limit
        shards[-1].append(slot)
        room -= slot.size
    return shards
