"""The numbers of the training, read from `configs/training/*.toml`. Unknown keys and bad values raise."""

from __future__ import annotations

import tomllib
from pathlib import Path
from random import Random
from typing import Protocol, Self

from pydantic import ConfigDict, Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from tinywan.photos import Package

STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=STRICT)
class Data:
    """What is filmed."""

    drawn: float
    sprites: float
    #: speed words and pixels per frame
    pan: dict[str, float]
    #: speed words and log scale per frame
    zoom: dict[str, float]
    speed_jitter: float


@dataclass(frozen=True, config=STRICT)
class Phase:
    """A stretch of autoencoder steps on square clips of one shape."""

    steps: int
    batch: int
    frames: int
    size: int


@dataclass(frozen=True, config=STRICT)
class Vae:
    """Shape and schedule of the autoencoder."""

    base_dim: int
    dim_mult: tuple[int, ...]
    z_dim: int
    kl: float
    ema: float
    learning_rate: float
    final_learning_rate: float
    warmup: int
    phases: tuple[Phase, ...]

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def phase(self, step: int) -> Phase:
        """The phase that a step belongs to."""
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        return self.phases[-1]


@dataclass(frozen=True, config=STRICT)
class Text:
    """Shape and schedule of tokenizer and text encoder."""

    #: prompts that the tokenizer is made from
    corpus: int
    vocabulary: int
    #: tokens that the cross attention sees
    length: int
    width: int
    heads: int
    layers: int
    steps: int
    batch: int
    ema: float
    learning_rate: float
    warmup: int


@dataclass(frozen=True, config=STRICT)
class Pool:
    """Clips of one shape that are filmed and encoded once, and then drawn from at random."""

    #: share of the steps of the phase
    share: float
    #: files on disk
    banks: int
    #: clips per file
    clips: int
    #: clips that share one kind of condition
    group: int
    batch: int
    frames: int
    width: int
    height: int


@dataclass(frozen=True, config=STRICT)
class Stretch:
    """Denoiser steps on the same pools."""

    steps: int
    #: share of the kinds of condition
    modes: dict[str, float] = Field(default_factory=dict)
    #: none: those of the stretch before
    pools: tuple[Pool, ...] = ()
    #: share of empty prompts by kind of condition, where it is not the usual one
    empty: dict[str, float] = Field(default_factory=dict)
    #: share of the captions of prefixes that do not tell the motion
    unsaid: float = 0.3
    #: share of the steps that draw from the pools before these
    again: float = 0.0
    #: how often a clip that zooms is drawn for each other one
    zooms: int = 1
    #: of the loss that reads the motion out of the middle of the model
    motion: float = 0.0
    #: clips that are shown whole and without a prompt, to be asked for their motion alone; none: those of before
    watched: Pool | None = None
    #: share of the steps in which clips are only watched
    watching: float = 0.0
    #: first blocks that begin anew with this stretch
    renewed: int = 0


class Part(Protocol):
    """A stretch of a schedule."""

    @property
    def steps(self) -> int: ...


@dataclass(frozen=True, config=STRICT)
class Course:
    """Shape of a transformer, and a schedule of parts in which it sees different clips."""

    heads: int
    head_dim: int
    ffn: int
    layers: int
    #: of the noise levels in training
    shift: float
    #: of the noise levels in sampling, as in the profile
    sample_shift: float
    #: share of empty prompts
    no_caption: float
    ema: float
    learning_rate: float
    final_learning_rate: float
    warmup: int
    #: share of the steps of a cycle at the full learning rate
    hold: float
    #: steps from one fall of the learning rate to the next
    cycles: tuple[int, ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        """In the order of training."""
        raise NotImplementedError

    @property
    def steps(self) -> int:
        return sum(part.steps for part in self.parts)

    @model_validator(mode="after")
    def _check_cycles(self) -> Self:
        if sum(self.cycles) != self.steps:
            raise ValueError(f"cycles: must add up to the steps of all parts, {self.steps}")
        return self

    def part(self, step: int) -> int:
        """Number of the part that a step belongs to. Raises ValueError after the last."""
        for number, part in enumerate(self.parts):
            if step < part.steps:
                return number
            step -= part.steps
        raise ValueError(f"the schedule ends {step} steps before")

    def begin(self, number: int) -> int:
        """The first step of a part."""
        return sum(part.steps for part in self.parts[:number])


@dataclass(frozen=True, config=STRICT)
class Denoiser(Course):
    """Shape and schedule of the transformer."""

    #: captions that a clip is trained with
    captions: int
    stretches: tuple[Stretch, ...]

    @property
    def parts(self) -> tuple[Stretch, ...]:
        return self.stretches

    @model_validator(mode="after")
    def _check_pools(self) -> Self:
        if not self.stretches or not self.stretches[0].pools:
            raise ValueError("stretches: the first one needs pools")
        return self


@dataclass(frozen=True, config=STRICT)
class Seeded:
    """A recipe whose random numbers all come from one seed."""

    seed: int

    def rng(self, *where: object) -> Random:
        """The random numbers of one place in the training, for example ("vae", step)."""
        return Random(f"{self.seed} {' '.join(map(str, where))}")


@dataclass(frozen=True, config=STRICT)
class Recipe(Seeded):
    """One trained checkpoint."""

    data: Data
    vae: Vae
    text: Text
    denoiser: Denoiser
    photos: tuple[Package, ...]


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe. Raises pydantic's ValidationError."""
    return TypeAdapter(Recipe).validate_python(tomllib.loads(path.read_text(encoding="utf-8")))
