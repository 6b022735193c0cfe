"""One model with the same random weights in wanbox and in diffusers, and how far apart the two end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.pipelines.wan.pipeline_wan_i2v import WanImageToVideoPipeline
from diffusers.pipelines.wan.pipeline_wan_vace import WanVACEPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor

from wan_pipelines.clip import shown_frames, upright
from wan_pipelines.conditions import Media
from wan_pipelines.mp4 import Mp4Spec, Mp4Writer
from wan_pipelines.plan import PlanRequest, RenderPlan, make_plan
from wan_pipelines.profile import Profile, load_profile
from wan_pipelines.renderer import Renderer
from wan_pipelines.tensorfile import load_tensors
from wan_pipelines.tiny import build_tiny, tiny_spec

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")

STEPS = 4
SIDE = 64  # width and height; CLIP's square in the miniature has the same
FRAMES = 9
CLIP_FRAMES = 5
#: long enough to matter among 512 tokens
PROMPT, OTHER_PROMPT = "a cat runs over wet grass, " * 9, "a boat lies in the harbour, " * 9
NEGATIVE = "blurred, grey, still; " * 9


@dataclass(frozen=True, slots=True)
class Case:
    """One row: a model as it is served, and the media that it is given."""

    model: str
    roles: tuple[str, ...] = ()
    #: fields of the plan that differ from the profile's
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.model} {'+'.join(self.roles) or 'text'}"


@dataclass(frozen=True, slots=True)
class Difference:
    """Largest absolute differences in one row."""

    #: of the first prediction of the transformer
    forward: float
    #: of the latents after the last step
    latents: float
    #: that another picture, or another prompt where there is none, makes to our latents: far above the limits
    effect: float
    #: forwards of the experts, high and low
    forwards: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Peers:
    """The same weights in wanbox and in diffusers."""

    case: Case
    renderer: Renderer
    pipeline: Any
    plan: RenderPlan
    work: Path

    def compare(self) -> Difference:
        """Run both, and ours once more with something else to look at."""
        media = make_media(self.case.roles, self.work / "media", self.plan, seed=0)
        with recording(self.pipeline.transformer, None) as theirs_said:
            theirs = their_latents(self.pipeline, self.plan, media)
        experts = self.renderer.checkpoint.experts
        with recording(experts.high, experts.low) as we_said:
            ours = self.our_latents(self.plan, media)
        others = make_media(self.case.roles, self.work / "others", self.plan, seed=7)
        plan = self.plan if self.case.roles else replace(self.plan, prompt=OTHER_PROMPT)
        return Difference(
            forward=largest(we_said[0][1] - theirs_said[0][1]),
            latents=largest(ours - theirs),
            effect=largest(self.our_latents(plan, others) - ours),
            forwards=(count(we_said, "high"), count(we_said, "low")),
        )

    def our_latents(self, plan: RenderPlan, media: Media) -> Tensor:
        """Through the stages and files that a job goes through."""
        conditioning, latents = self.work / "conditioning", self.work / "latents"
        self.renderer.encode(plan, media, conditioning, lambda: None)
        self.renderer.denoise(plan, conditioning, latents, lambda done, steps: None)
        return load_tensors(latents, CPU)["latents"]


def open_peers(case: Case, work: Path) -> Peers:
    """Build the miniature of a case in `work`, or find it there, and load it twice."""
    profile = small_profile(case.model)
    spec = tiny_spec(profile)
    folder = work / f"{spec.conditioning}-{spec.clip_pictures}-{spec.boundary}"
    if not folder.is_dir():
        build_tiny(spec, folder)
    renderer = Renderer.load(profile, folder, "cpu")
    plan = small_plan(profile, case)
    (scratch := work / case.name).mkdir(exist_ok=True)
    return Peers(case, renderer, load_pipeline(profile, folder, bool(case.roles)), plan, scratch)


def small_profile(model: str) -> Profile:
    """The profile with its own sampling numbers but for the steps, on a miniature of its layout."""
    name, _, preset = model.partition(":")
    profile = load_profile(name, ROOT / "configs")
    profile = profile.with_preset(preset) if preset else replace(profile, steps=STEPS)
    elsewhere = {"repository": None, "original_repository": None, "architecture": None, "loras": ()}
    return replace(profile, weights_from="random", sample_pixels=SIDE * SIDE, refinement=None, **elsewhere)


def small_plan(profile: Profile, case: Case) -> RenderPlan:
    """Nine frames of 64x64; of a clip five are known."""
    with_clip = "first_clip" in case.roles
    seconds = CLIP_FRAMES / profile.fps if with_clip else None
    request = PlanRequest(PROMPT, NEGATIVE, "720P", 1.0, 1, seed=5, media=case.roles, clip_seconds=seconds)
    clip = {"clip_frames": CLIP_FRAMES, "prefix_frames": CLIP_FRAMES} if with_clip else {}
    size = {"width": SIDE, "height": SIDE, "sample_width": SIDE, "sample_height": SIDE}
    frames = {"frames": FRAMES, "sample_frames": FRAMES}
    return replace(make_plan(profile, request), **{**size, **frames, **clip, **case.changes})


def make_media(roles: tuple[str, ...], folder: Path, plan: RenderPlan, seed: int) -> Media:
    """Pictures of coloured squares, and a clip of them, at the sampled size."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = {role: folder / f"{role}.{'mp4' if role == 'first_clip' else 'png'}" for role in roles}
    for role, path in paths.items():
        frames = coloured_squares(rng, plan)
        if role == "first_clip":
            with Mp4Writer(path, Mp4Spec(plan.sample_width, plan.sample_height, plan.fps, plan.clip_frames)) as writer:
                writer.write(torch.from_numpy(frames).permute(0, 3, 1, 2))
        else:
            Image.fromarray(frames[0]).save(path)
    return Media(**paths)


