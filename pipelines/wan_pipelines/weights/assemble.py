"""Models from configs and tensors: built without memory, filled strictly, whole or not at all."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan_vace import WanVACETransformer3DModel
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel, Wav2Vec2Config, Wav2Vec2Model

from wan_pipelines.errors import CheckpointError
from wan_pipelines.s2v.transformer import WanS2VTransformer3DModel
from wan_pipelines.weights.gguf_file import PREFIX as GGUF
from wan_pipelines.weights.keys import Part, Rename, renamer
from wan_pipelines.weights.kinds import Kind, read_config, some
from wan_pipelines.weights.pictures import split_pictures
from wan_pipelines.weights.quantised import (
    CODES,
    Companions,
    GgufLinear,
    QuantisedLinear,
    can_keep_blocks,
    dequantise,
    find_companions,
    is_finite,
)
from wan_pipelines.weights.tensors import TensorSet

#: done, of how many
OnTensor = Callable[[int, int], None]
_TRANSFORMERS_3D = (WanTransformer3DModel, WanVACETransformer3DModel, WanS2VTransformer3DModel)
_DIFFUSERS = {model.__name__: model for model in (*_TRANSFORMERS_3D, AutoencoderKLWan)}
_TRANSFORMERS = {
    "UMT5EncoderModel": (UMT5EncoderModel, UMT5Config),
    "CLIPVisionModel": (CLIPVisionModel, CLIPVisionConfig),
    "Wav2Vec2Model": (Wav2Vec2Model, Wav2Vec2Config),
}
CLASSES = (*_DIFFUSERS, *_TRANSFORMERS)


@dataclass(frozen=True, slots=True)
class Source:
    """One part of a checkpoint before it is built."""

    part: Part
    #: file or folder that errors name
    where: Path
    #: of the class that `_class_name` says
    config: Mapping[str, Any]
    tensors: TensorSet


@dataclass(frozen=True, slots=True)
class Precision:
    """How weights are held in memory."""

    #: of the forward pass, and of every weight that is not quantised
    compute: torch.dtype
    #: linear layers that are quantised in the file stay so; else they are made whole at loading
    keep_quantised: bool = True


@dataclass(frozen=True, slots=True)
class _Codes:
    """A weight that stays quantised."""

    values: Tensor
    scale: Tensor | None
    block_type: str | None


def build_on_meta(kind: Kind, config_dir: Path | None = None) -> nn.Module:
    """The model of a kind without weights, from the bundled config. Raises CheckpointError."""
    return build(read_config(kind.architecture, config_dir))


def build(config: Mapping[str, Any]) -> nn.Module:
    """The model of a config on the meta device; buffers that no file holds (rotary tables) are real."""
    name = config["_class_name"]
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    with init_empty_weights(include_buffers=False):
        if name in _DIFFUSERS:
            return _DIFFUSERS[name].from_config(settings)  # pyright: ignore[reportReturnType]
        model_class, config_class = _TRANSFORMERS[name]
        model = model_class(config_class.from_dict(settings))
    if isinstance(model, UMT5EncoderModel):
        model.set_input_embeddings(model.shared)  # one tensor for both of its names
    return model


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the defaults of its class for what it leaves out."""
    name = config["_class_name"]
    if name in _DIFFUSERS:
        arguments = inspect.signature(_DIFFUSERS[name].__init__).parameters.values()
        defaults = {argument.name: argument.default for argument in arguments if argument.default is not argument.empty}
    else:
        defaults = _TRANSFORMERS[name][1]().to_dict()
    return {**defaults, **config}


def load_part(source: Source, precision: Precision, on_tensor: OnTensor | None = None) -> nn.Module:
    """The model of one part in eval mode. Raises CheckpointError naming file and key."""
    model, target, tensors = _prepare(source)
    rename = renamer(source.part, tensors.shapes())
    keep = precision.keep_quantised
    fill(target, tensors, rename, precision.compute, keep_quantised=keep, on_tensor=on_tensor, where=source.where)
    return model.eval()


def check_names(source: Source) -> None:
    """Raises CheckpointError listing missing and unexpected keys and wrong shapes. No tensor is read."""
    _, target, tensors = _prepare(source)
    places(target, tensors, find_companions(tensors), renamer(source.part, tensors.shapes()), source.where)


def _prepare(source: Source) -> tuple[nn.Module, nn.Module, TensorSet]:
    """The model without weights, the module that the file is for, and the tensors as that module has them."""
    try:
        model = build(source.config)
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{source.where}: its config makes no model: {error}") from error
    if source.part != "image_encoder":
        return model, model, source.tensors
    # transformers 5 has the vision model itself, older ones have it inside
    return model, getattr(model, "vision_model", model), split_pictures(source.tensors)


def fill(
    model: nn.Module,
    tensors: TensorSet,
    rename: Rename | Mapping[str, str | None],
    dtype: torch.dtype,
    *,
    keep_quantised: bool = False,
    on_tensor: OnTensor | None = None,
    where: Path | None = None,
) -> None:
    """Give a model on the meta device its weights; `where` is what errors name beside the file.

    Missing and unknown keys, wrong shapes and values that are not finite raise CheckpointError, and then the model
    is as it was. What needs no conversion stays mapped. Layers that the class keeps in float32 are float32.
    """
    get = rename.get if isinstance(rename, Mapping) else rename
    where = where or _common(tensors)
    companions = find_companions(tensors)
    targets = places(model, tensors, companions, get, where)
    stored = tensors.dtypes()
    ready: dict[str, Tensor | _Codes] = {}
    broken = []
    for done, (target, name) in enumerate(targets.items(), 1):
        job = _Job(tensors, name, stored[name], companions.scales.get(name), _dtype_of(model, target, dtype))
        value = _codes(job) if keep_quantised and job.dtype == dtype and _can_keep(model, target) else None
        ready[target] = value = value or _whole(job)
        if not _is_sound(value):
            broken.append(name)
        if on_tensor:
            on_tensor(done, len(targets))
    if broken:
        raise CheckpointError(f"{where}: values that are not finite: {_with_files(tensors, broken)}")
    _assign(model, ready, dtype)


