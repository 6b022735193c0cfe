"""Writes down where a denoise stands, and takes it up again there."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from wan_pipelines.samplers import Sampler
from wan_pipelines.tensorfile import matching_tensors, save_tensors

_STATE = "sampler."
_HELD = "held."


class Bookmark:
    """Saves latents and sampler state between two steps, at most every `every_s` seconds (0: after each step).

    `held` goes with them: what is finished already, on the CPU. A file that is there is read at once; a broken one, or
    one with other metadata, is as good as none.
    """

    def __init__(self, path: Path | None, metadata: dict[str, str], every_s: float) -> None:
        self._path = path
        self._metadata = metadata
        self._every_s = every_s
        self._saved_at = time.monotonic()
        self._found = matching_tensors(path, metadata) if path else {}
        self.held = {name.removeprefix(_HELD): x for name, x in self._found.items() if name.startswith(_HELD)}

    def take_up(self, sampler: Sampler, device: torch.device) -> Tensor | None:
        """Put the sampler where the file was written and give its latents.

        None, and the sampler untouched, when there was no file; and from the second call on, for other work.
        """
        found, self._found = {name: tensor.to(device) for name, tensor in self._found.items()}, {}
        if not found:
            return None
        sampler.load_state({name.removeprefix(_STATE): x for name, x in found.items() if name.startswith(_STATE)})
        return found["latents"]

    def offer(self, sampler: Sampler, latents: Tensor) -> None:
        """Save if there is a place to save to and it is time."""
        if self._path is None or time.monotonic() - self._saved_at < self._every_s:
            return
        state = {_STATE + name: tensor for name, tensor in sampler.state().items()}
        held = {_HELD + name: tensor for name, tensor in self.held.items()}
        save_tensors(self._path, {"latents": latents, **state, **held}, self._metadata)
        self._saved_at = time.monotonic()
