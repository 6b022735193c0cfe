"""How many frames a request takes: of the video, of its clip, and of each sample. No torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from wan_pipelines.errors import PlanError
from wan_pipelines.profile import Profile
from wan_pipelines.s2v.clips import ChainSpec, make_chain
from wan_pipelines.segments import CHAININGS, SegmentRequest, latents_of, plan_segments, whole_latents
from wan_pipelines.windows import Windowing

if TYPE_CHECKING:
    from wan_pipelines.plan import PlanRequest

#: lengths come in whole milliseconds, so the last frame of a clip may seem cut by half of one
ROUNDING_S = 0.0006


def count_frames(profile: Profile, request: PlanRequest) -> dict[str, Any]:
    """The plan's numbers of frames, by field. Raises PlanError naming the field and the limit."""
    clip = _clip_frames(profile, request)
    _check_seconds(profile, request, clip)
    frames = profile.fps * request.seconds
    if (spec := _chain_spec(profile)) is not None:
        longest_clip = max(clip.sampled for clip in make_chain(spec, request.seconds, request.seed).clips)
        return {"frames": frames, "sample_frames": longest_clip, "chain": spec}
    windowing = _windowing(profile)
    chaining = CHAININGS[profile.chaining] if profile.chaining and windowing is None else None
    wish = SegmentRequest(
        seconds=request.seconds,
        fps=profile.fps,
        seed=request.seed,
        most=(None if windowing else profile.native_frames) or profile.max_frames,
        chaining=chaining,
        media=request.media,
        clip_frames=clip,
        clip_prefix=profile.prefix_frames,
    )
    segments = plan_segments(wish)
    counts: dict[str, Any] = {"frames": frames, "clip_frames": clip, "prefix_frames": wish.prefix_frames}
    counts["sample_frames"] = max(segment.sampled for segment in segments)
    if clip:  # the second half of the new frames, and a last frame, stay as they are
        counts["handover_frames"] = min(round(profile.handover_seconds * profile.fps), (frames - clip) // 2)
    if windowing and latents_of(counts["sample_frames"]) > windowing.longest:
        counts["windowing"] = windowing
    return counts | ({"chaining": chaining, "segments": segments} if chaining else {})


def _check_seconds(profile: Profile, request: PlanRequest, clip: int) -> None:
    """Raises PlanError for a video that is longer than the model can make it, or no longer than its clip."""
    longest, behind = profile.max_seconds, ""
    if clip and profile.chaining is None:  # the sample has room for what the model is not shown of the clip
        longest = (profile.max_frames - min(profile.prefix_frames, whole_latents(clip)) + clip) // profile.fps
        behind = f" behind a clip of {request.clip_seconds:g} s"
    if not 1 <= request.seconds <= longest:
        limit = f"between 1 and {longest} with model {profile.name}{behind}"
        raise PlanError(f"input.duration: must be {limit} (got {request.seconds})")
    if profile.fps * request.seconds <= clip:
        raise PlanError(
            "input.duration: must be longer than first_clip, which is part of the video "
            f"(got {request.seconds} s and a clip of {request.clip_seconds:g} s)"
        )


def _chain_spec(profile: Profile) -> ChainSpec | None:
    """How the model chains clips; None for one that samples in one go."""
    if profile.clip_frames is None or profile.motion_frames is None:
        return None
    least = min(ChainSpec().least_frames, profile.clip_frames)
    return ChainSpec(profile.fps, profile.clip_frames, least, profile.motion_frames)


def _windowing(profile: Profile) -> Windowing | None:
    """How the model sees a sample that is longer than it was trained on; None for one that sees any at once."""
    if profile.chaining != "windows" or profile.native_frames is None:
        return None
    return Windowing(latents_of(profile.native_frames))


def _clip_frames(profile: Profile, request: PlanRequest) -> int:
    """Frames of the video that the clip fills, 0 without a clip."""
    if "first_clip" not in request.media:
        return 0
    frames = math.floor(((request.clip_seconds or 0.0) + ROUNDING_S) * profile.fps)
    if frames < 1:
        raise PlanError(f"input.first_clip: must be at least one frame long (got {request.clip_seconds} s)")
    return frames
