"""Tensors on disk between two stages: safetensors, written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wan_pipelines.errors import RenderError


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write beside `path`, then move into place; a failure leaves nothing and keeps what was there."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    scratch = Path(name)
    try:
        save_file({key: tensor.contiguous().cpu() for key, tensor in tensors.items()}, scratch, metadata)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def read_metadata(path: Path) -> dict[str, str]:
    """The strings beside the tensors. Raises RenderError when the file is missing or broken."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise RenderError(f"{path.name}: {error}") from error


def load_tensors(path: Path, device: torch.device) -> dict[str, Tensor]:
    """Every tensor of the file. Raises RenderError when the file is missing or broken."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RenderError(f"{path.name}: {error}") from error


def matching_tensors(path: Path, metadata: dict[str, str]) -> dict[str, Tensor]:
    """The tensors of a file with exactly this metadata, on the CPU; none where it is missing, broken or another's."""
    if not path.is_file():
        return {}
    try:
        return load_tensors(path, torch.device("cpu")) if read_metadata(path) == metadata else {}
    except RenderError:
        return {}
