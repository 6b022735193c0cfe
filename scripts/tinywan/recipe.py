"""The numbers of the training, read from `configs/training/*.toml`. Unknown keys and bad values raise."""

from __future__ import annotations

import tomllib
from pathlib import Path
from random import Random

from pydantic import ConfigDict, TypeAdapter
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
class Bank:
    """Clips of one shape, filmed and encoded together and then trained on for a while."""

    clips: int
    #: clips that share one kind of condition
    group: int
    batch: int
    frames: int
    width: int
    height: int
    #: how often each clip is used
    uses: int

    @property
    def steps(self) -> int:
        return self.clips * self.uses // self.batch


@dataclass(frozen=True, config=STRICT)
class Round:
    """Banks that follow one another, over and over."""

    times: int
    #: share of the kinds of condition
    modes: dict[str, float]
    banks: tuple[Bank, ...]

    @property
    def steps(self) -> int:
        return self.times * sum(bank.steps for bank in self.banks)


@dataclass(frozen=True, config=STRICT)
class Denoiser:
    """Shape and schedule of the transformer."""

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
    hold: float
    rounds: tuple[Round, ...]

    @property
    def steps(self) -> int:
        return sum(one.steps for one in self.rounds)

    def bank(self, step: int) -> tuple[int, Round, Bank]:
        """Number of the bank that a step uses, its round, and the bank."""
        number = 0
        for one in self.rounds:
            for bank in one.banks * one.times:
                if step < bank.steps:
                    return number, one, bank
                number, step = number + 1, step - bank.steps
        raise ValueError(f"the schedule ends {step} steps before")


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """One trained checkpoint."""

    seed: int
    data: Data
    vae: Vae
    text: Text
    denoiser: Denoiser
    photos: tuple[Package, ...]

    def rng(self, *where: object) -> Random:
        """The random numbers of one place in the training, for example ("vae", step)."""
        return Random(f"{self.seed} {' '.join(map(str, where))}")


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe. Raises pydantic's ValidationError."""
    return TypeAdapter(Recipe).validate_python(tomllib.loads(path.read_text(encoding="utf-8")))
