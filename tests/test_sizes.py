"""The size rule: a budget of pixels, the shape of the first frame, exact published sizes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_pipelines.errors import PlanError
from wan_pipelines.sizes import BUDGETS, output_size, sample_size, visible_size

ASPECTS = st.floats(1 / 8, 8)
RESOLUTIONS = st.sampled_from(sorted(BUDGETS))


@pytest.mark.parametrize(
    ("resolution", "aspect", "size"),
    [
        ("720P", 16 / 9, (1280, 720)),
        ("720P", 9 / 16, (720, 1280)),
        ("720P", 1.0, (960, 960)),
        ("720P", 4 / 3, (1104, 832)),
        ("720P", 3 / 4, (832, 1104)),
        ("1080P", 16 / 9, (1920, 1080)),
        ("1080P", 9 / 16, (1080, 1920)),
        ("1080P", 1.0, (1440, 1440)),
        ("1080P", 4 / 3, (1648, 1248)),
        ("1080P", 3 / 4, (1248, 1648)),
        ("720P", 1366 / 768, (1280, 720)),
        ("720P", 3 / 2, (1176, 784)),
        ("720P", 8.0, (2716, 340)),
    ],
)
def test_output_size(resolution, aspect, size):
    assert output_size(resolution, aspect) == size


@given(RESOLUTIONS, ASPECTS)
def test_output_is_even_near_the_budget_and_shaped_as_the_frame(resolution, aspect):
    width, height = output_size(resolution, aspect)
    assert width % 2 == 0
    assert height % 2 == 0
    assert width * height == pytest.approx(BUDGETS[resolution], rel=0.01)
    assert width / height == pytest.approx(aspect, rel=0.016)


@given(RESOLUTIONS, ASPECTS)
def test_turning_the_frame_turns_the_size(resolution, aspect):
    assert output_size(resolution, 1 / aspect) == output_size(resolution, aspect)[::-1]


@given(RESOLUTIONS, ASPECTS, st.sampled_from([16, 32]))
def test_full_scale_sample_covers_the_output(resolution, aspect, multiple):
    width, height = output_size(resolution, aspect)
    sample = sample_size(width, height, multiple, None)
    assert all(side % multiple == 0 for side in sample)
    assert 0 <= sample[0] - width < multiple
    assert 0 <= sample[1] - height < multiple
    assert visible_size(width, height, sample) == (width, height)


@given(RESOLUTIONS, ASPECTS, st.integers(1024, 40000), st.sampled_from([16, 32]))
def test_small_sample_stays_in_its_budget_and_shows_the_shape(resolution, aspect, pixels, multiple):
    width, height = output_size(resolution, aspect)
    sample = sample_size(width, height, multiple, pixels)
    assert all(side % multiple == 0 for side in sample)
    assert sample[0] * sample[1] <= pixels
    shown = visible_size(width, height, sample)
    assert shown[0] <= sample[0]
    assert shown[1] <= sample[1]
    assert shown[0] == sample[0] or shown[1] == sample[1]
    short, long = sorted(shown)
    assert abs(short - long * min(width, height) / max(width, height)) <= 1


def test_1080_is_sampled_as_1088():
    assert sample_size(1920, 1080, 16, None) == (1920, 1088)


@pytest.mark.parametrize("multiple", [16, 32])
def test_tiny_sample_of_widescreen(multiple):
    assert sample_size(1280, 720, multiple, 16384) == (160, 96)
    assert visible_size(1280, 720, (160, 96)) == (160, 90)


@pytest.mark.parametrize("aspect", [0.1249, 8.01, 0.0, math.inf, math.nan, -1.0])
def test_aspect_outside_the_limits_is_refused(aspect):
    with pytest.raises(PlanError, match=r"input\.first_frame: aspect ratio must be between 1:8 and 8:1"):
        output_size("720P", aspect)


def test_the_refusal_names_the_input_that_gives_the_shape():
    with pytest.raises(PlanError, match=r"input\.first_clip: aspect ratio"):
        output_size("720P", 9.0, "first_clip")


def test_unknown_resolution_is_refused():
    with pytest.raises(PlanError, match=r"input\.resolution: must be one of 720P, 1080P \(got '480P'\)"):
        output_size("480P", 1.0)
