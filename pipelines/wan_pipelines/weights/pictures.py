"""The original CLIP file, whose vision half lays its tensors out in another way than transformers does."""

from __future__ import annotations

import re
from collections.abc import Iterator

from wan_pipelines.weights.tensors import Cut, CutTensors, TensorSet

_FUSED = re.compile(r"visual\.transformer\.(\d+)\.attn\.to_qkv\.(.+)")


def split_pictures(tensors: TensorSet) -> TensorSet:
    """Query, key and value in tensors of their own, embeddings without their leading ones; other files unchanged.

    Source: Wan-Video/Wan2.1 wan/modules/clip.py: `to_qkv` stacks query, key and value in this order.
    """
    shapes = tensors.shapes()
    if not any(name.startswith("visual.") for name in shapes):
        return tensors
    return CutTensors(tensors, {new: cut for name, shape in shapes.items() for new, cut in _cuts(name, shape)})


def _cuts(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, Cut]]:
    if fused := _FUSED.fullmatch(name):
        yield from _thirds(f"encoder.layers.{fused[1]}.self_attn", fused[2], Cut(name, shape))
    elif name == "visual.cls_embedding":  # [1, 1, D]
        yield name, Cut(name, shape[-1:])
    elif name == "visual.pos_embedding":  # [1, tokens, D]
        yield name, Cut(name, shape[-2:])
    else:
        yield name, Cut(name, shape)


def _thirds(attention: str, leaf: str, whole: Cut) -> Iterator[tuple[str, Cut]]:
    """The three parts of a weight, a bias or a scale per row; a scale of the whole tensor is that of each part."""
    rows = whole.shape[0] // 3 if whole.shape else 0
    for index, letter in enumerate("qkv"):
        name = f"{attention}.{letter}_proj.{leaf}"
        part = Cut(whole.name, (rows, *whole.shape[1:]), index * rows, (index + 1) * rows)
        yield name, part if rows else whole
