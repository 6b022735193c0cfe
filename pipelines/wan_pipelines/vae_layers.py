"""The layers of the Wan autoencoders as data, from their config. No torch.

Source: diffusers models/autoencoders/autoencoder_kl_wan.py. Blocks are the pieces that `vae.py` runs one after the
other; "residual" blocks are those of Wan 2.2, which keep a copy of their input for a shortcut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

Kind = Literal["conv", "residual", "attention", "up2d", "up3d", "down2d", "down3d", "norm"]

DIM_MULT = (1, 2, 4, 4)
TEMPORAL_DOWNSAMPLE = (False, True, True)


@dataclass(frozen=True, slots=True)
class Layer:
    kind: Kind
    inputs: int
    outputs: int


@dataclass(frozen=True, slots=True)
class Block:
    layers: tuple[Layer, ...]
    #: it keeps a copy of its input to the end (Wan 2.2)
    keeps_input: bool = False

    @property
    def samples(self) -> bool:
        """Whether it ends in another resolution."""
        return self.layers[-1].kind in ("up2d", "up3d", "down2d", "down3d")


def parameters_of(layer: Layer) -> int:
    """Parameters of one layer."""
    inputs, outputs = layer.inputs, layer.outputs
    match layer.kind:
        case "conv":
            return _conv(inputs, outputs, 27)
        case "norm":
            return inputs
        case "attention":
            return inputs + _conv(inputs, 3 * inputs, 1) + _conv(inputs, inputs, 1)
        case "residual":
            side = 0 if inputs == outputs else _conv(inputs, outputs, 1)
            return inputs + _conv(inputs, outputs, 27) + outputs + _conv(outputs, outputs, 27) + side
        case "up2d" | "down2d":
            return _conv(inputs, outputs, 9)
        case "up3d":
            return _conv(inputs, outputs, 9) + _conv(inputs, 2 * inputs, 3)
        case "down3d":
            return _conv(inputs, outputs, 9) + _conv(inputs, outputs, 3)


def encoder_layers(config: Mapping[str, Any]) -> tuple[Block, ...]:
    """Entry, downward blocks, middle, head; in Wan 2.1 each downward layer is a block of its own."""
    base, mult = config["base_dim"], config.get("dim_mult", DIM_MULT)
    widths = [base, *(base * m for m in mult)]
    blocks = [Block((Layer("conv", config.get("in_channels", 3), base),))]
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        layers = tuple(_down(config, index, inputs, outputs))
        if config.get("is_residual", False):
            blocks.append(Block(layers, keeps_input=True))
        else:
            blocks += [Block((layer,)) for layer in layers]
    top = widths[-1]
    head = Block((Layer("norm", top, top), Layer("conv", top, 2 * config["z_dim"])))
    return (*blocks, _middle(top), head)


def decoder_layers(config: Mapping[str, Any]) -> tuple[Block, ...]:
    """Entry, middle, upward blocks, head."""
    base, mult = config.get("decoder_base_dim") or config["base_dim"], config.get("dim_mult", DIM_MULT)
    widths = [base * m for m in (mult[-1], *reversed(mult))]
    residual = config.get("is_residual", False)
    upward = []
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        halved = index > 0 and not residual  # Wan 2.1 halves the channels where it doubles the resolution
        layers = tuple(_up(config, index, inputs // 2 if halved else inputs, outputs))
        upward.append(Block(layers, keeps_input=residual))
    head = Block((Layer("norm", widths[-1], widths[-1]), Layer("conv", widths[-1], config.get("out_channels", 3))))
    return (Block((Layer("conv", config["z_dim"], widths[0]),)), _middle(widths[0]), *upward, head)


def _down(config: Mapping[str, Any], index: int, inputs: int, outputs: int) -> Iterator[Layer]:
    for _ in range(config.get("num_res_blocks", 2)):
        yield Layer("residual", inputs, outputs)
        inputs = outputs
    if index < len(config.get("dim_mult", DIM_MULT)) - 1:
        in_time = config.get("temperal_downsample", TEMPORAL_DOWNSAMPLE)[index]
        yield Layer("down3d" if in_time else "down2d", outputs, outputs)


def _up(config: Mapping[str, Any], index: int, inputs: int, outputs: int) -> Iterator[Layer]:
    for _ in range(config.get("num_res_blocks", 2) + 1):
        yield Layer("residual", inputs, outputs)
        inputs = outputs
    if index < len(config.get("dim_mult", DIM_MULT)) - 1:
        in_time = tuple(reversed(config.get("temperal_downsample", TEMPORAL_DOWNSAMPLE)))[index]
        to = outputs if config.get("is_residual", False) else outputs // 2
        yield Layer("up3d" if in_time else "up2d", outputs, to)


def _middle(width: int) -> Block:
    residual = Layer("residual", width, width)
    return Block((residual, Layer("attention", width, width), residual))


def _conv(inputs: int, outputs: int, kernel: int) -> int:
    return inputs * outputs * kernel + outputs
