"""The loop: which expert runs when, how often, and how it stops."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch

from tiny_checkpoint import CONCAT, TI2V, TWO_EXPERTS
from wan_pipelines.conditioning import Conditioning, prepare_clean, prepare_concat
from wan_pipelines.denoise import Experts, Guidance, denoise
from wan_pipelines.errors import RenderError
from wan_pipelines.noise_levels import flow_sigmas
from wan_pipelines.samplers import make_sampler

pytest_plugins = ("pipeline_fixtures",)


def conditions(seed: int = 0) -> Conditioning:
    rng = torch.Generator().manual_seed(seed)
    text, negative = torch.randn(2, 1, 512, 32, generator=rng)
    latents = torch.randn(1, 16, 3, 4, 4, generator=rng)
    return prepare_concat(text, negative, latents, prefix_frames=1, with_last=False)


def noise() -> torch.Tensor:
    return torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(1))


@contextmanager
def counting(experts: Experts) -> Iterator[list[str]]:
    """Names of the experts that ran, in order."""
    calls: list[str] = []
    with ExitStack() as stack:
        for name, model in (("high", experts.high), ("low", experts.low)):
            if model is not None:
                hook = model.register_forward_hook(lambda *_, name=name: calls.append(name))
                stack.callback(hook.remove)
        yield calls


@torch.no_grad()
def run(experts: Experts, guidance: Guidance, conditioning: Conditioning | None = None, on_step=lambda done, x: None):
    sampler = make_sampler("unipc", flow_sigmas("unipc", 4, 5.0))  # t = 999, 937, 833, 625
    return denoise(experts, noise(), conditioning or conditions(), sampler, guidance, on_step)


def test_two_experts_share_the_steps_at_the_boundary(tiny):
    experts = tiny(TWO_EXPERTS).checkpoint.experts
    with counting(experts) as calls:
        run(experts, Guidance(1.0, 1.0))
    assert calls == ["high", "high", "low", "low"]


def test_guidance_takes_a_second_forward_only_where_it_is_not_one(tiny):
    experts = tiny(TWO_EXPERTS).checkpoint.experts
    with counting(experts) as calls:
        run(experts, Guidance(high=1.0, low=3.0))
    assert calls == ["high", "high", "low", "low", "low", "low"]


def test_each_expert_has_its_own_scale(tiny):
    experts = tiny(TWO_EXPERTS).checkpoint.experts
    results = [run(experts, Guidance(*scales)) for scales in ((3.0, 3.0), (3.0, 4.0), (4.0, 3.0))]
    assert not torch.allclose(results[0], results[1], atol=1e-4)
    assert not torch.allclose(results[0], results[2], atol=1e-4)


def test_without_negative_states_nothing_is_guided(tiny):
    experts = tiny(CONCAT).checkpoint.experts
    unguided = Conditioning(conditions().prompt, None, conditions().concat)
    assert torch.equal(run(experts, Guidance(5.0, 5.0), unguided), run(experts, Guidance(1.0, 1.0)))


def test_text_and_image_change_the_result(tiny):
    experts = tiny(CONCAT).checkpoint.experts
    base, other = conditions(0), conditions(2)
    result = run(experts, Guidance(3.5, 3.5), base)
    for changed in (
        Conditioning(other.prompt, base.negative, base.concat),
        Conditioning(base.prompt, other.negative, base.concat),
        Conditioning(base.prompt, base.negative, other.concat),
    ):
        assert not torch.allclose(run(experts, Guidance(3.5, 3.5), changed), result, atol=1e-3)


def test_clean_frame_stays_as_given(tiny):
    clean = torch.randn(1, 16, 1, 4, 4)
    conditioning = prepare_clean(conditions().prompt, conditions().negative, clean)
    assert torch.equal(run(tiny(TI2V).checkpoint.experts, Guidance(3.5, 3.5), conditioning)[:, :, :1], clean)


def test_steps_are_reported_after_they_are_done(tiny):
    seen: list[int] = []
    run(tiny(CONCAT).checkpoint.experts, Guidance(1.0, 1.0), on_step=lambda done, latents: seen.append(done))
    assert seen == [1, 2, 3, 4]


def test_a_raising_callback_stops_at_that_step(tiny):
    experts = tiny(CONCAT).checkpoint.experts

    def stop(done: int, latents: torch.Tensor) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with counting(experts) as calls, pytest.raises(KeyboardInterrupt):
        run(experts, Guidance(1.0, 1.0), on_step=stop)
    assert len(calls) == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_fail_at_once(tiny, bad):
    experts = tiny(CONCAT).checkpoint.experts
    broken = Conditioning(conditions().prompt * bad, conditions().negative, conditions().concat)
    with pytest.raises(RenderError, match="step 1 of 4 gave values that are not finite"):
        run(experts, Guidance(3.5, 3.5), broken)
