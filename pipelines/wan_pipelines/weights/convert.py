"""A checkpoint in a smaller dtype, tensor by tensor, in the layout and under the names that it has.

* bfloat16, float16: the transformers' matrices and kernels are cast. Vectors (norms, biases), the modulation tables
  and the time embedding stay as they are: they are small, and the models keep some of them in float32.
* fp8: the matrices of the transformer blocks become float8 e4m3fn with one float32 scale per row, the rest is as with
  bfloat16. `<layer>.weight` [out, in] stands for weight * weight_scale[:, None], `<layer>.weight_scale` is [out].
* The text encoder becomes bfloat16 when it is float32. VAE, image encoder and everything else are copied.

Sharded parts stay sharded, with a new index; what is finished is found again after an interruption.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from wan_pipelines.errors import CheckpointError
from wan_pipelines.weights.convert_plan import FP8, SCALE, Conversion, Group, Shard, Step, Target, plan_conversion
from wan_pipelines.weights.disk import check_room, locked
from wan_pipelines.weights.quantised import is_finite
from wan_pipelines.weights.shards import ShardWriter, is_written, open_shard
from wan_pipelines.weights.tensors import TensorSet, dtype_name, open_tensors

FP8_MAX = torch.finfo(FP8).max
#: rows that are quantised at once
ROWS = 256
#: says of which source and dtype the finished shards are
MANIFEST = ".conversion.json"


def convert(
    source: Path, target: Path, dtype: Target, on_bytes: Callable[[int], None] = lambda size: None
) -> Conversion:
    """Plan and run. Raises CheckpointError."""
    conversion = plan_conversion(source, target, dtype)
    run_conversion(conversion, on_bytes)
    return conversion


def run_conversion(conversion: Conversion, on_bytes: Callable[[int], None]) -> None:
    """Write the target; it appears when it is whole. Raises CheckpointError naming file and tensor.

    `on_bytes` hears of every written tensor and may raise to stop: what is finished then is kept beside the target.
    """
    check_room(conversion.target, conversion.bytes_after - _written(conversion))
    if conversion.source.is_file():
        _write_group(conversion.groups[0], conversion.target.parent, on_bytes)
        return
    staging = conversion.staging
    with locked(staging):
        _drop_others(conversion)
        for group in conversion.groups:
            _write_group(group, staging, on_bytes)
        for path in conversion.copies:
            _copy(conversion.source / path, staging / path)
        (staging / MANIFEST).unlink()
        staging.rename(conversion.target)  # replaces an empty folder
        (conversion.target / ".lock").unlink()


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[out, in] to float8 e4m3fn of the same shape and the scale of each row, float32 [out]: row = float8 * scale.

    A row's largest number becomes 448, the largest of the format; the error is at most 1/16 of a number, or
    2^-10 of the scale for the smallest ones.
    """
    values = torch.empty(weight.shape, dtype=FP8)
    scale = torch.empty(weight.shape[0])
    for start in range(0, weight.shape[0], ROWS):
        rows = slice(start, start + ROWS)
        part = weight[rows].float()
        scale[rows] = part.abs().amax(1) / FP8_MAX
        scale[rows][scale[rows] == 0] = 1.0
        # rounding may leave a number just above the largest, which some versions turn into NaN
        values[rows] = (part / scale[rows, None]).clamp_(-FP8_MAX, FP8_MAX).to(FP8)
    return values, scale


def _write_group(group: Group, root: Path, on_bytes: Callable[[int], None]) -> None:
    tensors = open_tensors(group.paths)
    for shard in group.shards:
        path = root / shard.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_written(path, shard.slots):
            on_bytes(sum(step.size for step in shard.steps))
            continue
        with open_shard(path, shard.slots) as writer:
            for step in shard.steps:
                _write(step, tensors, writer)
                on_bytes(step.size)
    if group.index is not None:
        _write_index(root / group.index, group.shards)


def _write(step: Step, tensors: TensorSet, writer: ShardWriter) -> None:
    if step.dtype is FP8:
        tensor = tensors.read(step.name)
        _check_finite(tensor, step, tensors, "is not finite")
        values, scale = quantise(tensor)
        writer.put(step.name, values)
        writer.put(f"{step.name}{SCALE}", scale)
        return
    cast = tensors.read_as(step.name, step.dtype)
    _check_finite(cast, step, tensors, f"is not finite as {dtype_name(step.dtype)}")
    writer.put(step.name, cast)


def _check_finite(tensor: Tensor, step: Step, tensors: TensorSet, problem: str) -> None:
    if not is_finite(tensor):
        raise CheckpointError(f"{tensors.source(step.name)}: {step.name} {problem}")


def _write_index(path: Path, shards: Sequence[Shard]) -> None:
    names = {slot.name: shard.path.name for shard in shards for slot in shard.slots}
    total = sum(step.size for shard in shards for step in shard.steps)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}
    path.write_text(json.dumps(index, indent=2), encoding="utf-8")


def _drop_others(conversion: Conversion) -> None:
    """Throw away what another source, dtype or size of shards left."""
    manifest = conversion.staging / MANIFEST
    fingerprint = json.dumps(_fingerprint(conversion))
    if manifest.is_file() and manifest.read_text() == fingerprint:
        return
    for path in conversion.staging.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()
    manifest.write_text(fingerprint)


def _fingerprint(conversion: Conversion) -> list[object]:
    """Tells whether finished shards are of this source, as it is now, and of this dtype."""
    paths = [path for group in conversion.groups for path in group.paths]
    files = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    return [conversion.dtype, files, [str(shard.path) for group in conversion.groups for shard in group.shards]]


def _written(conversion: Conversion) -> int:
    """Bytes that an earlier try has on the disk."""
    staging = conversion.staging
    return sum(path.stat().st_size for path in staging.rglob("*") if path.is_file()) if staging.is_dir() else 0


def _copy(source: Path, target: Path) -> None:
    if target.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.tmp")
    shutil.copyfile(source, partial)
    partial.replace(target)
