"""Camera moves with constant velocity, and the clips they give.

A camera that pans left shows what lies further left, so the picture flows to the right. Speeds are in pixels of
the frame per frame; a zoom multiplies the scale of the picture by the same factor from each frame to the next.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from torch.nn import functional

from tinywan.scenes import Scene, Sprite, draw_sprite

MOVES = ("pan_left", "pan_right", "pan_up", "pan_down", "zoom_in", "zoom_out", "static")
#: where the camera goes
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True, slots=True)
class Motion:
    """Constant motion of the camera, and of a sprite in the frame. All zero: nothing moves."""

    #: camera, pixels per frame
    dx: float = 0.0
    dy: float = 0.0
    #: growth of the picture per frame, as a logarithm
    zoom: float = 0.0
    #: sprite, pixels per frame
    sprite_dx: float = 0.0
    sprite_dy: float = 0.0


def camera_motion(move: str, pan: float, zoom: float) -> Motion:
    """One of MOVES at the given speeds (pixels per frame, log scale per frame)."""
    if move == "static":
        return Motion()
    if move.startswith("zoom"):
        return Motion(zoom=zoom if move == "zoom_in" else -zoom)
    x, y = DIRECTIONS[move.removeprefix("pan_")]
    return Motion(dx=x * pan, dy=y * pan)


def sprite_motion(direction: str, speed: float) -> Motion:
    """A sprite that goes one way before a camera that stands."""
    x, y = DIRECTIONS[direction]
    return Motion(sprite_dx=x * speed, sprite_dy=y * speed)


def canvas_size(motion: Motion, frames: int, size: tuple[int, int]) -> tuple[int, int]:
    """Canvas (width, height) over which the whole move fits."""
    steps = frames - 1
    widest = math.exp(abs(motion.zoom) * steps)
    return (
        math.ceil(size[0] * widest + abs(motion.dx) * steps) + 2,
        math.ceil(size[1] * widest + abs(motion.dy) * steps) + 2,
    )


def film(
    scene: Scene, motion: Motion, frames: int, size: tuple[int, int], rng: Random, sprite: Sprite | None = None
) -> Tensor:
    """The clip [3, T, H, W] in [-1, 1] of a camera that moves over the scene from a random place."""
    _, height, width = scene.canvas.shape
    steps = torch.arange(frames, dtype=torch.float32)
    # output pixels per canvas pixel, 1 at the end of the move where the picture is largest
    first = 0.0 if motion.zoom <= 0 else -motion.zoom * (frames - 1)
    view = torch.exp(-(first + motion.zoom * steps))  # canvas pixels per output pixel
    x = _path(motion.dx, frames, width, size[0] * float(view.max()), rng)
    y = _path(motion.dy, frames, height, size[1] * float(view.max()), rng)
    clip = _windows(scene.canvas, x, y, view, size)
    if sprite is None:
        return clip
    return draw_sprite(clip, sprite, sprite.x + motion.sprite_dx * steps, sprite.y + motion.sprite_dy * steps)


def _path(speed: float, frames: int, length: int, window: float, rng: Random) -> Tensor:
    """Centre of the window in each frame [T], inside the canvas where it fits."""
    travel = speed * (frames - 1)
    low = window / 2 - min(0.0, travel)
    high = length - window / 2 - max(0.0, travel)
    start = rng.uniform(low, high) if high > low else (low + high) / 2
    return start + speed * torch.arange(frames, dtype=torch.float32)


def _windows(canvas: Tensor, x: Tensor, y: Tensor, view: Tensor, size: tuple[int, int]) -> Tensor:
    """Frames [3, T, h, w]: the windows of the canvas around `x`, `y` at `view` canvas pixels per output pixel."""
    _, height, width = canvas.shape
    count = x.shape[0]
    across = torch.arange(size[0]) + 0.5 - size[0] / 2
    down = torch.arange(size[1]) + 0.5 - size[1] / 2
    columns = (x[:, None] + across * view[:, None]) * (2 / width) - 1  # [T, w] in grid_sample's units
    rows = (y[:, None] + down * view[:, None]) * (2 / height) - 1
    grid = torch.stack([columns[:, None, :].expand(-1, size[1], -1), rows[:, :, None].expand(-1, -1, size[0])], dim=-1)
    frames = functional.grid_sample(
        canvas.expand(count, -1, -1, -1), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    return frames.transpose(0, 1)
