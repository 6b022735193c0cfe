"""Windows: every latent frame seen, none too many at once, weights that sum to one, noise that repeats in no window."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wan_pipelines.blending import Blend, draw_noise
from wan_pipelines.errors import ProfileError
from wan_pipelines.footprint import bundled_configs, footprint
from wan_pipelines.peaks import peak
from wan_pipelines.placement import largest_plan
from wan_pipelines.plan import PlanRequest, RenderPlan, beyond_training, make_plan
from wan_pipelines.profile import load_profile, load_served
from wan_pipelines.windows import Windowing, frames_of, passed_on, weights

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
A14B = load_profile("wan2.2-t2v-a14b", CONFIGS)
SMALL = load_profile("wan2.1-t2v-1.3b", CONFIGS)
REQUEST = PlanRequest("a cat", None, "720P", 16 / 9, 15, seed=7, media=())
WAN = Windowing(longest=21)

windowings = st.integers(1, 9).flatmap(lambda o: st.builds(Windowing, st.integers(3 * o, 40), st.just(o)))
lengths = st.integers(1, 200)


@given(windowings, lengths)
def test_windows_cover_everything_and_overlap_as_they_should(windowing: Windowing, latents: int):
    windows = windowing.split(latents)
    assert (windows[0].start, windows[-1].stop) == (0, latents)
    assert all(before.stop - after.start == windowing.overlap for before, after in pairwise(windows))
    assert all(len(window) <= windowing.longest for window in windows)
    assert (len(windows) == 1) == (latents <= windowing.longest)


@given(windowings, lengths)
def test_there_are_as_few_windows_as_can_be_and_none_is_much_shorter(windowing: Windowing, latents: int):
    found = [len(window) for window in windowing.split(latents)]
    assert found == sorted(found, reverse=True)
    assert found[0] - found[-1] <= 1
    fewer = len(found) - 1
    assert fewer == 0 or fewer * (windowing.longest - windowing.overlap) + windowing.overlap < latents


@given(windowings, lengths)
def test_weights_sum_to_one_from_two_windows_at_most(windowing: Windowing, latents: int):
    windows = windowing.split(latents)
    total, counted = [0.0] * latents, [0] * latents
    for number, window in enumerate(windows):
        for latent, weight in zip(window, weights(windows, number), strict=True):
            assert 0 <= weight <= 1
            total[latent] += weight
            counted[latent] += 1
    assert total == pytest.approx([1.0] * latents, abs=1e-12)
    assert max(counted) <= 2


@given(windowings, lengths)
def test_a_window_counts_nothing_where_the_model_expects_a_picture(windowing: Windowing, latents: int):
    windows = windowing.split(latents)
    first = [weights(windows, number)[0] for number in range(len(windows))]
    assert first == [1.0] + [0.0] * (len(windows) - 1)


@given(windowings, lengths)
def test_frames_of_windows_are_those_of_the_sample(windowing: Windowing, latents: int):
    windows = windowing.split(latents)
    frames = [frames_of(window) for window in windows]
    assert (frames[0].start, frames[-1].stop) == (0, 4 * latents - 3)
    assert [len(f) for f in frames] == [4 * len(w) - (3 if w.start == 0 else 0) for w in windows]


@given(windowings, lengths)
def test_noise_is_handed_on_to_where_there_is_none_yet(windowing: Windowing, latents: int):
    """Followed by name: each window holds as many different ones as it is long, all of them of the first window."""
    windows = windowing.split(latents)
    name = list(range(latents))
    for left, new in passed_on(windows):
        assert len(new) <= len(left)
        name[new.start : new.stop] = name[left.start : left.start + len(new)]
    for window in windows:
        names = [name[latent] for latent in window]
        assert len(set(names)) == len(window)
        assert set(names) <= set(windows[0])


@given(windowings, st.integers(1, 90), st.integers(0, 2**31 - 1))
def test_every_window_has_the_noise_of_the_first_one_in_another_order(windowing, latents, seed):
    windows = windowing.split(latents)
    noise = draw_noise((1, 2, latents, 2, 2), windows, seed)
    plain = torch.randn(1, 2, latents, 2, 2, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(noise[:, :, : windows[0].stop], plain[:, :, : windows[0].stop])
    drawn = {tuple(frame.flatten().tolist()) for frame in plain[0, :, : windows[0].stop].unbind(1)}
    for window in windows:
        seen = Counter(tuple(noise[0, :, latent].flatten().tolist()) for latent in window)
        assert seen.keys() <= drawn
        assert max(seen.values()) == 1


def test_noise_is_a_function_of_the_seed_and_does_not_come_back_in_order():
    windows = WAN.split(61)
    one, again, other = (draw_noise((1, 16, 61, 4, 4), windows, seed) for seed in (7, 7, 8))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    _, (left, new) = passed_on(windows)[:2]
    assert not torch.equal(one[:, :, new.start : new.stop], one[:, :, left.start : left.start + len(new)])
    assert abs(one.mean()) < 0.02
    assert abs(one.std() - 1) < 0.02


def test_one_window_asks_for_everything_at_once():
    latents = torch.randn(1, 2, 21, 3, 3)
    asked: list[torch.Tensor] = []

    def predict(seen: torch.Tensor) -> torch.Tensor:
        asked.append(seen)
        return -seen

    blend = Blend(WAN.split(21), lambda number: pytest.fail("there is no second window"))
    assert torch.equal(blend.velocity(predict, latents), -latents)
    assert asked[0] is latents


@given(windowings, st.integers(1, 90))
def test_what_depends_on_no_neighbour_is_blended_to_itself(windowing: Windowing, latents: int):
    """A prediction that is the same in every window comes out as it is, also from three windows and more."""
    given = torch.randn(1, 2, latents, 2, 2, generator=torch.Generator().manual_seed(1))
    between: list[int] = []
    windows = windowing.split(latents)
    found = Blend(windows, between.append).velocity(torch.sin, given)
    assert (found - given.sin()).abs().max() < 1e-6
    assert between == list(range(1, len(windows)))


def test_an_overlap_goes_over_from_one_window_to_the_next():
    windows = Windowing(longest=12, overlap=4).split(20)
    assert windows == (range(0, 12), range(8, 20))
    answers = iter((torch.zeros(1, 1, 12, 1, 1), torch.ones(1, 1, 12, 1, 1)))
    found = Blend(windows, lambda number: None).velocity(lambda seen: next(answers), torch.zeros(1, 1, 20, 1, 1))
    assert found.flatten().tolist() == [0.0] * 8 + [0.0, 0.25, 0.5, 0.75] + [1.0] * 8


@pytest.mark.parametrize(
    ("seconds", "windows"),
    [
        (5, [(0, 21)]),
        (6, [(0, 15), (11, 25)]),
        (10, [(0, 17), (13, 29), (25, 41)]),
        (15, [(0, 19), (15, 33), (29, 47), (43, 61)]),
    ],
)
def test_some_videos(seconds, windows):
    for profile in (A14B, SMALL, load_served("wan2.2-t2v-a14b:fast", CONFIGS)):
        plan = make_plan(profile, replace(REQUEST, seconds=seconds))
        assert [(window.start, window.stop) for window in plan.windows] == windows
        assert (plan.frames, plan.parts, plan.segments) == (16 * seconds, (plan,), ())
        assert RenderPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_video_that_fits_has_the_plan_of_a_model_without_windows():
    plain = replace(A14B, chaining=None, native_frames=None)
    for seconds in range(2, 6):
        request = replace(REQUEST, seconds=seconds)
        assert make_plan(A14B, request) == make_plan(plain, request)
    assert make_plan(A14B, REQUEST) != make_plan(plain, REQUEST)


def test_both_passes_of_1080p_have_the_windows():
    first, second = make_plan(A14B, replace(REQUEST, resolution="1080P")).passes
    assert first.windows == second.windows == WAN.split(61)


def test_more_than_the_weights_know_is_said():
    (note,) = beyond_training(A14B, make_plan(A14B, REQUEST))
    assert note == (
        "input.duration: model wan2.2-t2v-a14b sees 81 frames at once; the video was made in 4 windows that overlap, "
        "and motion may begin anew in each"
    )
    assert beyond_training(A14B, make_plan(A14B, replace(REQUEST, seconds=5))) == ()


@pytest.mark.parametrize("seconds", range(5, 16))
def test_the_work_grows_as_the_video_does(seconds: int):
    """Attention, which grows with the square of a window, is 72 % of a forward of A14B over 21 latent frames."""
    found = [len(window) / 21 for window in make_plan(A14B, replace(REQUEST, seconds=seconds)).windows]
    work = sum(0.72 * length**2 + 0.28 * length for length in found)
    assert work <= 1.1 * seconds / 5


@pytest.mark.parametrize("profile", [A14B, SMALL], ids=lambda profile: profile.name)
def test_longer_videos_take_no_more_memory_but_for_their_latents(profile):
    needs = footprint(bundled_configs(profile, CONFIGS), profile, "bfloat16")
    five, fifteen = (peak(needs, largest_plan(profile, seconds=seconds), "resident") for seconds in (5, 15))
    assert fifteen.by_stage["text"] == five.by_stage["text"]
    for stage in ("denoise", "decode"):
        more = fifteen.by_stage[stage].activations - five.by_stage[stage].activations
        assert 0 < more < 2**29
    at_once = peak(needs, replace(largest_plan(profile), windowing=None), "resident")
    assert at_once.by_stage["denoise"].activations > 2 * fifteen.by_stage["denoise"].activations


@pytest.mark.parametrize(("longest", "overlap"), [(21, 0), (21, 8), (2, 1), (3, -1)])
def test_a_window_is_more_than_its_overlaps(longest: int, overlap: int):
    with pytest.raises(ProfileError, match=rf"third of a window of {longest} latent frames \(got {overlap}\)"):
        Windowing(longest, overlap)


def test_only_models_that_know_nothing_but_text_have_windows():
    concat = load_profile("wan2.2-i2v-a14b", CONFIGS)
    with pytest.raises(ValueError, match="chaining: windows needs conditioning text"):
        replace(concat, chaining="windows")
    with pytest.raises(ValueError, match="chaining: prefix needs conditioning concat, expand_timesteps, vace"):
        replace(A14B, chaining="prefix")
    with pytest.raises(ValueError, match="one is needed with the other"):
        replace(A14B, native_frames=None)
