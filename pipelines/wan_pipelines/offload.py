"""Performs a placement: brings the parts of a checkpoint to the device for their stage, whole or block by block.

A part that is not resident keeps its weights in host memory, where they may be a mapped file. Coming to the device
is a copy, going back costs nothing: the parameters point to host memory again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from wan_pipelines.footprint import EXPERTS, Footprint, Part
from wan_pipelines.load import Checkpoint
from wan_pipelines.peaks import FERRY, STAGES, STAYS, Residence, Stage
from wan_pipelines.placement import Placement
from wan_pipelines.streaming import Ferry, Streamer, streamed_bytes, tensors_of
from wan_pipelines.weights.lora_hot import HotLora
from wan_pipelines.weights.quantised import KeptLinear, QuantisedLinear

CPU = torch.device("cpu")
#: where models keep the blocks that can be streamed, in the order in which they run
_BLOCKS = ("vace_blocks", "blocks", "encoder.block")


class Keeper:
    """Has the parts of one checkpoint where they are needed.

    The work of a stage is done inside `stage(...)`. What came to the device for it is gone behind it.
    """

    def __init__(
        self, checkpoint: Checkpoint, residence: Residence, device: torch.device, guests: Sequence[HotLora] = ()
    ) -> None:
        self.residence: Residence = residence
        self.guests = guests
        self.device = device
        self.parts = parts_of(checkpoint)
        self._stage: Stage | None = None
        self._inside: str | None = None
        self._undo: Callable[[], None] = _nothing
        self._ferry: Ferry | None = None
        self.move(residence)

    def move(self, residence: Residence) -> None:
        """Go over to another way of keeping; between jobs only."""
        self.residence = residence
        stays = STAYS[residence]
        for name in sorted(self.parts, key=stays.__contains__):  # what leaves makes room
            _move(self.parts[name], self.device if name in stays else CPU)
        self._ferry = None
        self._tidy()

    def rest(self) -> None:
        """Leave the device to another model; between jobs only. The next stage comes back by itself."""
        for module in self.parts.values():
            _move(module, CPU)
        for guest in self.guests:
            guest.release()
        self._tidy()

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """What computes in this stage is on the device inside. Of two experts it is the one that is called."""
        if self._stage is not None:
            raise RuntimeError(f"stage {name} inside stage {self._stage}")
        working = [part for part in STAGES[name] if part in self.parts]
        self._stage = name
        hooks = []
        try:
            if len(working) > 1 and not STAYS[self.residence].issuperset(working):
                hooks = [self._on_call(part) for part in working]
            else:
                for part in working:
                    self._enter(part)
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._leave()
            self._stage = None

    def on_device(self, but: Collection[str] = ()) -> int:
        """Bytes of weights on the device, of all parts but these; additions beside the weights count with all parts."""
        tensors = [t for name, module in self.parts.items() if name not in but for t in tensors_of(module)]
        if not but:
            tensors += [tensor for guest in self.guests for tensor in guest.ready]
        return sum(tensor.nbytes for tensor in tensors if tensor.device.type == self.device.type)

    def _on_call(self, part: str) -> torch.utils.hooks.RemovableHandle:
        return self.parts[part].register_forward_pre_hook(lambda *_: self._enter(part), prepend=True)

    def _enter(self, part: str) -> None:
        if part in STAYS[self.residence]:
            _move(self.parts[part], self.device)  # another model may have sent away what both of them use
            return
        if self._inside == part:
            return
        self._leave()
        module = self.parts[part]
        _move(module, CPU)
        ferry = self._ferry = self._ferry or Ferry(self.device, self._ferry_size())
        blocks = blocks_of(module) if self.residence == "offload_layers" else []
        streamed = {id(tensor) for block in blocks for tensor in tensors_of(block)}
        back = _bring([t for t in tensors_of(module) if id(t) not in streamed], self.device, ferry)
        self._inside, self._undo = part, back
        if blocks:
            self._undo = _both(back, Streamer(blocks, self.device, ferry).stop)

    def _leave(self) -> None:
        undo, self._undo, self._inside = self._undo, _nothing, None
        undo()
        if undo is not _nothing:
            self._tidy()

    def _ferry_size(self) -> int:
        """One half: the largest streamed block, so that streaming never waits, or a fair piece of a whole part."""
        largest = max(sum(t.nbytes for t in tensors_of(module)) for module in self.parts.values())
        if self.residence != "offload_layers":
            return min(FERRY // 2, largest)
        blocks = [block for module in self.parts.values() for block in blocks_of(module)]
        return max(min(FERRY // 2, largest), max(map(streamed_bytes, blocks), default=0))

    def _tidy(self) -> None:
        """Give cached memory back: blocks in the sizes of weights are of no use to activations."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def put(checkpoint: Checkpoint, placement: Placement, device: torch.device, guests: Sequence[HotLora] = ()) -> Keeper:
    """Perform a placement. The weights go into fp8 first when it says so and they are not quantised yet."""
    if placement.fp8 and not _is_quantised(checkpoint):
        for model in (part for name, part in parts_of(checkpoint).items() if name in EXPERTS):
            to_fp8(model)
    return Keeper(checkpoint, placement.residence, device, guests)


