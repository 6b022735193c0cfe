"""Sound of any file PyAV can decode, as PCM blocks for an encoder: 48 kHz, mono or stereo."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Self

import av
import numpy as np
from av.error import FFmpegError, InvalidDataError

from wan_pipelines.errors import RenderError

RATE = 48_000
#: samples per block, the frame of AAC
BLOCK = 1024
#: real media containers only, no playlists: nothing but the named file is opened, whatever the file says
OPEN_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": "wav,mp3,mov,matroska,ogg,flac,aac,avi"}


class SoundError(RenderError):
    """A file holds no sound that can be decoded."""


class SoundReader:
    """The first sound track of a file; a context manager. Times inside the file are ignored: sound starts at 0.

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
        return self._resampled("fltp", self.layout, RATE)

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
