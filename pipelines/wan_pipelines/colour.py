"""Colours of a long video, held near those of its first frame.

Every sample that goes on from another one may be a little brighter, paler or redder than it, and these changes add up.
The usual answer gives each segment the mean and standard deviation of a reference picture (Reinhard et al., "Color
transfer between images", 2001; MeiGen-AI/MultiTalk and what was built on it, at full strength). That also undoes what
belongs there: a sunset, or a camera that turns away. So here a share of the difference is taken back at each seam,
less the larger it is, and nothing where the picture is another one. The shown frames before a seam slide towards what
the next sample was told of them, so there is no jump from that. What a model does to colours of its own in the first
frames behind a seam is found in what is shown, and taken back too: the frames on both sides show the same scene. The
same is done behind the picture or the clip that a video of several samples begins with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

#: a difference of the means, of the range, from which on pictures are not taken for the same scene
FAR = 0.12
#: the same of the ratio of the standard deviations, less 1
FAR_RATIO = 0.3
#: a channel without any contrast
FLAT = 1e-3
#: frames on each side of a seam that are compared, and between them those in which a model changes the colours: the
#: first latent frame behind the seam
COMPARED, SETTLING = 4, 4
#: strength where two looks are a quarter of a second apart: all is taken back up to half of the differences above
SURE = 2.0
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
    grade: Grade = Grade()
    #: whether the frames go on from others, so that their colours can be joined
    seam: bool = False
    #: how those look, where they are not the ones before in the same stream
    before: Look | None = None

    def apply(self, frames: Tensor, first: int, begin: Grade = Grade()) -> Tensor:
        """Some of its frames, the first of which has this number in the video.

        `begin` is a change before that, the same in all frames but the first few, in which the model's own one grows.
        """
        behind = torch.arange(first, first + len(frames), device=frames.device) - self.start + 1
        share = behind / (self.stop - self.start)
        joined = begin.apply(frames, (behind / (SETTLING + 1)).clamp(max=1)) if begin.changes else frames
        return self.grade.apply(joined, share) if self.grade.changes else joined


@dataclass(slots=True)
class _Reel:
    """A stream of chunks [f, 3, H, W] that can be cut anywhere."""

    chunks: Iterator[Tensor]
    ahead: list[Tensor] = field(default_factory=list)

    def peek(self, frames: int) -> Tensor:
        """The next frames, or as many as there are; they come again."""
        while sum(map(len, self.ahead)) < frames and (chunk := next(self.chunks, None)) is not None:
            self.ahead.append(chunk)
        return torch.cat(self.ahead)[:frames] if self.ahead else torch.empty(0)

    def take(self, frames: int) -> Iterator[Tensor]:
        """So many of them, in the chunks that they come in."""
        while frames > 0 and ((chunk := self.ahead.pop(0) if self.ahead else next(self.chunks, None)) is not None):
            if len(chunk) > frames:
                self.ahead.insert(0, chunk[frames:])
                chunk = chunk[:frames]
            frames -= len(chunk)
            yield chunk


def towards(anchor: Look, found: Look, strength: float) -> Grade:
    """The change that takes back a share of what lies between two looks, the less the further they are apart.

    The share is `strength` of what is left of 1 after the distance, at most 1.
    """
    shifts = [a - b for a, b in zip(anchor.mean, found.mean, strict=True)]
    ratios = [max(a, FLAT) / max(b, FLAT) - 1 for a, b in zip(anchor.deviation, found.deviation, strict=True)]
    distance = max(*(abs(shift) / FAR for shift in shifts), *(abs(ratio) / FAR_RATIO for ratio in ratios))
    share = min(1.0, strength * max(0.0, 1 - distance))
    gain = tuple(1 + share * ratio for ratio in ratios)
    offset = tuple(m + share * s - g * m for g, s, m in zip(gain, shifts, found.mean, strict=True))
    grade = Grade(gain, offset)
    most = share * max(*map(abs, shifts), *(abs(r) * d for r, d in zip(ratios, found.deviation, strict=True)))
    return grade if most >= LEAST else Grade()


def continued(before: Look, settled: Tensor) -> Grade:
    """What brings the frames behind a seam to the colours of the last ones before it, by those that have settled."""
    return towards(before, Look.of(settled), SURE) if len(settled) else Grade()


def slid(chunks: Iterator[Tensor], first: int, slides: Sequence[Slide]) -> Iterator[Tensor]:
    """A stream of [f, 3, H, W] from frame `first` of the video on, with its changes of colour.

    The slides follow each other; what lies outside them comes as it is.
    """
    reel, shown = _Reel(chunks), torch.empty(0)
    for slide in slides:
        yield from reel.take(slide.start - first)
        begin = _join(slide, shown, reel) if slide.seam else Grade()
        first = slide.start
        for chunk in reel.take(slide.stop - slide.start):
            changed = slide.apply(chunk, first, begin)
            first += len(chunk)
            shown = torch.cat([shown, changed])[-COMPARED:] if len(shown) else changed[-COMPARED:]
            yield changed
    yield from reel.ahead
    yield from reel.chunks


def _join(slide: Slide, shown: Tensor, reel: _Reel) -> Grade:
    settled = reel.peek(SETTLING + COMPARED)[SETTLING:]
    before = slide.before or (Look.of(shown) if len(shown) else None)
    return continued(before, settled) if before else Grade()
