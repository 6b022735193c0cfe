"""Writes down where a denoise stands, and takes it up again there."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from wan_pipelines.errors import RenderError
from wan_pipelines.samplers import Sampler
from wan_pipelines.tensorfile import load_tensors, read_metadata, save_tensors

_STATE = "sampler."


class StepSaver:
    """Saves latents and sampler state between two steps, at most every `every_s` seconds (0: after each step)."""

    def __init__(self, sampler: Sampler, path: Path | None, metadata: dict[str, str], every_s: float) -> None:
        self._sampler = sampler
        self._path = path
        self._metadata = metadata
        self._every_s = every_s
        self._saved_at = time.monotonic()

    def offer(self, latents: Tensor) -> None:
        """Save if there is a place to save to and it is time."""
        if self._path is None or time.monotonic() - self._saved_at < self._every_s:
            return
        state = {_STATE + name: tensor for name, tensor in self._sampler.state().items()}
        save_tensors(self._path, {"latents": latents, **state}, self._metadata)
        self._saved_at = time.monotonic()


def resume(sampler: Sampler, path: Path | None, metadata: dict[str, str], device: torch.device) -> Tensor | None:
    """Put the sampler where the file was written and give its latents.

    None, and the sampler untouched, when there is no file, a broken one, or one with other metadata.
    """
    if path is None or not path.is_file():
        return None
    try:
        if read_metadata(path) != metadata:
            return None
        tensors = load_tensors(path, device)
    except RenderError:
        return None
    sampler.load_state({name.removeprefix(_STATE): x for name, x in tensors.items() if name.startswith(_STATE)})
    return tensors["latents"]
