"""Parts that several models share: text encoder and VAE are the same in most of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from wan_pipelines.weights.assemble import Precision, Source, complete
from wan_pipelines.weights.keys import renamer
from wan_pipelines.weights.quantised import find_companions
from wan_pipelines.weights.tensors import TensorSet

#: values of a tensor that are compared at its start, its middle and its end
SAMPLE = 256
#: what a config says that shapes do not
SETTINGS = (
    *("latents_mean", "latents_std", "temperal_downsample"),
    *("num_heads", "d_kv", "feed_forward_proj", "layer_norm_epsilon", "relative_attention_max_distance"),
    *("num_attention_heads", "hidden_act", "layer_norm_eps"),
)
M = TypeVar("M", bound=nn.Module)


class PartCache:
    """Loaded parts by what is in their files. Holds nothing alive: a part goes when the last model that has it goes."""

    def __init__(self) -> None:
        self._parts: WeakValueDictionary[str, nn.Module] = WeakValueDictionary()

    def __len__(self) -> int:
        """Parts in memory."""
        return len(self._parts)

    def find(self, source: Source, precision: Precision) -> nn.Module | None:
        """The part when a model in memory has it, on whatever device that keeps it."""
        return self._parts.get(_key(source, precision))

    def share(self, source: Source, precision: Precision, load: Callable[[], M]) -> M:
        """The part, from `load` when no model in memory has the same one."""
        key = _key(source, precision)
        part = self._parts.get(key)
        if part is None:
            part = self._parts[key] = load()
        return part  # pyright: ignore[reportReturnType]


def _key(source: Source, precision: Precision) -> str:
    return f"{fingerprint(source)} {precision.compute} {precision.keep_quantised}"


def fingerprint(source: Source) -> str:
    """The same for files that hold the same part, also in another folder, other shards or another naming.

    Over names, shapes, dtypes and some values of every tensor: files that differ only between those values would be
    taken for the same.
    """
    tensors = source.tensors
    settings = complete(source.config)
    digest = hashlib.sha256(repr([settings.get(name) for name in ("_class_name", *SETTINGS)]).encode())
    companions = find_companions(tensors)
    shapes, dtypes = tensors.shapes(), tensors.dtypes()
    rename = renamer(source.part, shapes)
    owners = {name: f"{rename(weight)} scale" for weight, name in companions.scales.items()}
    names = {name: owners.get(name) or rename(name) for name in shapes if name not in companions.unused}
    for name, target in sorted(names.items(), key=lambda item: item[1] or ""):
        if target is not None:
            digest.update(f"{target} {shapes[name]} {dtypes[name]}".encode() + _sample(tensors, name))
    return digest.hexdigest()


def _sample(tensors: TensorSet, name: str) -> bytes:
    packed = tensors.packed(name)
    flat = (tensors.read(name) if packed is None else packed).reshape(-1)
    middle = flat.numel() // 2
    return b"".join(_bytes(piece) for piece in (flat[:SAMPLE], flat[middle : middle + SAMPLE], flat[-SAMPLE:]))


def _bytes(values: Tensor) -> bytes:
    return values.contiguous().view(torch.uint8).numpy().tobytes() if values.numel() else b""
