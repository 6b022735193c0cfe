"""What the autoencoder holds besides its weights at the worst moment of a streamed encode or decode. No torch.

A walk through the layers (`vae_layers.py`) in the order in which `vae.py` runs them, adding up what is alive: what the
convolutions remember of the last two frames, what callers keep, and the temporary tensors of the layer at work. All
of it is float32. The attention in the middle works on the smallest pictures and is never the worst moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wan_pipelines.footprint import FLOAT32
from wan_pipelines.profile import TEMPORAL_STRIDE
from wan_pipelines.vae_layers import Block, Layer, decoder_layers, encoder_layers

Config = Mapping[str, Any]

#: frames that a causal convolution remembers
MEMORY = 2
#: chunks of pixels at the edges of the stream: the one that was handed on, and what becomes of it there
CHUNKS_ALIVE = 3


def decode_bytes(config: Config, width: int, height: int, latent_frames: int) -> int:
    """Peak of `vae.stream_decode` for latents of so many frames, with the consumer's hold on the last chunk."""
    stride = config.get("scale_factor_spatial", 8)
    walk = _Walk(1, height // stride, width // stride, streams=latent_frames > 1)
    for block in decoder_layers(config):
        walk.run(block)
    chunk = 3 * TEMPORAL_STRIDE * width * height * FLOAT32
    latents = 3 * config["z_dim"] * latent_frames * (height // stride) * (width // stride) * FLOAT32
    return walk.peak + CHUNKS_ALIVE * chunk + latents


def encode_bytes(config: Config, width: int, height: int, known: int, frames: int) -> int:
    """Peak of `vae.encode_frames` for so many frames, `known` pictures of which lie on the device.

    Every piece of the encoder keeps its last input and answer, to notice when nothing changes any more.
    """
    patch = config.get("patch_size") or 1
    chunk = TEMPORAL_STRIDE if frames > 1 else 1
    walk = _Walk(chunk, height // patch, width // patch, streams=frames > 1, keeps_old=frames > 1)
    blocks = encoder_layers(config)
    pixels = walk.size(config.get("in_channels", 3))
    answers = _answers(walk, blocks)
    for index, block in enumerate(blocks):
        # all pieces hold their answers; without a second chunk only those that have run
        kept = sum(answers) if walk.streams else sum(answers[: max(index - 1, 0)])
        walk.run(block, held=pixels + kept)
    picture = 3 * width * height * FLOAT32
    return walk.peak + (known + 2 * chunk) * picture


@dataclass(slots=True)
class _Walk:
    """Where the walk stands: the size of the pictures, what is remembered, the worst moment so far."""

    frames: int
    height: int
    width: int
    #: the convolutions remember frames of the chunk before
    streams: bool
    #: what a convolution remembered stays alive until its block is done
    keeps_old: bool = False
    memory: int = 0
    worst: int = 0

    def size(self, channels: int, frames: int | None = None, border: int = 0) -> int:
        """Bytes of a tensor at the present resolution."""
        area = (self.height + border) * (self.width + border)
        return channels * (self.frames if frames is None else frames) * area * FLOAT32

    def run(self, block: Block, held: int = 0) -> None:
        """One block; `held` is what others keep, its input apart."""
        given = copy = self.size(block.layers[0].inputs)
        held += copy if block.keeps_input else 0
        for index, layer in enumerate(block.layers):
            # the caller holds the block's input to its end; the layer's own input is counted by the layer
            held += self._layer(layer, held + (given if index else 0))
        if block.keeps_input and block.samples:
            self._shortcut(block, held + given)

    def note(self, *alive: int) -> None:
        """The tensors that are alive at one moment, in bytes."""
        remembered = 0 if self.streams else self.memory  # in a stream everything that is remembered is there all along
        self.worst = max(self.worst, remembered + sum(alive))

    @property
    def peak(self) -> int:
        return self.worst + (self.memory if self.streams else 0)

    def _layer(self, layer: Layer, held: int) -> int:
        """Returns what stays alive until the block is done."""
        before = self.memory
        match layer.kind:
            case "conv":
                self._causal(layer.inputs, layer.outputs, held + self.size(layer.inputs))
            case "norm":
                self.note(held, 4 * self.size(layer.inputs))
            case "residual":
                self._residual(layer, held)
            case "up2d" | "up3d":
                self._up(layer, held)
            case "down2d" | "down3d":
                self._down(layer, held)
        return self.memory - before if self.keeps_old else 0

    def _causal(self, inputs: int, outputs: int, held: int) -> None:
        """A convolution over three frames: joined with what it remembers, padded, convolved."""
        remembered = self.size(inputs, MEMORY if self.streams else min(MEMORY, self.frames))
        padded = self.size(inputs, self.frames + MEMORY, border=2)
        self.memory += remembered
        if self.streams:  # what was remembered stays until the new memory takes its place
            held += remembered
            self.note(held, self.size(inputs, self.frames + MEMORY), padded)
        self.note(held, padded, self.size(outputs))

    def _residual(self, layer: Layer, held: int) -> None:
        given, answer = self.size(layer.inputs), self.size(layer.outputs)
        held += given + (0 if layer.inputs == layer.outputs else answer)
        self.note(held, 3 * given)  # RMS norm: normalised, scaled, multiplied by its weight
        before = self.memory
        self._causal(layer.inputs, layer.outputs, held + given)
        held += self.memory - before if self.keeps_old else 0
        self.note(held, 4 * answer)
        self._causal(layer.outputs, layer.outputs, held + answer)

    def _up(self, layer: Layer, held: int) -> None:
        """Twice the frames first, as two halves of the channels; then each picture twice as wide and high."""
        given = self.size(layer.inputs)
        flat = 0
        if layer.kind == "up3d":
            joined, remembered = self.size(layer.inputs, self.frames + MEMORY), self.size(layer.inputs, MEMORY)
            if self.streams:
                self.memory += remembered
                self.note(held, given, remembered, 2 * joined)
                self.note(held, given, remembered, joined, 2 * given)
                self.note(held, 5 * given)  # the convolution's answer, and its halves one behind the other
                flat, self.frames = 2 * given, 2 * self.frames
        self.height, self.width = 2 * self.height, 2 * self.width
        self.note(held, given, flat, self.size(layer.inputs), self.size(layer.outputs))

    def _down(self, layer: Layer, held: int) -> None:
        given, padded = self.size(layer.inputs), self.size(layer.inputs, border=1)
        self.height, self.width = self.height // 2, self.width // 2
        answer = self.size(layer.outputs)
        self.note(held, given, padded, answer)
        if layer.kind == "down3d":
            self.memory += self.size(layer.outputs, 1)
            joined = self.size(layer.outputs, self.frames + 1)
            if self.streams:
                self.frames //= 2
            self.note(held, given, answer, 2 * joined, self.size(layer.outputs))

    def _shortcut(self, block: Block, held: int) -> None:
        """Wan 2.2: the copy of the input, brought to the new resolution, is added."""
        answer = self.size(block.layers[-1].outputs)
        self.note(held, 3 * answer)


def _answers(walk: _Walk, blocks: Sequence[Block]) -> list[int]:
    """Bytes of each block's output."""
    trial = _Walk(walk.frames, walk.height, walk.width, streams=walk.streams)
    sizes = []
    for block in blocks:
        trial.run(block)
        sizes.append(trial.size(block.layers[-1].outputs))
    return sizes
