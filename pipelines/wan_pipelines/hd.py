"""1080P by way of 720P: a sample at the size that the weights were trained on, refined at the larger one. No torch.

The small sample is enlarged (`refine.py`) and noised to `strength`; the last steps are then made there, with the
conditions encoded at that size. This is SDEdit (arXiv 2108.01073) on latents, for a model with two experts by
the low-noise one alone. Why, and what it costs: docs/decisions/0015-1080p.md.
"""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

Route = Literal["direct", "refine"]


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid", strict=True))
class Refinement:
    """How a profile refines, from its TOML table of this name."""

    #: noise level, after the shift, that refinement begins at
    strength: Annotated[float, Field(gt=0, lt=1)]
    steps: Annotated[int, Field(ge=1, le=1000)]
    #: whether 1080P is made in this way when nobody says otherwise
    default: bool = True

    def is_wished(self, route: Route | None) -> bool:
        """Whether 1080P is refined when this is asked for; None leaves it to the profile."""
        return self.default if route is None else route == "refine"

    def check(self, boundary: float | None, *, has_one_size: bool) -> None:
        """Raises ValueError when the model samples at one size only, or another expert would have to refine."""
        if has_one_size:
            raise ValueError("refinement: cannot be given with sample_pixels or clip_frames")
        if boundary is not None and self.strength >= boundary:
            raise ValueError(f"refinement: strength must be below boundary {boundary} (got {self.strength})")


@plain_dataclass(frozen=True, slots=True)
class Refine:
    """The part of a plan that says what is sampled before, and how the rest is done."""

    #: of the first sample
    sample_width: int
    sample_height: int
    #: noise levels after the shift, from the strength down to the final 0
    sigmas: tuple[float, ...]


def second_seed(seed: int) -> int:
    """Seed of the noise that refinement adds."""
    return (seed + 1_234_567_891) % 2**31
