"""Named tensors of weight files, whatever the container: headers first, values when asked for, memory-mapped.

Knows no model. A mapped tensor keeps its file alive even after the file was renamed or deleted, and writing into
such a tensor changes memory, never the file. A file that is overwritten in place takes the tensors with it.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wan_pipelines.errors import CheckpointError
from wan_pipelines.weights.files import FORMATS, PICKLES

#: what safetensors calls a dtype, where it is not torch's name
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


class TensorSet(Protocol):
    """One logical set of named tensors over one or several files."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes by name, from the headers."""
        ...

    def dtypes(self) -> Mapping[str, str]:
        """torch's names of dtypes by tensor name, such as "bfloat16"; "gguf.Q8_0" and so on for GGUF's blocks."""
        ...

    def read(self, name: str) -> Tensor:
        """The values, mapped where the container allows it; GGUF's blocks come as float32."""
        ...

    def read_as(self, name: str, dtype: torch.dtype) -> Tensor:
        """The values in this dtype. What had to be converted keeps no page of the file in memory."""
        ...

    def packed(self, name: str) -> Tensor | None:
        """GGUF's blocks as they are, uint8 [rows, bytes of a row]; None for every other tensor."""
        ...

    def source(self, name: str) -> Path:
        """The file that holds a tensor."""
        ...

    def notes(self) -> Mapping[str, str]:
        """The text that the files carry beside their tensors."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """What a header says of a tensor."""

    shape: tuple[int, ...]
    dtype: str


def dtype_name(dtype: torch.dtype) -> str:
    """ "bfloat16" for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


class FileTensors:
    """The tensors of one file; containers say how values are read."""

    def __init__(self, path: Path, entries: Mapping[str, Entry], notes: Mapping[str, str] | None = None) -> None:
        self.path = path
        self._entries = entries
        self._notes = notes or {}

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self._entries.items()}

    def dtypes(self) -> Mapping[str, str]:
        return {name: entry.dtype for name, entry in self._entries.items()}

    def read(self, name: str) -> Tensor:
        raise NotImplementedError

    def read_as(self, name: str, dtype: torch.dtype) -> Tensor:
        return self.read(name).to(dtype)

    def packed(self, name: str) -> Tensor | None:
        return None

    def source(self, name: str) -> Path:
        return self.path

    def notes(self) -> Mapping[str, str]:
        return self._notes


