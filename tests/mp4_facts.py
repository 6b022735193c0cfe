"""What an MP4 really is: read by PyAV, by its boxes, and decoded by a stand-alone ffmpeg."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import av
import imageio_ffmpeg

BT709 = 1
LIMITED_RANGE = 1


@dataclass(frozen=True, slots=True)
class Mp4Facts:
    codec: str
    pixel_format: str | None
    width: int
    height: int
    frames: int
    seconds: float
    fps: float
    #: colour space, primaries, transfer, range; as numbered in ITU-T H.273
    colour: tuple[int, int, int, int]
    has_audio: bool
    boxes: list[str]


def examine(path: Path) -> Mp4Facts:
    """Decodes every frame; raises av.error.FFmpegError when something is broken."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = sum(1 for _ in container.decode(stream))
        context = stream.codec_context
        assert container.duration is not None
        assert stream.average_rate is not None
        return Mp4Facts(
            codec=context.name,
            pixel_format=context.pix_fmt,
            width=context.width,
            height=context.height,
            frames=frames,
            seconds=container.duration / av.time_base,
            fps=float(stream.average_rate),
            colour=(context.colorspace, context.color_primaries, context.color_trc, context.color_range),
            has_audio=bool(container.streams.audio),
            boxes=top_boxes(path.read_bytes()),
        )


def top_boxes(data: bytes) -> list[str]:
    """Names of the outermost boxes in file order."""
    names, at = [], 0
    while at < len(data):
        names.append(data[at + 4 : at + 8].decode("ascii"))
        size = int.from_bytes(data[at : at + 4], "big")
        at += size if size != 1 else int.from_bytes(data[at + 8 : at + 16], "big")
    return names


def ffmpeg_complaints(path: Path) -> str:
    """What a stand-alone ffmpeg says on its error stream while it decodes the whole file."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "warning", "-i", str(path), "-f", "null", "-"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return done.stderr if done.returncode == 0 else f"exit {done.returncode}: {done.stderr}"
