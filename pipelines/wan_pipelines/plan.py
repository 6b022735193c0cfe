"""A request joined with a profile: only resolved numbers, the same on every machine. No torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from wan_pipelines.errors import PlanError
from wan_pipelines.profile import TEMPORAL_STRIDE, Profile
from wan_pipelines.sizes import output_size, sample_size, visible_size

#: noise levels of training; timesteps are sigma times this
TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What the caller chose, after validation of the wire format."""

    prompt: str
    #: None or empty takes the profile's
    negative_prompt: str | None
    #: "720P" | "1080P"
    resolution: str
    #: width / height of the first frame
    aspect: float
    seconds: int
    seed: int
    watermark: bool = False
    #: roles of the media that come with the request
    media: tuple[str, ...] = ("first_frame",)


@dataclass(frozen=True, slots=True)
class RenderPlan:
    """Everything that decides the pixels but the media and the weights. JSON in, JSON out."""

    model: str
    prompt: str
    negative_prompt: str
    width: int
    height: int
    sample_width: int
    sample_height: int
    fps: int
    seconds: int
    #: frames of the video: fps * seconds
    frames: int
    #: frames that are sampled: the smallest 4n+1 that covers them
    sample_frames: int
    seed: int
    sampler: str
    #: noise levels after the shift, from 1 down to the final 0: steps + 1 values
    sigmas: tuple[float, ...]
    shift: float
    guidance_high: float
    guidance_low: float
    boundary: float | None
    watermark: bool

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def is_guided(self) -> bool:
        """Whether the negative prompt is used at all."""
        return self.guidance_high > 1 or (self.boundary is not None and self.guidance_low > 1)

    @property
    def visible_size(self) -> tuple[int, int]:
        """Width and height of the centred window of the sample that is shown."""
        return visible_size(self.width, self.height, (self.sample_width, self.sample_height))

    @property
    def key(self) -> str:
        """Digest of the whole plan; tells whether a file on disk belongs to it."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RenderPlan:
        return cls(**{**data, "sigmas": tuple(data["sigmas"])})


def make_plan(profile: Profile, request: PlanRequest) -> RenderPlan:
    """Resolve a request against a profile. Raises PlanError naming the field and the limit."""
    _check_media(profile, request.media)
    frames, sample_frames = _frames(profile, request.seconds)
    width, height = output_size(request.resolution, request.aspect)
    sample_width, sample_height = sample_size(width, height, profile.size_multiple, profile.sample_pixels)
    return RenderPlan(
        model=profile.name,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt or profile.negative_prompt,
        width=width,
        height=height,
        sample_width=sample_width,
        sample_height=sample_height,
        fps=profile.fps,
        seconds=request.seconds,
        frames=frames,
        sample_frames=sample_frames,
        seed=request.seed,
        sampler=profile.sampler,
        sigmas=flow_sigmas(profile.sampler, profile.steps, profile.shift),
        shift=profile.shift,
        guidance_high=profile.guidance_high,
        guidance_low=profile.guidance_low,
        boundary=profile.boundary,
        watermark=request.watermark,
    )


def flow_sigmas(sampler: str, steps: int, shift: float) -> tuple[float, ...]:
    """Noise levels of a flow-matching schedule: evenly spaced from 1, then shifted, then a final 0.

    Euler spaces down to 0 (Wan 2.2 `get_sampling_sigmas`; four steps at shift 5 are t = 1000, 937.5, 833.3, 625,
    what the step-distilled weights were trained on). UniPC spaces down to the last training level, 1/1000, as
    diffusers does.
    """
    last = 1 / TRAIN_TIMESTEPS if sampler == "unipc" else 0.0
    step = (last - 1.0) / steps
    even = [i * step + 1.0 for i in range(steps)]
    return (*(shift * s / (1 + (shift - 1) * s) for s in even), 0.0)


def _check_media(profile: Profile, media: tuple[str, ...]) -> None:
    for role in media:
        if role not in profile.inputs:
            takes = ", ".join(profile.inputs)
            raise PlanError(f"input.{role}: model {profile.name} does not take it (it takes {takes})")


def _frames(profile: Profile, seconds: int) -> tuple[int, int]:
    """Frames to show and frames to sample."""
    if not 1 <= seconds <= profile.max_seconds:
        limit = f"between 1 and {profile.max_seconds} with model {profile.name}"
        raise PlanError(f"input.duration: must be {limit} (got {seconds})")
    frames = profile.fps * seconds
    return frames, -(-(frames - 1) // TEMPORAL_STRIDE) * TEMPORAL_STRIDE + 1
