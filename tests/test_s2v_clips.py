"""Chains of clips: every frame once, in order, with its own sound, for any length and any model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_pipelines.errors import PlanError, ProfileError
from wan_pipelines.s2v.clips import HEARD_RATE, ChainSpec, make_chain

WAN = ChainSpec()
#: the official loop: no longer first clip, no shorter last one
OFFICIAL = ChainSpec(least_frames=80, first_clip_extra=0)
DURATIONS = st.integers(2, 15)


@st.composite
def specs(draw):
    clip = 4 * draw(st.integers(1, 30))
    least = 4 * draw(st.integers(1, clip // 4))
    return ChainSpec(
        fps=draw(st.integers(1, 60)),
        clip_frames=clip,
        least_frames=least,
        motion_frames=4 * draw(st.integers(0, 25)) + 1,
        lead_frames=draw(st.integers(0, least - 1)),
        first_clip_extra=4 * draw(st.integers(0, 5)),
    )


@pytest.mark.parametrize(
    ("seconds", "sampled"),
    [(2, (48,)), (3, (52,)), (5, (84,)), (6, (84, 48)), (9, (84, 64)), (10, (84, 80)), (15, (84, 80, 80))],
)
def test_five_seconds_are_one_clip(seconds, sampled):
    chain = make_chain(WAN, seconds, seed=7)
    assert tuple(clip.sampled for clip in chain.clips) == sampled
    assert chain.frames == 16 * seconds


def test_the_official_clips_are_one_choice_of_numbers():
    chain = make_chain(OFFICIAL, 15, seed=0)
    assert [(clip.start, clip.sampled, clip.dropped) for clip in chain.clips] == [
        (0, 80, (3, 0)),
        (77, 80, (0, 0)),
        (157, 80, (0, 0)),
        (237, 80, (0, 77)),
    ]


def test_a_first_clip_with_motion_drops_nothing():
    chain = make_chain(ChainSpec(lead_frames=0, first_clip_extra=0), 10, seed=0)
    assert [(clip.begins, clip.sampled, clip.dropped) for clip in chain.clips] == [(0, 80, (0, 0)), (80, 80, (0, 0))]


def test_motion_before_the_first_clip_is_grey():
    first, second, _ = make_chain(WAN, 15, seed=0).clips
    assert first.motion(73) == (73, range(0, 0))
    assert second.motion(73) == (0, range(8, 81))
    assert second.motion(101) == (20, range(0, 81))


@settings(deadline=None)  # a busy machine is no failure
@given(specs(), DURATIONS, st.integers(0, 2**31 - 1))
def test_every_frame_is_shown_once_and_in_order(spec, seconds, seed):
    chain = make_chain(spec, seconds, seed)
    shown = [frame for clip in chain.clips for frame in range(clip.begins, clip.begins + clip.sampled)[clip.shown]]
    assert shown == list(range(spec.fps * seconds))
    assert chain.frames == len(shown)
    assert [clip.number for clip in chain.clips] == list(range(len(chain.clips)))
    assert [clip.seed for clip in chain.clips] == [seed + clip.number for clip in chain.clips]
    assert chain == make_chain(spec, seconds, seed)


@settings(deadline=None)
@given(specs(), DURATIONS)
def test_clips_are_whole_latent_frames_within_the_limits(spec, seconds):
    chain = make_chain(spec, seconds, seed=0)
    for clip in chain.clips:
        most = spec.clip_frames + (0 if clip.number else spec.first_clip_extra)
        assert 4 * clip.latent_frames == clip.sampled == sum(clip.dropped) + clip.stop - clip.start
        assert spec.least_frames <= clip.sampled <= most
        assert clip.dropped[0] == (0 if clip.number else spec.lead_frames)
    assert all(clip.dropped[1] == 0 and clip.sampled >= spec.clip_frames for clip in chain.clips[:-1])
    last = chain.clips[-1]
    assert last.dropped[1] < 4 or last.sampled == spec.least_frames


@settings(deadline=None)
@given(specs(), DURATIONS)
def test_a_shown_frame_hears_its_own_moment(spec, seconds):
    chain = make_chain(spec, seconds, seed=0)
    for clip in chain.clips:
        heard = chain.heard(clip)
        assert len(heard) == clip.sampled
        assert heard[: clip.dropped[0]] == (0,) * clip.dropped[0]
        times = np.arange(clip.start, clip.stop) / spec.fps
        assert np.abs(np.array(heard[clip.shown]) / HEARD_RATE - times).max() <= 0.5 / HEARD_RATE + 1e-9
        assert max(heard) <= chain.heard_seconds * HEARD_RATE


@settings(deadline=None)
@given(specs(), DURATIONS)
def test_motion_is_what_was_just_shown(spec, seconds):
    for clip in make_chain(spec, seconds, seed=0).clips:
        grey, known = clip.motion(spec.motion_frames)
        assert grey + len(known) == spec.motion_frames
        assert known.stop == clip.start
        assert known.start == 0 or not grey


def test_the_states_are_chosen_as_the_official_code_chooses_them():
    """numpy rounds halves to the even number; every second clip has such frames (k = 4, 12, ...)."""
    chosen = np.round(np.arange(240) / 16 * HEARD_RATE).astype(int).tolist()
    chain = make_chain(ChainSpec(lead_frames=0, first_clip_extra=0), 15, seed=0)
    assert [state for clip in chain.clips for state in chain.heard(clip)] == chosen


@pytest.mark.parametrize("motion_frames", [1, 5, 73])
def test_a_latent_frame_hears_what_reaches_it_through_the_audio_encoder(motion_frames):
    """The encoder's three convolutions, all weights one: which frames have a part in each latent frame?"""
    clip = 24
    sound = torch.zeros(1, 1, clip, requires_grad=True)
    signal = torch.cat((sound[..., :1].expand(-1, -1, motion_frames), sound), dim=2)
    for stride in (1, 2, 2):
        signal = F.conv1d(F.pad(signal, (2, 0), mode="replicate"), torch.ones(1, 1, 3), stride=stride)
    latents = signal[0, 0, (motion_frames + 3) // 4 :]
    chain = make_chain(ChainSpec(16, clip, clip, motion_frames, 3, 0), 2, seed=0)
    assert len(latents) == chain.clips[1].latent_frames == 6
    for first_or_second in chain.clips:
        states = chain.heard(first_or_second)
        for number, latent in enumerate(latents):
            parts = torch.autograd.grad(latent, sound, retain_graph=True)[0][0, 0]
            reached = {states[frame] for frame in parts.nonzero()[:, 0].tolist()}
            assert reached == set(chain.heard_by_latent(first_or_second, number))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"clip_frames": 81}, "clip_frames: must be a multiple of 4"),
        ({"least_frames": 0}, "least_frames: must be a multiple of 4, at least 4"),
        ({"least_frames": 84}, "least_frames: must be at most 80"),
        ({"first_clip_extra": 3}, "first_clip_extra: must be a multiple of 4"),
        ({"motion_frames": 72}, "motion_frames: must be one more"),
        ({"lead_frames": 48}, "lead_frames: must be less"),
        ({"fps": 0}, "fps: must be at least 1"),
    ],
)
def test_numbers_that_fit_no_model_are_refused(numbers, message):
    with pytest.raises(ProfileError, match=message):
        ChainSpec(**numbers)


def test_nothing_has_no_clips():
    with pytest.raises(PlanError, match="duration"):
        make_chain(WAN, 0, seed=0)
