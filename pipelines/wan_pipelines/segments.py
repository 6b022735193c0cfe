"""A video longer than one sample, as samples that follow each other: frames, latents and seed of each. No torch.

A sample has 4n+1 frames: its first latent frame stands for one frame, every other one for four. Every segment but the
last shows all it samples behind its prefix, so segments meet between two latent frames, never inside one. Hence the
latents at the end of a segment stand for the same frames in the prefix of the next, from its second latent frame on,
and the new latents of all segments in a row are one stream to the decoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import Any, Literal

from wan_pipelines.errors import PlanError, ProfileError
from wan_pipelines.profile import TEMPORAL_STRIDE

#: media that a video begins with
STARTS = ("first_frame", "first_clip")
#: seeds that a caller can name
SEEDS = 2**31
#: odd, so no two multiples are the same seed; near the golden ratio of SEEDS, so none are neighbours
SEED_STRIDE = 0x4F1BBCDD


def latent_steps(frames: int) -> int:
    """Whole latent frames behind the first one within so many frames: n of 4n+1."""
    return (frames - 1) // TEMPORAL_STRIDE


def latents_of(frames: int) -> int:
    """Latent frames of 4n+1 frames, or of none."""
    return latent_steps(frames) + 1 if frames else 0


def whole_latents(frames: int) -> int:
    """The largest 4n+1 within so many frames."""
    return TEMPORAL_STRIDE * latent_steps(frames) + 1


def _check_whole(name: str, frames: int, least: int, most: int | None = None) -> None:
    """Raises ProfileError unless it is 4n+1 within the limits."""
    if frames % TEMPORAL_STRIDE != 1 or frames < least or (most is not None and frames > most):
        limit = f"at least {least}" if most is None else f"between {least} and {most}"
        raise ProfileError(f"{name}: must be 4n+1, {limit} (got {frames})")


@dataclass(frozen=True, slots=True)
class Chaining:
    """How a segment goes on from the one before: data, which the conditioning follows. Raises ProfileError."""

    name: str
    #: frames at the start of a segment that are in the video already: 1, 5, 9, 13 or 17
    overlap: int = 9
    #: what the first latent frame is: the frame at that place, encoded as a picture, or the first segment's first one
    first: Literal["frame", "anchor"] = "frame"
    #: latent frames that the mask calls known: all of the overlap, or the first one
    known: Literal["overlap", "first"] = "overlap"
    #: what stands where nothing is known, in every segment: grey frames, encoded, or latents of zero
    rest: Literal["grey", "zeros"] = "grey"
    #: whether latents of the overlap are taken over; else its frames are encoded again
    carries: bool = True
    #: share of the drift from the first frame's colours that is taken back at each seam; 0 leaves them as they come
    colour: float = 0.5

    def __post_init__(self) -> None:
        _check_whole("overlap", self.overlap, least=1, most=17)
        if not 0 <= self.colour <= 1:
            raise ProfileError(f"colour: must be between 0 and 1 (got {self.colour:g})")
        if self.first == "anchor" and (self.overlap == 1 or not self.carries):
            raise ProfileError(f"chaining {self.name}: an anchor needs latents that are taken over behind it")

    @property
    def carried(self) -> int:
        """Latent frames that are taken over."""
        return latent_steps(self.overlap) if self.carries else 0


#: several frames of the segment before, encoded again, all called known: for every model that takes a prefix
PREFIX = Chaining("prefix", carries=False)
#: the same with the latents that they were decoded from
LATENTS = Chaining("latents")
#: Stable Video Infinity 2.0 Pro, for its LoRA alone: the picture that the video begins with, the last latent of the
#: segment before, zeros; only the first is called known (Wan2GP 8681e9f, models/wan/any2video.py). The anchor and how
#: the LoRA was trained hold the colours
SVI = Chaining("svi", overlap=5, first="anchor", known="first", rest="zeros", colour=0.0)
#: what a profile can name
CHAININGS: Mapping[str, Chaining] = MappingProxyType({chaining.name: chaining for chaining in (PREFIX, LATENTS, SVI)})


@dataclass(frozen=True, slots=True)
class SegmentRequest:
    """What decides the segments of a video. Raises ProfileError when the lengths do not go together."""

    seconds: int
    fps: int
    seed: int
    #: most frames of one sample, 4n+1
    most: int
    #: most frames of one sample where there are several, 4n+1; None is `most`
    native: int | None = None
    #: None for models that make a video in one go or not at all
    chaining: Chaining | None = PREFIX
    #: roles of the media that are given; none is a video from text alone
    media: tuple[str, ...] = ("first_frame",)
    #: frames at the start of the video that are first_clip's own
    clip_frames: int = 0
    #: most frames of its end that the model sees, 4n+1
    clip_prefix: int = 17

    def __post_init__(self) -> None:
        _check_whole("most", self.most, least=5)
        _check_whole("native", self.longest, least=5, most=self.most)
        _check_whole("clip_prefix", self.clip_prefix, least=1, most=self.most - TEMPORAL_STRIDE)
        if self.fps < 1:
            raise ProfileError(f"fps: must be at least 1 (got {self.fps})")
        if ("first_clip" in self.media) != (self.clip_frames > 0):
            raise ProfileError(f"clip_frames: must be above 0 with first_clip, and only then (got {self.clip_frames})")

    @property
    def longest(self) -> int:
        """Most frames of one sample where there are several."""
        return self.most if self.native is None else self.native

    @property
    def frames(self) -> int:
        """Frames of the video."""
        return self.fps * self.seconds

    @property
    def prefix_frames(self) -> int:
        """Frames of the clip's end that the first segment repeats: 4n+1, or 0 without a clip."""
        seen = min(self.clip_prefix, self.clip_frames)
        return whole_latents(seen) if seen else 0


