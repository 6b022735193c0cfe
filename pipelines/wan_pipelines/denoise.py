"""The loop: noise in, latents out. Knows no task, no file and no clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan_vace import WanVACETransformer3DModel
from torch import Tensor

from wan_pipelines.blending import Blend
from wan_pipelines.conditioning import Conditioning
from wan_pipelines.errors import RenderError
from wan_pipelines.noise_levels import TRAIN_TIMESTEPS
from wan_pipelines.s2v.transformer import WanS2VTransformer3DModel
from wan_pipelines.samplers import Sampler

Transformer = WanTransformer3DModel | WanVACETransformer3DModel | WanS2VTransformer3DModel


@dataclass(frozen=True, slots=True)
class Experts:
    """One transformer, or two that share the noise range: `high` at t >= 1000 * boundary, `low` below."""

    high: Transformer
    low: Transformer | None = None
    boundary: float | None = None

    def is_low(self, timestep: float) -> bool:
        return self.boundary is not None and timestep < self.boundary * TRAIN_TIMESTEPS

    def at(self, timestep: float) -> Transformer:
        """The expert for this timestep."""
        return self.low if self.is_low(timestep) and self.low is not None else self.high


@dataclass(frozen=True, slots=True)
class Guidance:
    """Classifier-free guidance scales of the two experts; 1 saves the second forward."""

    high: float
    low: float


def denoise(
    experts: Experts,
    latents: Tensor,
    conditioning: Conditioning,
    sampler: Sampler,
    guidance: Guidance,
    on_step: Callable[[int, Tensor], None],
    blend: Blend | None = None,
) -> Tensor:
    """Walk float32 `latents` [1, z, T, h, w] from the sampler's position down to sigma 0.

    `on_step(steps done, latents)` comes after every step and may raise to stop. With `blend` the model sees the latents
    in windows, which no conditions but texts can be divided among. Raises RenderError as soon as the latents are no
    longer finite.
    """
    total = len(sampler.timesteps)
    while sampler.position < total:
        timestep = sampler.timesteps[sampler.position]
        scale = guidance.low if experts.is_low(timestep) else guidance.high
        predict = partial(_velocity, experts.at(timestep), timestep, conditioning, scale)
        velocity = predict(latents) if blend is None else blend.velocity(predict, latents)
        latents = sampler.step(conditioning.steer(velocity, latents, sampler.sigma), latents)
        if not torch.isfinite(latents).all():
            raise RenderError(f"denoise: step {sampler.position} of {total} gave values that are not finite")
        on_step(sampler.position, latents)
    return conditioning.pin(latents)


def _velocity(model: Transformer, timestep: float, conditioning: Conditioning, scale: float, latents: Tensor) -> Tensor:
    """Predicted noise - data in float32, guided away from the negative prompt when there is one."""
    hidden = conditioning.model_input(latents).to(model.dtype)  # [1, C, T, h, w]
    timesteps = conditioning.timesteps(timestep, latents, model.config["patch_size"])  # [1] or [1, S]

    def predict(text: Tensor, options: dict[str, Tensor]) -> Tensor:
        output = model(hidden, timesteps, text.to(model.dtype), return_dict=False, **options)
        return output[0].float()

    if scale == 1 or conditioning.negative is None:
        return predict(conditioning.prompt, conditioning.model_options(model.dtype))
    cond = predict(conditioning.prompt, conditioning.model_options(model.dtype))
    uncond = predict(conditioning.negative, conditioning.negative_options(model.dtype))
    return uncond + scale * (cond - uncond)
