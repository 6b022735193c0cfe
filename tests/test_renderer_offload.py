"""The stages with parts that come to the device when they compute: the same files to the last bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from callbacks import nothing
from media_samples import read_video
from tiny_checkpoint import TEXT, TWO_EXPERTS, TWO_PICTURES, VACE, TinyModel, noise_image, small_plan
from wan_pipelines.offload import parts_of
from wan_pipelines.placed import LoadOptions
from wan_pipelines.renderer import Media, Renderer

pytest_plugins = ("pipeline_fixtures",)
CPU = torch.device("cpu")


def render(renderer: Renderer, work: Path) -> tuple[dict, torch.Tensor]:
    """Conditioning and latents; the video is written beside them."""
    profile = renderer.profile
    work.mkdir()
    for index, role in enumerate(("first_frame", "last_frame")):
        noise_image(index).save(work / f"{role}.png")
    media = Media(**{role: work / f"{role}.png" for role in profile.inputs if role != "first_clip"})
    plan = small_plan(profile)
    renderer.encode(plan, media, work / "c", nothing)
    renderer.denoise(plan, work / "c", work / "l", nothing)
    renderer.decode(plan, work / "l", work / "out.mp4", None, nothing)
    return load_file(work / "c"), load_file(work / "l")["latents"]


def load_own(model: TinyModel, wish: str = "auto") -> Renderer:
    """With weights in memory of their own: where tensors in a mapped file begin, sums may be rounded otherwise."""
    renderer = Renderer.load(model.profile, model.folder, "cpu", options=LoadOptions(placement=wish))
    for part in parts_of(renderer.checkpoint).values():
        for parameter in part.parameters():
            parameter.data = parameter.data.clone()
    return renderer


@pytest.mark.parametrize("residence", ["offload_parts", "offload_layers"])
@pytest.mark.parametrize("spec", [TWO_EXPERTS, TWO_PICTURES, VACE, TEXT], ids=["experts", "clip", "vace", "text"])
def test_what_comes_and_goes_computes_the_same(tiny, tmp_path, spec, residence):
    model = tiny(spec)
    wanted, wanted_latents = render(replace(load_own(model), placed=None), tmp_path / "stays")
    found, latents = render(load_own(model, residence), tmp_path / "comes")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert torch.equal(latents, wanted_latents)
    frames = [read_video(tmp_path / name / "out.mp4") for name in ("stays", "comes")]
    assert all((a == b).all() for a, b in zip(*frames, strict=True))
