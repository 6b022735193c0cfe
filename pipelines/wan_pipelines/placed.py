"""A checkpoint in the memory there is: how it is kept is decided when it is loaded, and anew before each job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from wan_pipelines.conditions import check_family
from wan_pipelines.errors import CheckpointError, PlacementError
from wan_pipelines.footprint import EXPERTS, Footprint, footprint
from wan_pipelines.load import Checkpoint, OnPart, PartCache, find_parts, load_checkpoint
from wan_pipelines.offload import CPU, Job, Keeper, fit, free_device, free_host, measure, put
from wan_pipelines.peaks import STAYS
from wan_pipelines.placement import Placement, gigabytes, reach
from wan_pipelines.plan import RenderPlan
from wan_pipelines.profile import Profile
from wan_pipelines.weights.assemble import Source, complete
from wan_pipelines.weights.lora import Applied, apply_loras
from wan_pipelines.weights.quantised import is_quantised

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
    predicted = predict(profile, folder, dtype, options.config_dir)
    placement = _choose(predicted, profile, device, options)
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
    keeper = put(checkpoint, placement, device)
    measured = _with_hot(measure(predicted, checkpoint), loras)
    placed = Placed(checkpoint, keeper, measured, placement, loras, options.placement, options.neighbours)
    options.neighbours.append(placed)
    return placed


def predict(profile: Profile, folder: Path, dtype: str, config_dir: Path | None) -> Footprint:
    """The footprint of the checkpoint in a folder of any layout; only headers are read. Raises CheckpointError."""
    _, sources = find_parts(profile, folder, config_dir)
    try:
        counted = footprint({name: complete(source.config) for name, source in sources.items()}, profile, dtype)
    except PlacementError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return replace(counted, fp8=True if _is_quantised(sources) else None)


def _is_quantised(sources: Mapping[str, Source]) -> bool:
    return any(is_quantised(source.tensors) for name, source in sources.items() if name in EXPERTS)


def _choose(predicted: Footprint, profile: Profile, device: torch.device, options: LoadOptions) -> Placement:
    """Without a GPU all weights must fit into free memory; with one, the longest video of LEAST_RESOLUTION must."""
    free = free_device(device)
    if free is None:
        _check_host(predicted)
    try:
        return reach(predicted, profile, LEAST_RESOLUTION, free, None, options.placement).placement
    except PlacementError:
        if not any(other.keeper.on_device() for other in options.neighbours):
            raise
    for other in options.neighbours:
        other.keeper.rest()
    return reach(predicted, profile, LEAST_RESOLUTION, free_device(device), None, options.placement).placement


def _check_host(predicted: Footprint) -> None:
    parts = predicted.parts_fp8 if predicted.fp8 else predicted.parts
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
    """Low-rank additions beside the weights go to the device with the first forward and stay there."""
    size = sum(lora.hot.bytes for lora in loras if lora.hot is not None)
    parts = {
        name: replace(part, bytes=part.bytes + size) if name in EXPERTS else part
        for name, part in measured.parts.items()
    }
    return replace(measured, parts=parts, parts_fp8=parts)
