"""What every stage shares: a model, its running average, an optimiser and a file to go on from."""

from __future__ import annotations

import copy
import math
import time
from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Muon


@dataclass(frozen=True, slots=True)
class Schedule:
    """Warm-up, the peak for a share of the steps, then half a cosine down to the final learning rate; in cycles."""

    #: steps of each cycle
    cycles: tuple[int, ...]
    warmup: int
    peak: float
    final: float
    #: share of a cycle's steps before the rate begins to fall
    hold: float = 0.0

    @property
    def steps(self) -> int:
        return sum(self.cycles)

    def at(self, step: int) -> float:
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        ends = list(accumulate(self.cycles))
        number = min(bisect(ends, step), len(ends) - 1)
        before, cycle = ends[number] - self.cycles[number], self.cycles[number]
        start = max(self.warmup - before, self.hold * cycle)
        done = min(1.0, max(0.0, step - before - start) / max(1.0, cycle - start))
        return self.final + (self.peak - self.final) * 0.5 * (1 + math.cos(math.pi * done))


class Optimiser:
    """Muon for the weights of layers, read as matrices, and AdamW for everything else.

    A convolution [out, in, ...] is the matrix [out, in * ...]. Source: Jordan et al., "Muon: An optimizer for hidden
    layers in neural networks"; on this autoencoder 250 steps reach what AdamW needs 900 for.
    """

    def __init__(self, model: nn.Module, learning_rate: float) -> None:
        named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
        self._layers = [weight for name, weight in named if weight.ndim >= 2 and not _is_table(name)]
        # the same memory in another shape
        self._matrices = [nn.Parameter(weight.data.flatten(1)) for weight in self._layers]
        rest = [weight for name, weight in named if weight.ndim < 2 or _is_table(name)]
        self._muon = Muon(self._matrices, lr=learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        self._adam = torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)

    def step(self, learning_rate: float) -> None:
        """One step with the gradients that are there."""
        for matrix, weight in zip(self._matrices, self._layers, strict=True):
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        for optimiser in (self._muon, self._adam):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate
            optimiser.step()

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self._muon.state_dict(), "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._muon.load_state_dict(state["muon"])
        self._adam.load_state_dict(state["adam"])


def _is_table(name: str) -> bool:
    """Weights that are looked up or added rather than multiplied."""
    return any(part in name for part in ("shared", "embed_tokens", "relative_attention_bias", "scale_shift_table"))


class Trainer:
    """Steps of one stage. Stops at a deadline with its state on disk, and goes on from there the next time."""

    def __init__(self, model: nn.Module, schedule: Schedule, ema: float, state: Path) -> None:
        self.model = model
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.step = 0
        self._schedule, self._ema, self._path = schedule, ema, state
        self._optimiser = Optimiser(model, schedule.peak)
        if state.is_file():
            self._load()

    def run(self, loss_of: Callable[[int], dict[str, Tensor]], deadline: float, save_every_s: float = 120.0) -> bool:
        """Train until the schedule ends (True) or the clock passes `deadline` (False).

        `loss_of(step)` gives named terms; their sum is minimised.
        """
        saved, sums, began = time.monotonic(), {}, time.monotonic()
        while self.step < self._schedule.steps:
            terms = self._one(loss_of)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
            if self.step % 50 == 0:
                shown = "  ".join(f"{name} {value / 50:.4f}" for name, value in sums.items())
                print(f"step {self.step}  {shown}  {(time.monotonic() - began) / 50:.2f} s", flush=True)
                sums, began = {}, time.monotonic()
            if time.monotonic() - saved > save_every_s:
                self.save()
                saved = time.monotonic()
            if time.monotonic() > deadline:
                break
        self.save()
        return self.step >= self._schedule.steps

    def save(self) -> None:
        """Write the state; the file is whole at every moment."""
        scratch = self._path.with_suffix(".part")
        parts = {"model": self.model, "average": self.average, "optimiser": self._optimiser}
        torch.save({"step": self.step, **{name: part.state_dict() for name, part in parts.items()}}, scratch)
        scratch.replace(self._path)

    def _load(self) -> None:
        state = torch.load(self._path, weights_only=True, map_location="cpu")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self._optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]

    def _one(self, loss_of: Callable[[int], dict[str, Tensor]]) -> dict[str, Tensor]:
        terms = loss_of(self.step)
        self.model.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimiser.step(self._schedule.at(self.step))
        self.step += 1
        self._follow()
        return terms

    @torch.no_grad()
    def _follow(self) -> None:
        """The average takes a part of the new weights, a larger one at the start."""
        keep = min(self._ema, (1 + self.step) / (10 + self.step))
        for average, current in zip(self.average.parameters(), self.model.parameters(), strict=True):
            average.lerp_(current, 1 - keep)