@dataclass(frozen=True, slots=True)
class Segment:
    """One sample. Frames are numbered as in the video: it samples [begins, begins + sampled), shows [start, stop)."""

    #: 0 is the first
    number: int
    #: of its noise
    seed: int
    #: frames that are sampled, 4n+1
    sampled: int
    start: int
    stop: int
    #: frames at the start of the sample that the video has already and that are not shown: 4n+1, or 0
    prefix_frames: int
    #: latent frames of the prefix that are taken over from the segment before
    carried: int
    #: what it is told, in this order: first_frame or first_clip in the first segment, in the others anchor (where the
    #: chaining has one) and tail, and in the last one last_frame
    told: tuple[str, ...]
    #: where it begins and ends in the work of the whole video, within [0, 1]
    share: tuple[float, float]

    @property
    def begins(self) -> int:
        """The first sampled frame; an anchor stands in its place where there is one."""
        return self.start - self.prefix_frames

    @property
    def latent_frames(self) -> int:
        """Latent frames that are sampled."""
        return latent_steps(self.sampled) + 1

    @property
    def new_latents(self) -> range:
        """Those of them behind the prefix: what the decoder gets when all segments are decoded as one stream."""
        return range(latents_of(self.prefix_frames), self.latent_frames)

    @property
    def shown(self) -> range:
        """The sampled frames that the video keeps; up to three behind them round up to a whole latent frame."""
        return range(self.prefix_frames, self.prefix_frames + self.stop - self.start)

    @property
    def seen(self) -> range:
        """Frames of the prefix that the model is told as pixels; those behind them are carried latents.

        The first one is seen even when latents are carried: the first latent frame stands for one frame, and no latent
        at a segment's end does.
        """
        return range(self.begins + ("anchor" in self.told), self.start - TEMPORAL_STRIDE * self.carried)

    def carried_latents(self, before: Segment) -> range:
        """Latent frames of the segment before that stand in this one from its second latent frame on."""
        return range(before.latent_frames - self.carried, before.latent_frames)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Segment:
        """The inverse of `dataclasses.asdict` through JSON."""
        return cls(**{**data, "told": tuple(data["told"]), "share": tuple(data["share"])})


