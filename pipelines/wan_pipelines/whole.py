"""All samples of a video one after the other in this process: for scripts and tests. Jobs do it step by step."""

from __future__ import annotations

from pathlib import Path

from wan_pipelines.conditions import Media
from wan_pipelines.plan import RenderPlan
from wan_pipelines.renderer import Renderer
from wan_pipelines.seams import Before, join


def sample_whole(renderer: Renderer, plan: RenderPlan, media: Media, folder: Path) -> Path:
    """The file of latents that `Renderer.decode` takes, in `folder` beside those it was made from.

    A plan in two passes (`RenderPlan.refine`) is not for this. Raises RenderError and what the stages raise.
    """
    made: list[Path] = []
    for part in plan.parts:
        told, latents = folder / f"told-{part.number}", folder / f"latents-{part.number}"
        if part.number:
            renderer.go_on(part, media, Before(folder / "told-0", made[-1]), told, lambda: None)
        else:
            renderer.encode(part, media, told, lambda: None)
        renderer.denoise(part, told, latents, lambda done, steps: None)
        made.append(latents)
    if len(made) == 1:
        return made[0]
    join(plan, made, folder / "joined")
    return folder / "joined"