class SafetensorsFile(FileTensors):
    """One `.safetensors` file. A file that is shorter than its header says is refused when it is opened."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = safe_open(str(path), framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: Unable to load weights: {error}") from error
        entries = {}
        for name in self._file.keys():  # noqa: SIM118  (no mapping)
            header = self._file.get_slice(name)
            dtype = str(header.get_dtype())
            entries[name] = Entry(tuple(header.get_shape()), _DTYPES.get(dtype, dtype.lower()))
        super().__init__(path, entries, self._file.metadata())

    def read(self, name: str) -> Tensor:
        return self._file.get_tensor(name)

    def read_as(self, name: str, dtype: torch.dtype) -> Tensor:
        if self._entries[name].dtype == dtype_name(dtype):
            return self.read(name)
        with safe_open(str(self.path), framework="pt") as file:  # a mapping of its own, gone after the conversion
            return file.get_tensor(name).to(dtype)


class PickleFile(FileTensors):
    """One file of `torch.save`. Only tensors are unpickled; Python objects are never run."""

    def __init__(self, path: Path) -> None:
        loaded = _unpickle(path)
        inner = loaded.get("state_dict") if isinstance(loaded, dict) else None
        tensors = inner if isinstance(inner, dict) else loaded
        if not isinstance(tensors, dict) or not tensors:
            raise CheckpointError(f"{path}: holds no named tensors")
        if others := [str(name) for name, value in tensors.items() if not isinstance(value, Tensor)]:
            raise CheckpointError(f"{path}: {', '.join(others[:3])}: no tensor")
        self._tensors: dict[str, Tensor] = {name: value.detach() for name, value in tensors.items()}
        entries = {name: Entry(tuple(t.shape), dtype_name(t.dtype)) for name, t in self._tensors.items()}
        super().__init__(path, entries)

    def read(self, name: str) -> Tensor:
        return self._tensors[name]


def _unpickle(path: Path) -> Any:
    try:
        zipped = zipfile.is_zipfile(path)  # torch's own layout since 1.6, the only one that can be mapped
        with path.open("rb") as file:
            if not zipped and file.read(1) != pickle.PROTO:
                raise CheckpointError(f"{path}: Unable to load weights: damaged, or not a file of torch.save")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if forbidden := re.search(r"Unsupported (?:global|class|operand)[^\n]*", str(error)):
            what = re.sub(r" was not an allowed.*", "", forbidden[0]).rstrip(". ")
            raise CheckpointError(
                f"{path}: holds Python objects besides tensors, which are never run: {what}"
            ) from error
        raise CheckpointError(f"{path}: Unable to load weights: damaged, or not a file of torch.save") from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0] or "damaged"
        raise CheckpointError(f"{path}: Unable to load weights: {reason}") from error


class JoinedTensors:
    """Several files as one set. A name that is in two of them is an error."""

    def __init__(self, sets: Sequence[TensorSet]) -> None:
        self._owners: dict[str, TensorSet] = {}
        self._sets = sets
        for tensors in sets:
            for name in tensors.shapes():
                if other := self._owners.get(name):
                    raise CheckpointError(f"{tensors.source(name)}: {name} is also in {other.source(name)}")
                self._owners[name] = tensors

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: shape for tensors in self._sets for name, shape in tensors.shapes().items()}

    def dtypes(self) -> Mapping[str, str]:
        return {name: dtype for tensors in self._sets for name, dtype in tensors.dtypes().items()}

    def read(self, name: str) -> Tensor:
        return self._owners[name].read(name)

    def read_as(self, name: str, dtype: torch.dtype) -> Tensor:
        return self._owners[name].read_as(name, dtype)

    def packed(self, name: str) -> Tensor | None:
        return self._owners[name].packed(name)

    def source(self, name: str) -> Path:
        return self._owners[name].source(name)

    def notes(self) -> Mapping[str, str]:
        return {key: text for tensors in self._sets for key, text in tensors.notes().items()}


@dataclass(frozen=True, slots=True)
class Cut:
    """A tensor that is a piece of another one: its rows from `start` to `stop`, in another shape."""

    name: str
    shape: tuple[int, ...]
    start: int | None = None
    stop: int | None = None


class CutTensors:
    """A set under other names, with pieces of tensors in place of whole ones. Nothing is copied for it."""

    def __init__(self, base: TensorSet, cuts: Mapping[str, Cut]) -> None:
        self._base = base
        self._cuts = cuts

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: cut.shape for name, cut in self._cuts.items()}

    def dtypes(self) -> Mapping[str, str]:
        dtypes = self._base.dtypes()
        return {name: dtypes[cut.name] for name, cut in self._cuts.items()}

    def read(self, name: str) -> Tensor:
        cut = self._cuts[name]
        whole = self._base.read(cut.name)
        return (whole if cut.start is None else whole[cut.start : cut.stop]).reshape(cut.shape)

    def read_as(self, name: str, dtype: torch.dtype) -> Tensor:
        return self.read(name).to(dtype)

    def packed(self, name: str) -> Tensor | None:
        return None

    def source(self, name: str) -> Path:
        return self._base.source(self._cuts[name].name)

    def notes(self) -> Mapping[str, str]:
        return self._base.notes()


def open_tensors(paths: Sequence[Path]) -> TensorSet:
    """The tensors of one file, or of all shards of one model. Raises CheckpointError naming the file.

    `.safetensors`, `.gguf`, and what `torch.save` writes (`.pth`, `.pt`, `.bin`, `.ckpt`).
    """
    if not paths:
        raise CheckpointError("no weight files")
    sets = [_open(path) for path in paths]
    return sets[0] if len(sets) == 1 else JoinedTensors(sets)


def _open(path: Path) -> FileTensors:
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return SafetensorsFile(path)
    if suffix in PICKLES:
        return PickleFile(path)
    if suffix == ".gguf":
        from wan_pipelines.weights.gguf_file import GgufFile  # builds on this module

        return GgufFile(path)
    raise CheckpointError(f"{path}: not a format that is read; these are: {', '.join(FORMATS)}")
