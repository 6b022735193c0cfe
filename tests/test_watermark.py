"""The mark stands in the bottom right corner and is readable on black and on white."""

from __future__ import annotations

import av
import numpy as np
import pytest

from media_samples import smooth_rgb
from wan_pipelines.watermark import Watermark

SIZES = [(1280, 720), (1920, 1080), (720, 1280), (960, 960)]


def plain(width: int, height: int, grey: int | None = None) -> av.VideoFrame:
    picture = smooth_rgb(width, height) if grey is None else np.full((height, width, 3), grey, np.uint8)
    return av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")


def planes(frame: av.VideoFrame) -> list[np.ndarray]:
    packed = frame.to_ndarray().astype(int)
    half = (2, frame.height // 2, frame.width // 2)
    return [packed[: frame.height], *packed[frame.height :].reshape(half)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_only_the_bottom_right_corner_changes(width, height):
    frame = plain(width, height)
    before = planes(frame)
    Watermark(width, height).blend(frame)
    for scale, old, new in zip((1, 2, 2), before, planes(frame), strict=True):
        rows, columns = np.nonzero(old != new)
        assert rows.size
        assert rows.min() * scale > height - 0.1 * min(width, height)
        assert columns.min() * scale > width - 0.35 * min(width, height)
        assert rows.max() * scale < height - 4
        assert columns.max() * scale < width - 4


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("grey", [0, 128, 255])
def test_letters_stand_out_on_any_grey(width, height, grey):
    frame = plain(width, height, grey)
    around = planes(frame)[0][0, 0]
    mark = Watermark(width, height)
    mark.blend(frame)
    region = planes(frame)[0][mark.top :, mark.left :]
    assert region.max() >= 210
    assert max(region.max() - around, around - region.min()) >= 90
    readable = np.abs(region - around) >= 80
    rows = np.nonzero(readable.any(axis=1))[0]
    assert rows[-1] - rows[0] >= min(width, height) / 45  # height of the letters


def test_the_mark_takes_the_colour_out_not_in():
    frame = plain(1280, 720)
    mark = Watermark(1280, 720)
    old = planes(frame)
    mark.blend(frame)
    for before, after in zip(old[1:], planes(frame)[1:], strict=True):
        assert (np.abs(after - 128) <= np.abs(before - 128) + 1).all()


@pytest.mark.parametrize(("width", "height"), [(16, 16), (34, 64), (64, 34), (160, 96)])
def test_small_pictures_do_not_break_it(width, height):
    frame = plain(width, height, 0)
    Watermark(width, height).blend(frame)
    assert planes(frame)[0].max() > 100