def coloured_squares(rng: np.random.Generator, plan: RenderPlan) -> np.ndarray:
    """uint8 [clip frames or 1, height, width, 3]: four by four of them."""
    colours = rng.integers(0, 256, (plan.clip_frames or 1, 4, 4, 3), dtype=np.uint8)
    return colours.repeat(plan.sample_height // 4, axis=1).repeat(plan.sample_width // 4, axis=2)


def load_pipeline(profile: Profile, folder: Path, with_media: bool) -> Any:
    """diffusers' own pipeline for this use of the weights, with the profile's shift."""
    kind: type[DiffusionPipeline] = WanImageToVideoPipeline if with_media else WanPipeline
    kind = WanVACEPipeline if profile.conditioning == "vace" else kind
    pipeline: Any = kind.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    if profile.sigmas is None:
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, flow_shift=profile.shift)
    else:
        pipeline.scheduler = ListedEuler(shift=profile.shift)
        pipeline.scheduler.levels = list(profile.sigmas)
    return pipeline


class ListedEuler(FlowMatchEulerDiscreteScheduler):
    """Euler over given noise levels, which the pipelines have no argument for."""

    levels: list[float]

    def set_timesteps(self, *args: Any, **options: Any) -> None:
        super().set_timesteps(sigmas=self.levels, device=options.get("device", "cpu"))


@torch.no_grad()
def their_latents(pipeline: Any, plan: RenderPlan, media: Media) -> Tensor:
    """Of diffusers, from the same numbers."""
    both = {} if plan.boundary is None else {"guidance_scale_2": plan.guidance_low}
    result = pipeline(
        prompt=plan.prompt,
        negative_prompt=plan.negative_prompt,
        height=plan.sample_height,
        width=plan.sample_width,
        num_frames=plan.sample_frames,
        num_inference_steps=plan.steps,
        guidance_scale=plan.guidance_high,
        generator=torch.Generator().manual_seed(plan.seed),
        output_type="latent",
        **both,
        **their_media(pipeline, plan, media),
    )
    return result.frames


def their_media(pipeline: Any, plan: RenderPlan, media: Media) -> dict[str, Any]:
    """The media in the words of each pipeline."""
    pictures: dict[str, Image.Image] = {
        role: Image.open(path) for role, path in media.files.items() if role != "first_clip"
    }
    if isinstance(pipeline, WanVACEPipeline):
        return dict(zip(("video", "mask"), vace_video(plan, media, pictures), strict=True))
    if isinstance(pipeline, WanPipeline):
        return {}
    return {"image": pictures["first_frame"], "last_image": pictures.get("last_frame")}


def vace_video(plan: RenderPlan, media: Media, pictures: dict[str, Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """Known frames on grey, and 1 where a frame is to be made: [1, frames, height, width, 3] in [0, 1]."""
    video = np.full((1, plan.sample_frames, plan.sample_height, plan.sample_width, 3), 127.5 / 255, np.float32)
    mask = np.ones_like(video)
    known = {0: pictures.get("first_frame"), plan.sample_frames - 1: pictures.get("last_frame")}
    if media.first_clip:
        known |= dict(enumerate(map(upright, shown_frames(media.first_clip, plan.fps, plan.clip_frames))))
    for index, picture in known.items():
        if picture is not None:
            video[0, index], mask[0, index] = np.asarray(picture, np.float32) / 255, 0
    return video, mask


@contextmanager
def recording(high: torch.nn.Module, low: torch.nn.Module | None) -> Iterator[list[tuple[str, Tensor]]]:
    """What the experts predict, in order, with the expert's name."""
    said: list[tuple[str, Tensor]] = []
    with ExitStack() as stack:
        for name, model in (("high", high), ("low", low)):
            if model is not None:
                hook = model.register_forward_hook(partial(note, said, name))
                stack.callback(hook.remove)
        yield said


def note(said: list[tuple[str, Tensor]], name: str, _: torch.nn.Module, __: Any, output: tuple[Tensor]) -> None:
    said.append((name, output[0]))


def count(said: list[tuple[str, Tensor]], expert: str) -> int:
    return sum(name == expert for name, _ in said)


def largest(difference: Tensor) -> float:
    return difference.abs().max().item()
