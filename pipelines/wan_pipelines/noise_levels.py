"""Noise levels of flow matching, before and after its time shift. No torch."""

from __future__ import annotations

from collections.abc import Sequence

#: noise levels of training; timesteps are sigma times this
TRAIN_TIMESTEPS = 1000


def flow_sigmas(sampler: str, steps: int, shift: float, first: float = 1.0) -> tuple[float, ...]:
    """Noise levels of a flow-matching schedule: evenly spaced from `first`, then shifted, then a final 0.

    Euler spaces down to 0 (Wan 2.2 `get_sampling_sigmas`; four steps at shift 5 are t = 1000, 937.5, 833.3, 625,
    what the step-distilled weights were trained on). UniPC spaces down to the last training level, 1/1000, as
    diffusers does.
    """
    last = 1 / TRAIN_TIMESTEPS if sampler == "unipc" else 0.0
    step = (last - first) / steps
    return shifted([i * step + first for i in range(steps)], shift)


def shifted(levels: Sequence[float], shift: float) -> tuple[float, ...]:
    """Noise levels after the time shift of flow matching, with a final 0 behind them."""
    return (*(shift * level / (1 + (shift - 1) * level) for level in levels), 0.0)


def unshifted(sigma: float, shift: float) -> float:
    """The noise level before the time shift."""
    return sigma / (shift - (shift - 1) * sigma)
