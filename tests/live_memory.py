"""Counts the bytes of the tensors that are alive while a piece of torch code runs, on any device, meta included."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Storages that operations create, as long as anything refers to them. `known` ones are not counted."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._alive and key not in self._known:
            self._alive[key] = weakref.ref(storage, partial(self._gone, key, storage.nbytes()))
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)

    def _gone(self, key: int, size: int, _: object) -> None:
        del self._alive[key]
        self.now -= size


@contextmanager
def fused_as_on_cuda(monkeypatch: Any) -> Iterator[None]:
    """Attention and RMS norm without temporary tensors, which is how CUDA runs them; for the meta device."""

    def attention(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        return torch.empty_like(query.transpose(1, 2)).transpose(1, 2)

    def rms_norm(x: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.empty_like(x)

    with monkeypatch.context() as patched:
        patched.setattr(functional, "scaled_dot_product_attention", attention)
        patched.setattr(functional, "rms_norm", rms_norm)
        yield
