"""Sound of any file PyAV can decode, as PCM blocks for an encoder: 48 kHz, mono or stereo."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Self

import av
import numpy as np
from av.error import FFmpegError, InvalidDataError
from av.stream import Disposition

from wan_pipelines.errors import RenderError

RATE = 48_000
#: samples per block, the frame of AAC
BLOCK = 1024
#: a longer time between the start of a clip's picture and that of its sound is not believed: clips are shorter
MOST_APART_S = 10
#: real media containers only, no playlists: nothing but the named file is opened, whatever the file says
OPEN_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": "wav,mp3,mov,matroska,ogg,flac,aac,avi"}


class SoundError(RenderError):
    """A file holds no sound that can be decoded."""


class SoundReader:
    """The first sound track of a file; a context manager. It starts at 0, beside a moving picture where that starts.

    Sound that begins later than the picture is silent until then, what comes before the picture is left out.

    `heard` counts the samples that `blocks` took from the file. Raises SoundError.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._container = av.open(str(path), options=OPEN_OPTIONS, metadata_errors="ignore")
        except FFmpegError as error:
            raise SoundError(f"the sound cannot be read ({error.strerror})") from None
        if not self._container.streams.audio:
            self._container.close()
            raise SoundError("the file has no sound")
        self._stream = self._container.streams.audio[0]
        self.layout = "mono" if self._stream.codec_context.layout.nb_channels == 1 else "stereo"
        self.heard = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._container.close()

    @property
    def channels(self) -> int:
        return 1 if self.layout == "mono" else 2

    def pcm(self) -> Iterator[np.ndarray]:
        """All samples, float32 [channels, n] at 48 kHz, in pieces as they are decoded."""
        late = round(self._late_s() * RATE)
        if late > 0:
            yield np.zeros((self.channels, late), np.float32)
        early = max(0, -late)
        for piece in self._resampled("fltp", self.layout, RATE):
            yield piece[:, early:]
            early = max(0, early - piece.shape[1])

    def blocks(self, samples: int) -> Iterator[np.ndarray]:
        """Exactly `samples` samples in blocks of `BLOCK` (the last may be shorter): cut, or ended with silence."""
        pending = np.zeros((self.channels, 0), np.float32)
        left = samples
        for piece in self.pcm():
            pending = np.concatenate((pending, piece[:, : left - pending.shape[1]]), axis=1)
            while pending.shape[1] >= min(BLOCK, left) > 0:
                block, pending = np.split(pending, [min(BLOCK, left)], axis=1)
                self.heard += block.shape[1]
                left -= block.shape[1]
                yield block
            if not left:
                return
        self.heard += pending.shape[1]
        while left:
            silence = np.zeros((self.channels, min(BLOCK, left) - pending.shape[1]), np.float32)
            yield np.concatenate((pending, silence), axis=1)
            left -= min(BLOCK, left)
            pending = pending[:, :0]

    def _late_s(self) -> float:
        """Seconds from the start of the moving picture, if there is one, to that of the sound."""
        moving = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
        starts = [(s.start_time or 0) * (s.time_base or 0) for s in (self._stream, *moving[:1])]
        apart = float(starts[0] - starts[1]) if moving else 0.0
        return apart if abs(apart) <= MOST_APART_S else 0.0

    def _resampled(self, form: str, layout: str, rate: int) -> Iterator[np.ndarray]:
        """All samples [channels, n] in one form, though the track may change its own on its way."""
        resampler, shape = av.AudioResampler(format=form, layout=layout, rate=rate), None
        for frame in self._frames():
            frame.pts = None
            if shape not in (None, _shape(frame)):
                yield from (out.to_ndarray() for out in resampler.resample(None))
                resampler = av.AudioResampler(format=form, layout=layout, rate=rate)
            shape = _shape(frame)
            yield from (out.to_ndarray() for out in resampler.resample(frame))
        yield from (out.to_ndarray() for out in resampler.resample(None))

    def _frames(self) -> Iterator[av.AudioFrame]:
        for packet in self._container.demux(self._stream):
            try:
                yield from packet.decode()
            except InvalidDataError:  # players leave out a broken packet too
                continue


def _shape(frame: av.AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def sound_seconds(path: Path) -> float:
    """Length of a file's sound in seconds, counted by decoding it. Raises SoundError."""
    with SoundReader(path) as reader:
        return sum(piece.shape[1] for piece in reader.pcm()) / RATE
