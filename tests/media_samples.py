"""Real media files made on the spot: images by Pillow, sound and clips by PyAV."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from PIL import Image

ORIENTATION = 0x0112  # EXIF tag

AUDIO_CODECS = {
    "wav": "pcm_s16le",
    "mp3": "libmp3lame",
    "flac": "flac",
    "ogg": "libopus",
    "mp4": "aac",
    "mov": "pcm_s16le",
    "webm": "libopus",
    "matroska": "aac",
    "avi": "libmp3lame",
}
VIDEO_CODECS = {"mp4": "libx264", "mov": "libx264", "webm": "libvpx", "matroska": "libx264", "avi": "mpeg4"}


def smooth_rgb(width: int, height: int, phase: float = 0.0) -> np.ndarray:
    """A smooth colourful picture, uint8 [height, width, 3]; `phase` in turns moves its colours."""
    x = np.linspace(0, 1, width)[None, :]
    y = np.linspace(0, 1, height)[:, None]
    waves = [x + 0 * y, y + 0 * x, (x + y) / 2]
    planes = [0.5 + 0.45 * np.sin(2 * np.pi * (wave + phase + i / 3)) for i, wave in enumerate(waves)]
    return (np.stack(planes, axis=-1) * 255).round().astype(np.uint8)


def tone(seconds: float, rate: int, channels: int = 1, hertz: float = 440.0) -> np.ndarray:
    """A sine at half scale, float32 [channels, samples]."""
    t = np.arange(round(seconds * rate)) / rate
    return np.tile((0.5 * np.sin(2 * np.pi * hertz * t)).astype(np.float32), (channels, 1))


def make_image(
    path: Path,
    size: tuple[int, int] = (320, 240),
    format: str = "JPEG",  # noqa: A002
    *,
    mode: str = "RGB",
    orientation: int | None = None,
    frames: int = 1,
) -> Path:
    """Writes a picture of `size` (width, height) in a Pillow `format`; several `frames` make it animated."""
    pictures = [Image.fromarray(smooth_rgb(*size, phase=i / frames)).convert(mode) for i in range(frames)]
    if mode in ("RGBA", "LA"):
        for picture in pictures:
            picture.putalpha(Image.linear_gradient("L").resize(size))
    options: dict = {"save_all": True, "append_images": pictures[1:]} if frames > 1 else {}
    if orientation is not None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif
    pictures[0].save(path, format, **options)
    return path


def make_deep_png(path: Path, pixels: np.ndarray) -> Path:
    """Writes a PNG of 16 bits a channel from uint16 [height, width] or [height, width, 3 or 4], which Pillow cannot."""
    layout = {2: "gray16be", 3: "rgb48be", 4: "rgba64be"}[pixels.shape[2] if pixels.ndim == 3 else 2]
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as container:
        stream: Any = container.add_stream("png", rate=1)
        stream.height, stream.width = pixels.shape[:2]
        stream.pix_fmt = layout
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=layout)))
        container.mux(stream.encode())
    return path


def make_audio(
    path: Path,
    seconds: float = 3.0,
    format: str = "wav",  # noqa: A002
    *,
    rate: int = 16000,
    channels: int = 1,
    codec: str | None = None,
    cover: bool = False,
    samples: np.ndarray | None = None,
    begins_s: float = 0.0,
) -> Path:
    """Writes a 440 Hz tone, or `samples` [channels, n] at `rate`; `cover` adds a picture as music files have it (mp3).

    `begins_s`: when the track begins, as its container tells it.
    """
    with av.open(str(path), "w", format=format) as container:
        stream: Any = container.add_stream(codec or AUDIO_CODECS[format], rate=rate)
        stream.layout = "mono" if channels == 1 else "stereo"
        picture = _add_cover(container) if cover else None
        if picture is not None:
            container.mux(picture)
        _encode(container, stream, tone(seconds, rate, channels) if samples is None else samples, begins_s)
    return path


def make_clip(
    path: Path,
    size: tuple[int, int] = (320, 240),
    seconds: float = 2.0,
    fps: float = 10,
    audio: bool = False,
    format: str | None = None,  # noqa: A002
    *,
    rotation: int = 0,
    pts: list[int] | None = None,
) -> Path:
    """Writes a clip; the format follows the file name unless given.

    `rotation` in degrees goes into the display matrix; `pts` are explicit times in 1/1000 s (variable frame
    rate), one per frame.
    """
    kind = format or {"mkv": "matroska"}.get(path.suffix[1:], path.suffix[1:])
    frames = len(pts) if pts is not None else round(seconds * fps)
    with av.open(str(path), "w", format=kind) as container:
        video: Any = container.add_stream(VIDEO_CODECS[kind], rate=Fraction(fps).limit_denominator(1001))
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        if video.codec_context.name == "libx264":
            video.options = {"preset": "ultrafast"}
        if pts is not None:
            video.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            video.set_display_rotation(rotation)
        sound: Any = container.add_stream(AUDIO_CODECS[kind], rate=48000) if audio else None
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(smooth_rgb(*size, phase=index / frames), format="rgb24")
            frame.pts = pts[index] if pts is not None else index
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if sound is not None:
            _encode(container, sound, tone(seconds, sound.rate, sound.codec_context.layout.nb_channels))
    return path


def read_video(path: Path) -> np.ndarray:
    """All frames of a clip as RGB uint8 [frames, height, width, 3], by swscale and the file's tags."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def read_audio(path: Path) -> tuple[np.ndarray, int]:
    """All samples of the first sound track, float32 [channels, samples], and their rate."""
    with av.open(str(path)) as container:
        rate = container.streams.audio[0].rate
        layout = container.streams.audio[0].layout
        resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
        frames = container.decode(audio=0)
        blocks = [out.to_ndarray() for frame in frames for out in resampler.resample(frame)]
    return np.concatenate(blocks, axis=1), rate


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures in dB."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


def _encode(container, stream, samples: np.ndarray, begins_s: float = 0.0) -> None:
    rate, first = stream.rate, round(begins_s * stream.rate)
    resampler = av.AudioResampler(format=stream.format.name, layout=stream.layout, rate=rate)
    for start in range(0, samples.shape[1], 1024):
        block = np.ascontiguousarray(samples[:, start : start + 1024], np.float32)
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=stream.layout.name)
        frame.sample_rate, frame.pts, frame.time_base = rate, first + start, Fraction(1, rate)
        for out in resampler.resample(frame):
            container.mux(stream.encode(out))
    container.mux(stream.encode())


def _add_cover(container) -> av.Packet:
    """Declares a PNG cover picture and returns its one packet."""
    stream = container.add_stream("png", rate=1)
    stream.width, stream.height, stream.pix_fmt = 64, 64, "rgb24"
    stream.disposition = Disposition.attached_pic
    frame = av.VideoFrame.from_ndarray(smooth_rgb(64, 64), format="rgb24")
    return stream.encode(frame)[0]
