"""Where the shown window lies inside the sampled frame.

The model samples multiples of its stride; the plan shows a centred window of that. A condition image fills the
window exactly, so what comes out is framed as what went in.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor
from torch.nn import functional

from wan_pipelines.pixels import cover_crop, load_image
from wan_pipelines.plan import RenderPlan


def condition_image(path: Path, plan: RenderPlan) -> Tensor:
    """The image as the model sees it: [3, sample height, sample width] in [-1, 1].

    Outside the window the edge is repeated; those rows and columns are cut off after decoding.
    """
    width, height = plan.visible_size
    left, top = _margins(plan)
    right, bottom = plan.sample_width - width - left, plan.sample_height - height - top
    pixels = cover_crop(load_image(path), width, height) * 2 - 1
    return functional.pad(pixels[None], (left, right, top, bottom), mode="replicate")[0]


def visible(frames: Tensor, plan: RenderPlan) -> Tensor:
    """[F, 3, sample height, sample width] cut to the window."""
    width, height = plan.visible_size
    left, top = _margins(plan)
    return frames[:, :, top : top + height, left : left + width]


def first_frames(chunks: Iterator[Tensor], frames: int) -> Iterator[Tensor]:
    """Exactly the first `frames` frames of a stream of [f, 3, H, W]; the rest is not computed."""
    left = frames
    while left > 0:
        chunk = next(chunks)[:left]
        left -= chunk.shape[0]
        yield chunk


def _margins(plan: RenderPlan) -> tuple[int, int]:
    """Columns left of the window and rows above it."""
    width, height = plan.visible_size
    return (plan.sample_width - width) // 2, (plan.sample_height - height) // 2
