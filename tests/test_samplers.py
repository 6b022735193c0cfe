"""Samplers: the same numbers as diffusers' schedulers, and a state that goes on bit for bit."""

from __future__ import annotations

import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from wan_pipelines.errors import PlanError
from wan_pipelines.noise_levels import flow_sigmas
from wan_pipelines.samplers import make_sampler

NAMES = ["euler", "unipc"]


def field(latents: torch.Tensor, timestep: float) -> torch.Tensor:
    """A velocity that depends on place and time, and not linearly."""
    return torch.sin(3 * latents) + latents * timestep / 1000


def start() -> torch.Tensor:
    return torch.randn(1, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))


def walk(sampler, latents: torch.Tensor, steps: int | None = None) -> torch.Tensor:
    end = len(sampler.timesteps) if steps is None else sampler.position + steps
    while sampler.position < end:
        latents = sampler.step(field(latents, sampler.timesteps[sampler.position]), latents)
    return latents


@pytest.mark.parametrize("steps", [4, 20, 40])
def test_unipc_equals_the_scheduler_of_the_wan_pipelines(steps):
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    scheduler.set_timesteps(steps)
    latents = start()
    for timestep in scheduler.timesteps:
        latents = scheduler.step(field(latents, float(timestep)), timestep, latents, return_dict=False)[0]
    sampler = make_sampler("unipc", flow_sigmas("unipc", steps, 5.0))
    assert sampler.timesteps == tuple(scheduler.timesteps.tolist())
    assert torch.equal(walk(sampler, start()), latents)


def test_euler_equals_the_scheduler_with_the_same_sigmas():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    latents = start()
    for timestep in scheduler.timesteps:  # pyright: ignore[reportOptionalIterable]
        latents = scheduler.step(field(latents, float(timestep)), timestep, latents, return_dict=False)[0]  # pyright: ignore[reportArgumentType]
    sampler = make_sampler("euler", flow_sigmas("euler", 4, 5.0))
    assert sampler.timesteps == pytest.approx((1000, 937.5, 833.333333, 625))
    assert torch.allclose(walk(sampler, start()), latents, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_straight_field_is_followed_exactly(name):
    """For data d the velocity noise - d is constant along the line, so any sampler ends in d."""
    noise, data = start(), start() * 0.3 + 1
    sampler, latents = make_sampler(name, flow_sigmas(name, 5, 3.0)), noise
    while sampler.position < 5:
        latents = sampler.step(noise - data, latents)
    assert torch.allclose(latents, data, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stop", range(7))
def test_going_on_from_a_state_gives_the_same_bits(name, stop):
    sigmas = flow_sigmas(name, 6, 5.0)
    whole = walk(make_sampler(name, sigmas), start())
    first = make_sampler(name, sigmas)
    latents = walk(first, start(), stop)
    state = {key: tensor.clone() for key, tensor in first.state().items()}
    second = make_sampler(name, sigmas)
    second.load_state(state)
    assert second.position == stop
    assert torch.equal(walk(second, latents), whole)


def test_state_of_unipc_is_needed():
    """The multistep history matters: the position alone gives another result."""
    sigmas = flow_sigmas("unipc", 6, 5.0)
    whole = walk(make_sampler("unipc", sigmas), start())
    first, second = make_sampler("unipc", sigmas), make_sampler("unipc", sigmas)
    latents = walk(first, start(), 3)
    second.load_state({"position": torch.tensor(3), "orders": torch.tensor([0, 0])})
    assert not torch.allclose(walk(second, latents), whole, atol=1e-4)


def test_unknown_sampler_is_refused():
    with pytest.raises(PlanError, match=r"sampler: must be euler or unipc \(got 'ddim'\)"):
        make_sampler("ddim", (1.0, 0.0))


def test_sigmas_must_end_in_zero():
    with pytest.raises(PlanError, match="sigmas: must end in 0"):
        make_sampler("euler", (1.0, 0.5))
