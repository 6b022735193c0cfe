"""Low-rank additions (LoRA) on a Wan transformer: fused into the weights, or hot beside them.

Fused costs nothing at run time and cannot be taken out again exactly. Hot keeps the base weights, its strength can
change, and it works over quantised weights, where fusing rounds once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor, nn

from wan_pipelines.denoise import Experts
from wan_pipelines.errors import CheckpointError
from wan_pipelines.preset import LoraFile
from wan_pipelines.profile import Profile
from wan_pipelines.weights.files import find_lora
from wan_pipelines.weights.lora_file import Addition, Fit, Lora, fit, read_lora, some
from wan_pipelines.weights.lora_hot import HotLora

__all__ = [
    "Applied",
    "Fit",
    "HotLora",
    "Lora",
    "Mode",
    "Requantisable",
    "apply_loras",
    "check_loras",
    "find_lora",
    "fit",
    "fuse",
    "read_lora",
]

#: "auto": fused into plain weights, hot over quantised ones
Mode = Literal["auto", "fused", "hot"]
_PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@runtime_checkable
class Requantisable(Protocol):
    """A linear layer whose weight is quantised and can be replaced."""

    def dequantise(self) -> Tensor:
        """The weight in float32, [out, in]."""
        ...

    def requantise(self, weight: Tensor) -> None:
        """Take another weight, with new scales."""
        ...


@dataclass(frozen=True, slots=True)
class Applied:
    """One file that is in force on one expert."""

    path: Path
    expert: Literal["high", "low"]
    strength: float
    #: parameters that it adds to
    parameters: int
    #: keys of the file that this model has no layer for
    left_out: tuple[str, ...]
    #: None when it was fused
    hot: HotLora | None


@torch.no_grad()
def fuse(model: nn.Module, lora: Lora, strength: float = 1.0) -> Fit:
    """Add a LoRA to the weights, one layer after another, in float32, and back to each weight's own dtype.

    Quantised layers are dequantised, added to and quantised anew when they are `Requantisable`. Raises
    CheckpointError before anything is changed.
    """
    found = fit(lora, model)
    _check_fusable(model, lora, found)
    for name, addition in found.additions.items():
        _fuse_one(model, name, addition, strength)
    return found


def apply_loras(experts: Experts, profile: Profile, folder: Path, mode: Mode = "auto") -> tuple[Applied, ...]:
    """Put the LoRA files of the profile's preset on the experts that they are for.

    The files are looked for anywhere below `folder`, by name. Raises CheckpointError before anything is changed,
    when one is missing, broken or does not fit.
    """
    jobs = []
    for wanted, path in zip(profile.loras, _find_all(profile, folder), strict=True):
        model, lora = _expert(experts, profile, wanted), read_lora(path)
        found = fit(lora, model)
        hot = mode == "hot" or (mode == "auto" and not _are_plain(model, found))
        if not hot:
            _check_fusable(model, lora, found)
        jobs.append((model, wanted, lora, hot))
    return tuple(_apply(*job) for job in jobs)


def check_loras(profile: Profile, folder: Path, models: Mapping[str, nn.Module]) -> None:
    """Whether the files of the profile's preset are there, whole, and fit; `models` by expert may be without weights.

    For a refusal before anything large is read. Raises CheckpointError.
    """
    for wanted, path in zip(profile.loras, _find_all(profile, folder), strict=True):
        if wanted.expert not in models:
            raise CheckpointError(f"{profile.name}: {wanted.file} is for the low-noise expert, but there is only one")
        fit(read_lora(path), models[wanted.expert])


def _find_all(profile: Profile, folder: Path) -> list[Path]:
    found = [(lora, find_lora(lora, folder)) for lora in profile.loras]
    if missing := [f"{lora.file} of {lora.repository}" for lora, path in found if path is None]:
        raise CheckpointError(
            f"{folder}: missing LoRA files: {', '.join(missing)}; "
            f"fetch them with: wanbox weights get {profile.name} --preset {profile.preset}"
        )
    return [path for _, path in found if path is not None]


def _expert(experts: Experts, profile: Profile, lora: LoraFile) -> nn.Module:
    expert = experts.high if lora.expert == "high" else experts.low
    if expert is None:
        raise CheckpointError(f"{profile.name}: {lora.file} is for the low-noise expert, but this model has only one")
    return expert


def _apply(model: nn.Module, wanted: LoraFile, lora: Lora, is_hot: bool) -> Applied:
    hot = HotLora(model, lora, wanted.strength) if is_hot else None
    found = hot.fit if hot else fuse(model, lora, wanted.strength)
    return Applied(lora.path, wanted.expert, wanted.strength, len(found.additions), found.left_out, hot)


def _check_fusable(model: nn.Module, lora: Lora, found: Fit) -> None:
    if refused := [name for name in found.additions if not _is_fusable(*_owner(model, name))]:
        kinds = [f"{name} ({type(_owner(model, name)[0]).__name__})" for name in refused]
        raise CheckpointError(
            f"{lora.path}: cannot be fused into quantised weights: {some(kinds)}; it can be added hot"
        )


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that has a parameter, and the parameter's name in it."""
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


def _are_plain(model: nn.Module, found: Fit) -> bool:
    return all(_is_plain(*_owner(model, name)) for name in found.additions)


def _is_fusable(owner: nn.Module, attribute: str) -> bool:
    return _is_requantisable(owner, attribute) or _is_plain(owner, attribute)


def _is_plain(owner: nn.Module, attribute: str) -> bool:
    """Whether what is stored, and not what a property makes of it, is floating point of 16 bits or more."""
    stored = dict((*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)))
    return attribute in stored and stored[attribute].dtype in _PLAIN


def _is_requantisable(owner: nn.Module, attribute: str) -> TypeGuard[Requantisable]:
    return attribute == "weight" and isinstance(owner, Requantisable)


def _fuse_one(model: nn.Module, name: str, addition: Addition, strength: float) -> None:
    owner, attribute = _owner(model, name)
    if _is_requantisable(owner, attribute):
        weight = owner.dequantise()
        owner.requantise(torch.add(weight, addition.dense(weight.device), alpha=strength))
        return
    value: Tensor = getattr(owner, attribute)
    # new memory: the old one may be a file that is mapped read-only
    value.data = torch.add(value.float(), addition.dense(value.device), alpha=strength).to(value.dtype)
