"""A clip as a player shows it, at the video's own rate: one picture at a time, turned as the file asks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
from av.error import FFmpegError, InvalidDataError
from av.stream import Disposition
from av.video.reformatter import Colorspace
from PIL import Image

from wan_pipelines.audio import OPEN_OPTIONS
from wan_pipelines.errors import RenderError
from wan_pipelines.mp4 import SCALER

#: times in a file may be rounded to this
TIME_SLACK_S = 0.001
#: files without a colour tag are taken for BT.709 from this height on, as players do
HD_LINES = 720
UNTAGGED = 2  # AVCOL_SPC_UNSPECIFIED


class ClipError(RenderError):
    """A clip cannot be read."""


def shown_frames(path: Path, fps: int, count: int) -> Iterator[av.VideoFrame]:
    """What is on show at k / fps seconds after the first frame, for k = 0 .. count - 1; as decoded.

    A frame stays until the time of the next one, the last frame as long as needed. Holds one frame at a time.
    Raises ClipError.
    """
    timed = _timed_frames(path)
    began, shown = next(timed, (0.0, None))
    if shown is None:
        raise ClipError("input.first_clip: no frame of it can be decoded")
    following = next(timed, None)
    for k in range(count):
        while following is not None and following[0] - began <= k / fps + TIME_SLACK_S:
            shown, following = following[1], next(timed, None)
        yield shown


def upright(frame: av.VideoFrame) -> Image.Image:
    """The frame in RGB, rotated to how it is meant to be seen."""
    guess = Colorspace.ITU709 if frame.colorspace == UNTAGGED and frame.height >= HD_LINES else None
    picture = frame.to_image(src_colorspace=guess, interpolation=SCALER)
    quarter_turns = round(frame.rotation / 90) % 4  # counterclockwise
    turns = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
    turn = turns[quarter_turns]
    return picture if turn is None else picture.transpose(turn)


def _timed_frames(path: Path) -> Iterator[tuple[float, av.VideoFrame]]:
    """Every frame of the first moving picture in the file, with its time in seconds."""
    try:
        with av.open(str(path), options=OPEN_OPTIONS, metadata_errors="ignore") as container:
            moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            for stream in moving[:1]:
                stream.thread_type = "AUTO"
                for packet in container.demux(stream):
                    yield from ((frame.time, frame) for frame in _decoded(packet) if frame.pts is not None)
    except FFmpegError as error:
        raise ClipError(f"input.first_clip: cannot be read ({error.strerror})") from None


def _decoded(packet: av.Packet) -> list[av.VideoFrame]:
    try:
        return packet.decode()
    except InvalidDataError:  # players leave out a broken packet too
        return []
