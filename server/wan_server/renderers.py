"""The renderers of a worker, one for each model of its set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from wan_pipelines.profile import Profile, checkpoint_folder
from wan_server.settings import Settings

if TYPE_CHECKING:
    from wan_pipelines.renderer import Renderer

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """The worker is to end while it loads."""


@dataclass(frozen=True, slots=True)
class Renderers:
    """Gives the renderer of a model by the name that a job carries."""

    by_model: Mapping[str, Renderer]

    @property
    def models(self) -> tuple[str, ...]:
        """The models there are, in the configured order."""
        return tuple(self.by_model)

    def of(self, model: str) -> Renderer:
        """The renderer of a model of this set."""
        return self.by_model[model]

    def profile(self, model: str) -> Profile:
        """What is known of a model of this set; touches no weights."""
        return self.by_model[model].profile


def load_renderers(
    settings: Settings, profiles: Sequence[Profile], device: str, is_stopping: Callable[[], bool]
) -> Renderers:
    """Load the weights of each profile, in this order; parts that they have in common are loaded once.

    Raises CheckpointError, PlacementError, and Stopped between two of them.
    """
    from wan_pipelines.load import PartCache
    from wan_pipelines.placed import LoadOptions
    from wan_pipelines.renderer import Renderer

    options = LoadOptions(
        placement=settings.placement,
        config_dir=settings.configs,
        parts=PartCache(),
        speech_cache=settings.data_dir / "speech",
    )
    loaded: dict[str, Renderer] = {}
    for profile in profiles:
        folder = checkpoint_folder(profile, settings.weights, settings.configs)
        logger.info("loading %s from %s", profile.served_as, folder)
        with load_bars() as on_part:
            every_s = settings.checkpoint_every_s
            renderer = Renderer.load(profile, folder, device, every_s, replace(options, on_part=on_part))
        loaded[profile.served_as] = renderer
        _say(renderer)
        if is_stopping():
            raise Stopped
    return Renderers(loaded)


@contextmanager
def load_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each part that is read, on a terminal; elsewhere the log has to do."""
    console = Console(stderr=True)
    tasks: dict[str, TaskID] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:

        def on_part(name: str, done: int, tensors: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=tensors)
            bars.update(tasks[name], completed=done)

        yield on_part


def _say(renderer: Renderer) -> None:
    """How the model is kept, and what of its low-rank additions has no place in it."""
    name, placed = renderer.profile.served_as, renderer.placed
    assert placed is not None
    logger.info("%s is kept %s", name, placed.placement.sentence)
    for lora in placed.loras:
        form = "beside the weights" if lora.hot else "fused"
        logger.info("%s: %s, %d parameters, %s", name, lora.path.name, lora.parameters, form)
        if lora.left_out:
            logger.warning("%s: %s has no place for %s", name, lora.path.name, ", ".join(lora.left_out))
