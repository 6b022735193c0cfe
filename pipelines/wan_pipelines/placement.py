"""How a checkpoint is kept while a plan is rendered: chosen by arithmetic from free memory, with reasons. No torch.

`choose` takes the first mode that fits, best first, and says of each one before it what was missing. `offload.py`
performs what is chosen. The margins are estimates: no GPU has measured them yet (docs/decisions/0011-placement.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from wan_pipelines.errors import NoRoomError, PlacementError
from wan_pipelines.footprint import Footprint
from wan_pipelines.peaks import MODES, RESIDENCES, Mode, Peak, Residence, Stage, StagePeak, is_fp8, peak
from wan_pipelines.plan import PlanRequest, RenderPlan, make_plan
from wan_pipelines.profile import Profile

#: besides a mode, what one may wish for: the best that fits, of all modes or of those in fp8
WISHES: Final[Mapping[str, Sequence[Mode]]] = {
    "auto": MODES,
    "auto_fp8": [mode for mode in MODES if is_fp8(mode)],
    **{mode: [mode] for mode in MODES},
}
#: device memory that is left alone: kernels that CUDA loads at their first use, workspaces of cuBLAS
RESERVE = 512 * 2**20
#: of the activations, for holes between blocks of the caching allocator and for workspaces of cuDNN, which makes do
#: with less when there is less
HOLES = 0.06
#: host memory that is left alone, for frames, encoder and everything else
HOST_RESERVE = 2 * 2**30


@dataclass(frozen=True, slots=True)
class Verdict:
    """One mode held against the memory there is."""

    peak: Peak
    #: what it needs on the device, with the margin, and the stage that needs it; 0 without a device
    device: int
    stage: Stage
    #: what it needs in host memory, with the margin
    host: int
    #: empty when it fits, else what is missing, with numbers
    lacks: str

    def to_json(self) -> dict[str, Any]:
        return {
            "mode": self.peak.mode,
            "fits": not self.lacks,
            "device_needed": self.device,
            "stage": self.stage,
            "host_needed": self.host,
        }


@dataclass(frozen=True, slots=True)
class Placement:
    """The mode that was chosen, and the modes before it that did not fit."""

    peak: Peak
    free_device: int | None
    free_host: int | None
    #: the last one is the mode that was chosen
    verdicts: tuple[Verdict, ...]

    @property
    def mode(self) -> Mode:
        return self.peak.mode

    @property
    def residence(self) -> Residence:
        return RESIDENCES[self.mode]

    @property
    def fp8(self) -> bool:
        """Whether the denoiser's blocks hold their weights in fp8."""
        return is_fp8(self.mode)

    @property
    def sentence(self) -> str:
        """For the log: what was chosen and why nothing better."""
        chosen = self.verdicts[-1]
        size = gigabytes(chosen.device or chosen.host)
        passed_over = [f"{verdict.peak.mode} {verdict.lacks}" for verdict in self.verdicts if verdict.lacks]
        reasons = (
            f", because {'; '.join(passed_over)}; {_free(self.free_device, self.free_host)}" if passed_over else ""
        )
        return f"{self.mode}: {size} with margin, most of all in stage {chosen.stage}{reasons}"

    def to_json(self) -> dict[str, Any]:
        """For tables and output_meta; sizes in bytes."""
        stages = {name: {"weights": s.weights, "activations": s.activations} for name, s in self.peak.by_stage.items()}
        return {
            "mode": self.mode,
            "stages": stages,
            "host_bytes": self.peak.host_bytes,
            "free_device": self.free_device,
            "free_host": self.free_host,
            "considered": [verdict.to_json() for verdict in self.verdicts],
        }


