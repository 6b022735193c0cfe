"""A request joined with a profile: only resolved numbers, the same on every machine. No torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from wan_pipelines.errors import PlanError
from wan_pipelines.hd import Refine, Route
from wan_pipelines.lengths import count_frames
from wan_pipelines.noise_levels import flow_sigmas, shifted, unshifted
from wan_pipelines.profile import Profile, Told
from wan_pipelines.s2v.clips import Chain, ChainSpec, make_chain
from wan_pipelines.segments import Chaining, Segment, latents_of
from wan_pipelines.sizes import output_size, sample_size, visible_size
from wan_pipelines.windows import Windowing

#: what a video can begin with
STARTS = ("first_frame", "first_clip")
#: sizes are rounded up to the model's grid, which is no news
SIZE_SLACK = 1.1


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What the caller chose, after validation of the wire format."""

    prompt: str
    #: None or empty takes the profile's
    negative_prompt: str | None
    #: "720P" | "1080P"
    resolution: str
    #: width / height of the picture that gives the shape (see `shape_role`), or as wished for a video from text alone
    aspect: float
    seconds: int
    seed: int
    watermark: bool = False
    #: roles of the media that are given; none is a video from text alone
    media: tuple[str, ...] = ("first_frame",)
    #: length of first_clip
    clip_seconds: float | None = None
    #: frames per second of the file; None is the model's own rate
    output_fps: int | None = None
    #: how 1080P is made, where the profile has both ways; None is the profile's default
    hd_route: Route | None = None


@dataclass(frozen=True, slots=True)
class RenderPlan:
    """Everything that decides the pixels but the media and the weights. JSON in, JSON out."""

    #: profile and preset, as `Profile.served_as` writes them
    model: str
    prompt: str
    negative_prompt: str
    width: int
    height: int
    sample_width: int
    sample_height: int
    fps: int
    seconds: int
    #: frames of the video at the model's rate: fps * seconds
    frames: int
    #: frames that are sampled in one go: the smallest 4n+1 that covers the prefix and what is new; or the longest clip
    #: or segment
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
    #: frames at the start of the video that are the clip's own
    clip_frames: int = 0
    #: frames at the start of the sample that repeat the clip's end and are not shown: 4n+1, or 0 without a clip
    prefix_frames: int = 0
    #: frames behind the clip in which its last picture lives on
    handover_frames: int = 0
    #: how the video is put together out of clips, where it is
    chain: ChainSpec | None = None
    #: how segments go on from each other, for a model that can
    chaining: Chaining | None = None
    #: the samples that make up the video, one or several; empty without `chaining`
    segments: tuple[Segment, ...] = ()
    #: how the one sample is divided among forwards, where it is longer than the model was trained on
    windowing: Windowing | None = None
    #: frames per second of the file, where it is another rate than the model's
    output_fps: int | None = None
    #: the smaller sample that this one refines; None samples from noise alone
    refine: Refine | None = None

    @property
    def parts(self) -> tuple[RenderPlan, ...]:
        """The plan of each sample: this one alone where there is one. Frames are numbered as in the video."""
        return tuple(self._part(segment) for segment in self.segments) or (self,)

    @property
    def number(self) -> int:
        """Of the sample within the video; 0 is the first."""
        return self.segments[0].number if self.segments else 0

    def _part(self, segment: Segment) -> RenderPlan:
        return replace(
            self,
            seed=segment.seed,
            clip_frames=segment.start,
            frames=segment.stop,
            prefix_frames=segment.prefix_frames,
            sample_frames=segment.sampled,
            segments=(segment,),
        )

    @property
    def passes(self) -> tuple[RenderPlan, ...]:
        """What is sampled one after the other: this plan alone, or a smaller one and then its refinement."""
        if self.refine is None:
            return (self,)
        small = {"sample_width": self.refine.sample_width, "sample_height": self.refine.sample_height}
        return replace(self, refine=None, **small), replace(self, refine=None, sigmas=self.refine.sigmas)

    @property
    def shown_fps(self) -> int:
        """Frames per second of the file."""
        return self.output_fps or self.fps

    @property
    def shown_frames(self) -> int:
        """Frames of the file, where `frames` counts those that the model makes."""
        return self.frames * self.shown_fps // self.fps

    @property
    def clips(self) -> Chain | None:
        """The clips that follow each other; None when everything is sampled in one go."""
        return make_chain(self.chain, self.seconds, self.seed) if self.chain else None

    @property
    def windows(self) -> tuple[range, ...]:
        """Latent frames of the sample that are in one forward together: all, but for a plan with windows."""
        latents = latents_of(self.sample_frames)
        return (range(latents),) if self.windowing is None else self.windowing.split(latents)

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
        chain, chaining, refine = data.get("chain"), data.get("chaining"), data.get("refine")
        made = {
            "sigmas": tuple(data["sigmas"]),
            "chain": ChainSpec(**chain) if chain else None,
            "chaining": Chaining(**chaining) if chaining else None,
            "segments": tuple(Segment.from_json(segment) for segment in data.get("segments", ())),
            "windowing": Windowing(**data["windowing"]) if data.get("windowing") else None,
            "refine": Refine(**{**refine, "sigmas": tuple(refine["sigmas"])}) if refine else None,
        }
        return cls(**{**data, **made})


