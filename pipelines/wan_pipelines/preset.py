"""Sampling numbers that a profile offers beside its own, and the low-rank additions that go with them. No torch."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from wan_pipelines.hd import Refinement

Sampler = Literal["unipc", "euler"]
#: sub-folder of a profile's weights that holds the low-rank additions of its presets
LORA_FOLDER = "loras"
STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, slots=True, config=STRICT)
class LoraFile:
    """A low-rank addition to one expert."""

    #: Hugging Face repository
    repository: str
    #: path inside it
    file: str
    #: expert that it is for; single-expert models have only "high"
    expert: Literal["high", "low"] = "high"
    strength: Annotated[float, Field(gt=0)] = 1.0
    licence: str = "not stated"
    disk_gb: Annotated[float, Field(ge=0)] = 0.0

    def path_in(self, folder: Path) -> Path:
        """Where the file lies in the folder of the profile's weights."""
        return folder / LORA_FOLDER / Path(self.file).name


@dataclass(frozen=True, slots=True, config=STRICT)
class Preset:
    """Sampling numbers that replace those of the profile; what is left out stays."""

    sampler: Sampler | None = None
    steps: Annotated[int | None, Field(ge=1, le=1000)] = None
    #: noise levels before the shift, falling from 1, without the final 0; in place of `steps`
    sigmas: Annotated[tuple[float, ...] | None, Field(min_length=1)] = None
    shift: Annotated[float | None, Field(gt=0)] = None
    guidance_high: Annotated[float | None, Field(ge=1)] = None
    guidance_low: Annotated[float | None, Field(ge=1)] = None
    loras: tuple[LoraFile, ...] = ()
    own_weights: bool | None = None
    chaining: Literal["prefix", "latents", "svi"] | None = None
    prefix_frames: Annotated[int | None, Field(ge=1)] = None
    refinement: Refinement | None = None

    @model_validator(mode="after")
    def _check_together(self) -> Preset:
        if self.steps is not None and self.sigmas is not None:
            raise ValueError("steps, sigmas: only one of the two may be given")
        levels = (*(self.sigmas or ()), 0.0)
        if levels[0] > 1 or any(a <= b for a, b in pairwise(levels)):
            raise ValueError(f"sigmas: must fall from at most 1, without the final 0 (got {list(levels[:-1])})")
        return self
