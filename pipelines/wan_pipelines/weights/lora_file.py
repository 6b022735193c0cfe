"""LoRA files, read strictly: what each adds to which parameter, and whether it fits a model.

A key that is not known, half a pair, ranks or shapes that do not agree and numbers that are not finite raise
CheckpointError with file and key. The adapters' arithmetic is W + strength * alpha / rank * up @ down; without an
alpha, alpha is the rank (Hu et al. 2021, "LoRA", section 4.1).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wan_pipelines.errors import CheckpointError
from wan_pipelines.weights.kinds import some
from wan_pipelines.weights.lora_keys import (
    LoraKey,
    Role,
    is_for_pictures,
    other_method,
    own_layer_name,
    parameter_name,
    parse_key,
)
from wan_pipelines.weights.tensors import TensorSet, open_tensors

#: note in the files that diffusers writes: peft's settings as JSON
_SETTINGS_NOTE = "lora_adapter_metadata"
#: stem of the files that peft itself writes, and the settings beside them
_PEFT_WEIGHTS, _PEFT_SETTINGS = "adapter_model", "adapter_config.json"
_PATCH_EMBEDDING = "patch_embedding.weight"


@dataclass(frozen=True, slots=True)
class LowRank:
    """scale * up @ down."""

    #: name of the upper half in the file
    key: str
    up: Tensor  # [out, rank]
    down: Tensor  # [rank, in], or [rank, in, T, H, W] for a convolution
    #: alpha / rank
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.up.shape[0], *self.down.shape[1:])

    def dense(self, device: torch.device) -> Tensor:
        """The whole difference in float32."""
        up, down = self.up.to(device).float().flatten(1), self.down.to(device).float().flatten(1)
        return (up @ down).mul_(self.scale).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Full:
    """scale * values, a difference that is stored as it is."""

    key: str
    values: Tensor
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    def dense(self, device: torch.device) -> Tensor:
        """The whole difference in float32."""
        return self.values.to(device).float() * self.scale


Addition = LowRank | Full


@dataclass(frozen=True, slots=True)
class Lora:
    """What one file adds, by the name of the parameter in diffusers' transformer."""

    path: Path
    additions: Mapping[str, Addition]


@dataclass(frozen=True, slots=True)
class Fit:
    """A LoRA held against a model."""

    #: by the name of a parameter that the model has
    additions: Mapping[str, Addition]
    #: keys of the file whose layer the model does not have and need not have
    left_out: tuple[str, ...]


def read_lora(source: TensorSet | Path) -> Lora:
    """Read one file. The tensors stay memory-mapped until they are used. Raises CheckpointError."""
    tensors = open_tensors([source]) if isinstance(source, Path) else source
    keys = list(tensors.shapes())
    if not keys:
        raise CheckpointError(f"{source if isinstance(source, Path) else 'the LoRA file'}: holds no tensors")
    path = tensors.source(keys[0])
    layers = _by_layer(path, keys)
    reader = _Reader(path, tensors, _read_settings(path, tensors.notes()))
    additions: dict[str, Addition] = {}
    for layer, roles in layers.items():
        additions |= reader.layer(layer, roles)
    return Lora(path, additions)


def fit(lora: Lora, model: nn.Module) -> Fit:
    """Find every parameter in the model. Raises CheckpointError when a layer is missing or has another shape.

    Two things are left out and named instead: what is for the picture attention (k_img, v_img, img_emb) of a model
    without one, and a difference of the patch embedding of a model with other input channels.
    """
    fitting: dict[str, Addition] = {}
    missing, misshapen, left_out = [], [], []
    for name, addition in lora.additions.items():
        shape = weight_shape(model, name)
        if shape == addition.shape:
            fitting[name] = addition
        elif (shape is None and is_for_pictures(name)) or (
            name == _PATCH_EMBEDDING and _differs_in_input(shape, addition)
        ):
            left_out.append(addition.key)
        elif shape is None:
            missing.append(addition.key)
        else:
            misshapen.append(f"{addition.key} {list(addition.shape)} for a layer of {list(shape)}")
    kind = type(model).__name__
    if misshapen:
        raise CheckpointError(f"{lora.path}: is for another model than this {kind}: wrong shape: {some(misshapen)}")
    if missing:
        raise CheckpointError(f"{lora.path}: is for another model than this {kind}: no such layer: {some(missing)}")
    if not fitting:
        raise CheckpointError(f"{lora.path}: fits no layer of this {kind}: {some(left_out)}")
    return Fit(fitting, tuple(left_out))


