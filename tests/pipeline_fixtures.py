"""Plugin for the pipeline tests: each miniature is built and loaded once per run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from tiny_checkpoint import TinyModel, small_profile
from wan_pipelines.load import load_checkpoint, silence_progress_bars
from wan_pipelines.tiny import TinySpec, build_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Iterator[Callable[[TinySpec], TinyModel]]:
    """A function from a spec to its loaded miniature. One thread: the tensors are too small to share."""
    root = tmp_path_factory.mktemp("weights")
    made: dict[TinySpec, TinyModel] = {}
    silence_progress_bars()

    def get(spec: TinySpec) -> TinyModel:
        if spec not in made:
            folder = root / str(len(made))
            build_tiny(spec, folder)
            profile = small_profile(spec)
            made[spec] = TinyModel(profile, folder, load_checkpoint(profile, folder, torch.device("cpu"), None))
        return made[spec]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield get
    torch.set_num_threads(threads)