def plan_segments(request: SegmentRequest) -> tuple[Segment, ...]:
    """The segments of a video of exactly `seconds`. Raises PlanError naming the field and the limit.

    What fits one sample is one segment, with the caller's own seed. Otherwise there are as few as possible, sampled
    lengths differ by one latent frame at most, and the longer ones come first. (Only where a clip's prefix fills most
    of a sample may the first be longer.)
    """
    _check_duration(request)
    steps = _steps(request)
    done = [total / (sum(steps) + len(steps)) for total in accumulate((count + 1 for count in steps), initial=0)]
    start, segments = request.clip_frames, []
    for number, count in enumerate(steps):
        sampled, prefix = TEMPORAL_STRIDE * count + 1, _prefix(request, number)
        segments.append(
            Segment(
                number=number,
                seed=segment_seed(request.seed, number),
                sampled=sampled,
                start=start,
                stop=min(request.frames, start + sampled - prefix),
                prefix_frames=prefix,
                carried=request.chaining.carried if request.chaining and number else 0,
                told=tuple(_told(request, number, number == len(steps) - 1)),
                share=(done[number], done[number + 1]),
            )
        )
        start = segments[-1].stop
    return tuple(segments)


def segment_seed(seed: int, number: int) -> int:
    """The seed of a segment's noise: the caller's own for the first, and another one that he could name for each other.

    Equal noise in two segments shows as a pattern that comes back. Counting up would give seeds 7 and 8 most of
    their noise in common.
    """
    return (seed + number * SEED_STRIDE) % SEEDS if number else seed


def _check_duration(request: SegmentRequest) -> None:
    if request.seconds < 1:
        raise PlanError(f"input.duration: must be at least 1 (got {request.seconds})")
    if request.frames <= request.clip_frames:
        raise PlanError(
            "input.duration: must be longer than first_clip, which is part of the video "
            f"(got {request.seconds} s and a clip of {request.clip_frames / request.fps:g} s)"
        )
    if request.chaining is None and request.frames > (room := _room_in_one(request)):
        raise PlanError(
            f"input.duration: must be between 1 and {room // request.fps} in one go (got {request.seconds})"
        )


def _room_in_one(request: SegmentRequest) -> int:
    """Frames of the longest video that is one sample."""
    return request.most - request.prefix_frames + request.clip_frames


def _steps(request: SegmentRequest) -> list[int]:
    """n of every segment's 4n+1 sampled frames."""
    told = latent_steps(request.prefix_frames) if request.prefix_frames else 0
    shown_by_first = 0 if request.prefix_frames else 1  # the first latent frame, when no prefix fills it
    wanted = -(-(request.frames - request.clip_frames - shown_by_first) // TEMPORAL_STRIDE)
    chaining = request.chaining
    if chaining is None or request.frames <= _room_in_one(request):
        return [told + wanted]
    most, repeated = latent_steps(request.longest), latent_steps(chaining.overlap)
    if (least := max(told, repeated)) >= most:
        raise PlanError(
            f"input.duration: must be between 1 and {_room_in_one(request) // request.fps} with samples of "
            f"{request.longest} frames, {TEMPORAL_STRIDE * least + 1} of them repeated (got {request.seconds})"
        )
    behind_first = -(-(wanted - (most - told)) // (most - repeated))  # segments after the first
    total = told + wanted + behind_first * repeated
    first = max(-(-total // (behind_first + 1)), told + 1)
    return [first, *_evenly(total - first, behind_first)]


def _evenly(total: int, parts: int) -> Iterator[int]:
    """A sum as parts that differ by one at most, falling."""
    whole, more = divmod(total, parts)
    return (whole + (part < more) for part in range(parts))


def _prefix(request: SegmentRequest, number: int) -> int:
    return request.chaining.overlap if request.chaining and number else request.prefix_frames


def _told(request: SegmentRequest, number: int, is_last: bool) -> Iterator[str]:
    if number == 0:
        yield from (role for role in STARTS if role in request.media)
    elif request.chaining is not None:
        if request.chaining.first == "anchor":
            yield "anchor"
        yield "tail"
    if is_last and "last_frame" in request.media:
        yield "last_frame"
