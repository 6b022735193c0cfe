"""Pictures larger than the frame, for a camera to move over: photographs, drawn textures, and sprites on top.

Everything is a function of a `random.Random`, so a training step can be drawn again from its number alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from tinywan.photos import Photo

COLOURS = {
    "red": (220, 40, 40),
    "green": (50, 170, 70),
    "blue": (50, 90, 220),
    "yellow": (240, 210, 60),
    "orange": (240, 140, 40),
    "purple": (140, 70, 190),
    "white": (240, 240, 240),
    "black": (20, 20, 20),
}
PATTERNS = ("clouds", "stripes", "checks", "shapes")
SPRITES = ("ball", "square", "star")


@dataclass(frozen=True, slots=True)
class Scene:
    """A canvas and what can be said about it."""

    #: [3, H, W] in [-1, 1]
    canvas: Tensor
    #: "photo" or one of PATTERNS
    pattern: str
    #: the two leading colours of a drawn canvas, none for a photograph
    colours: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sprite:
    """A coloured shape that is drawn over the frame."""

    shape: str
    colour: str
    #: in pixels of the frame
    radius: float
    x: float
    y: float


def photo_scene(photo: Photo, rng: Random, size: tuple[int, int]) -> Scene:
    """A photograph scaled so that it covers `size` (width, height), up to twice as large, mirrored and tinted."""
    cover = max(size[0] / photo.width, size[1] / photo.height)
    canvas = photo.at_scale(cover * (1 + rng.random() ** 2))
    if rng.random() < 0.5:
        canvas = canvas.flip(2)
    return Scene(_tinted(canvas, rng), "photo")


def drawn_scene(rng: Random, size: tuple[int, int]) -> Scene:
    """A texture of one of PATTERNS in two or three named colours."""
    pattern = rng.choice(PATTERNS)
    colours = tuple(rng.sample(sorted(COLOURS), 3))
    width, height = size
    if pattern == "shapes":
        canvas = _shapes(rng, width, height, colours)
    else:
        blend = {"clouds": _clouds, "stripes": _stripes, "checks": _checks}[pattern](rng, width, height)
        canvas = _mix(blend, *(_rgb(colour, rng) for colour in colours[:2]))
    return Scene((canvas * 2 - 1).clamp(-1, 1), pattern, colours[:2])


def random_sprite(rng: Random, size: tuple[int, int]) -> Sprite:
    """A shape of a fifth to a third of the frame's height, somewhere in its middle."""
    width, height = size
    return Sprite(
        shape=rng.choice(SPRITES),
        colour=rng.choice(sorted(COLOURS)),
        radius=rng.uniform(0.1, 0.18) * min(width, height),
        x=rng.uniform(0.3, 0.7) * width,
        y=rng.uniform(0.3, 0.7) * height,
    )


def draw_sprite(frames: Tensor, sprite: Sprite, xs: Tensor, ys: Tensor) -> Tensor:
    """`frames` [3, T, H, W] with the sprite's centre at `xs`, `ys` [T]; edges are soft over one pixel."""
    _, count, height, width = frames.shape
    y = torch.arange(height).view(1, -1, 1) + 0.5 - ys.view(-1, 1, 1)
    x = torch.arange(width).view(1, 1, -1) + 0.5 - xs.view(-1, 1, 1)
    distance = _distance(sprite.shape, x.expand(count, height, width), y.expand(count, height, width))
    alpha = (sprite.radius - distance + 0.5).clamp(0, 1)  # [T, H, W]
    colour = torch.tensor(COLOURS[sprite.colour]).view(3, 1, 1, 1) / 127.5 - 1
    return frames + alpha * (colour - frames)


def _distance(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """Distance to the centre in the shape's own measure."""
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) * 1.15
    radius = torch.sqrt(x * x + y * y)
    if shape == "ball":
        return radius
    return radius * (1.25 + 0.45 * torch.cos(5 * torch.atan2(x, -y) + math.pi))


def _tinted(canvas: Tensor, rng: Random) -> Tensor:
    """Other light: brightness, contrast and colour within what a camera would do."""
    unit = (canvas / 2 + 0.5).clamp(0, 1).pow(math.exp(rng.uniform(-0.3, 0.3)))
    gain = torch.tensor([rng.uniform(0.85, 1.15) for _ in range(3)]).view(3, 1, 1)
    grey = unit.mean(dim=0, keepdim=True)
    unit = grey + (unit - grey) * rng.uniform(0.6, 1.3)
    return (unit * gain * 2 - 1).clamp(-1, 1)


def _rgb(name: str, rng: Random) -> Tensor:
    return torch.tensor([min(255, max(0, c + rng.uniform(-20, 20))) / 255 for c in COLOURS[name]])


def _mix(blend: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Two colours [3] by a map [H, W] in [0, 1]: [3, H, W]."""
    return low.view(3, 1, 1) + blend * (high - low).view(3, 1, 1)


def _noise(rng: Random, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(rng.getrandbits(62))
    return torch.rand((1, 1, height, width), generator=generator)


def _clouds(rng: Random, width: int, height: int) -> Tensor:
    """Octaves of smooth noise, stretched to the full range."""
    cell = rng.choice((24, 40, 64))
    total = torch.zeros(height, width)
    for octave in range(4):
        step = max(2, cell >> octave)
        coarse = _noise(rng, height // step + 3, width // step + 3)
        smooth = functional.interpolate(coarse, scale_factor=step, mode="bicubic", align_corners=False)[0, 0]
        total += smooth[:height, :width] * 0.55**octave
    low, high = torch.quantile(total.flatten()[::7], torch.tensor([0.02, 0.98]))
    return ((total - low) / (high - low)).clamp(0, 1)


def _phase(rng: Random, width: int, height: int, turn: float) -> Tensor:
    """A coordinate in periods of 12 to 40 pixels along a direction."""
    period, angle = rng.uniform(12, 40), turn + rng.uniform(0, math.pi)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi / period) + rng.uniform(0, 6)


def _stripes(rng: Random, width: int, height: int) -> Tensor:
    return torch.sigmoid(rng.uniform(2, 8) * torch.sin(_phase(rng, width, height, 0)))


def _checks(rng: Random, width: int, height: int) -> Tensor:
    turn, state = rng.uniform(0, math.pi), rng.getstate()
    across = torch.sin(_phase(rng, width, height, turn))
    rng.setstate(state)
    along = torch.sin(_phase(rng, width, height, turn + math.pi / 2))
    return torch.sigmoid(rng.uniform(4, 12) * across * along)


def _shapes(rng: Random, width: int, height: int, colours: Sequence[str]) -> Tensor:
    """Many overlapping discs, boxes and triangles of all sizes, mostly in the named colours."""
    image = Image.new("RGB", (width, height), COLOURS[colours[0]])
    draw = ImageDraw.Draw(image)
    for _ in range(width * height // rng.choice((150, 300, 600))):
        x, y, r = rng.uniform(0, width), rng.uniform(0, height), 3 + 25 * rng.random() ** 2
        named = rng.random() < 0.7
        fill = tuple(
            int(min(255, max(0, c + rng.uniform(-40, 40)))) if named else rng.randrange(256)
            for c in COLOURS[rng.choice(colours[:2])]
        )
        kind = rng.randrange(3)
        if kind == 0:
            draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        elif kind == 1:
            draw.rectangle((x - r, y - r * rng.random(), x + r, y + r * rng.random()), fill=fill)
        else:
            draw.polygon([(x + r * rng.uniform(-1, 1), y + r * rng.uniform(-1, 1)) for _ in range(3)], fill=fill)
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(height, width, 3).permute(2, 0, 1) / 255
