"""The finished checkpoint at its own size, through the pipeline that serves it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from wan_pipelines.colour import slid
from wan_pipelines.mp4 import Mp4Spec, Mp4Writer
from wan_pipelines.plan import PlanRequest, RenderPlan, make_plan
from wan_pipelines.profile import checkpoint_folder, load_profile
from wan_pipelines.renderer import Media, Renderer
from wan_pipelines.seams import slides
from wan_pipelines.tensorfile import load_tensors, read_metadata
from wan_pipelines.vae import stream_decode
from wan_pipelines.whole import sample_whole

WIDTH, HEIGHT = 160, 96


@dataclass(frozen=True, slots=True)
class Shot:
    """One result."""

    #: [T, 3, H, W] in [0, 1], the prefix included
    frames: Tensor
    #: [1, z, T, h, w]
    latents: Tensor


@dataclass(frozen=True, slots=True)
class Order:
    """One request. Pictures are [3, H, W] and clips [T, 3, H, W] in [-1, 1] at the model's own size."""

    prompt: str
    negative: str = ""
    seconds: int = 2
    seed: int = 0
    first: Tensor | None = None
    last: Tensor | None = None
    #: 16 frames per second
    clip: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Studio:
    """A loaded model that takes tensors and gives tensors."""

    renderer: Renderer

    @classmethod
    def open(cls, config_dir: Path, name: str = "tiny") -> Studio:
        profile = load_profile(name, config_dir)
        return cls(Renderer.load(profile, checkpoint_folder(profile, config_dir, config_dir), "cpu"))

    def shoot(self, order: Order) -> Shot:
        """Render without the trip through an MP4."""
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            media = _files(order, folder)
            plan = self.plan(order, tuple(media.files))
            path = sample_whole(self.renderer, plan, media, folder)
            latents, slid_by = load_tensors(path, torch.device("cpu"))["latents"], slides(plan, read_metadata(path))
        with torch.inference_mode():
            frames = torch.cat(list(stream_decode(self.renderer.checkpoint.vae, latents)))
        new = slid(iter([frames[plan.prefix_frames :]]), plan.clip_frames, slid_by)
        return Shot(torch.cat([frames[: plan.prefix_frames], *new]), latents)

    def plan(self, order: Order, media: tuple[str, ...]) -> RenderPlan:
        """The plan of the order, with the sample's size as the size of the output."""
        request = PlanRequest(
            prompt=order.prompt,
            negative_prompt=order.negative,
            resolution="720P",
            aspect=16 / 9,
            seconds=order.seconds,
            seed=order.seed,
            media=media,
            clip_seconds=None if order.clip is None else len(order.clip) / self.renderer.profile.fps,
        )
        return replace(make_plan(self.renderer.profile, request), width=WIDTH, height=HEIGHT)


def write_clip(clip: Tensor, path: Path, fps: int = 16) -> Path:
    """An MP4 of a clip [T, 3, H, W] in [-1, 1]."""
    count, _, height, width = clip.shape
    with Mp4Writer(path, Mp4Spec(width, height, fps, count)) as writer:
        writer.write((clip / 2 + 0.5).clamp(0, 1))
    return path


def to_image(picture: Tensor) -> Image.Image:
    """[3, H, W] in [-1, 1] as an image."""
    return Image.fromarray(((picture / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def _files(order: Order, folder: Path) -> Media:
    paths: dict[str, Path] = {}
    for role, picture in (("first_frame", order.first), ("last_frame", order.last)):
        if picture is not None:
            paths[role] = folder / f"{role}.png"
            to_image(picture).save(paths[role])
    if order.clip is not None:
        paths["first_clip"] = write_clip(order.clip, folder / "clip.mp4")
    return Media(**paths)
