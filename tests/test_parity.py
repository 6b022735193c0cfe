"""The same latents as diffusers' WanImageToVideoPipeline: same weights, prompt, images and noise, float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.wan.pipeline_wan_i2v import WanImageToVideoPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image

from tiny_checkpoint import CONCAT, OLD_VAE, TI2V, TWO_EXPERTS, TinyModel, noise_image, small_plan
from wan_pipelines.plan import RenderPlan
from wan_pipelines.renderer import Media, Renderer
from wan_pipelines.tensorfile import load_tensors

pytest_plugins = ("pipeline_fixtures",)
CPU = torch.device("cpu")


@pytest.fixture
def peer(tiny) -> Callable[..., WanImageToVideoPipeline]:
    """diffusers' own pipeline from the same folder."""

    def load(spec) -> WanImageToVideoPipeline:
        pipeline = WanImageToVideoPipeline.from_pretrained(tiny(spec).folder, local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return load


@torch.no_grad()
def latents_of_peer(pipeline: WanImageToVideoPipeline, plan: RenderPlan, first: Image.Image, last: Image.Image | None):
    guidance_2: dict[str, Any] = {} if plan.boundary is None else {"guidance_scale_2": plan.guidance_low}
    return pipeline(
        image=first,
        last_image=last,  # pyright: ignore[reportArgumentType]
        prompt=plan.prompt,
        negative_prompt=plan.negative_prompt,
        height=plan.sample_height,
        width=plan.sample_width,
        num_frames=plan.sample_frames,
        num_inference_steps=plan.steps,
        guidance_scale=plan.guidance_high,
        generator=torch.Generator().manual_seed(plan.seed),
        output_type="latent",
        **guidance_2,
    ).frames  # pyright: ignore[reportAttributeAccessIssue]


def our_latents(model: TinyModel, plan: RenderPlan, folder: Path, images: list[Image.Image]) -> torch.Tensor:
    """Through the stages and files that a job goes through."""
    paths = [folder / f"{i}.png" for i in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    renderer = Renderer(model.profile, model.checkpoint, CPU)
    renderer.encode(plan, Media(*paths), folder / "conditioning", beat=lambda: None)
    renderer.denoise(plan, folder / "conditioning", folder / "latents", on_step=lambda done, steps: None)
    return load_tensors(folder / "latents", CPU)["latents"]


@pytest.mark.parametrize(
    ("spec", "with_last"),
    [(CONCAT, False), (CONCAT, True), (OLD_VAE, True), (TWO_EXPERTS, False), (TWO_EXPERTS, True), (TI2V, False)],
    ids=["concat", "concat-last", "concat-last-vae2.1", "experts", "experts-last", "ti2v"],
)
def test_unipc_latents(tiny, peer, tmp_path, spec, with_last):
    model = tiny(spec)
    plan = small_plan(model.profile, guidance_high=3.5, guidance_low=2.5)
    images = [noise_image(i) for i in range(2 if with_last else 1)]
    theirs = latents_of_peer(peer(spec), plan, images[0], images[1] if with_last else None)
    ours = our_latents(model, plan, tmp_path, images)
    assert (ours - theirs).abs().max() <= 1e-4
    assert (theirs - theirs.mean()).abs().max() > 1


@pytest.mark.parametrize("spec", [CONCAT, TWO_EXPERTS, TI2V], ids=["concat", "experts", "ti2v"])
def test_euler_latents(tiny, peer, tmp_path, spec):
    """diffusers shifts Euler's default list twice; given the same list as explicit sigmas we end where it does."""
    pipeline = peer(spec)
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(4)
    sigmas = tuple(scheduler.sigmas.tolist())
    pipeline.scheduler = scheduler
    model = tiny(spec)
    plan = small_plan(model.profile, sampler="euler", sigmas=sigmas)
    theirs = latents_of_peer(pipeline, plan, noise_image(0), None)
    assert (our_latents(model, plan, tmp_path, [noise_image(0)]) - theirs).abs().max() <= 1e-4


def test_a_wide_frame_and_more_frames(tiny, peer, tmp_path):
    model = tiny(CONCAT)
    plan = small_plan(model.profile, width=96, sample_width=96, frames=17, sample_frames=17)
    image = noise_image(3, width=96)
    theirs = latents_of_peer(peer(CONCAT), plan, image, None)
    assert (our_latents(model, plan, tmp_path, [image]) - theirs).abs().max() <= 1e-4


def test_the_comparison_can_fail(tiny, peer, tmp_path):
    """Another seed, prompt or guidance ends elsewhere by far more than the tolerance."""
    model = tiny(CONCAT)
    plan = small_plan(model.profile)
    theirs = latents_of_peer(peer(CONCAT), plan, noise_image(0), None)
    for i, changes in enumerate(({"seed": 6}, {"prompt": "a dog"}, {"negative_prompt": "x"}, {"guidance_high": 4.0})):
        (folder := tmp_path / str(i)).mkdir()
        ours = our_latents(model, replace(plan, **changes), folder, [noise_image(0)])
        assert (ours - theirs).abs().max() > 1e-3
