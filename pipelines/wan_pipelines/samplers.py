"""Flow-matching samplers with explicit noise levels, and a state that can be written down between two steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from wan_pipelines.errors import PlanError
from wan_pipelines.noise_levels import TRAIN_TIMESTEPS


class Sampler(Protocol):
    """Walks latents down a list of noise levels, one velocity prediction per step."""

    #: model timesteps, one per step, falling
    timesteps: tuple[float, ...]

    @property
    def position(self) -> int:
        """Steps done."""
        ...

    @property
    def sigma(self) -> float:
        """The noise level of the latents that the next step takes."""
        ...

    def step(self, velocity: Tensor, latents: Tensor) -> Tensor:
        """Latents at the next noise level. `velocity` = noise - data, float32, shaped as `latents`."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that the next steps depend on besides the latents."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on where `state` was taken; the tensors must lie on the latents' device."""
        ...


class EulerSampler:
    """First order: x + (sigma_next - sigma) * v. What step-distilled weights are made for."""

    def __init__(self, sigmas: Sequence[float]) -> None:
        self._sigmas = torch.tensor(sigmas, dtype=torch.float32)
        self._position = 0
        self.timesteps = tuple((self._sigmas[:-1] * TRAIN_TIMESTEPS).tolist())

    @property
    def position(self) -> int:
        return self._position

    @property
    def sigma(self) -> float:
        return self._sigmas[self._position].item()

    def step(self, velocity: Tensor, latents: Tensor) -> Tensor:
        sigma, sigma_next = self._sigmas[self._position : self._position + 2]
        self._position += 1
        return latents + (sigma_next - sigma) * velocity

    def state(self) -> dict[str, Tensor]:
        return {"position": torch.tensor(self._position)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._position = int(state["position"])


class UniPCSampler:
    """UniPC, second order with corrector (arXiv 2302.04867), the sampler of the published Wan settings.

    Timesteps are truncated to integers as diffusers does; the published code does the same.
    """

    def __init__(self, sigmas: Sequence[float]) -> None:
        # flow_shift 1: the sigmas are final, the scheduler must not shift them again
        self._scheduler: Any = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0, num_train_timesteps=TRAIN_TIMESTEPS
        )
        self._scheduler.set_timesteps(sigmas=np.array(sigmas[:-1]))
        self._scheduler.set_begin_index(0)
        self.timesteps = tuple(float(t) for t in self._scheduler.timesteps)

    @property
    def position(self) -> int:
        return self._scheduler.step_index or 0

    @property
    def sigma(self) -> float:
        return self._scheduler.sigmas[self.position].item()

    def step(self, velocity: Tensor, latents: Tensor) -> Tensor:
        timestep = self._scheduler.timesteps[self.position]
        return self._scheduler.step(velocity, timestep, latents, return_dict=False)[0]

    def state(self) -> dict[str, Tensor]:
        scheduler = self._scheduler
        outputs = {f"output_{i}": x for i, x in enumerate(scheduler.model_outputs) if x is not None}
        if scheduler.last_sample is not None:
            outputs["last_sample"] = scheduler.last_sample
        orders = (scheduler.lower_order_nums, getattr(scheduler, "this_order", 0))
        return {"position": torch.tensor(self.position), "orders": torch.tensor(orders), **outputs}

    def load_state(self, state: dict[str, Tensor]) -> None:
        scheduler = self._scheduler
        scheduler._step_index = int(state["position"])
        scheduler.lower_order_nums, scheduler.this_order = state["orders"].tolist()
        scheduler.model_outputs = [state.get(f"output_{i}") for i in range(len(scheduler.model_outputs))]
        scheduler.last_sample = state.get("last_sample")


def make_sampler(name: str, sigmas: Sequence[float]) -> Sampler:
    """The sampler `euler` or `unipc` over these noise levels (after the shift, ending in 0)."""
    if sigmas[-1] != 0:
        raise PlanError(f"sigmas: must end in 0 (got {sigmas[-1]})")
    if name == "euler":
        return EulerSampler(sigmas)
    if name == "unipc":
        return UniPCSampler(sigmas)
    raise PlanError(f"sampler: must be euler or unipc (got {name!r})")
