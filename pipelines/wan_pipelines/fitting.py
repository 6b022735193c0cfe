"""The best placement for a plan with the memory there is now, performed; other models make room when they must."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from wan_pipelines.errors import NoRoomError, PlacementError
from wan_pipelines.footprint import Footprint
from wan_pipelines.offload import Keeper
from wan_pipelines.peaks import STAYS
from wan_pipelines.placement import HOST_RESERVE, Placement, choose, gigabytes
from wan_pipelines.plan import RenderPlan

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Job:
    """What besides its plan decides how a job is placed."""

    #: a mode, or "auto"
    wish: str = "auto"
    #: pictures at the start that condition the video; 0 for a prompt alone
    known: int = 1
    #: models that hold device memory too and may leave it
    others: Sequence[Keeper] = ()


def fit(keeper: Keeper, footprint: Footprint, plan: RenderPlan, job: Job) -> Placement:
    """Before a job: the best placement for its plan with the memory there is now, performed.

    `footprint` is that of the loaded checkpoint (`measure`). While nothing fits, the other models leave the device one
    by one. Raises PlacementError with the numbers.
    """
    placement = make_room(job.others, lambda: _choose(keeper, footprint, plan, job))
    if placement.residence != keeper.residence:
        keeper.move(placement.residence)
    return placement


def make_room(others: Iterable[Keeper], attempt: Callable[[], T]) -> T:
    """The attempt; as long as it raises NoRoomError, again after another model has left the device.

    Raises the last NoRoomError, and PlacementError when the host has no room for a model that would leave.
    """
    leaving = (other for other in others if other.on_device())
    while True:
        try:
            return attempt()
        except NoRoomError:
            other = next(leaving, None)
            if other is None:
                raise
            _check_host(other.on_device(), "another model")
            other.rest()


def _check_host(leaves: int, what: str) -> None:
    """Raises PlacementError when the host has no room for weights that would leave the device."""
    host = free_host()
    if host is not None and leaves and leaves + HOST_RESERVE > host:
        raise PlacementError(
            f"not enough memory for {what}: {gigabytes(leaves)} of weights would go to host memory, "
            f"where {gigabytes(host)} are free"
        )


def _choose(keeper: Keeper, footprint: Footprint, plan: RenderPlan, job: Job) -> Placement:
    """Raises PlacementError also when the host has no room for what would leave the device."""
    free = free_device(keeper.device)
    if free is None:
        return choose(footprint, plan, None, None, job.wish, job.known)
    placement = choose(footprint, plan, free + keeper.on_device(), None, job.wish, job.known)
    leaves = keeper.on_device(but=STAYS[placement.residence])
    _check_host(leaves, f"{placement.mode} with model {footprint.model}")
    return placement


def free_device(device: torch.device) -> int | None:
    """Bytes that torch could still allocate on a CUDA device; None elsewhere."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def free_host(root: Path = Path("/")) -> int | None:
    """Bytes of host memory that can be had without pushing anything out, a container's limit respected; None where
    the system does not say. `root` is where `proc` and `sys` lie."""
    meminfo = re.search(r"^MemAvailable:\s+(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    if meminfo is None:
        return None
    free = int(meminfo[1]) * 1024
    group = root / "sys/fs/cgroup"
    limit = _text(group / "memory.max").strip()
    if not limit.isdigit():
        return free
    cached = re.search(r"^inactive_file (\d+)", _text(group / "memory.stat"), re.MULTILINE)
    used = int(_text(group / "memory.current")) - (int(cached[1]) if cached else 0)
    return min(free, int(limit) - used)


def _text(path: Path) -> str:
    """What the file holds; empty when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
