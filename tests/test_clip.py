"""A clip at the video's rate: which frame is on show when, how it is turned, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from media_samples import make_audio, make_clip, psnr, read_video, smooth_rgb
from wan_pipelines.clip import ClipError, shown_frames, upright
from wan_pipelines.mp4 import Mp4Spec, Mp4Writer


def shown(path: Path, fps: int, count: int) -> list[int]:
    """Which of the file's own frames is on show, by their looks."""
    stored = read_video(path).astype(float)
    pictures = [np.asarray(upright(frame)).astype(float) for frame in shown_frames(path, fps, count)]
    return [int(np.argmin(((stored - picture) ** 2).mean(axis=(1, 2, 3)))) for picture in pictures]


@pytest.mark.parametrize(
    ("rate", "fps", "count", "expected"),
    [
        (16, 16, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (30, 16, 8, [0, 1, 3, 5, 7, 9, 11, 13]),
        (29.97, 15, 5, [0, 2, 4, 6, 8]),
        (8, 16, 6, [0, 0, 1, 1, 2, 2]),
        (10, 24, 8, [0, 0, 0, 1, 1, 2, 2, 2]),
    ],
)
def test_constant_rates_are_resampled_in_time(tmp_path, rate, fps, count, expected):
    path = make_clip(tmp_path / "a.mp4", (96, 64), 1.0, rate)
    assert shown(path, fps, count) == expected


def test_a_frame_stays_until_the_next_one_comes(tmp_path):
    """Variable frame rate, rounded to milliseconds: 0.333 counts as shown at 1/3 s."""
    path = make_clip(tmp_path / "a.mp4", (96, 64), pts=[0, 40, 333, 350, 990], fps=10)
    assert shown(path, 3, 3) == [0, 2, 3]
    assert shown(path, 10, 11) == [0, 1, 1, 1, 3, 3, 3, 3, 3, 3, 4]


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv"])
def test_time_counts_from_the_first_frame(tmp_path, ending):
    path = make_clip(tmp_path / f"a.{ending}", (96, 64), pts=[500, 600, 700, 800], fps=10)
    assert shown(path, 10, 4) == [0, 1, 2, 3]


def test_the_last_frame_stays_as_long_as_needed(tmp_path):
    path = make_clip(tmp_path / "a.mp4", (96, 64), 0.4, 10)
    assert shown(path, 10, 7) == [0, 1, 2, 3, 3, 3, 3]


def test_no_more_is_decoded_than_is_shown(tmp_path):
    frames = shown_frames(make_clip(tmp_path / "a.mp4", (96, 64), 3.0, 10), 10, 30)
    first = next(frames)
    assert first.time == 0
    frames.close()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(("degrees", "turns"), [(0, 0), (90, 1), (180, 2), (-90, 3)])
def test_the_picture_is_turned_as_the_file_asks(tmp_path, degrees, turns):
    path = make_clip(tmp_path / "a.mp4", (96, 64), 0.5, 10, rotation=degrees)
    picture = np.asarray(upright(next(shown_frames(path, 10, 1))))
    assert picture.shape == ((64, 96, 3) if turns % 2 == 0 else (96, 64, 3))
    assert psnr(picture, np.rot90(smooth_rgb(96, 64), turns)) > 30


@pytest.mark.parametrize("size", [(320, 180), (1280, 720)])
def test_files_of_ours_keep_their_colours(tmp_path, size):
    """Tagged BT.709, whatever the size."""
    rgb = smooth_rgb(*size)
    with Mp4Writer(tmp_path / "a.mp4", Mp4Spec(size[0], size[1], 16, 1)) as writer:
        writer.write(torch.from_numpy(rgb.transpose(2, 0, 1)[None].copy()))
    assert psnr(np.asarray(upright(next(shown_frames(tmp_path / "a.mp4", 16, 1)))), rgb) > 38


def test_untagged_colours_follow_the_size(tmp_path):
    """Made with BT.601 here: right for a small file, and read as BT.709 (which it is not) when it is large."""
    small, large = ((320, 180), (1280, 720))
    errors = []
    for size in (small, large):
        path = make_clip(tmp_path / f"{size[0]}.mp4", size, 0.1, 10)
        errors.append(psnr(np.asarray(upright(next(shown_frames(path, 10, 1)))), smooth_rgb(*size)))
    assert errors[0] > 34 > errors[1]


def test_what_is_no_clip_is_refused(tmp_path):
    (tmp_path / "text.mp4").write_text("no media at all")
    for path in (tmp_path / "text.mp4", make_audio(tmp_path / "sound.mp4", format="mp4")):
        with pytest.raises(ClipError, match=r"input\.first_clip: (cannot be read|no frame of it can be decoded)"):
            list(shown_frames(path, 16, 4))


def test_a_broken_packet_is_left_out(tmp_path):
    path = make_clip(tmp_path / "a.mp4", (96, 64), 2.0, 10)
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + 2000
    data[middle : middle + 200] = bytes(200)
    path.write_bytes(data)
    assert len(list(shown_frames(path, 10, 20))) == 20
