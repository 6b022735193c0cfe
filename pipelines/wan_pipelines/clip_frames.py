"""The frames that a clip brings into the video itself, and those of its end that motion is measured on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from torch import Tensor

from wan_pipelines.clip import shown_frames, upright
from wan_pipelines.pixels import cover_crop
from wan_pipelines.plan import RenderPlan
from wan_pipelines.retime import Retiming


def retiming(plan: RenderPlan) -> Retiming | None:
    """How the plan's frames become those of the file; None when they are the same."""
    return Retiming(plan.fps, plan.output_fps, plan.frames, plan.clip_frames) if plan.output_fps else None


def clip_frames(plan: RenderPlan, clip: Path | None) -> Iterator[Tensor]:
    """The clip's frames at the rate and the size of the file, [1, 3, height, width] in [0, 1] each.

    Where frames will be interpolated, the last ones follow once more, at the model's rate.
    """
    if clip is None:
        return
    timing = retiming(plan)
    rate, kept = (timing.shown, timing.kept) if timing else (plan.fps, plan.clip_frames)
    frames = shown_frames(clip, rate, kept)
    if timing:
        frames = chain(frames, islice(shown_frames(clip, plan.fps, plan.clip_frames), timing.begins, None))
    for frame in frames:
        yield cover_crop(upright(frame), plan.width, plan.height)[None]
