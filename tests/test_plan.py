"""Plans: exact durations, explicit noise levels, refusals that name the field."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from wan_pipelines.errors import PlanError
from wan_pipelines.plan import PlanRequest, RenderPlan, beyond_training, flow_sigmas, make_plan, shifted
from wan_pipelines.preset import Preset
from wan_pipelines.profile import load_profile, load_served

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
#: one that samples every length in one go
TINY = replace(load_profile("tiny", CONFIGS), chaining=None, native_frames=None)
TI2V = load_profile("tiny-ti2v", CONFIGS)
A14B = load_profile("wan2.2-i2v-a14b", CONFIGS)
ONE_GO = replace(A14B, chaining=None, native_frames=None, max_frames=121)
FAST = load_served("wan2.2-i2v-a14b:fast", CONFIGS)
SVI = load_served("wan2.2-i2v-a14b:svi", CONFIGS)
T2V = load_profile("wan2.2-t2v-a14b", CONFIGS)
FLF2V = load_profile("wan2.1-flf2v-14b-720p", CONFIGS)
VACE = load_profile("wan2.1-vace-14b", CONFIGS)
SMALL_VACE = load_profile("wan2.1-vace-1.3b", CONFIGS)
S2V = load_profile("wan2.2-s2v-14b", CONFIGS)
TI2V_5B = load_profile("wan2.2-ti2v-5b", CONFIGS)
REQUEST = PlanRequest("a cat", None, "720P", 16 / 9, 5, seed=7)


@pytest.mark.parametrize(
    ("profile", "seconds", "frames", "sampled"),
    [(TINY, 5, 80, 81), (TINY, 2, 32, 33), (TINY, 15, 240, 241), (TI2V, 5, 120, 121), (TI2V, 15, 360, 361)],
)
def test_duration_is_exact(profile, seconds, frames, sampled):
    plan = make_plan(profile, replace(REQUEST, seconds=seconds))
    assert (plan.frames, plan.sample_frames) == (frames, sampled)
    assert plan.frames == plan.fps * plan.seconds


@given(st.integers(1, 15), st.integers(1, 60))
def test_sampled_frames_are_the_smallest_4n_plus_1_that_covers(seconds, fps):
    plan = make_plan(replace(TINY, fps=fps, max_frames=1001), replace(REQUEST, seconds=seconds))
    assert plan.sample_frames % 4 == 1
    assert 0 <= plan.sample_frames - plan.frames < 4


def continued(profile, seconds, clip_seconds, **changes):
    request = replace(REQUEST, seconds=seconds, media=("first_clip",), clip_seconds=clip_seconds, **changes)
    return make_plan(profile, request)


@pytest.mark.parametrize(
    ("seconds", "clip_seconds", "clip_frames", "prefix_frames", "sampled", "handover"),
    [
        (5, 2.0, 32, 17, 65, 16),  # 17 + 48 new ones
        (5, 2.002, 32, 17, 65, 16),  # 29.97 frames per second
        (5, 2.3333, 37, 17, 61, 16),
        (5, 4.999, 79, 17, 21, 0),  # one new frame
        (15, 2.0, 32, 17, 225, 16),
        (2, 1.0, 16, 13, 29, 8),  # shorter than 17 frames
        (2, 0.0625, 1, 1, 33, 15),
    ],
)
def test_a_clip_is_part_of_the_video(seconds, clip_seconds, clip_frames, prefix_frames, sampled, handover):
    plan = continued(TINY, seconds, clip_seconds)
    assert plan.frames == 16 * seconds
    assert (plan.clip_frames, plan.prefix_frames, plan.sample_frames) == (clip_frames, prefix_frames, sampled)
    assert plan.handover_frames == handover
    cut = replace(TINY, handover_seconds=0.0)
    assert continued(cut, seconds, clip_seconds).handover_frames == 0


@given(st.integers(2, 15), st.floats(0.1, 10.1), st.sampled_from([1, 5, 17]), st.integers(1, 60))
def test_prefix_and_new_frames_fit_the_sample(seconds, clip_seconds, most, fps):
    profile = replace(TINY, fps=fps, max_frames=1001, prefix_frames=most)
    assume(1 / fps <= clip_seconds < seconds - 0.001)
    plan = continued(profile, seconds, clip_seconds)
    assert plan.prefix_frames % 4 == plan.sample_frames % 4 == 1
    assert plan.prefix_frames <= min(most, plan.clip_frames)
    assert plan.prefix_frames > min(most, plan.clip_frames) - 4
    surplus = plan.sample_frames - plan.prefix_frames - (plan.frames - plan.clip_frames)
    assert 0 <= surplus < 4


@pytest.mark.parametrize("clip_seconds", [5.0, 4.9999, 5.02, 9.5])
def test_a_clip_that_fills_the_video_is_refused_with_both_numbers(clip_seconds):
    message = rf"input\.duration: must be longer than first_clip.*\(got 5 s and a clip of {clip_seconds:g} s\)"
    with pytest.raises(PlanError, match=message):
        continued(TINY, 5, clip_seconds)


def test_a_clip_makes_longer_videos_than_the_model_alone():
    assert continued(ONE_GO, 11, 5.0).sample_frames == 113
    limit = r"input\.duration: must be between 1 and 11 with model .*a14b behind a clip of 5 s \(got 12\)"
    with pytest.raises(PlanError, match=limit):
        continued(ONE_GO, 12, 5.0)


@pytest.mark.parametrize(
    ("profile", "seconds", "samples"),
    [
        (A14B, 5, [81]),
        (A14B, 6, [53, 53]),
        (A14B, 10, [61, 61, 57]),
        (A14B, 15, [69, 69, 65, 65]),
        (VACE, 15, [69, 69, 65, 65]),
        (TI2V_5B, 5, [121]),
        (TI2V_5B, 15, [97, 97, 97, 97]),
        (SVI, 15, [65, 65, 65, 61]),
    ],
)
def test_longer_videos_are_samples_that_go_on_from_each_other(profile, seconds, samples):
    plan = make_plan(profile, replace(REQUEST, seconds=seconds))
    assert [segment.sampled for segment in plan.segments] == samples
    assert [part.sample_frames for part in plan.parts] == samples
    assert (plan.sample_frames, plan.frames) == (max(samples), profile.fps * seconds)
    assert [(part.clip_frames, part.frames) for part in plan.parts] == [(s.start, s.stop) for s in plan.segments]
    assert [part.number for part in plan.parts] == list(range(len(samples)))
    assert len({part.key for part in plan.parts}) == len(samples)
    assert RenderPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_clip_and_a_last_frame_are_told_to_the_segments_that_they_belong_to():
    request = replace(REQUEST, seconds=15, media=("first_clip", "last_frame"), clip_seconds=5.0)
    plan = make_plan(A14B, request)
    assert (plan.clip_frames, plan.prefix_frames) == (80, 17)
    assert [part.prefix_frames for part in plan.parts] == [17, 9, 9]
    told = [segment.told for segment in plan.segments]
    assert told == [("first_clip",), ("tail",), ("tail", "last_frame")]
    assert plan.segments[-1].stop == 240


def test_the_preset_for_going_on_takes_a_shorter_end_of_a_clip():
    plan = make_plan(SVI, replace(REQUEST, seconds=10, media=("first_clip",), clip_seconds=2.0))
    assert plan.chaining is not None
    assert (plan.chaining.name, plan.prefix_frames, plan.segments[1].prefix_frames) == ("svi", 5, 5)


def test_a_model_in_one_go_has_no_segments():
    for plan in (make_plan(TINY, REQUEST), make_plan(S2V, replace(REQUEST, media=("first_frame", "driving_audio")))):
        assert (plan.segments, plan.chaining, plan.parts, plan.number) == ((), None, (plan,), 0)


@pytest.mark.parametrize("clip_seconds", [None, 0.0, 0.05])
def test_a_clip_without_a_frame_is_refused(clip_seconds):
    with pytest.raises(PlanError, match=r"input\.first_clip: must be at least one frame long"):
        continued(TINY, 5, clip_seconds)


def test_the_clip_gives_the_shape():
    plan = continued(TINY, 5, 2.0, aspect=9 / 16)
    assert (plan.width, plan.height) == (720, 1280)
    with pytest.raises(PlanError, match=r"input\.first_clip: aspect ratio"):
        continued(TINY, 5, 2.0, aspect=9.0)


def test_a_video_from_text_alone():
    plan = make_plan(TINY, replace(REQUEST, media=(), aspect=9 / 16))
    assert (plan.width, plan.height, plan.sample_frames, plan.clip_frames) == (720, 1280, 81, 0)


def test_a_model_that_needs_a_picture_says_so():
    with pytest.raises(PlanError, match=r"input\.first_frame: .*a14b makes no video from text alone; it needs first_f"):
        make_plan(A14B, replace(REQUEST, media=()))


@pytest.mark.parametrize(
    ("media", "message"),
    [
        (("last_frame",), r"input\.last_frame: needs first_frame or first_clip"),
        (("first_frame", "first_clip"), r"input\.first_clip: cannot be combined with first_frame"),
    ],
)
def test_media_that_do_not_go_together_are_refused(media, message):
    with pytest.raises(PlanError, match=message):
        make_plan(TINY, replace(REQUEST, media=media, clip_seconds=2.0))


def test_a_model_for_text_takes_no_media():
    assert make_plan(T2V, replace(REQUEST, media=())).sample_frames == 81
    message = r"input\.first_frame: model wan2.2-t2v-a14b does not take it \(it makes videos from text alone\)"
    with pytest.raises(PlanError, match=message):
        make_plan(T2V, REQUEST)


@pytest.mark.parametrize("profile", [TINY, A14B, T2V, VACE])
def test_sound_goes_with_every_model(profile):
    media = ("driving_audio",) if profile is T2V else ("first_frame", "driving_audio")
    assert make_plan(profile, replace(REQUEST, media=media)).frames == 80


@pytest.mark.parametrize(
    ("profile", "media", "message"),
    [
        (FLF2V, ("first_frame",), r"input\.last_frame: model wan2.1-flf2v-14b-720p needs it"),
        (FLF2V, ("last_frame",), r"input\.last_frame: needs first_frame or first_clip"),
        (FLF2V, ("first_clip",), r"input\.first_clip: .* does not take it \(it takes first_frame, last_frame\)"),
        (S2V, ("first_frame",), r"input\.driving_audio: model wan2.2-s2v-14b needs it"),
        (S2V, ("driving_audio",), r"input\.first_frame: .* makes no video from text alone; it needs first_frame"),
        (replace(S2V, cannot_run="no code"), ("first_frame", "driving_audio"), r"input: .* cannot run yet: no code"),
    ],
)
def test_a_model_names_what_it_needs(profile, media, message):
    with pytest.raises(PlanError, match=message):
        make_plan(profile, replace(REQUEST, media=media, seconds=4, clip_seconds=2.0))


def test_what_is_needed_is_enough():
    assert make_plan(FLF2V, replace(REQUEST, media=("first_frame", "last_frame"))).shift == 16
    assert make_plan(S2V, replace(REQUEST, media=("first_frame", "driving_audio"))).frames == 80


@pytest.mark.parametrize(
    ("seconds", "clips", "longest"), [(1, 1, 48), (2, 1, 48), (5, 1, 84), (6, 2, 84), (10, 2, 84), (15, 3, 84)]
)
def test_a_chain_of_clips_is_as_long_as_the_video(seconds, clips, longest):
    plan = make_plan(S2V, replace(REQUEST, media=("first_frame", "driving_audio"), seconds=seconds))
    assert plan.clips is not None
    assert (plan.frames, plan.clips.frames) == (16 * seconds, 16 * seconds)
    assert (len(plan.clips.clips), plan.sample_frames) == (clips, longest)
    assert [clip.seed for clip in plan.clips.clips] == [plan.seed + number for number in range(clips)]
    assert RenderPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert beyond_training(S2V, plan) == ()


def test_a_chain_of_clips_is_sampled_whole_and_cut():
    sizes = {}
    for resolution, aspect in (("720P", 16 / 9), ("720P", 9 / 16), ("720P", 1.0), ("720P", 4 / 3), ("1080P", 16 / 9)):
        request = replace(REQUEST, media=("first_frame", "driving_audio"), resolution=resolution, aspect=aspect)
        plan = make_plan(S2V, request)
        assert plan.visible_size == (plan.width, plan.height)
        sizes[plan.width, plan.height] = (plan.sample_width, plan.sample_height)
    assert sizes == {
        (1280, 720): (1280, 768),
        (720, 1280): (768, 1280),
        (960, 960): (960, 960),
        (1104, 832): (1152, 832),
        (1920, 1080): (1920, 1088),
    }


def test_a_chain_of_clips_has_a_longest_video():
    with pytest.raises(
        PlanError, match=r"input\.duration: must be between 1 and 15 with model wan2.2-s2v-14b \(got 16\)"
    ):
        make_plan(S2V, replace(REQUEST, media=("first_frame", "driving_audio"), seconds=16))


def test_vace_takes_any_frames_of_the_video():
    for media in ((), ("first_frame",), ("last_frame",), ("first_frame", "last_frame")):
        assert make_plan(VACE, replace(REQUEST, media=media)).sample_frames == 81
    assert continued(VACE, 5, 2.0).prefix_frames == 17
    with pytest.raises(PlanError, match=r"input\.last_frame: aspect ratio"):
        make_plan(VACE, replace(REQUEST, media=("last_frame",), aspect=9.0))


def test_a_small_model_works_at_the_size_it_was_trained_at():
    plan = make_plan(SMALL_VACE, replace(REQUEST, resolution="1080P"))
    assert (plan.sample_width, plan.sample_height) == (832, 480)
    assert (plan.width, plan.height) == (1920, 1080)
    assert beyond_training(SMALL_VACE, plan) == ()


@pytest.mark.parametrize(
    ("profile", "changes", "notes"),
    [
        (A14B, {}, []),
        (
            ONE_GO,
            {"seconds": 7},
            ["input.duration: model wan2.2-i2v-a14b was trained on 81 frames and made 113 in one"],
        ),
        (
            A14B,
            {"seconds": 7},
            ["input.duration: model wan2.2-i2v-a14b makes 81 frames in one go; the video is 2 samples"],
        ),
        (A14B, {"resolution": "1080P"}, ["input.resolution: model wan2.2-i2v-a14b was trained on up to 1280x720 and"]),
        (A14B, {"resolution": "1080P", "seconds": 6}, ["input.duration: ", "input.resolution: "]),
        (TI2V_5B, {}, []),  # 1280x736 for 1280x704: the grid of 32
        (TI2V_5B, {"aspect": 1.0}, []),
        (TINY, {"seconds": 15, "resolution": "1080P"}, []),  # says nothing of its training
    ],
)
def test_what_goes_beyond_the_training_is_said(profile, changes, notes):
    found = beyond_training(profile, make_plan(profile, replace(REQUEST, **changes)))
    assert [said.startswith(note) for said, note in zip(found, notes, strict=True)] == [True] * len(notes)


def test_a_preset_names_itself_in_the_plan_and_changes_its_key():
    fast, quality = make_plan(FAST, REQUEST), make_plan(A14B, REQUEST)
    assert (quality.model, fast.model) == ("wan2.2-i2v-a14b", "wan2.2-i2v-a14b:fast")
    assert (fast.steps, fast.sampler, fast.is_guided, quality.is_guided) == (4, "euler", False, True)
    assert fast.key != quality.key


def test_explicit_levels_are_shifted_and_end_in_zero():
    assert [1000 * s for s in make_plan(FAST, REQUEST).sigmas] == pytest.approx([1000, 937.5, 833.333333, 625, 0])
    assert shifted([1.0, 0.5], 1.0) == (1.0, 0.5, 0.0)
    assert make_plan(FAST, REQUEST).sigmas == flow_sigmas("euler", 4, 5.0)


def test_too_long_names_field_and_limit():
    with pytest.raises(PlanError, match=r"input\.duration: must be between 1 and 7 .*a14b \(got 8\)"):
        make_plan(ONE_GO, replace(REQUEST, seconds=8))
    assert make_plan(ONE_GO, replace(REQUEST, seconds=7)).sample_frames == 113
    with pytest.raises(PlanError, match=r"input\.duration: must be between 1 and 15 .*a14b \(got 16\)"):
        make_plan(A14B, replace(REQUEST, seconds=16))


def test_media_the_model_does_not_take_is_refused():
    with pytest.raises(PlanError, match=r"input\.last_frame: model tiny-ti2v does not take it"):
        make_plan(TI2V, replace(REQUEST, media=("first_frame", "last_frame")))


def test_1080p_is_sampled_on_the_grid():
    plan = make_plan(A14B, replace(REQUEST, resolution="1080P"))
    assert (plan.width, plan.height, plan.sample_width, plan.sample_height) == (1920, 1080, 1920, 1088)
    assert plan.visible_size == (1920, 1080)


@pytest.mark.parametrize("given_prompt", [None, ""])
def test_profile_gives_the_negative_prompt_when_the_caller_does_not(given_prompt):
    assert make_plan(A14B, replace(REQUEST, negative_prompt=given_prompt)).negative_prompt == A14B.negative_prompt != ""
    assert make_plan(A14B, replace(REQUEST, negative_prompt="fog")).negative_prompt == "fog"


def test_the_demonstration_model_is_guided_away_from_no_text():
    plan = make_plan(TINY, REQUEST)
    assert (plan.negative_prompt, plan.is_guided) == ("", True)


@pytest.mark.parametrize(
    ("media", "scale"),
    [
        ((), 4.0),
        (("driving_audio",), 4.0),
        (("first_frame",), 3.0),
        (("first_frame", "driving_audio"), 3.0),
        (("first_frame", "last_frame"), 1.5),
    ],
)
def test_guidance_follows_what_the_inputs_tell(media, scale):
    plan = make_plan(replace(TINY, guidance_for={"text": 4.0, "last_frame": 1.5}), replace(REQUEST, media=media))
    assert (plan.guidance_high, plan.guidance_low) == (scale, scale)


def test_a_preset_with_its_own_guidance_has_it_with_every_input():
    kind = replace(
        TINY, guidance_for={"text": 4.0}, presets={"fast": Preset(guidance_high=1.0), "slow": Preset(steps=9)}
    )
    scales = [make_plan(kind.with_preset(name), replace(REQUEST, media=())).guidance_high for name in ("fast", "slow")]
    assert scales == [1.0, 4.0]


def test_json_round_trip():
    for plan in (make_plan(A14B, REQUEST), continued(A14B, 5, 2.0)):
        assert RenderPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_plan_without_a_clip_need_not_speak_of_one():
    plan = make_plan(A14B, REQUEST)
    older = {name: value for name, value in plan.to_json().items() if name not in ("clip_frames", "prefix_frames")}
    assert RenderPlan.from_json(older) == plan


@given(st.sampled_from(["seed", "frames", "width", "steps", "clip_frames", "prefix_frames"]))
def test_key_follows_every_number(field):
    plan = make_plan(TINY, REQUEST)
    other = {"steps": {"sigmas": (*plan.sigmas[:-2], 0.0)}}.get(field) or {field: getattr(plan, field) + 2}
    assert replace(plan, **other).key != plan.key
    assert RenderPlan.from_json(plan.to_json()).key == plan.key


def test_euler_sigmas_are_those_of_the_four_step_weights():
    timesteps = [1000 * s for s in flow_sigmas("euler", 4, 5.0)]
    assert timesteps == pytest.approx([1000, 937.5, 833.333333, 625, 0])


def test_a14b_splits_its_steps_15_to_25():
    plan = make_plan(A14B, REQUEST)
    high = sum(int(1000 * sigma) >= 900 for sigma in plan.sigmas[:-1])
    assert (high, plan.steps) == (15, 40)


@given(st.sampled_from(["euler", "unipc"]), st.integers(1, 100), st.floats(0.5, 20))
def test_sigmas_fall_from_one_to_zero(sampler, steps, shift):
    sigmas = flow_sigmas(sampler, steps, shift)
    assert len(sigmas) == steps + 1
    assert sigmas[0] == pytest.approx(1.0)
    assert sigmas[-1] == 0.0
    assert all(a > b for a, b in pairwise(sigmas))


def test_guidance_of_one_needs_no_negative_prompt():
    plan = make_plan(replace(TINY, guidance_high=1.0, guidance_low=3.0), REQUEST)
    assert not plan.is_guided
    assert replace(plan, boundary=0.9).is_guided
