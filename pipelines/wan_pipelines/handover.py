"""From the frames of a clip to the new ones: its last picture goes on moving with them, and gives way to them.

A clip is shown as it is. What the model goes on from went through the autoencoder, and perhaps through a smaller size:
at the cut fine detail would be gone at once, and colours a little off. So the last picture of the clip is moved as the
new frames move, and fades while they take over. Where it is not what they show, because something comes into view or
turns, they are shown as they are.

How things move is measured between frames that the model made, the clip's last one among them, which look alike: dense
inverse search, from a new frame back to that one (Kroeger et al., "Fast optical flow using dense inverse search", 2016;
OpenCV's DISOpticalFlow). Once for each latent frame; in between, motion is even.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wan_pipelines.profile import TEMPORAL_STRIDE

#: long side in pixels at which motion is measured, and the picture compared
MEASURED = 640
#: of that side: how far motion is smoothed, because a noisy match bends edges, and the square that is compared at once
SMOOTH, AROUND = 0.03, 0.03
#: how far beyond the edge of the picture its last pixels still count a little, of half a side: a soft border
EDGE = 0.02
#: mean difference, of a range of 1, up to which two places show the same thing, and from which on they do not
ALIKE, OTHER = 0.06, 0.18


def handed_over(own: Iterator[Tensor], new: Iterator[Tensor], span: int) -> Iterator[Tensor]:
    """All frames of a video as float32 chunks [f, 3, height, width] in [0, 1]: those of the clip, then the new ones.

    With `span` the first of the new frames is the clip's last one as the model shows it. It is not shown; in so many
    behind it the clip's own last frame lives on, and these come at its size.
    """
    last: Tensor | None = None
    for last in own:
        yield last
    if last is None or not span:
        yield from new
        return
    handover: _Handover | None = None
    for chunk in new:
        if handover is None and len(chunk):
            handover, chunk = _Handover.begin(last.to(chunk), chunk[:1], span), chunk[1:]
        yield from (chunk,) if handover is None else handover.take(chunk)


@dataclass(slots=True)
class _Handover:
    """What is known of the clip's end, and how far the new frames have come. Pictures are [1, 3, H, W]."""

    #: the last picture of the clip
    last: Tensor
    #: the same as the model shows it, at the size at which motion is measured
    seen: Tensor
    span: int
    #: where in `seen` the pixels of the newest measured frame were, in pixels from their own place [1, 2, h, w]
    way: Tensor
    done: int = 0
    #: new frames of a latent frame whose motion is not measured yet
    waiting: list[Tensor] = field(default_factory=list)
    #: the newest motion before it is smoothed: where the next search begins
    found: np.ndarray | None = None

    @classmethod
    def begin(cls, last: Tensor, shown: Tensor, span: int) -> _Handover:
        seen = _measurable(shown)
        return cls(last, seen, span, seen.new_zeros(1, 2, *seen.shape[-2:]))

    def take(self, chunk: Tensor) -> Iterator[Tensor]:
        """What is ready with these frames; perhaps nothing, [0, 3, h, w]."""
        early = chunk[: self.span - self.done - len(self.waiting)]
        self.waiting += [frame[None] for frame in early]
        while self.waiting and len(self.waiting) >= (group := min(TEMPORAL_STRIDE, self.span - self.done)):
            yield torch.cat(list(self._mixed(self.waiting[:group])))
            del self.waiting[:group]
        yield chunk[len(early) :]

    def _mixed(self, frames: list[Tensor]) -> Iterator[Tensor]:
        """Frames of one latent frame, at the size of the clip."""
        before, self.way = self.way, self._measured(frames[-1])
        for number, frame in enumerate(frames, 1):
            way = before.lerp(self.way, number / len(frames))
            weight = self._alike(frame, way) * (1 - self.done / self.span)
            size = self.last.shape[-2:]
            share = functional.interpolate(weight, size, mode="bilinear")
            yield _resized(frame, size).lerp(_moved(self.last, way), share)
            self.done += 1

    def _measured(self, frame: Tensor) -> Tensor:
        """Where in `seen` the pixels of the frame were [1, 2, h, w]."""
        search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        search.setFinestScale(0)
        begin = np.zeros((*self.seen.shape[-2:], 2), np.float32) if self.found is None else self.found
        self.found = search.calc(_grey(_measurable(frame)), _grey(self.seen), begin)  # [h, w, 2]
        smooth = cv2.GaussianBlur(self.found, (0, 0), SMOOTH * MEASURED)
        return torch.from_numpy(smooth).permute(2, 0, 1)[None].to(self.seen)

    def _alike(self, frame: Tensor, way: Tensor) -> Tensor:
        """How far the moved picture shows what the frame does, 0 to 1 [1, 1, h, w]; nothing from beyond its edge."""
        apart = (_moved(self.seen, way) - _measurable(frame)).abs().mean(dim=1, keepdim=True)
        reach = round(AROUND * MEASURED / 2)
        for square, pad in (((2 * reach + 1, 1), (reach, 0)), ((1, 2 * reach + 1), (0, reach))):
            apart = functional.avg_pool2d(apart, square, 1, pad, count_include_pad=False)
        beyond = (_grid(way, apart.shape[-2:]).abs().amax(dim=-1) - 1)[:, None] / EDGE
        return ((OTHER - apart) / (OTHER - ALIKE)).clamp(0, 1) * (1 - beyond).clamp(0, 1)


def _measurable(frame: Tensor) -> Tensor:
    """[1, 3, H, W] brought to the size at which motion is measured."""
    height, width = frame.shape[-2:]
    scale = MEASURED / max(height, width)
    return _resized(frame, torch.Size((max(1, round(height * scale)), max(1, round(width * scale)))))


def _resized(frame: Tensor, size: torch.Size) -> Tensor:
    if frame.shape[-2:] == size:
        return frame
    return functional.interpolate(frame, size, mode="bicubic", antialias=True).clamp(0, 1)


def _grey(picture: Tensor) -> np.ndarray:
    """[1, 3, h, w] in [0, 1] as bytes [h, w]."""
    return (picture[0].mean(dim=0) * 255).round().byte().cpu().numpy()


def _moved(picture: Tensor, way: Tensor) -> Tensor:
    """The picture [1, 3, H, W], each pixel taken from where it was; `way` may be of another size."""
    grid = _grid(way, picture.shape[-2:])
    return functional.grid_sample(picture, grid, mode="bicubic", padding_mode="border", align_corners=False).clamp(0, 1)


def _grid(way: Tensor, size: torch.Size) -> Tensor:
    """Places [1, H, W, 2] in a picture of this size, -1 to 1 from edge to edge."""
    height, width = way.shape[-2:]
    step = way * way.new_tensor([2 / width, 2 / height]).view(1, 2, 1, 1)
    still = functional.affine_grid(torch.eye(2, 3).to(way)[None], [1, 3, *size], align_corners=False)
    return still + functional.interpolate(step, size, mode="bilinear").permute(0, 2, 3, 1)
