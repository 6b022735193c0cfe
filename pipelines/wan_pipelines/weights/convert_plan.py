"""What becomes of every tensor of a checkpoint that is converted, and into which files it goes. Reads headers only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from wan_pipelines.errors import CheckpointError
from wan_pipelines.weights.disk import staging_folder
from wan_pipelines.weights.files import SHARD, by_model, check_shards, is_weight_file
from wan_pipelines.weights.keys import Part, title
from wan_pipelines.weights.kinds import part_of, quantised_as
from wan_pipelines.weights.shards import CODES, Slot, in_file_order, split
from wan_pipelines.weights.tensors import open_tensors

Target = Literal["bfloat16", "float16", "fp8"]
#: bytes of a shard, as the hub's own files have
SHARD_BYTES = 5_000_000_000
FP8 = torch.float8_e4m3fn
#: what the scale of a matrix is called, after the name of the matrix
SCALE = "_scale"
TORCH_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in CODES}


@dataclass(frozen=True, slots=True)
class Step:
    """One tensor of the source and what it becomes."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def slots(self) -> list[Slot]:
        """The tensor, and its scale."""
        own = Slot(self.name, self.dtype, self.shape)
        return [own, Slot(f"{self.name}{SCALE}", torch.float32, self.shape[:1])] if self.dtype is FP8 else [own]

    @property
    def size(self) -> int:
        """Bytes afterwards."""
        return sum(slot.size for slot in self.slots)


@dataclass(frozen=True, slots=True)
class Shard:
    """One file to be written."""

    path: Path
    steps: tuple[Step, ...]

    @property
    def slots(self) -> list[Slot]:
        """Its tensors, in the order of the file."""
        return in_file_order(slot for step in self.steps for slot in step.slots)


@dataclass(frozen=True, slots=True)
class Group:
    """The tensors of one model part, over one or several files."""

    #: paths of the source
    paths: tuple[Path, ...]
    #: of the target, relative to it
    shards: tuple[Shard, ...]
    #: index to be written, relative to the target; None for a single file
    index: Path | None


@dataclass(frozen=True, slots=True)
class Conversion:
    """What `run_conversion` will do."""

    source: Path
    target: Path
    dtype: Target
    groups: tuple[Group, ...]
    #: other files, relative to the source
    copies: tuple[Path, ...]
    #: of those, the weights, with the reason
    kept: tuple[str, ...]
    bytes_before: int
    bytes_after: int

    @property
    def bytes_of_tensors(self) -> int:
        """Bytes that are written tensor by tensor."""
        return sum(step.size for group in self.groups for shard in group.shards for step in shard.steps)

    @property
    def staging(self) -> Path:
        """Where the files gather until all are there."""
        return staging_folder(self.target)


def plan_conversion(source: Path, target: Path, dtype: Target) -> Conversion:
    """What becomes of the parts of `source`, from headers only. Raises CheckpointError."""
    _check_names(source, target)
    groups, kept = [], []
    for paths in _units(source):
        group = _plan_group(paths, source, target, dtype)
        if isinstance(group, Group):
            groups.append(group)
        else:
            kept.append(f"{_inside(source, paths[0])}: {group}")
    if not groups:
        raise CheckpointError(f"{source}: nothing in it changes with {dtype}: {'; '.join(kept) or 'it has no weights'}")
    done = {path for group in groups for path in group.paths}
    others = [path for path in _files(source) if path not in done and not _is_index_of(path, groups)]
    copied = sum(path.stat().st_size for path in others)
    return Conversion(
        source,
        target,
        dtype,
        tuple(groups),
        copies=tuple(path.relative_to(source) for path in others),
        kept=tuple(kept),
        bytes_before=copied + sum(path.stat().st_size for path in done),
        bytes_after=copied + sum(step.size for g in groups for shard in g.shards for step in shard.steps),
    )


def _units(source: Path) -> list[list[Path]]:
    """Files that are converted together: complete sets of shards, and single files."""
    groups = by_model(path for path in _files(source) if is_weight_file(path))
    for paths in groups:
        check_shards(paths)
    return [unit for paths in groups for unit in ([paths] if SHARD.fullmatch(paths[0].stem) else [[p] for p in paths])]