@dataclass(frozen=True, slots=True)
class _Job:
    """One tensor that is to be read."""

    tensors: TensorSet
    name: str
    #: dtype in the file
    stored: str
    #: name of the scales
    scale: str | None
    dtype: torch.dtype

    def read_scale(self) -> Tensor | None:
        return None if self.scale is None else self.tensors.read(self.scale).float()


def _common(tensors: TensorSet) -> Path:
    """The file of all tensors, or their folder."""
    files = {tensors.source(name) for name in tensors.shapes()}
    return files.pop() if len(files) == 1 else next(iter(files)).parent


def places(model: nn.Module, tensors: TensorSet, companions: Companions, rename: Rename, where: Path) -> dict[str, str]:
    """Name in the file by name in the model. Raises CheckpointError listing all that does not fit."""
    wanted = {name: tuple(value.shape) for name, value in _slots(model)}
    besides = {*companions.unused, *companions.scales.values()}
    shapes = {name: shape for name, shape in tensors.shapes().items() if name not in besides}
    renamed = {name: rename(name) for name in shapes}
    found = {target: name for name, target in renamed.items() if target in wanted}
    wrong = [
        f"{name} is {list(shapes[name])}, the model has {list(wanted[target])} ({tensors.source(name).name})"
        for target, name in found.items()
        if shapes[name] != wanted[target]
    ]
    unknown = [name for name, target in renamed.items() if target is not None and found.get(target) != name]
    problems = {
        "missing keys": [name for name in wanted if name not in found],
        "unexpected keys": [f"{name} ({tensors.source(name).name})" for name in sorted(unknown)],
        "wrong shapes": wrong,
    }
    listed = [f"{title}: {some(items)}" for title, items in problems.items() if items]
    if listed:
        raise CheckpointError(f"{where}: {'; '.join(listed)}")
    return found


def _slots(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and the buffers that files hold, each tensor once."""
    yield from model.named_parameters()
    kept = model.state_dict().keys()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in kept)


def _can_keep(model: nn.Module, target: str) -> bool:
    """Whether a layer may hold this tensor quantised.

    What diffusers' classes keep in float32 may not, also where all is float32: the time embedder takes the dtype of
    its own parameters for that of its input.
    """
    path, _, leaf = target.rpartition(".")
    exact = set(_kept_exact(model)) if isinstance(model, ModelMixin) else set()
    return leaf == "weight" and isinstance(model.get_submodule(path), nn.Linear) and not exact & set(path.split("."))


def _kept_exact(model: nn.Module) -> Iterable[str]:
    """Modules that their class wants in float32 beside half precision."""
    return getattr(model, "_keep_in_fp32_modules", None) or ()


def _dtype_of(model: nn.Module, target: str, dtype: torch.dtype) -> torch.dtype:
    """float32 for what the class keeps in it, by diffusers' and by transformers' rule, else `dtype`."""
    half = (torch.float16, torch.bfloat16) if isinstance(model, ModelMixin) else (torch.float16,)
    return torch.float32 if dtype in half and set(_kept_exact(model)) & set(target.split(".")) else dtype


def _codes(job: _Job) -> _Codes | None:
    """The tensor as it is stored, when it is quantised in a way that a layer can work with."""
    if job.stored in CODES:
        return _Codes(job.tensors.read(job.name), job.read_scale(), None)
    if job.stored.startswith(GGUF) and can_keep_blocks(block_type := job.stored.removeprefix(GGUF)):
        packed = job.tensors.packed(job.name)
        return None if packed is None else _Codes(packed, None, block_type)
    return None


def _whole(job: _Job) -> Tensor:
    """The tensor in its dtype."""
    if job.stored in CODES or job.scale is not None:
        return dequantise(job.tensors.read(job.name), job.read_scale()).to(job.dtype)
    return job.tensors.read_as(job.name, job.dtype)


def _is_sound(value: Tensor | _Codes) -> bool:
    """Whether every number is finite. GGUF's blocks are not opened for it."""
    if isinstance(value, Tensor):
        return is_finite(value)
    return is_finite(value.values) and (value.scale is None or is_finite(value.scale))


def _with_files(tensors: TensorSet, names: Iterable[str]) -> str:
    return some(f"{name} ({tensors.source(name).name})" for name in names)


def _assign(model: nn.Module, ready: Mapping[str, Tensor | _Codes], dtype: torch.dtype) -> None:
    for target, value in ready.items():
        if isinstance(value, _Codes):
            path = target.rpartition(".")[0]
            model.set_submodule(path, _layer(model.get_submodule(path), value, dtype))
    whole = {target: value for target, value in ready.items() if isinstance(value, Tensor)}
    model.load_state_dict(whole, strict=False, assign=True)  # strict already: every slot has its tensor
    model.requires_grad_(False)


def _layer(linear: nn.Module, codes: _Codes, dtype: torch.dtype) -> nn.Module:
    assert isinstance(linear, nn.Linear)
    if codes.block_type is not None:
        return GgufLinear(linear, codes.values, codes.block_type, dtype)
    return QuantisedLinear(linear, codes.values, codes.scale, dtype)
