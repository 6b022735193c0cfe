"""LoRA added while the model runs: the base weights are never touched.

Linear layers, also quantised ones, get the low-rank product added to their output; norms and the patch embedding,
whose output is linear in their weights, get the output of the difference. The modulation tables, which no layer
of their own reads, are exchanged for the time of one forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from wan_pipelines.errors import CheckpointError
from wan_pipelines.weights.lora_file import Addition, Fit, Full, Lora, LowRank, fit, is_linear
from wan_pipelines.weights.lora_keys import TABLE


class HotLora:
    """A LoRA on a model, in force from its creation until `remove`.

    `strength` may be set at any time between two forwards. The tensors of the LoRA go to the device of the first
    forward and stay there. It belongs to the modules that the model has now: one that takes the place of another
    later is without it. Several may be on one model. Raises CheckpointError when the file does not fit; then nothing
    was added.
    """

    def __init__(self, model: nn.Module, lora: Lora, strength: float = 1.0) -> None:
        self.fit: Fit = fit(lora, model)
        self.strength = strength
        self._handles: list[RemovableHandle] = []
        sites = [_site(lora, model.get_submodule(path), added) for path, added in _by_module(self.fit).items()]
        self._sites = [site for site in sites if isinstance(site, _Layer)]
        for site in sites:
            self._handles += site.attach(self)

    @property
    def strength(self) -> float:
        """Factor on all of it; 0 leaves the output as it is without."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        if not math.isfinite(value):
            raise ValueError(f"strength: must be finite (got {value})")
        self._strength = float(value)

    @property
    def bytes(self) -> int:
        """What its tensors take as they are in the file."""
        parts = (
            getattr(added, name, None) for added in self.fit.additions.values() for name in ("up", "down", "values")
        )
        return sum(part.nbytes for part in parts if part is not None)

    @property
    def ready(self) -> list[Tensor]:
        """The tensors that were brought where the model computes, by the forwards so far."""
        return [tensor for site in self._sites for tensors in site.ready for tensor in tensors]

    def release(self) -> None:
        """Leave the device; the next forward comes back by itself."""
        for site in self._sites:
            site.ready, site.ready_for = [], None

    def remove(self) -> None:
        """Take it off; the model computes what it did before, to the bit. A second call does nothing."""
        while self._handles:
            self._handles.pop().remove()


class _Layer:
    """Adds to the output of one module."""

    def __init__(self, module: nn.Module, added: dict[str, Addition], delta: Callable[..., Tensor]) -> None:
        self.module, self.added, self.delta = module, added, delta
        self.ready: list[tuple[Tensor, ...]] = []
        self.ready_for: tuple[torch.device, torch.dtype] | None = None

    def attach(self, lora: HotLora) -> list[RemovableHandle]:
        def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if lora.strength == 0:
                return
            weight, bias = self._for(inputs[0].device, inputs[0].dtype)
            # in place: an output of the feed-forward is 2 GB at 720P, 81 frames, and nobody else holds it yet
            if weight:
                output.add_(self.delta(module, inputs[0], *weight).to(output.dtype), alpha=lora.strength)
            if bias:
                output.add_(bias[0].to(output.dtype), alpha=lora.strength)

        return [self.module.register_forward_hook(after)]

    def _for(self, device: torch.device, dtype: torch.dtype) -> list[tuple[Tensor, ...]]:
        """What is added to weight and bias, where and as it is needed, kept for the next time."""
        if self.ready_for != (device, dtype):
            weight, bias = self.added.get("weight"), self.added.get("bias")
            offset = None if bias is None else _by_channel(self.module, bias.dense(device).to(dtype))
            self.ready = [_prepare(weight, device, dtype), () if offset is None else (offset,)]
            self.ready_for = device, dtype
        return self.ready


class _Table:
    """Puts another modulation table in place while its owner runs."""

    def __init__(self, module: nn.Module, added: Addition) -> None:
        self.module, self.added = module, added
        self.base: Any = None

    def attach(self, lora: HotLora) -> list[RemovableHandle]:
        def before(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            base = self.base = getattr(module, TABLE)
            tensors = (item for item in (*inputs, *named.values()) if isinstance(item, Tensor))
            device = next((item.device for item in tensors), base.device)
            table = torch.add(base.to(device).float(), self.added.dense(device), alpha=lora.strength)
            setattr(module, TABLE, nn.Parameter(table.to(base.dtype), requires_grad=False))

        def after(module: nn.Module, *_: Any) -> None:
            setattr(module, TABLE, self.base)

        # the innermost of the hooks: the last before the forward and the first after it, also after an error
        undo = self.module.register_forward_hook(after, prepend=True, always_call=True)
        return [self.module.register_forward_pre_hook(before, with_kwargs=True), undo]


def _by_module(found: Fit) -> dict[str, dict[str, Addition]]:
    """Additions by module, then by the parameter's name in it."""
    modules: dict[str, dict[str, Addition]] = {}
    for name, addition in found.additions.items():
        path, _, attribute = name.rpartition(".")
        modules.setdefault(path, {})[attribute] = addition
    return modules


def _site(lora: Lora, module: nn.Module, added: dict[str, Addition]) -> _Layer | _Table:
    if TABLE in added:
        return _Table(module, added[TABLE])
    if is_linear(module):
        return _Layer(module, added, _linear)
    for kind, delta in _DELTAS.items():
        if isinstance(module, kind):
            dense: dict[str, Addition] = {
                name: Full(item.key, item.dense(torch.device("cpu"))) for name, item in added.items()
            }
            return _Layer(module, dense, delta)
    key, kind = next(iter(added.values())).key, type(module).__name__
    raise CheckpointError(f"{lora.path}: {key}: cannot be added hot to a {kind}; it can be fused")


def _prepare(weight: Addition | None, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """(up, down) with the scale in it, or the whole difference, or nothing."""
    if weight is None:
        return ()
    if isinstance(weight, LowRank):
        return (weight.up.to(device).float() * weight.scale).to(dtype), weight.down.to(device, dtype)
    return (weight.dense(device).to(dtype),)


def _by_channel(module: nn.Module, bias: Tensor) -> Tensor:
    """A bias in the shape in which it adds to the output: channels are last, or second in a convolution's."""
    return bias.view(-1, 1, 1, 1) if isinstance(module, nn.Conv3d) else bias


def _linear(module: nn.Module, x: Tensor, up: Tensor, down: Tensor | None = None) -> Tensor:
    """x is [..., in]."""
    return functional.linear(x if down is None else functional.linear(x, down), up)


def _conv3d(module: nn.Conv3d, x: Tensor, weight: Tensor) -> Tensor:
    """x is [B, C, T, H, W]."""
    return functional.conv3d(x, weight, None, module.stride, module.padding, module.dilation, module.groups)  # pyright: ignore[reportArgumentType]


def _layer_norm(module: nn.LayerNorm, x: Tensor, weight: Tensor) -> Tensor:
    return functional.layer_norm(x.float(), module.normalized_shape, weight.float(), None, module.eps)


def _rms_norm(module: nn.RMSNorm, x: Tensor, weight: Tensor) -> Tensor:
    return functional.rms_norm(x.float(), module.normalized_shape, weight.float(), module.eps)


#: modules other than linear layers: what a difference of the weight adds to the output
_DELTAS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv3d: _conv3d,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
}