def make_plan(profile: Profile, request: PlanRequest) -> RenderPlan:
    """Resolve a request against a profile. Raises PlanError naming the field and the limit."""
    check_media(profile, request.media)
    counts = count_frames(profile, request)
    width, height = output_size(request.resolution, request.aspect, shape_role(request.media) or "first_frame")
    sample_width, sample_height = sample_size(width, height, profile.size_multiple, profile.sample_pixels)
    guidance_high, guidance_low = plan_guidance(profile, request.media)
    return RenderPlan(
        model=profile.served_as,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt or profile.negative_prompt,
        width=width,
        height=height,
        sample_width=sample_width,
        sample_height=sample_height,
        fps=profile.fps,
        seconds=request.seconds,
        seed=request.seed,
        sampler=profile.sampler,
        sigmas=plan_sigmas(profile),
        shift=profile.shift,
        guidance_high=guidance_high,
        guidance_low=guidance_low,
        boundary=profile.boundary,
        watermark=request.watermark,
        output_fps=None if request.output_fps == profile.fps else request.output_fps,
        refine=_plan_refine(profile, request),
        **counts,
    )


def check_media(profile: Profile, media: Collection[str]) -> None:
    """Raises PlanError naming a role that the model does not take, that lacks its partner, or that is missing.

    Sound is taken by every model: what does not hear it leaves it to the video's sound track.
    """
    if profile.cannot_run:
        raise PlanError(f"input: model {profile.name} cannot run yet: {profile.cannot_run}")
    for role in media:
        if role not in profile.inputs and role != "driving_audio":
            takes = f"it takes {', '.join(profile.inputs)}" if profile.inputs else "it makes videos from text alone"
            raise PlanError(f"input.{role}: model {profile.name} does not take it ({takes})")
    starts = [role for role in STARTS if role in media]
    if len(starts) > 1:
        raise PlanError("input.first_clip: cannot be combined with first_frame")
    if not starts and "last_frame" in media and not profile.takes_last_frame_alone:
        raise PlanError("input.last_frame: needs first_frame or first_clip")
    if not shape_role(media) and not profile.text_only:
        needs = " or ".join(role for role in STARTS if role in profile.inputs)
        raise PlanError(f"input.first_frame: model {profile.name} makes no video from text alone; it needs {needs}")
    for role in profile.needs:
        if role not in media:
            raise PlanError(f"input.{role}: model {profile.name} needs it")


def shape_role(media: Collection[str]) -> str | None:
    """Whose shape the video takes; None without a picture."""
    return next((role for role in (*STARTS, "last_frame") if role in media), None)


def plan_sigmas(profile: Profile) -> tuple[float, ...]:
    """The profile's noise levels after the shift, with the final 0: explicit ones or evenly spaced ones."""
    if profile.sigmas is not None:
        return shifted(profile.sigmas, profile.shift)
    return flow_sigmas(profile.sampler, profile.steps, profile.shift)


def plan_guidance(profile: Profile, media: Collection[str]) -> tuple[float, float]:
    """Guidance scales at high and at low noise, with these inputs."""
    strongest: Told = next((told for told in get_args(Told) if told in media), "text")
    scale = profile.guidance_for.get(strongest)
    return (profile.guidance_high, profile.guidance_low) if scale is None else (scale, scale)


def _plan_refine(profile: Profile, request: PlanRequest) -> Refine | None:
    """What is sampled before, where 1080P is made in two passes."""
    how = profile.refinement
    if how is None or request.resolution != "1080P" or not how.is_wished(request.hd_route):
        return None
    small = sample_size(*output_size("720P", request.aspect), profile.size_multiple, None)
    first = unshifted(how.strength, profile.shift)
    return Refine(*small, sigmas=flow_sigmas(profile.sampler, how.steps, profile.shift, first))


def beyond_training(profile: Profile, plan: RenderPlan) -> tuple[str, ...]:
    """Sentences on what the plan asks of the model beyond what it was trained on; for output_meta."""
    notes = []
    is_long = profile.trained_frames is not None and plan.sample_frames > profile.trained_frames
    if len(plan.segments) > 1:
        overlap = plan.chaining.overlap if plan.chaining else 0
        notes.append(
            f"input.duration: model {profile.name} makes {profile.native_frames} frames in one go; the video is "
            f"{len(plan.segments)} samples that share {overlap} frames, and details may change from one to the next"
        )
    elif plan.windowing is not None:
        notes.append(
            f"input.duration: model {profile.name} sees {profile.native_frames} frames at once; the video was made in "
            f"{len(plan.windows)} windows that overlap, and motion may begin anew in each"
        )
    elif is_long and plan.chain is None:  # the few frames more of a first clip are the chain's own choice
        notes.append(
            f"input.duration: model {profile.name} was trained on {profile.trained_frames} frames and made "
            f"{plan.sample_frames} in one go; motion may drift or repeat"
        )
    if profile.trained_sizes:
        largest = max(profile.trained_sizes, key=_area)
        if plan.sample_width * plan.sample_height > SIZE_SLACK * _area(largest):
            size = f"{plan.sample_width}x{plan.sample_height}"
            how = f"refined details at {size}" if plan.refine else f"worked at {size}; things may be doubled or blurred"
            notes.append(f"input.resolution: model {profile.name} was trained on up to {largest} and {how}")
    return tuple(notes)


def _area(size: str) -> int:
    """Pixels of a size like 1280x720."""
    return math.prod(int(side) for side in size.split("x"))