def choose(
    footprint: Footprint,
    plan: RenderPlan,
    free_device: int | None,
    free_host: int | None,
    wish: str = "auto",
    known: int = 1,
) -> Placement:
    """The best mode that fits into so many free bytes; count as free what weights of this checkpoint hold already.

    `free_device` None is a machine without a GPU: everything is resident in host memory. `free_host` None is not
    held against anything. `known` counts the pictures at the start that condition the video. Raises NoRoomError
    with the numbers of every mode when none fits, PlacementError for a wish that is unknown or cannot be granted.
    """
    verdicts: list[Verdict] = []
    for mode in _modes(footprint, wish, on_device=free_device is not None):
        predicted = peak(footprint, plan, mode, known)
        verdicts.append(_judge(predicted, free_device, free_host))
        if not verdicts[-1].lacks:
            return Placement(predicted, free_device, free_host, tuple(verdicts))
    what = f"{plan.sample_width}x{plan.sample_height} and {plan.sample_frames} frames with model {footprint.model}"
    tried = "; ".join(f"{verdict.peak.mode} {verdict.lacks}" for verdict in verdicts)
    raise NoRoomError(f"not enough memory for {what}: {_free(free_device, free_host)}; {tried}")


@dataclass(frozen=True, slots=True)
class Reach:
    """Up to how many seconds every video of a profile fits, and how."""

    resolution: str
    seconds: int
    placement: Placement


def reach(
    footprint: Footprint,
    profile: Profile,
    resolution: str,
    free_device: int | None,
    free_host: int | None,
    wish: str = "auto",
) -> Reach:
    """What can be promised before any request is known. Raises NoRoomError when not even one second fits."""
    for seconds in range(profile.max_seconds, 0, -1):
        try:
            plan = largest_plan(profile, resolution, seconds)
            return Reach(resolution, seconds, choose(footprint, plan, free_device, free_host, wish))
        except NoRoomError:
            if seconds == 1:
                raise
    raise PlacementError(f"model {profile.name} makes no video of a whole second")


def largest_plan(profile: Profile, resolution: str = "720P", seconds: int | None = None) -> RenderPlan:
    """The longest video of a profile or one of so many seconds, 16:9, from a picture if it takes one.

    Its sample is as long as that of any shorter video: segments may be shorter than a video that is one sample.
    Raises PlanError for a profile that cannot run.
    """
    begins = [role for role in ("first_frame", "first_clip") if role in profile.inputs][:1]
    media = tuple(dict.fromkeys((*begins, *profile.needs)))
    request = PlanRequest("", None, resolution, 16 / 9, 1, 0, media=media)
    lengths = range(1, (seconds or profile.max_seconds) + 1)
    plans = [make_plan(profile, replace(request, seconds=length)) for length in lengths]
    return replace(plans[-1], sample_frames=max(plan.sample_frames for plan in plans))


def gigabytes(size: int) -> str:
    """Decimal gigabytes, as the tables of weights have them."""
    return f"{size / 1e9:.1f} GB"


def _modes(footprint: Footprint, wish: str, *, on_device: bool) -> list[Mode]:
    """The modes that are in question, best first."""
    if wish not in WISHES:
        raise PlacementError(f"placement: must be one of {', '.join(WISHES)} (got {wish!r})")
    settled: list[Mode] = [mode for mode in WISHES[wish] if footprint.fp8 in (None, is_fp8(mode))]
    if not settled:
        form = "fp8" if footprint.fp8 else "full precision"
        raise PlacementError(f"placement: {wish} cannot be, the weights of model {footprint.model} are in {form}")
    return settled if on_device else [mode for mode in settled if RESIDENCES[mode] == "resident"] or settled[:1]


def _judge(peak: Peak, free_device: int | None, free_host: int | None) -> Verdict:
    needed: dict[Stage, int] = {stage: _with_margin(size) for stage, size in peak.by_stage.items()}
    stage = max(needed, key=needed.__getitem__)
    device, host = needed[stage] + RESERVE, peak.host_bytes + HOST_RESERVE
    if free_device is None:
        device, host = 0, needed[stage] + HOST_RESERVE
    lacks = []
    if free_device is not None and device > free_device:
        lacks.append(f"needs {gigabytes(device)} on the device in stage {stage}")
    if free_host is not None and host > free_host:
        lacks.append(f"needs {gigabytes(host)} of host memory")
    return Verdict(peak, device, stage, host, " and ".join(lacks))


def _with_margin(size: StagePeak) -> int:
    return size.bytes + int(HOLES * size.activations)


def _free(device: int | None, host: int | None) -> str:
    places = ((device, "on the device"), (host, "of host memory"))
    parts = [f"{gigabytes(size)} {where}" for size, where in places if size is not None]
    return f"free are {' and '.join(parts)}" if parts else "free memory is not known"
