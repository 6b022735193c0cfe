"""The numbers of the audio-driven sister, read from `configs/training/wan-tiny-s2v.toml`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal, Self

from pydantic import TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from tinywan.recipe import STRICT, Course, Seeded


@dataclass(frozen=True, config=STRICT)
class Voice:
    """What is heard, and how a mouth follows. Pairs are ranges; times in seconds."""

    #: "speech", "notes" and "clicks", and how often
    kinds: dict[str, float]
    #: Hz
    pitch: tuple[float, float]
    syllable: tuple[float, float]
    click: tuple[float, float]
    #: longest silence between two syllables of a word
    gap: float
    #: silence between words
    pause: tuple[float, float]
    #: syllables
    longest_word: int
    #: share of syllables that are a hiss
    hiss: float
    #: noise below the loudest sample, as powers of ten
    floor: tuple[float, float]
    gain: tuple[float, float]
    #: standard deviation of the bell over the loudness
    smooth_s: float
    #: loudness, against the mean power of the sound, at which 63 % are open
    half_open: float


@dataclass(frozen=True, config=STRICT)
class Cast:
    """Who is seen. Radii in pixels."""

    #: "face", "shape" and "still", and how often
    kinds: dict[str, float]
    #: share of canvases of one colour
    plain: float
    #: share of faces with a skin that people have
    natural: float
    face_radius: tuple[float, float]
    shape_radius: tuple[float, float]


@dataclass(frozen=True, config=STRICT)
class Listening:
    """Shape and schedule of the speech model."""

    conv: int
    width: int
    heads: int
    layers: int
    ffn: int
    #: sounds, their length, and the shortest piece of one that a step hears
    sounds: int
    seconds: float
    least_seconds: float
    batch: int
    steps: int
    warmup: int
    ema: float
    learning_rate: float
    final_learning_rate: float


@dataclass(frozen=True, config=STRICT)
class Takes:
    """Encoded clips of one shape."""

    #: how often a step draws from them
    share: float
    #: "first": begins with the picture; "next": goes on from frames before
    kind: Literal["first", "next"]
    width: int
    height: int
    #: latent frames of a clip
    latents: int
    banks: int
    clips: int
    #: clips that are encoded at once
    group: int


@dataclass(frozen=True, config=STRICT)
class Lesson:
    """Steps that see so many latent frames from the start of each clip."""

    steps: int
    latents: int
    #: noisy tokens of a batch
    tokens: int


@dataclass(frozen=True, config=STRICT)
class Talking(Course):
    """Shape and schedule of the transformer."""

    audio_tokens: int
    inject: tuple[int, ...]
    #: latent frames of each coarseness, from the newest on
    motion_buckets: tuple[int, int, int]
    #: pixel frames before a clip, and those that a clip samples at most, as in the profile
    motion_frames: int
    clip_frames: int
    #: share of clips that hear nothing and rest
    unheard: float
    #: share of sounds that end within the clip
    ends: float
    phrases: tuple[str, ...]
    #: how much more the places count that the sound moves
    emphasis: float
    #: most noise on the motion latents
    motion_noise: float
    lessons: tuple[Lesson, ...]
    takes: tuple[Takes, ...]

    @property
    def parts(self) -> tuple[Lesson, ...]:
        return self.lessons

    @model_validator(mode="after")
    def _check_buckets(self) -> Self:
        if self.motion_frames != 4 * sum(self.motion_buckets) - 3:
            raise ValueError(f"motion_frames: must fill the buckets, {4 * sum(self.motion_buckets) - 3} frames")
        return self


@dataclass(frozen=True, config=STRICT)
class SisterRecipe(Seeded):
    """The trained sister."""

    voice: Voice
    cast: Cast
    listening: Listening
    talking: Talking


def load_sister_recipe(path: Path) -> SisterRecipe:
    """Read and check a recipe. Raises pydantic's ValidationError."""
    return TypeAdapter(SisterRecipe).validate_python(tomllib.loads(path.read_text(encoding="utf-8")))
