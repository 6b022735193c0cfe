"""Frames at the model's rate to frames at another one: motion estimated block by block, by FFmpeg's minterpolate.

New frames lie between two of the model's, moved along the motion from the one to the other; where an output time is
that of a frame, it is that frame unchanged. After the last frame there is nothing to move to, and it is held. Across a
cut nothing is mixed. Motion is known to whole pixels, so frames come at the size of the file. Runs on one CPU core and
holds a few frames.

Source: FFmpeg, libavfilter/vf_minterpolate.c. It keeps four frames and gives those between the second and the third,
so the end has to be pushed out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
from av.filter import Graph

#: both directions, overlapped blocks: the filter's defaults, written down because they decide the pixels
_OPTIONS = "mi_mode=mci:mc_mode=obmc:me_mode=bilat:me=epzs:scd=fdiff"
#: frames that the filter sees on each side of a gap
_CONTEXT = 2


@dataclass(frozen=True, slots=True)
class Retiming:
    """Which frames come at which rate. A clip at the start brings its own frames at the rate of the file."""

    #: frames per second that the model makes
    native: int
    #: frames per second of the file
    shown: int
    #: frames of the video at the native rate
    frames: int
    #: of these the clip's
    clip_frames: int = 0

    @property
    def shown_frames(self) -> int:
        """Frames of the file; exact where the video is whole seconds long."""
        return self.frames * self.shown // self.native

    @property
    def kept(self) -> int:
        """Frames at the start of the file that the clip has itself: those shown before its end."""
        return math.ceil(Fraction(self.clip_frames * self.shown, self.native))

    @property
    def begins(self) -> int:
        """The native frame from which on frames are interpolated: a little before the clip's end, for its motion.

        It lies on the grid of both rates.
        """
        step = self.native // math.gcd(self.native, self.shown)
        return max(0, self.clip_frames - _CONTEXT) // step * step

    @property
    def incoming(self) -> int:
        """Frames that must come: the clip's own, then native ones from `begins` on."""
        return self.kept + self.frames - self.begins


class Retimer:
    """Takes frames one by one and gives those of the file; all must have one size and format."""

    def __init__(self, timing: Retiming) -> None:
        self._timing = timing
        self._to_pass = timing.kept
        self._graph: Any = None
        self._pushed = 0
        self._last: av.VideoFrame | None = None
        #: the next frame of the file
        self._next = timing.kept

    def push(self, frame: av.VideoFrame) -> Iterator[av.VideoFrame]:
        """The frames that are ready when this one has come."""
        if self._to_pass:
            self._to_pass -= 1
            yield frame
            return
        yield from self._feed(frame)

    def finish(self) -> Iterator[av.VideoFrame]:
        """The frames that are left."""
        while self._last is not None and self._next < self._timing.shown_frames:
            yield from self._feed(self._last)

    def _feed(self, frame: av.VideoFrame) -> Iterator[av.VideoFrame]:
        if self._graph is None:
            self._graph = _graph(frame, self._timing)
        self._last = frame
        frame.pts, frame.time_base = self._pushed, Fraction(1, self._timing.native)
        self._pushed += 1
        self._graph.push(frame)
        first = self._timing.begins * self._timing.shown // self._timing.native
        for ready in _ready(self._graph):
            if self._next == first + (ready.pts or 0) and self._next < self._timing.shown_frames:
                self._next += 1
                yield ready


def _graph(frame: av.VideoFrame, timing: Retiming) -> Any:
    graph: Any = Graph()
    time_base = Fraction(1, timing.native)
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format.name, time_base=time_base)
    between = graph.add("minterpolate", f"fps={timing.shown}:{_OPTIONS}")
    source.link_to(between)
    between.link_to(graph.add("buffersink"))
    graph.configure()
    return graph


def _ready(graph: Any) -> Iterator[av.VideoFrame]:
    while True:
        try:
            yield graph.pull()
        except BlockingIOError:
            return
