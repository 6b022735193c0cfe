"""A checkpoint in the memory there is: how it is kept is decided when it is loaded, and anew before each job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import torch

from wan_pipelines.conditions import check_family
from wan_pipelines.errors import CheckpointError, PlacementError
from wan_pipelines.fitting import Job, fit, free_device, free_host, make_room
from wan_pipelines.footprint import EXPERTS, Footprint, Part, footprint
from wan_pipelines.load import (
    DTYPES,
    Checkpoint,
    OnPart,
    PartCache,
    Precision,
    find_parts,
    load_checkpoint,
    precision_of,
)
from wan_pipelines.offload import CPU, Keeper, measure, put
from wan_pipelines.peaks import STAYS
from wan_pipelines.placement import Placement, gigabytes, reach
from wan_pipelines.plan import RenderPlan
from wan_pipelines.profile import Profile
from wan_pipelines.streaming import tensors_of
from wan_pipelines.weights.assemble import Source, build, complete
from wan_pipelines.weights.lora import Applied, apply_loras, check_loras
from wan_pipelines.weights.quantised import is_quantised, stored_bytes

#: the size that a model must be able to make to be loaded at all
LEAST_RESOLUTION = "720P"


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a checkpoint is loaded, besides its profile, folder and device."""

    #: of transformers and text encoder; by default float32 on a CPU and bfloat16 elsewhere
    dtype: str | None = None
    #: one of `placement.WISHES`
    placement: str = "auto"
    #: the bundled configs, for weights that come without
    config_dir: Path | None = None
    parts: PartCache | None = None
    #: models that are in this process already; the new one joins them
    neighbours: list[Placed] = field(default_factory=list)
    on_part: OnPart | None = None
    #: folder in which a model that listens keeps what it heard, for the next job with the same sound
    speech_cache: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A loaded checkpoint and what decides where its parts are."""

    checkpoint: Checkpoint
    keeper: Keeper
    #: of the parts as they are loaded
    footprint: Footprint
    #: as chosen at loading, for the longest video at LEAST_RESOLUTION
    placement: Placement
    loras: tuple[Applied, ...]
    wish: str
    #: every model of this process, this one among them
    neighbours: list[Placed]

    def fit(self, plan: RenderPlan, known: int = 1) -> Placement:
        """Before a stage of a job: keep the parts in the best way for its plan. Raises PlacementError.

        `known` counts the pictures that condition the video. Models that rest leave the device when they must.
        """
        others = [other.keeper for other in self.neighbours if other is not self]
        return fit(self.keeper, self.footprint, plan, Job(self.wish, known, others))


def load_placed(profile: Profile, folder: Path, device: torch.device, options: LoadOptions) -> Placed:
    """Load the weights in `folder`, each part where the placement wants it.

    Raises PlacementError before anything is loaded when there is not enough memory, and CheckpointError.
    """
    dtype = options.dtype or ("float32" if device.type == "cpu" else "bfloat16")
    _, sources = find_parts(profile, folder, options.config_dir)
    predicted = predict(profile, folder, sources, dtype)
    _check_loras(profile, folder, sources)
    known = _Known(
        shared=_shared(sources, dtype, device, options.parts),
        mapped=max(predicted.parts[name].bytes if _is_mapped(sources[name], dtype) else 0 for name in sources),
    )
    placement = _choose(predicted, profile, device, options, known)
    checkpoint = load_checkpoint(
        profile,
        folder,
        _places(placement, predicted, device),
        dtype,
        config_dir=options.config_dir,
        parts=options.parts,
        on_part=options.on_part,
    )
    check_family(profile, checkpoint)
    loras = apply_loras(checkpoint.experts, profile, folder)
    keeper = put(checkpoint, placement, device, [lora.hot for lora in loras if lora.hot is not None])
    measured = _with_hot(measure(predicted, checkpoint), loras)
    placed = Placed(checkpoint, keeper, measured, placement, loras, options.placement, options.neighbours)
    options.neighbours.append(placed)
    return placed


def predict(profile: Profile, folder: Path, sources: Mapping[str, Source], dtype: str) -> Footprint:
    """The footprint of a checkpoint from its headers. Raises CheckpointError."""
    try:
        counted = footprint({name: complete(source.config) for name, source in sources.items()}, profile, dtype)
    except PlacementError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    quantised = [name for name in EXPERTS if name in sources and is_quantised(sources[name].tensors)]
    stored = {name: _as_stored(counted.parts_fp8[name], sources[name]) for name in quantised}
    return replace(counted, parts_fp8={**counted.parts_fp8, **stored}, fp8=True if quantised else None)


def _as_stored(part: Part, source: Source) -> Part:
    """A quantised part takes what its file takes, which for GGUF is less than a byte for each value."""
    share = stored_bytes(source.tensors) / part.bytes
    return replace(part, bytes=int(share * part.bytes), blocks=tuple(int(share * block) for block in part.blocks))


def _check_loras(profile: Profile, folder: Path, sources: Mapping[str, Source]) -> None:
    """Before the weights are read, which may take minutes."""
    if profile.loras:
        names = [name for name in EXPERTS if name in sources]
        models = {expert: build(sources[name].config) for expert, name in zip(("high", "low"), names, strict=False)}
        check_loras(profile, folder, models)


def _shared(sources: Mapping[str, Source], dtype: str, device: torch.device, parts: PartCache | None) -> int:
    """Bytes on the device of parts that another model has there already."""
    precision = Precision(DTYPES[dtype])
    others = [source for name, source in sources.items() if name not in EXPERTS] if parts else []
    found = [parts.find(source, precision_of(source, precision)) for source in others] if parts else []
    tensors = [tensor for module in found if module is not None for tensor in tensors_of(module)]
    return sum(tensor.nbytes for tensor in tensors if tensor.device.type == device.type)


def _is_mapped(source: Source, dtype: str) -> bool:
    """Whether the weights go to the device from the file's own pages: their largest tensor needs no conversion."""
    shapes = source.tensors.shapes()
    largest = max(shapes, key=lambda name: prod(shapes[name]))
    return source.tensors.dtypes()[largest] == dtype


