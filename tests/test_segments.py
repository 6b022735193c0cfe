"""Segments: every frame once and in order, samples that the model can make, for every length, rate and overlap."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from itertools import pairwise, product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_pipelines.errors import PlanError, ProfileError
from wan_pipelines.plan import PlanRequest, make_plan
from wan_pipelines.profile import load_profile
from wan_pipelines.segments import (
    LATENTS,
    PREFIX,
    SEEDS,
    SVI,
    Chaining,
    Segment,
    SegmentRequest,
    plan_segments,
    segment_seed,
)

TINY = replace(load_profile("tiny", Path(__file__).resolve().parents[1] / "configs"), chaining=None, native_frames=None)
PREFIXES = (1, 5, 9, 13, 17)
RATES = (16, 24, 30)
MOST = (81, 121, 241)
WAN = SegmentRequest(seconds=5, fps=16, seed=7, most=81, chaining=LATENTS)
CHAININGS = (
    *(Chaining("prefix", overlap) for overlap in PREFIXES),
    *(Chaining("seen", overlap, carries=False) for overlap in PREFIXES),
    *(replace(SVI, overlap=overlap) for overlap in PREFIXES[1:]),
)
STARTS = (("first_frame",), ("first_clip",), ())
ENDS = ((), ("last_frame",))


def make_request(seconds, fps, most, native, chaining, start, end, clip_frames, **others) -> SegmentRequest:
    """A request within its limits: several samples no longer than a single one, a clip shorter than the video."""
    clip = min(clip_frames, 10 * fps, fps * seconds - 1) if "first_clip" in start else 0
    native = None if native is None else min(native, most)
    return SegmentRequest(
        seconds, fps, most=most, native=native, chaining=chaining, media=(*start, *end), clip_frames=clip, **others
    )


def requests(rates, most, native):
    """`native` is n of 4n+1."""
    return st.builds(
        make_request,
        seconds=st.integers(2, 15),
        fps=rates,
        seed=st.integers(0, SEEDS - 1),
        most=st.sampled_from(most),
        native=st.none() | native.map(lambda n: 4 * n + 1),
        chaining=st.sampled_from(CHAININGS),
        start=st.sampled_from(STARTS),
        end=st.sampled_from(ENDS),
        clip_frames=st.integers(1, 300),
        clip_prefix=st.sampled_from(PREFIXES),
    )


#: samples long enough for the longest prefix and as much again
WIDE = requests(st.sampled_from(RATES), MOST, st.integers(9, 60))
#: and so short that one new latent frame may be all there is room for
ANY = WIDE | requests(st.integers(2, 30), (81,), st.integers(5, 8))


@pytest.mark.parametrize("seconds", range(2, 16))
def test_every_duration_rate_and_overlap(seconds):
    for fps, most, chaining, start in product(RATES, MOST, CHAININGS, STARTS):
        for clip_frames in (1, 4, 17, 33, 10 * fps) if start == ("first_clip",) else (0,):
            request = make_request(seconds, fps, most, None, chaining, start, (), clip_frames, seed=0)
            check_frames(request)
            check_samples(request)


@pytest.mark.parametrize("seconds", range(2, 16))
def test_every_length_of_a_clip(seconds):
    """Up to ten seconds of it, or all of the video but one frame; with samples of 5 s and 15 s."""
    for fps, most, chaining in product(RATES, (81, 241), (PREFIX, LATENTS)):
        for clip_frames in range(1, min(10 * fps, fps * seconds - 1) + 1):
            request = make_request(seconds, fps, most, 81, chaining, ("first_clip",), (), clip_frames, seed=0)
            check_frames(request)
            assert plan_segments(replace(request)) == plan_segments(request)


@given(ANY)
def test_any_request(request):
    check_frames(request)
    check_samples(request)


def check_frames(request: SegmentRequest) -> None:
    """Every frame is shown once and in order, from the sample that has it."""
    shown = request.clip_frames
    for segment in plan_segments(request):
        assert segment.start == shown == segment.begins + segment.shown.start
        assert segment.stop == segment.begins + segment.shown.stop > segment.start
        shown = segment.stop
    assert shown == request.seconds * request.fps


def check_samples(request: SegmentRequest) -> None:
    """Each is 4n+1 frames, no more than the model makes; only the last has up to three frames that are not shown."""
    segments = plan_segments(request)
    most = request.most if len(segments) == 1 else request.longest
    for segment in segments:
        assert segment.sampled % 4 == 1
        assert segment.sampled <= most
        assert segment.shown.stop <= segment.sampled
        assert segment.prefix_frames == 0 or segment.prefix_frames % 4 == 1
    assert [segment.sampled - segment.shown.stop for segment in segments[:-1]] == [0] * (len(segments) - 1)
    assert segments[-1].sampled - segments[-1].shown.stop < 4


@given(ANY)
def test_a_prefix_is_what_the_segment_before_sampled_last(request):
    for before, after in pairwise(plan_segments(request)):
        assert after.prefix_frames == request.chaining.overlap
        assert before.begins <= after.begins < after.start == before.stop == before.begins + before.sampled


@given(ANY)
def test_carried_latents_stand_for_the_same_frames_in_both_segments(request):
    for before, after in pairwise(plan_segments(request)):
        latents = after.carried_latents(before)
        assert after.carried == len(latents) == request.chaining.carried
        for place, latent in enumerate(latents, start=1):
            assert latent >= 1
            assert frames_of(after, place) == frames_of(before, latent)
        covered = [*after.seen, *(frame for place in range(1, 1 + after.carried) for frame in frames_of(after, place))]
        anchored = [after.begins] if "anchor" in after.told else []
        assert anchored + covered == list(range(after.begins, after.start))


def frames_of(segment: Segment, latent: int) -> list[int]:
    """Frames of the video that a latent frame stands for: one, then four each."""
    first = 4 * latent - 3 if latent else 0
    return [segment.begins + frame for frame in range(first, 4 * latent + 1)]


@given(ANY)
def test_new_latents_in_a_row_are_one_stream_of_the_video(request):
    segments = plan_segments(request)
    prefix = segments[0].prefix_frames
    latents = sum(len(segment.new_latents) for segment in segments) + (prefix + 3) // 4
    surplus = 4 * (latents - 1) + 1 - prefix - (request.frames - request.clip_frames)
    assert 0 <= surplus < 4


@given(WIDE)
def test_no_segment_is_much_shorter_than_another(request):
    lengths = [segment.sampled for segment in plan_segments(request)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] - lengths[-1] <= 4


@given(ANY)
def test_there_are_as_few_segments_as_can_be(request):
    segments = plan_segments(request)
    fewer = len(segments) - 1
    if fewer:
        first = request.prefix_frames or 1
        room = request.longest - first + (fewer - 1) * (request.longest - request.chaining.overlap)
        assert room + (0 if request.prefix_frames else 1) < request.frames - request.clip_frames
        assert request.prefix_frames + request.frames - request.clip_frames > request.most


@given(ANY)
def test_the_work_grows_with_the_duration_and_no_faster(request):
    overlap, most = request.chaining.overlap, request.longest
    new = request.frames - request.clip_frames
    sampled = sum(segment.sampled for segment in plan_segments(request))
    assert sampled <= new * most / (most - overlap) + request.prefix_frames + overlap + 3


@given(ANY)
def test_each_is_told_what_belongs_to_it(request):
    segments = plan_segments(request)
    tail = ("anchor", "tail") if request.chaining.first == "anchor" else ("tail",)
    start = tuple(role for role in request.media if role != "last_frame")
    end = ("last_frame",) if "last_frame" in request.media else ()
    told = [start, *([tail] * (len(segments) - 1))]
    told[-1] += end
    assert [segment.told for segment in segments] == told


@given(ANY)
def test_the_same_request_gives_the_same_segments_through_json(request):
    segments = plan_segments(request)
    assert plan_segments(replace(request)) == segments
    stored = json.loads(json.dumps([asdict(segment) for segment in segments]))
    assert tuple(Segment.from_json(data) for data in stored) == segments


@given(ANY)
def test_progress_runs_from_nothing_to_everything(request):
    segments = plan_segments(request)
    assert (segments[0].share[0], segments[-1].share[1]) == (0.0, 1.0)
    assert all(before.share[1] == after.share[0] for before, after in pairwise(segments))
    latents = sum(segment.latent_frames for segment in segments)
    for segment in segments:
        assert segment.share[1] - segment.share[0] == pytest.approx(segment.latent_frames / latents)


@given(ANY)
def test_seeds_come_from_the_one_seed(request):
    segments = plan_segments(request)
    seeds = [segment.seed for segment in segments]
    assert seeds[0] == request.seed
    assert len(set(seeds)) == len(segments)
    assert all(0 <= seed < SEEDS for seed in seeds)
    assert [segment.number for segment in segments] == list(range(len(segments)))


def test_neighbouring_seeds_share_no_noise():
    seeds = Counter(segment_seed(seed, number) for seed in range(2000) for number in range(20))
    assert max(seeds.values()) == 1


@given(
    st.integers(2, 15),
    st.sampled_from(RATES),
    st.sampled_from(MOST),
    st.sampled_from(PREFIXES),
    st.none() | st.floats(0.1, 10.1),
    st.sampled_from([None, PREFIX]),
)
def test_one_segment_has_the_numbers_of_the_plan(seconds, fps, most, seen, clip_seconds, chaining):
    profile = replace(TINY, fps=fps, max_frames=most, prefix_frames=seen)
    media = ("first_frame", "last_frame") if clip_seconds is None else ("first_clip", "last_frame")
    request = PlanRequest("a cat", None, "720P", 1.0, seconds, seed=7, media=media, clip_seconds=clip_seconds)
    clip_frames = 0 if clip_seconds is None else int((clip_seconds + 0.0006) * fps)
    ours = SegmentRequest(
        seconds, fps, 7, most, chaining=chaining, media=media, clip_frames=clip_frames, clip_prefix=seen
    )
    try:
        plan = make_plan(profile, request)
    except PlanError:  # too long, or no longer than its clip
        assert cannot_or_chains(ours)
        return
    (segment,) = plan_segments(ours)
    assert (segment.sampled, segment.prefix_frames, segment.start) == (
        plan.sample_frames,
        plan.prefix_frames,
        plan.clip_frames,
    )
    assert (segment.stop, segment.seed, segment.told) == (plan.frames, plan.seed, media)


def cannot_or_chains(request: SegmentRequest) -> bool:
    """Whether the request is refused or needs several segments."""
    try:
        return len(plan_segments(request)) > 1
    except PlanError:
        return True


def table(**changes) -> list[tuple[int, ...]]:
    """Frames from and to that each segment shows, how many it samples, repeats and takes over as latents."""
    segments = plan_segments(replace(WAN, **changes))
    return [(s.start, s.stop, s.sampled, s.prefix_frames, s.carried) for s in segments]


LAST_FRAME = Chaining("last frame", 1)
CLIP = {"media": ("first_clip", "last_frame"), "clip_frames": 32}


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({}, [(0, 80, 81, 0, 0)]),
        ({"seconds": 2, "fps": 30}, [(0, 60, 61, 0, 0)]),
        ({"seconds": 10}, [(0, 61, 61, 0, 0), (61, 113, 61, 9, 2), (113, 160, 57, 9, 2)]),
        ({"seconds": 10, "chaining": LAST_FRAME}, [(0, 81, 81, 0, 0), (81, 160, 81, 1, 0)]),
        ({"seconds": 7, "most": 121}, [(0, 112, 113, 0, 0)]),  # in one go, beyond what it was trained on
        ({"seconds": 8, "most": 121, "native": 81}, [(0, 69, 69, 0, 0), (69, 128, 69, 9, 2)]),
        (
            {"seconds": 15},
            [(0, 69, 69, 0, 0), (69, 129, 69, 9, 2), (129, 185, 65, 9, 2), (185, 240, 65, 9, 2)],
        ),
        ({"seconds": 6} | CLIP, [(32, 96, 81, 17, 0)]),
        ({"seconds": 10} | CLIP, [(32, 92, 77, 17, 0), (92, 160, 77, 9, 2)]),
        (  # a first segment that is all prefix but for one latent frame
            {"seconds": 3, "most": 21, "chaining": LAST_FRAME, "media": ("first_clip",), "clip_frames": 40},
            [(40, 44, 21, 17, 0), (44, 48, 5, 1, 0)],
        ),
        ({"seconds": 10, "chaining": SVI}, [(0, 57, 57, 0, 0), (57, 109, 57, 5, 1), (109, 160, 57, 5, 1)]),
    ],
)
def test_some_videos(changes, rows):
    assert table(**changes) == rows


def test_a_clip_goes_on_to_a_last_frame():
    first, second, last = plan_segments(replace(WAN, seconds=12, **CLIP))
    assert (first.told, second.told, last.told) == (("first_clip",), ("tail",), ("tail", "last_frame"))
    assert first.seen == range(15, 32)
    assert second.seen == range(second.start - 9, second.start - 8)


def test_an_anchor_stands_for_no_frame_of_the_prefix():
    first, second, _ = plan_segments(replace(WAN, seconds=10, chaining=SVI))
    assert second.told == ("anchor", "tail")
    assert list(second.seen) == []
    assert second.carried_latents(first) == range(14, 15)


def test_latents_that_cannot_be_carried_are_seen_as_frames():
    segments = plan_segments(replace(WAN, seconds=10, chaining=PREFIX))
    assert [list(s.seen) for s in segments[1:]] == [list(range(s.start - 9, s.start)) for s in segments[1:]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seconds": 0}, r"input\.duration: must be at least 1 \(got 0\)"),
        ({"seconds": 6, "chaining": None}, r"input\.duration: must be between 1 and 5 in one go \(got 6\)"),
        ({"seconds": 2} | CLIP, r"longer than first_clip.*\(got 2 s and a clip of 2 s\)"),
        (
            {"seconds": 6, "most": 33, "native": 13, "chaining": Chaining("prefix", 13), "clip_prefix": 1},
            r"input\.duration: must be between 1 and 2 with samples of 13 frames, 13 of them repeated",
        ),
    ],
)
def test_what_cannot_be_made_is_refused_with_the_numbers(changes, message):
    with pytest.raises(PlanError, match=message):
        table(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"most": 80}, r"most: must be 4n\+1, at least 5 \(got 80\)"),
        ({"native": 85}, r"native: must be 4n\+1, between 5 and 81 \(got 85\)"),
        ({"clip_prefix": 16}, r"clip_prefix: must be 4n\+1, between 1 and 77 \(got 16\)"),
        ({"fps": 0}, r"fps: must be at least 1"),
        ({"clip_frames": 32}, r"clip_frames: must be above 0 with first_clip, and only then \(got 32\)"),
    ],
)
def test_lengths_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(ProfileError, match=message):
        replace(WAN, **changes)


@pytest.mark.parametrize("overlap", [0, 4, 21])
def test_an_overlap_is_whole_latent_frames(overlap):
    with pytest.raises(ProfileError, match=r"overlap: must be 4n\+1, between 1 and 17"):
        Chaining("prefix", overlap)


@pytest.mark.parametrize("changes", [{"overlap": 1}, {"carries": False}])
def test_an_anchor_needs_a_tail(changes):
    with pytest.raises(ProfileError, match="chaining svi: an anchor needs latents"):
        replace(SVI, **changes)
