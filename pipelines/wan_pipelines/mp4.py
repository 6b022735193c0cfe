"""Frames to an MP4 file as they come: H.264 with BT.709 tags, AAC sound, index first.

RGB becomes YUV on the tensor's device, so at most 1.5 bytes per pixel travel (3 at the small size when frames are
scaled). The planes go to libx264 in this process; nothing converts colours a second time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import av
import numpy as np
import torch
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter

from wan_kernels.color import rgb_to_i420, rgb_to_yuv444
from wan_pipelines.audio import RATE, SoundReader
from wan_pipelines.errors import RenderError
from wan_pipelines.retime import Retimer, Retiming
from wan_pipelines.watermark import Watermark

#: pixels converted at once, so that memory does not follow the length of a chunk
SLICE_PIXELS = 8_000_000
MAX_THREADS = 16
SOUND_BIT_RATE = 192_000
SCALER = Interpolation.BICUBIC | Interpolation.ACCURATE_RND


class FrameCountError(RenderError):
    """More or fewer frames came than were announced."""


@dataclass(frozen=True, slots=True)
class Mp4Spec:
    """What the file will be. Sides in px and even; `fps` frames per second; `frames` is exact."""

    width: int
    height: int
    fps: float
    frames: int
    #: any file with sound; cut to the video's length, or followed by silence up to it
    sound: Path | None = None
    watermark: bool = False
    #: quality of libx264, lower is better
    crf: int = 18
    preset: str = "veryfast"
    #: how frames that come at another rate become those of the file
    retiming: Retiming | None = None

    def __post_init__(self) -> None:
        if self.width % 2 or self.height % 2:
            raise ValueError(f"H.264 in 4:2:0 needs even sides (got {self.width}x{self.height})")
        if min(self.width, self.height, self.frames, self.fps) <= 0:
            raise ValueError("width, height, fps and frames must be positive")
        if self.retiming and (self.retiming.shown, self.retiming.shown_frames) != (self.fps, self.frames):
            raise ValueError("fps and frames must be those that the retiming gives")

    @property
    def rate(self) -> Fraction:
        return Fraction(self.fps).limit_denominator(1001)

    @property
    def seconds(self) -> float:
        return float(self.frames / self.rate)

    @property
    def incoming(self) -> int:
        """Frames that must be written."""
        return self.retiming.incoming if self.retiming else self.frames


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What a finished file is."""

    width: int
    height: int
    fps: float
    frames: int
    seconds: float
    has_audio: bool
    #: seconds of given sound in it; the rest of the track is silence
    audio_seconds: float
    #: bytes
    size: int