@dataclass(frozen=True, slots=True)
class _Known:
    """What need not be found anew."""

    #: bytes on the device that another model holds too
    shared: int
    #: of the largest part that passes through host memory without taking any
    mapped: int


def _choose(
    predicted: Footprint, profile: Profile, device: torch.device, options: LoadOptions, known: _Known
) -> Placement:
    """Without a GPU all weights must fit into free memory; with one, the longest video of LEAST_RESOLUTION must."""
    if free_device(device) is None:
        _check_host(predicted, predicted.parts_fp8 if predicted.fp8 else predicted.parts)

    def attempt() -> Placement:
        free, host = free_device(device), free_host()
        room = None if free is None else free + known.shared
        host = None if free is None or host is None else host + known.mapped
        return reach(predicted, profile, LEAST_RESOLUTION, room, host, options.placement).placement

    placement = make_room((other.keeper for other in options.neighbours), attempt)
    if placement.fp8 and not predicted.fp8 and not known.mapped:  # made from weights that are in host memory first
        _check_host(predicted, {name: part for name, part in predicted.parts.items() if name in EXPERTS})
    return placement


def _check_host(predicted: Footprint, parts: Mapping[str, Part]) -> None:
    size, free = sum(part.bytes for part in parts.values()), free_host()
    if free is not None and size > free:
        raise PlacementError(
            f"not enough memory for model {predicted.model}: its weights take {gigabytes(size)} of host memory, "
            f"where {gigabytes(free)} are free"
        )


def _places(placement: Placement, predicted: Footprint, device: torch.device) -> dict[str, torch.device]:
    """Where each part is loaded to: only what stays goes to the device, and experts that become fp8 do so before."""
    becomes_fp8 = placement.fp8 and not predicted.fp8
    stays = STAYS[placement.residence] - (set(EXPERTS) if becomes_fp8 else set())
    return {name: device if name in stays else CPU for name in predicted.parts}


def _with_hot(measured: Footprint, loras: tuple[Applied, ...]) -> Footprint:
    """Low-rank additions beside the weights go to the device with the first forward of their expert and stay there."""
    parts = dict(measured.parts)
    for lora in loras:
        if lora.hot is not None:
            name = EXPERTS[lora.expert == "low"]
            parts[name] = replace(parts[name], bytes=parts[name].bytes + lora.hot.bytes)
    return replace(measured, parts=parts, parts_fp8=parts)
