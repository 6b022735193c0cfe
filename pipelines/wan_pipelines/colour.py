"""Colours of a long video, held near those of its first frame.

Every sample that goes on from another one may be a little brighter, paler or redder than it, and these changes add up.
The usual answer gives each segment the mean and standard deviation of a reference picture (Reinhard et al., "Color
transfer between images", 2001; MeiGen-AI/MultiTalk and what was built on it, at full strength). That also undoes what
belongs there: a sunset, or a camera that turns away. So here a share of the difference is taken back at each seam,
less the larger it is, and nothing where the picture is another one. The shown frames before a seam slide towards what
the frames behind it begin with, so there is no jump.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

#: a difference of the means, of the range, from which on pictures are not taken for the same scene
FAR = 0.12
#: the same of the ratio of the standard deviations, less 1
FAR_RATIO = 0.3
#: a channel without any contrast
FLAT = 1e-3
#: no eye sees less: a quarter of one level of 255
LEAST = 0.001


@dataclass(frozen=True, slots=True)
class Look:
    """Mean and standard deviation of red, green and blue, of a range of 1."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def of(cls, frames: Tensor) -> Look:
        """Of [f, 3, H, W] in [0, 1]."""
        values = frames.double().transpose(0, 1).flatten(1)
        return cls(tuple(values.mean(1).tolist()), tuple(values.std(1, correction=0).tolist()))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Look:
        return cls(tuple(data["mean"]), tuple(data["deviation"]))


@dataclass(frozen=True, slots=True)
class Grade:
    """A change of colours: x becomes gain * x + offset, by channel."""

    gain: tuple[float, ...] = (1.0, 1.0, 1.0)
    offset: tuple[float, ...] = (0.0, 0.0, 0.0)

    @property
    def changes(self) -> bool:
        """Whether it does anything."""
        return self != Grade()

    def apply(self, frames: Tensor, share: Tensor | None = None) -> Tensor:
        """[f, 3, H, W] in [0, 1], changed; by so much of it for each frame, [f] in [0, 1]."""
        gain, offset = (frames.new_tensor(values).view(1, 3, 1, 1) for values in (self.gain, self.offset))
        part = frames.new_ones(len(frames)) if share is None else share.to(frames)
        part = part.view(-1, 1, 1, 1)
        return (frames * (1 + part * (gain - 1)) + part * offset).clamp(0, 1)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Grade:
        return cls(tuple(data["gain"]), tuple(data["offset"]))


@dataclass(frozen=True, slots=True)
class Slide:
    """Frames [start, stop) of the video, over which a change grows from nothing to the whole of it."""

    start: int
    stop: int
    grade: Grade

    def apply(self, frames: Tensor, first: int) -> Tensor:
        """Some frames of the video, the first of which has this number."""
        numbers = torch.arange(first, first + len(frames), device=frames.device)
        inside = (numbers >= self.start) & (numbers < self.stop)
        if not self.grade.changes or not inside.any():
            return frames
        share = (numbers - self.start + 1) / (self.stop - self.start)
        return torch.where(inside.view(-1, 1, 1, 1), self.grade.apply(frames, share), frames)


def towards(anchor: Look, found: Look, strength: float) -> Grade:
    """The change that takes back a share of what lies between two looks, the less the further they are apart."""
    shifts = [a - b for a, b in zip(anchor.mean, found.mean, strict=True)]
    ratios = [max(a, FLAT) / max(b, FLAT) - 1 for a, b in zip(anchor.deviation, found.deviation, strict=True)]
    distance = max(*(abs(shift) / FAR for shift in shifts), *(abs(ratio) / FAR_RATIO for ratio in ratios))
    share = strength * max(0.0, 1 - distance)
    gain = tuple(1 + share * ratio for ratio in ratios)
    offset = tuple(m + share * s - g * m for g, s, m in zip(gain, shifts, found.mean, strict=True))
    grade = Grade(gain, offset)
    most = share * max(*map(abs, shifts), *(abs(r) * d for r, d in zip(ratios, found.deviation, strict=True)))
    return grade if most >= LEAST else Grade()


def slid(chunks: Iterator[Tensor], first: int, slides: Sequence[Slide]) -> Iterator[Tensor]:
    """A stream of [f, 3, H, W] from frame `first` of the video on, with its changes of colour."""
    for chunk in chunks:
        changed = chunk
        for slide in slides:
            changed = slide.apply(changed, first)
        yield changed
        first += len(chunk)