class Mp4Writer:
    """Context manager that encodes frames into `path`.

    It writes to a hidden file beside `path` and moves it there on success; after an error nothing is left. The
    sound track is as long as the video, so that players show one length. The same frames give the same bytes
    again on a machine with as many cores.
    """

    def __init__(self, path: Path, spec: Mp4Spec) -> None:
        self.path, self.spec = path, spec
        self._part = path.with_name(f".{path.name}.part")
        self._came = 0
        self._done = 0
        self._retimer = Retimer(spec.retiming) if spec.retiming else None
        self._facts: VideoFacts | None = None
        self._scaler = VideoReformatter()
        self._mark = Watermark(spec.width, spec.height) if spec.watermark else None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._part.unlink, missing_ok=True)
            self._reader = stack.enter_context(SoundReader(self.spec.sound)) if self.spec.sound else None
            options = {"movflags": "faststart"}
            self._container = stack.enter_context(
                av.open(str(self._part), "w", format="mp4", container_options=options)
            )
            self._video = self._add_video()
            self._sound = SoundTrack(self._container, self._reader, self.spec.seconds) if self._reader else None
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        with self._stack:
            if kind is None:
                self._finish()

    def write(self, frames: torch.Tensor) -> None:
        """Encodes RGB frames [F, 3, h, w], uint8 or float in [0, 1], any device; scaled when h x w is not the size.

        Raises FrameCountError when more come than were announced.
        """
        self._came += len(frames)
        if self._came > self.spec.incoming:
            raise FrameCountError(f"{self._came} frames came, {self.spec.incoming} were announced")
        for frame in self._yuv_frames(frames):
            for shown in (frame,) if self._retimer is None else self._retimer.push(frame):
                self._encode(shown)

    @property
    def facts(self) -> VideoFacts:
        """What the file is, known after the context has ended without an error."""
        if self._facts is None:
            raise RuntimeError("the file is not finished")
        return self._facts

    def _add_video(self) -> Any:
        stream: Any = self._container.add_stream("libx264", rate=self.spec.rate)
        stream.width, stream.height, stream.pix_fmt = self.spec.width, self.spec.height, "yuv420p"
        # chromaloc=1: chroma samples sit in the middle of their four pixels.
        # no-mbtree: that analysis reads unset memory where the macroblocks of a row are no multiple of 8, and
        # then the same frames give another file each time.
        tuning = {"x264-params": "chromaloc=1:no-mbtree=1"}
        stream.options = {"crf": str(self.spec.crf), "preset": self.spec.preset, **tuning}
        context = stream.codec_context
        context.thread_type, context.thread_count = "FRAME", min(MAX_THREADS, len(os.sched_getaffinity(0)))
        tag_colours(context)
        return stream

    def _yuv_frames(self, frames: torch.Tensor) -> Iterator[av.VideoFrame]:
        height, width = frames.shape[-2:]
        as_is = (width, height) == (self.spec.width, self.spec.height)
        convert, layout = (rgb_to_i420, "yuv420p") if as_is else (rgb_to_yuv444, "yuv444p")
        for piece in frames.split(max(1, SLICE_PIXELS // (height * width))):
            planes = convert(piece if piece.is_floating_point() else piece / 255).cpu().numpy()
            for plane in planes:
                frame = av.VideoFrame.from_ndarray(plane, format=layout)
                yield frame if as_is else self._scaled(frame)

    def _scaled(self, frame: av.VideoFrame) -> av.VideoFrame:
        spec = self.spec
        return self._scaler.reformat(frame, spec.width, spec.height, "yuv420p", interpolation=SCALER)

    def _encode(self, frame: av.VideoFrame) -> None:
        tag_colours(frame)
        if self._mark is not None:
            self._mark.blend(frame)
        frame.pts = self._done
        self._container.mux(self._video.encode(frame))
        self._done += 1
        if self._sound is not None:
            self._sound.advance(float(self._done / self.spec.rate))

    def _finish(self) -> None:
        if self._came != self.spec.incoming:
            raise FrameCountError(f"{self._came} frames came, {self.spec.incoming} were announced")
        for frame in self._retimer.finish() if self._retimer else ():
            self._encode(frame)
        self._container.mux(self._video.encode())
        if self._sound is not None:
            self._sound.finish()
        self._container.close()
        heard = self._reader.heard / RATE if self._reader else 0.0
        size = self._part.stat().st_size
        self._part.replace(self.path)
        spec = self.spec
        sides = (spec.width, spec.height)
        self._facts = VideoFacts(*sides, spec.fps, spec.frames, spec.seconds, bool(self._reader), heard, size)


class SoundTrack:
    """The AAC track of a container, encoded in step with the pictures."""

    def __init__(self, container: Any, reader: SoundReader, seconds: float) -> None:
        self._container, self._reader = container, reader
        self._blocks = reader.blocks(round(seconds * RATE))
        self._stream = container.add_stream("aac", rate=RATE)
        self._stream.layout = reader.layout
        self._stream.bit_rate = SOUND_BIT_RATE
        self._samples = 0

    def advance(self, seconds: float) -> None:
        """Encodes blocks until the track reaches `seconds` or its end."""
        while self._samples < seconds * RATE and (block := next(self._blocks, None)) is not None:
            self._encode(block)

    def finish(self) -> None:
        for block in self._blocks:
            self._encode(block)
        self._container.mux(self._stream.encode())

    def _encode(self, block: np.ndarray) -> None:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="fltp", layout=self._reader.layout)
        frame.sample_rate, frame.pts, frame.time_base = RATE, self._samples, Fraction(1, RATE)
        self._samples += block.shape[1]
        self._container.mux(self._stream.encode(frame))


def tag_colours(target: Any) -> None:
    """Marks a frame or a codec context as BT.709, limited range; changes no pixel."""
    target.color_primaries = ColorPrimaries.BT709
    target.color_trc = ColorTrc.BT709
    target.colorspace = Colorspace.ITU709
    target.color_range = ColorRange.MPEG
