"""A video of any length out of clips that follow each other: which frames, which sound, which seed. No torch.

Source: Wan-Video/Wan2.2 42bf4cf, wan/speech2video.py (WanS2V.generate) and wan/modules/s2v/auxi_blocks.py
(MotionEncoder_tc). The first frames of a first clip that has no motion before it are spoiled and are not shown. There
they are dropped and the sound stays where it was, so the pictures run three frames ahead of it. Here the first clip
begins that much before the video instead, and its spoiled frames hear the beginning of the sound held: frame k of the
video hears the sound at k / fps seconds, in every clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from wan_pipelines.errors import PlanError, ProfileError
from wan_pipelines.profile import TEMPORAL_STRIDE

#: states of sound per second that a frame chooses from
HEARD_RATE = 30
#: frames before and after the first frame of a latent frame whose sound reaches it: the causal audio encoder is three
#: convolutions of width 3, of which the last two halve the rate
LATENT_HEARS = (-5, 3)
#: how long before its end a video is steered to a last frame
ENDING_S = 1


@dataclass(frozen=True, slots=True)
class ChainSpec:
    """How a model chains clips, in frames; the defaults are those of Wan2.2-S2V-14B. Raises ProfileError."""

    fps: int = 16
    #: frames that a clip samples at most
    clip_frames: int = 80
    #: and at least, for the rest at the end of a video (the official command line names 48 beside 80)
    least_frames: int = 48
    #: pixel frames before a clip that it is told of, 4n+1
    motion_frames: int = 73
    #: frames at the start of the first clip that are not shown; 0 when that clip is told of motion as well
    lead_frames: int = 3
    #: frames that the first clip may sample beyond `clip_frames`: with four it shows as many as the others, so 5 s are
    #: one clip and not two. The official code has none
    first_clip_extra: int = 4

    def __post_init__(self) -> None:
        least = {"clip_frames": TEMPORAL_STRIDE, "least_frames": TEMPORAL_STRIDE, "first_clip_extra": 0}
        for name, fewest in least.items():
            frames = getattr(self, name)
            if frames < fewest or frames % TEMPORAL_STRIDE:
                raise ProfileError(f"{name}: must be a multiple of {TEMPORAL_STRIDE}, at least {fewest} (got {frames})")
        if self.motion_frames < 1 or self.motion_frames % TEMPORAL_STRIDE != 1:
            raise ProfileError(f"motion_frames: must be one more than a multiple of 4 (got {self.motion_frames})")
        if self.least_frames > self.clip_frames:
            raise ProfileError(f"least_frames: must be at most {self.clip_frames} (got {self.least_frames})")
        if not 0 <= self.lead_frames < self.least_frames:
            raise ProfileError(f"lead_frames: must be less than {self.least_frames} (got {self.lead_frames})")
        if self.fps < 1:
            raise ProfileError(f"fps: must be at least 1 (got {self.fps})")

    def most(self, number: int) -> int:
        """Frames that a clip of this number samples at most."""
        return self.clip_frames if number else self.clip_frames + self.first_clip_extra


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip. Frames are numbered as in the video: it samples [begins, begins + sampled), shows [start, stop)."""

    #: 0 is the first
    number: int
    #: of its noise
    seed: int
    #: negative in a first clip with spoiled frames
    begins: int
    sampled: int
    start: int
    stop: int

    @property
    def latent_frames(self) -> int:
        """Latent frames that are sampled; the last `sampled` decoded frames are theirs."""
        return self.sampled // TEMPORAL_STRIDE

    @property
    def shown(self) -> slice:
        """The sampled frames that the video keeps, as a slice of them."""
        return slice(self.start - self.begins, self.stop - self.begins)

    @property
    def dropped(self) -> tuple[int, int]:
        """Sampled frames that are not shown, at the start and at the end."""
        return self.start - self.begins, self.begins + self.sampled - self.stop

    def latent_of(self, frame: int) -> int:
        """The sampled latent frame that a frame of the video is part of."""
        return (frame - self.begins) // TEMPORAL_STRIDE

    def motion(self, frames: int) -> tuple[int, range]:
        """The `frames` frames before the clip: how many of them are grey, and which frames of the video follow."""
        known = min(frames, self.start)
        return frames - known, range(self.start - known, self.start)


