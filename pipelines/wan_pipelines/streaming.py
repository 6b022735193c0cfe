"""Weights on their way from host memory to the device: a ferry of pinned memory, and blocks that stream through it.

On CUDA the copies run on a stream of their own while the device computes. On a CPU the same code runs with streams
and events that do nothing, so that what the tests see there is what a GPU does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

#: tensors begin at multiples of this, as in memory that the allocator gives
ALIGN = 256
#: blocks on the device at a time
PLACES = 2


class Ferry:
    """Carries tensors to a device through two halves of pinned memory: one is filled while the other one empties.

    The source may be any host memory, a mapped file too; only the two halves are pinned.
    """

    def __init__(self, device: torch.device, size: int) -> None:
        """`size` is that of one half in bytes."""
        self.size = aligned(size)
        self._device = device
        self._backend = torch.get_device_module(device)
        self._stream = self._backend.Stream()
        pinned = device.type != "cpu"
        with torch.inference_mode(False):
            self._halves = [torch.empty(self.size, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)]
        self._emptied = [self._backend.Event() for _ in range(2)]
        self._half = self._used = 0

    def carry(self, cargo: Iterable[tuple[Tensor, Tensor]]) -> Any:
        """Copy each source into its target on the device. Returns the event of the last one's arrival.

        The copies begin when the work that was given to the device so far is done, so targets may be memory that
        it still reads. The caller waits for the event before anything reads them.
        """
        self._stream.wait_stream(self._backend.current_stream())
        for source, target in cargo:
            for piece, place in zip(self._pieces(source), self._pieces(target), strict=True):
                staged = self._room(piece)
                staged.copy_(piece)
                with self._backend.stream(self._stream):
                    place.copy_(staged, non_blocking=True)
        arrived = self._backend.Event()
        arrived.record(self._stream)
        return arrived

    def wait(self, arrived: Any) -> None:
        """Let what is given to the device from now on begin after this arrival."""
        self._backend.current_stream().wait_event(arrived)

    def _pieces(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return tensor.reshape(-1).split(self.size // tensor.element_size())

    def _room(self, piece: Tensor) -> Tensor:
        """Pinned room for a piece; waits for the other half to be empty when this one is full."""
        if self._used + piece.nbytes > self.size:
            self._emptied[self._half].record(self._stream)
            self._half, self._used = 1 - self._half, 0
            self._emptied[self._half].synchronize()
        room = self._halves[self._half][self._used : self._used + piece.nbytes]
        self._used += aligned(piece.nbytes)
        return room.view(piece.dtype)


class Streamer:
    """Runs blocks whose weights rest in host memory, with at most two of them on the device.

    While one computes, the next one in order arrives; behind the last comes the first, for the next forward. Between
    their turns the parameters are the ones in host memory: whoever looks at the model sees its weights. A block out
    of order costs waiting, nothing else. An error in the middle leaves the model as it was.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device, ferry: Ferry) -> None:
        """`ferry` should hold a whole block in one half: then its transfer never makes the caller wait."""
        self._ferry = ferry
        self._loads = [_load(block) for block in blocks]
        with torch.inference_mode(False):
            size = max(load.size for load in self._loads)
            self._places = [_Place(torch.empty(size, dtype=torch.uint8, device=device)) for _ in range(PLACES)]
        self._at_work: _Place | None = None
        self._fetch(0)
        self._hooks = [hook for index, block in enumerate(blocks) for hook in self._attach(index, block)]

    def stop(self) -> None:
        """Take the hooks off and give the two places back."""
        for hook in self._hooks:
            hook.remove()
        for place in self._places:
            if place.arrived is not None:
                place.arrived.synchronize()
        for load in self._loads:
            load.go_home()
        self._hooks, self._places = [], []

    def _attach(self, index: int, block: nn.Module) -> Iterator[Any]:
        def before(*_: Any) -> None:
            self._begin(index)

        def after(*_: Any) -> None:
            self._loads[index].go_home()
            self._at_work = None

        yield block.register_forward_pre_hook(before, prepend=True)
        yield block.register_forward_hook(after, always_call=True)

    def _begin(self, index: int) -> None:
        place = self._at_work = self._find(index) or self._fetch(index)
        self._ferry.wait(place.arrived)
        self._loads[index].go_to(place.room)
        following = (index + 1) % len(self._loads)
        if self._find(following) is None:
            self._fetch(following)

    def _find(self, index: int) -> _Place | None:
        return next((place for place in self._places if place.block == index), None)

    def _fetch(self, index: int) -> _Place:
        """Send for a block, into a place where nothing computes."""
        place = next(place for place in self._places if place is not self._at_work)
        place.block = None  # until everything is under way
        load = self._loads[index]
        place.arrived = self._ferry.carry(zip(load.homes, load.views(place.room), strict=True))
        place.block = index
        return place


@dataclass(slots=True)
class _Place:
    """Room for one block on the device."""

    #: uint8
    room: Tensor
    #: the block whose weights are there or on their way
    block: int | None = None
    arrived: Any = None


@dataclass(slots=True)
class _Load:
    """The tensors of one block."""

    tensors: list[Tensor]
    #: their data in host memory
    homes: list[Tensor] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    size: int = 0

    def views(self, room: Tensor) -> Iterator[Tensor]:
        """The tensors as they lie in a place."""
        for home, offset in zip(self.homes, self.offsets, strict=True):
            yield room[offset : offset + home.nbytes].view(home.dtype).view(home.shape)

    def go_to(self, room: Tensor) -> None:
        for tensor, view in zip(self.tensors, self.views(room), strict=True):
            tensor.data = view

    def go_home(self) -> None:
        for tensor, home in zip(self.tensors, self.homes, strict=True):
            tensor.data = home


def _load(block: nn.Module) -> _Load:
    load = _Load(tensors_of(block))
    for tensor in load.tensors:
        load.homes.append(tensor.data)
        load.offsets.append(load.size)
        load.size += aligned(tensor.nbytes)
    return load


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers, each once, the quantised ones too."""
    return list({id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}.values())


def streamed_bytes(block: nn.Module) -> int:
    """Bytes of the place that a block needs on the device."""
    return sum(aligned(tensor.nbytes) for tensor in tensors_of(block))


def aligned(size: int) -> int:
    """The next multiple of the alignment."""
    return -(-size // ALIGN) * ALIGN