def _plan_group(paths: Sequence[Path], source: Path, target: Path, dtype: Target) -> Group | str:
    """The new files of a part, or why it stays as it is."""
    tensors = open_tensors(paths)
    shapes, codes = tensors.shapes(), tensors.dtypes()
    try:
        part = part_of(list(shapes))
    except CheckpointError:
        return "of no kind that is converted"
    if part not in ("transformer", "text_encoder"):
        return f"the {title(part)} keeps its dtype"
    if quantised := quantised_as(shapes, codes):
        return f"the {title(part)} is {quantised} already; convert what it was made from"
    steps = [
        Step(name, shape, _becomes(name, shape, TORCH_DTYPES[codes[name]], part, dtype))
        for name, shape in shapes.items()
    ]
    if all(step.dtype is TORCH_DTYPES[codes[step.name]] for step in steps):
        return f"a {title(part)} with nothing to change"
    if source.is_file():
        return Group((source,), (Shard(Path(target.name), tuple(steps)),), None)
    return _group(tuple(paths), _inside(source, paths[0]), steps)


def _group(paths: tuple[Path, ...], first: Path, steps: list[Step]) -> Group:
    """Names the new files after the old ones; what was in shards is in shards again."""
    named = SHARD.fullmatch(first.stem)
    stem = named["model"] if named else first.stem
    files = _in_shards(steps) if named else [steps]
    if len(files) == 1:
        return Group(paths, (Shard(first.with_name(f"{stem}.safetensors"), tuple(steps)),), None)
    names = [f"{stem}-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    shards = tuple(Shard(first.with_name(name), tuple(part)) for name, part in zip(names, files, strict=True))
    return Group(paths, shards, first.with_name(f"{stem}.safetensors.index.json"))


def _in_shards(steps: list[Step]) -> list[list[Step]]:
    by_name = {step.name: step for step in steps}
    whole = [Slot(step.name, torch.uint8, (step.size,)) for step in steps]
    return [[by_name[slot.name] for slot in part] for part in split(whole, SHARD_BYTES)]


def _becomes(name: str, shape: tuple[int, ...], dtype: torch.dtype, part: Part, wanted: Target) -> torch.dtype:
    """The dtype that a tensor gets."""
    is_small = len(shape) < 2 or shape[0] == 1 or "time_embed" in name
    if is_small or not dtype.is_floating_point:
        return dtype
    if part == "transformer" and wanted != "fp8":
        return getattr(torch, wanted)
    if part == "transformer" and _is_block_matrix(name, shape):
        return FP8
    return torch.bfloat16 if dtype.itemsize > torch.bfloat16.itemsize else dtype


def _is_block_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Attention and feed-forward matrices of the transformer blocks, under the names of every layout."""
    return len(shape) == 2 and name.endswith(".weight") and re.search(r"(^|[._])blocks\.\d+\.", name) is not None


def _check_names(source: Path, target: Path) -> None:
    if source.is_file() != (target.suffix == ".safetensors"):
        raise CheckpointError(f"{target}: a folder becomes a folder, a file becomes a .safetensors file")
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise CheckpointError(f"{target} is there already; name a new one")
    if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
        raise CheckpointError(f"{target} lies inside {source}")
    if not target.absolute().parent.is_dir():
        raise CheckpointError(f"{target.parent} is no folder")


def _files(source: Path) -> list[Path]:
    """Every file but hidden ones: caches, receipts, version control."""
    if source.is_file():
        return [source]
    paths = sorted(path for path in source.rglob("*") if path.is_file())
    return [path for path in paths if not any(part.startswith(".") for part in path.relative_to(source).parts)]


def _is_index_of(path: Path, groups: Sequence[Group]) -> bool:
    """Whether a file is the old index of a part that gets new shards."""
    stem = path.name.removesuffix(".index.json").rpartition(".")[0]
    named = [SHARD.fullmatch(old.stem) for group in groups for old in group.paths if old.parent == path.parent]
    return path.name.endswith(".index.json") and any(match is not None and match["model"] == stem for match in named)


def _inside(source: Path, path: Path) -> Path:
    return path.relative_to(source) if source.is_dir() else Path(path.name)