@dataclass(frozen=True, slots=True)
class Chain:
    """The clips of one video."""

    spec: ChainSpec
    clips: tuple[Clip, ...]

    @property
    def frames(self) -> int:
        """Frames of the video."""
        return self.clips[-1].stop

    @property
    def heard_seconds(self) -> float:
        """How much of the sound the model hears: to the end of what is sampled, a little beyond the video."""
        return (self.clips[-1].begins + self.clips[-1].sampled) / self.spec.fps

    @property
    def still(self) -> range:
        """The frames of a video that ends on a picture that show it: of its last latent frame, one to four."""
        last = self.clips[-1]
        return range(last.begins + TEMPORAL_STRIDE * last.latent_of(last.stop - 1), last.stop)

    @property
    def steered(self) -> range:
        """The frames of such a video that are steered to the picture, the still ones among them."""
        count = max(1, self.spec.fps * ENDING_S // TEMPORAL_STRIDE) - 1
        return range(max(self.clips[-1].start, self.still.start - TEMPORAL_STRIDE * count), self.frames)

    @property
    def free_below(self) -> tuple[float, ...]:
        """Of each latent frame of the last clip, the noise level below which it is no longer steered to the picture.

        0 where the video ends, evenly up from there to the frames before, and 1 (never steered) in the rest: also in
        what is sampled behind the end, where the picture moves on unseen.
        """
        last = self.clips[-1]
        end, begin = last.latent_of(self.frames - 1), last.latent_of(self.steered.start)
        count = end - begin + 1
        return tuple((end - t) / count if begin <= t <= end else 1.0 for t in range(last.latent_frames))

    def heard(self, clip: Clip) -> tuple[int, ...]:
        """For every sampled frame the state of sound (30 a second) nearest to its time; halves go to the even one."""
        return tuple(self._state(clip.begins + frame) for frame in range(clip.sampled))

    def heard_by_latent(self, clip: Clip, latent_frame: int) -> tuple[int, ...]:
        """The states that reach one latent frame through the audio encoder: of its own frames and of five before.

        Before its first frame a clip hears that frame's state held (wan/modules/s2v/model_s2v.py, forward).
        """
        first, last = (TEMPORAL_STRIDE * latent_frame + offset for offset in LATENT_HEARS)
        return tuple(self._state(clip.begins + max(0, frame)) for frame in range(first, last + 1))

    def _state(self, frame: int) -> int:
        return max(0, round(Fraction(frame * HEARD_RATE, self.spec.fps)))


def make_chain(spec: ChainSpec, seconds: int, seed: int) -> Chain:
    """The clips of a video of exactly `seconds`, noise seeds counted up from `seed`. Raises PlanError."""
    if seconds < 1:
        raise PlanError(f"input.duration: must be at least 1 (got {seconds})")
    return Chain(spec, tuple(_clips(spec, spec.fps * seconds, seed)))


def _clips(spec: ChainSpec, frames: int, seed: int) -> Iterator[Clip]:
    number, start, begins = 0, 0, -spec.lead_frames
    while start < frames:
        sampled = _sampled(frames - begins, spec.most(number), spec.least_frames)
        stop = min(frames, begins + sampled)
        yield Clip(number, seed + number, begins, sampled, start, stop)
        number, start, begins = number + 1, stop, stop


def _sampled(wanted: int, most: int, least: int) -> int:
    """Frames of a clip that has to give `wanted`: whole latent frames within the limits."""
    whole = -(-wanted // TEMPORAL_STRIDE) * TEMPORAL_STRIDE
    return min(most, max(least, whole))
