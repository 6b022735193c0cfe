"""A sample longer than the weights know, in windows: which latent frames a forward sees, and what they count. No torch.

All latents of the video are denoised together. In each step their velocity is found window by window, none longer than
the sample that the weights were trained on, and is the weighted mean of two where windows overlap: Gen-L-Video (arXiv
2305.18264), MultiDiffusion (arXiv 2302.08113). For models that cannot be told of frames, so that no segment could go on
from another (`segments.py`). Why so, and what it costs: docs/decisions/0017-windows.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from wan_pipelines.errors import ProfileError
from wan_pipelines.profile import TEMPORAL_STRIDE

#: latent frames that two windows share: 16 frames, a second of the models that need windows
OVERLAP = 4
#: a window is at least so many overlaps long, which keeps any latent frame within two windows
OVERLAPS = 3


@dataclass(frozen=True, slots=True)
class Windowing:
    """How a long sample is divided, in latent frames. Raises ProfileError."""

    #: most of one window
    longest: int
    #: how many two neighbours share
    overlap: int = OVERLAP

    def __post_init__(self) -> None:
        if self.overlap < 1 or self.longest < OVERLAPS * self.overlap:
            limit = f"between 1 and a third of a window of {self.longest}"
            raise ProfileError(f"overlap of windows: must be {limit} latent frames (got {self.overlap})")

    def split(self, latents: int) -> tuple[range, ...]:
        """As few windows as can be, in order. Lengths differ by one at most, the longer ones come first."""
        new = self.longest - self.overlap
        count = max(1, -(-(latents - self.overlap) // new))
        length, longer = divmod(latents + (count - 1) * self.overlap, count)
        starts = [number * (length - self.overlap) + min(number, longer) for number in range(count)]
        return tuple(range(start, start + length + (number < longer)) for number, start in enumerate(starts))


def weights(windows: Sequence[range], number: int) -> tuple[float, ...]:
    """How much each latent frame of a window counts; over all windows that is 1 for every frame of the sample.

    Over an overlap the next window rises from nothing as this one falls. Its first frame counts nothing because the
    model takes the first latent frame for a picture, which only that of the video is.
    """
    window = windows[number]
    found = [1.0] * len(window)
    if number > 0:
        shared = windows[number - 1].stop - window.start
        found[:shared] = [place / shared for place in range(shared)]
    if number + 1 < len(windows):
        shared = window.stop - windows[number + 1].start
        found[-shared:] = [1 - place / shared for place in range(shared)]
    return tuple(found)


def passed_on(windows: Sequence[range]) -> list[tuple[range, range]]:
    """For each window but the first: the latent frames that the one before has alone, and those that are new in it.

    There are never more new ones than those.
    """
    return [(range(a.start, b.start), range(a.stop, b.stop)) for a, b in pairwise(windows)]


def frames_of(window: range) -> range:
    """Frames of the sample that the latent frames of a window stand for: one for the first, four for every other."""
    return range(max(0, TEMPORAL_STRIDE * (window.start - 1) + 1), TEMPORAL_STRIDE * (window.stop - 1) + 1)
