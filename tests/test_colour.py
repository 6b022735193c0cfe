"""Colours held near those of the first frame: how much is taken back, and how it grows over the frames."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from wan_pipelines.colour import FAR, Grade, Look, Slide, slid, towards

MIDDLE = Look((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


def noise(frames: int = 4) -> Tensor:
    return torch.rand(frames, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25


def shifted(look: Look, by: float) -> Look:
    return replace(look, mean=tuple(value + by for value in look.mean))


def test_a_look_is_mean_and_deviation_of_each_channel():
    frames = noise()
    look = Look.of(frames)
    assert look.mean == pytest.approx(tuple(frames[:, c].mean().item() for c in range(3)), abs=1e-6)
    assert look.deviation == pytest.approx(tuple(frames[:, c].std(correction=0).item() for c in range(3)), abs=1e-6)
    assert Look.from_json(json.loads(json.dumps(look.to_json()))) == look


@pytest.mark.parametrize("drift", [0.01, -0.03, 0.06])
def test_a_share_of_a_drift_is_taken_back(drift):
    grade = towards(MIDDLE, shifted(MIDDLE, drift), 0.5)
    expected = -drift * 0.5 * (1 - abs(drift) / FAR)
    assert grade.gain == (1, 1, 1)
    assert grade.offset == pytest.approx((expected,) * 3)
    assert Grade.from_json(json.loads(json.dumps(grade.to_json()))) == grade


def test_contrast_is_taken_back_about_the_mean():
    paler = replace(MIDDLE, deviation=(0.18, 0.18, 0.18))
    grade = towards(MIDDLE, paler, 1.0)
    assert all(1 < gain < 0.2 / 0.18 for gain in grade.gain)
    for gain, offset, mean in zip(grade.gain, grade.offset, MIDDLE.mean, strict=True):
        assert gain * mean + offset == pytest.approx(mean)


@pytest.mark.parametrize(
    "found",
    [
        MIDDLE,
        shifted(MIDDLE, 0.0005),  # nobody sees it
        shifted(MIDDLE, 0.2),  # another picture
        replace(MIDDLE, mean=(0.5, 0.4, 0.45)),  # one channel is enough
        replace(MIDDLE, deviation=(0.1, 0.1, 0.1)),
    ],
)
def test_where_there_is_no_drift_or_another_scene_nothing_is_done(found):
    assert not towards(MIDDLE, found, 0.5).changes


def test_the_correction_is_never_large():
    offsets = [abs(towards(MIDDLE, shifted(MIDDLE, drift / 1000), 0.5).offset[0]) for drift in range(200)]
    assert max(offsets) <= 0.5 * FAR / 4 + 1e-9
    assert towards(MIDDLE, shifted(MIDDLE, 0.03), 0.0) == Grade()


def test_what_does_not_change_comes_out_as_it_is():
    chunk = noise()
    (found,) = slid(iter([chunk]), 0, [Slide(0, 4, Grade())])
    assert found is chunk
    (found,) = slid(iter([chunk]), 8, [Slide(12, 16, Grade(offset=(0.1, 0.1, 0.1)))])
    assert found is chunk
    (found,) = slid(iter([chunk]), 8, [])
    assert found is chunk


def test_a_change_grows_over_the_frames_before_the_seam_and_ends_there():
    grade = Grade((1.0, 1.0, 1.0), (0.1, 0.0, -0.1))
    frames = noise(12)
    found = torch.cat(list(slid(iter(frames.split(4)), 0, [Slide(0, 8, grade)])))
    moved = (found - frames).mean(dim=(2, 3))
    assert moved[:8, 0].tolist() == pytest.approx([0.1 * (k + 1) / 8 for k in range(8)], abs=1e-5)
    assert moved[:8, 2].tolist() == pytest.approx([-0.1 * (k + 1) / 8 for k in range(8)], abs=1e-5)
    assert torch.equal(found[8:], frames[8:])


def test_the_last_frame_before_a_seam_is_what_the_next_segment_was_told():
    grade = Grade((1.05, 1.0, 0.97), (0.01, 0.0, -0.02))
    frames = noise(4)
    (found,) = slid(iter([frames]), 0, [Slide(0, 4, grade)])
    assert torch.allclose(found[-1], grade.apply(frames[-1:])[0])


def test_colours_stay_within_range():
    grade = Grade((1.3, 1.3, 1.3), (0.2, 0.2, -0.5))
    found = grade.apply(noise())
    assert found.min() >= 0
    assert found.max() <= 1


def still(level: float, frames: int) -> Tensor:
    return noise(1).expand(frames, -1, -1, -1) + level


def joined(frames: Tensor, slides: list[Slide], sizes: list[int]) -> Tensor:
    return torch.cat(list(slid(iter(frames.split(sizes)), 0, slides)))


@pytest.mark.parametrize("sizes", [[1, *[4] * 10], [41], [1] * 41])
def test_colours_that_change_behind_a_seam_are_joined(sizes):
    settling = torch.tensor([0.01, 0.02, 0.03]).view(3, 1, 1, 1)
    frames = torch.cat([still(0, 21), still(0, 3) + settling, still(0.03, 17)])
    found = joined(frames, [Slide(0, 21), Slide(21, 41, seam=True)], sizes)
    drift = (found - frames[:1]).mean(dim=(1, 2, 3))
    assert torch.equal(found[:21], frames[:21])
    assert drift[21:25].abs().max() < 0.015  # it is taken back as it comes
    assert drift[25:].abs().max() < 1e-4  # and stays away


def test_colours_that_change_behind_the_first_picture_are_joined_to_it():
    frames = torch.cat([still(0, 1), still(0.03, 20)])
    found = joined(frames, [Slide(1, 21, seam=True, before=Look.of(frames[:1]))], [1, *[4] * 5])
    drift = (found - frames[:1]).mean(dim=(1, 2, 3))
    assert torch.equal(found[:1], frames[:1])
    assert drift[5:].abs().max() < 1e-4


def test_behind_a_seam_a_change_grows_from_there():
    frames = torch.cat([still(0, 12), still(0.03, 12), still(0.03, 12)])
    told = Grade(offset=(-0.02, -0.02, -0.02))
    found = joined(frames, [Slide(0, 12), Slide(12, 24, told, seam=True), Slide(24, 36, seam=True)], [4] * 9)
    drift = (found - frames[:1]).mean(dim=(1, 2, 3))
    assert drift[17] == pytest.approx(-0.02 * 6 / 12, abs=1e-4)
    assert drift[23] == pytest.approx(-0.02, abs=1e-4)
    assert drift[28:] == pytest.approx(drift[20:24].mean().expand(8), abs=1e-4)


def test_another_scene_behind_a_seam_stays_as_it_is():
    frames = torch.cat([still(0, 12), still(0.2, 12)])
    assert torch.equal(joined(frames, [Slide(0, 12), Slide(12, 24, seam=True)], [4] * 6), frames)


def test_a_stream_that_ends_at_a_seam_is_not_joined():
    frames = still(0, 14)
    assert torch.equal(joined(frames, [Slide(0, 12), Slide(12, 14, seam=True)], [4, 4, 4, 2]), frames)
