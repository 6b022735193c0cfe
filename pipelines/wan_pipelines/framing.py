"""Where the shown window lies inside the sampled frame.

The model samples multiples of its stride; the plan shows a centred window of that. A condition picture fills the
window exactly, so what comes out is framed as what went in.
"""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image
from torch import Tensor
from torch.nn import functional

from wan_pipelines.pixels import cover_crop
from wan_pipelines.plan import RenderPlan


def condition_image(picture: Image.Image, plan: RenderPlan) -> Tensor:
    """The picture as the model sees it: [3, sample height, sample width] in [-1, 1].

    Outside the window the edge is repeated; those rows and columns are cut off after decoding.
    """
    return framed(cover_crop(picture, *plan.visible_size)[None] * 2 - 1, plan)[0]


def framed(frames: Tensor, plan: RenderPlan) -> Tensor:
    """The window [F, 3, height, width] inside the sample: [F, 3, sample height, sample width], its edge repeated."""
    width, height = plan.visible_size
    left, top = _margins(plan)
    right, bottom = plan.sample_width - width - left, plan.sample_height - height - top
    return functional.pad(frames, (left, right, top, bottom), mode="replicate")


def visible(frames: Tensor, plan: RenderPlan) -> Tensor:
    """[F, 3, sample height, sample width] cut to the window."""
    width, height = plan.visible_size
    left, top = _margins(plan)
    return frames[:, :, top : top + height, left : left + width]


def frames_between(chunks: Iterator[Tensor], start: int, stop: int) -> Iterator[Tensor]:
    """Frames `start` to `stop` - 1 of a stream of [f, 3, H, W]; what follows is not computed.

    A chunk that lies before them comes as an empty one, so that whoever waits sees the stream go on.
    """
    done = 0
    while done < stop:
        chunk = next(chunks)
        yield chunk[max(0, start - done) : stop - done]
        done += chunk.shape[0]


def _margins(plan: RenderPlan) -> tuple[int, int]:
    """Columns left of the window and rows above it."""
    width, height = plan.visible_size
    return (plan.sample_width - width) // 2, (plan.sample_height - height) // 2