def measure(footprint: Footprint, checkpoint: Checkpoint) -> Footprint:
    """The footprint with the bytes that the loaded parts really have; their precision is settled then."""
    parts = {name: _measure(module) for name, module in parts_of(checkpoint).items()}
    return replace(footprint, parts=parts, parts_fp8=parts, fp8=_is_quantised(checkpoint))


def parts_of(checkpoint: Checkpoint) -> dict[str, nn.Module]:
    """The modules by the names of the footprint."""
    parts: Mapping[str, nn.Module | None] = {
        "text_encoder": checkpoint.text_encoder,
        "image_encoder": checkpoint.image_encoder,
        "audio_encoder": checkpoint.audio_encoder,
        "vae": checkpoint.vae,
        "transformer": checkpoint.experts.high,
        "transformer_2": checkpoint.experts.low,
    }
    return {name: module for name, module in parts.items() if module is not None}


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks that can be streamed, in the order in which they run; none for a model without."""
    modules = dict(model.named_modules())
    return [block for path in _BLOCKS if path in modules for block in modules[path].children()]


def to_fp8(model: nn.Module) -> None:
    """Put the weights of the linear layers inside the blocks into fp8 (e4m3), with a scale per row; they are
    multiplied in the dtype they had. Low-rank additions must be fused before."""
    for block in blocks_of(model):
        for path, linear in [(p, m) for p, m in block.named_modules() if type(m) is nn.Linear]:
            codes = torch.empty_like(linear.weight, dtype=torch.float8_e4m3fn)
            layer = QuantisedLinear(linear, codes, None, linear.weight.dtype)
            layer.requantise(linear.weight)
            block.set_submodule(path, layer)


def _is_quantised(checkpoint: Checkpoint) -> bool:
    return any(isinstance(module, KeptLinear) for module in checkpoint.experts.high.modules())


def _measure(module: nn.Module) -> Part:
    sizes = [sum(t.nbytes for t in tensors_of(block)) for block in blocks_of(module)]
    return Part(
        parameters=sum(p.numel() for p in module.parameters()),
        bytes=sum(t.nbytes for t in tensors_of(module)),
        blocks=tuple(sizes),
    )


def _bring(tensors: Iterable[Tensor], device: torch.device, ferry: Ferry) -> Callable[[], None]:
    """Copies on the device in place of the tensors' data. Returns what puts host memory back."""
    moved = [(tensor, tensor.data) for tensor in tensors]
    with torch.inference_mode(False):
        copies = [torch.empty(home.shape, dtype=home.dtype, device=device) for _, home in moved]
    ferry.wait(ferry.carry((home, copy) for (_, home), copy in zip(moved, copies, strict=True)))
    for (tensor, _), copy in zip(moved, copies, strict=True):
        tensor.data = copy

    def back() -> None:
        for tensor, home in moved:
            tensor.data = home

    return back


def _move(module: nn.Module, device: torch.device) -> None:
    if any(tensor.device.type != device.type for tensor in tensors_of(module)):
        with torch.inference_mode(False):
            module.to(device)


def _both(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    def both() -> None:
        second()
        first()

    return both


def _nothing() -> None:
    return None