def weight_shape(model: nn.Module, name: str) -> tuple[int, ...] | None:
    """The shape of a parameter, also of a linear layer that keeps its weight packed; None when there is none."""
    path, _, attribute = name.rpartition(".")
    try:
        owner = model.get_submodule(path)
    except AttributeError:
        return None
    if attribute == "weight" and is_linear(owner):
        return (int(owner.out_features), int(owner.in_features))  # pyright: ignore[reportArgumentType]
    value = getattr(owner, attribute, None)
    return tuple(value.shape) if isinstance(value, Tensor) else None


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer of any kind, quantised ones included."""
    return hasattr(module, "out_features") and hasattr(module, "in_features")


def _differs_in_input(shape: tuple[int, ...] | None, addition: Addition) -> bool:
    """Same output, same kernel, other input channels: text-to-video against image-to-video."""
    return shape is not None and shape[:1] + shape[2:] == addition.shape[:1] + addition.shape[2:]


def _by_layer(path: Path, keys: list[str]) -> dict[str, dict[Role, str]]:
    """Keys of the file by layer in diffusers' names and by role."""
    parsed = {key: parse_key(key) for key in keys}
    for key in keys:
        if method := other_method(key):
            raise CheckpointError(f"{path}: {key}: {method} is not supported, only LoRA and plain differences are")
    unknown = [key for key, place in parsed.items() if place is None]
    if len(unknown) == len(keys):
        raise CheckpointError(f"{path}: is no LoRA for a Wan transformer; its keys are {some(unknown)}")
    if unknown:
        raise CheckpointError(f"{path}: unknown keys: {some(unknown)}")
    layers: dict[str, dict[Role, str]] = {}
    for key, place in parsed.items():
        if place is not None and (first := layers.setdefault(place.layer, {}).setdefault(place.role, key)) != key:
            raise CheckpointError(f"{path}: {first} and {key} are for the same weight")
    return layers


@dataclass(frozen=True, slots=True)
class _Settings:
    """Of peft: how strong the pairs are that have no alpha of their own."""

    alpha: float | None = None
    #: alpha of the layers whose names match
    alpha_pattern: Mapping[re.Pattern[str], float] = field(default_factory=dict)
    #: "rank-stabilised": alpha over the root of the rank
    by_root: bool = False

    def scale(self, key: str, rank: int) -> float:
        layer = own_layer_name(key)
        alpha = next((value for names, value in self.alpha_pattern.items() if names.match(layer)), self.alpha)
        return 1.0 if alpha is None else alpha / (math.sqrt(rank) if self.by_root else rank)


def _read_settings(path: Path, notes: Mapping[str, str]) -> _Settings:
    """What peft noted about its adapter: in the file, or beside it."""
    beside = path.with_name(_PEFT_SETTINGS)
    try:
        if path.stem == _PEFT_WEIGHTS and beside.is_file():
            return _settings(path, json.loads(beside.read_text(encoding="utf-8")))
        return _settings(path, json.loads(notes.get(_SETTINGS_NOTE, "{}")))
    except (ValueError, TypeError, AttributeError, re.error) as error:
        raise CheckpointError(f"{path}: its peft settings cannot be read: {error}") from error


def _settings(path: Path, noted: dict[str, Any]) -> _Settings:
    values = {key.removeprefix("transformer."): value for key, value in noted.items()}
    if values.get("use_dora"):
        raise CheckpointError(f"{path}: use_dora: DoRA is not supported, only LoRA and plain differences are")
    alpha = values.get("lora_alpha")
    # peft matches the end of the layer's name
    patterns = {
        re.compile(rf"(.*\.)?({key})$"): float(alpha) for key, alpha in (values.get("alpha_pattern") or {}).items()
    }
    return _Settings(None if alpha is None else float(alpha), patterns, bool(values.get("use_rslora")))


@dataclass(frozen=True, slots=True)
class _Reader:
    path: Path
    tensors: TensorSet
    settings: _Settings

    def layer(self, layer: str, roles: dict[Role, str]) -> dict[str, Addition]:
        """What the file adds to the parameters of one layer."""
        added: dict[str, Addition] = {}
        if pair := self._pair(roles):
            added[parameter_name(LoraKey(layer, "up"))] = pair
            if key := roles.get("up_bias"):
                added[parameter_name(LoraKey(layer, "up_bias"))] = Full(key, self._read(key), pair.scale)
        elif key := roles.get("alpha") or roles.get("up_bias"):
            raise CheckpointError(f"{self.path}: {key}: has no low-rank pair that it belongs to")
        for role in ("weight", "bias"):
            if key := roles.get(role):
                name = parameter_name(LoraKey(layer, role))
                if name in added:
                    raise CheckpointError(f"{self.path}: {key} and {added[name].key} are for the same weight")
                added[name] = Full(key, self._read(key))
        return added

    def _pair(self, roles: dict[Role, str]) -> LowRank | None:
        up_key, down_key = roles.get("up"), roles.get("down")
        if up_key is None or down_key is None:
            if lone := up_key or down_key:
                raise CheckpointError(f"{self.path}: {lone}: the other half of the pair is missing")
            return None
        up, down = self._read(up_key), self._read(down_key)
        rank = down.shape[0] if down.ndim else 0
        if up.ndim < 2 or down.ndim < 2 or up.shape[1] != rank or rank == 0 or any(size != 1 for size in up.shape[2:]):
            shapes = f"{down_key} {list(down.shape)}, {up_key} {list(up.shape)}"
            raise CheckpointError(f"{self.path}: the ranks of the pair do not agree: {shapes}")
        alpha = roles.get("alpha")
        return LowRank(up_key, up, down, self._alpha(alpha) / rank if alpha else self.settings.scale(up_key, rank))

    def _alpha(self, key: str) -> float:
        value = self._read(key)
        if value.numel() != 1:
            raise CheckpointError(f"{self.path}: {key}: must be one number (got {list(value.shape)})")
        return float(value.item())

    def _read(self, key: str) -> Tensor:
        tensor = self.tensors.read(key)
        if not (tensor.is_floating_point() or key.endswith(".alpha")):
            raise CheckpointError(f"{self.path}: {key}: must be floating point (got {tensor.dtype})")
        if not torch.isfinite(tensor.float()).all():
            raise CheckpointError(f"{self.path}: {key}: holds NaN or infinity")
        return tensor
