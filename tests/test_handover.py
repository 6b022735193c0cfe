"""The last picture of a clip lives on in the new frames behind it, and gives way to them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from random import Random

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from demonstration import SAMPLES
from tinywan.measures import psnr
from wan_pipelines.handover import handed_over
from wan_pipelines.pixels import cover_crop, load_image

SPAN = 8
WIDTH, HEIGHT = 320, 192
#: of what a model shows
SMALL = (96, 160)


@pytest.fixture(scope="module")
def canvas() -> Tensor:
    """A photograph, larger than a frame [1, 3, H, W]."""
    return cover_crop(load_image(SAMPLES / "astronaut.jpg"), WIDTH + 60, HEIGHT + 40)[None]


def view(canvas: Tensor, x: int, y: int = 10) -> Tensor:
    return canvas[:, :, y : y + HEIGHT, x : x + WIDTH]


def as_a_model_shows_it(frames: Tensor) -> Tensor:
    """Small and without its fine detail."""
    return functional.interpolate(frames, SMALL, mode="bilinear", antialias=True)


def enlarged(frames: Tensor) -> Tensor:
    return functional.interpolate(frames, (HEIGHT, WIDTH), mode="bicubic").clamp(0, 1)


def in_chunks(frames: Tensor, sizes: list[int]) -> Iterator[Tensor]:
    return iter([frames[:0], *frames.split(sizes)])


def behind(last: Tensor, shown: Tensor, sizes: list[int] | None = None) -> Tensor:
    """The new frames as they come out, enlarged where they are small."""
    chunks = handed_over(iter([last]), in_chunks(shown, sizes or [5] + [4] * ((len(shown) - 5) // 4)), SPAN)
    _own, *new = [chunk for chunk in chunks if len(chunk)]
    return torch.cat([chunk if chunk.shape[-2:] == last.shape[-2:] else enlarged(chunk) for chunk in new])


def sharpness(frame: Tensor) -> float:
    return float((frame[..., 1:] - frame[..., :-1]).abs().mean())


def test_a_still_camera_loses_detail_little_by_little(canvas):
    last = view(canvas, 30)
    shown = as_a_model_shows_it(last).expand(13, -1, -1, -1)
    new = behind(last, shown)
    assert len(new) == 12
    assert psnr(new[0], last[0]) > 45
    found = [sharpness(frame) for frame in new]
    assert all(after < 1.005 * before for before, after in pairwise(found))
    assert found[0] > 1.3 * found[-1]
    assert torch.equal(new[SPAN:], enlarged(shown[1 + SPAN :]))


@pytest.mark.parametrize("speed", [-3, 2])
def test_detail_moves_with_the_picture(canvas, speed):
    views = torch.cat([view(canvas, 30 + speed * k) for k in range(9)])
    new = behind(views[:1], as_a_model_shows_it(views))
    inner = (..., slice(40, -40))
    for k in (0, 1, 2):
        moved, still = psnr(new[k][inner], views[k + 1][inner]), psnr(views[0][inner], views[k + 1][inner])
        assert moved > still + 5
        assert moved > psnr(enlarged(as_a_model_shows_it(views[k + 1 : k + 2]))[0][inner], views[k + 1][inner]) + 2


def test_the_step_into_the_new_frames_is_no_larger_than_the_clips_own(canvas):
    views = torch.cat([view(canvas, 30 + k) for k in range(16)])
    shown = 0.9 * as_a_model_shows_it(views[7:])  # darker, too
    own = float((views[1:8] - views[:7]).abs().mean())
    assert float((behind(views[7:8], shown)[0] - views[7]).abs().mean()) < 1.2 * own
    assert float((enlarged(shown[1:2])[0] - views[7]).abs().mean()) > 1.5 * own


def test_another_picture_is_shown_as_it_is(canvas):
    last, other = view(canvas, 30), 1 - view(canvas, 30)
    shown = as_a_model_shows_it(torch.cat([last, *[other] * 8]))
    assert psnr(behind(last, shown)[0], enlarged(shown[1:2])[0]) > 30


def test_what_comes_into_view_is_shown_as_it_is(canvas):
    views = torch.cat([view(canvas, 5 * k) for k in range(9)])
    shown = as_a_model_shows_it(views)
    new = behind(views[:1], shown)
    edge = (..., slice(-8, None))
    assert psnr(new[3][edge], enlarged(shown[4:5])[0][edge]) > 30


@pytest.mark.parametrize("seed", range(2))
def test_chunks_do_not_matter(canvas, seed):
    rng, last = Random(seed), view(canvas, 30)
    shown = as_a_model_shows_it(torch.cat([view(canvas, 30 + k) for k in range(17)]))
    cuts = sorted(rng.sample(range(1, 17), 5))
    sizes = [b - a for a, b in zip([0, *cuts], [*cuts, 17], strict=True)]
    assert torch.equal(behind(last, shown, sizes), behind(last, shown))


def test_without_a_span_every_frame_comes_as_it_is(canvas):
    last = view(canvas, 30)
    shown = as_a_model_shows_it(torch.cat([last] * 5))
    chunks = list(handed_over(iter([last]), iter([shown]), 0))
    assert chunks[0] is last
    assert chunks[1] is shown
    assert list(handed_over(iter([]), iter([shown]), 0)) == [shown]
