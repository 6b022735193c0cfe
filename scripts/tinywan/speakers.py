"""Drawn faces whose mouth opens to a sound, and shapes that grow with it; and how far one is open in any frame.

Edges are soft over one pixel, so a mouth can be open by less than that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

import torch
from torch import Tensor

from tinywan.autoencoder import any_scene
from tinywan.photos import Photo
from tinywan.recipe import Recipe
from tinywan.s2v_recipe import Cast
from tinywan.scenes import COLOURS, SPRITES, Sprite, draw_sprite

#: lightest and darkest skin of people, as RGB; cartoons have any colour
SKIN = ((255, 224, 196), (92, 56, 36))
#: inside of a mouth, whites of the eyes
INSIDE, WHITE = (60, 8, 16), (250, 250, 250)
#: a pixel belongs to what moves when it differs by more than this between closed and open, of a range of 2
MOVES_BY = 0.25
Colour = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Face:
    """Where a face is and what it looks like; sizes in pixels."""

    x: float
    y: float
    #: half the width of the head
    radius: float
    #: height of the head by its width
    tall: float
    #: half the width of the mouth, and half its height when it is wide open
    mouth: tuple[float, float]
    #: from the centre of the head, in radii
    eyes: tuple[float, float]
    skin: Colour
    hair: Colour
    lips: Colour
    iris: Colour

    def scaled(self, factor: float) -> Face:
        """The same face in a frame of another size."""
        width, height = self.mouth
        place = {"x": self.x * factor, "y": self.y * factor, "radius": self.radius * factor}
        return replace(self, **place, mouth=(width * factor, height * factor))


@dataclass(frozen=True, slots=True)
class Speaker:
    """Something before a canvas that follows a sound; nothing does in a still picture."""

    #: [3, H, W] in [-1, 1]; a face is drawn on it already, but for its mouth
    canvas: Tensor
    who: Face | Sprite | None

    @property
    def kind(self) -> str:
        """In words: what follows the sound, and for a shape, what it is seen against."""
        if self.who is None:
            return "still"
        if isinstance(self.who, Face):
            return "face"
        is_plain = bool((self.canvas == self.canvas[:, :1, :1]).all())
        return f"shape before {'one colour' if is_plain else 'a picture'}"

    def draw(self, openings: Tensor) -> Tensor:
        """Frames [3, T, H, W] of openings [T] in [0, 1]."""
        frames = self.canvas[:, None].expand(-1, len(openings), -1, -1)
        if isinstance(self.who, Face):
            return _draw_mouth(frames, self.who, openings)
        return frames if self.who is None else _draw_grown(frames, self.who, openings)

    def moving(self) -> Tensor:
        """Which pixels the sound moves, bool [H, W]."""
        closed, opened = self.draw(torch.tensor([0.0, 1.0])).unbind(1)
        return (opened - closed).abs().amax(dim=0) > MOVES_BY

    def measure(self, frames: Tensor) -> Tensor:
        """How far it is open in frames [3, T, H, W], [T]: the share of the moving pixels that look open.

        Each pixel is placed on the way from its colour when closed to that when open; no more is known of the frame.
        """
        closed, opened = self.draw(torch.tensor([0.0, 1.0])).unbind(1)
        where = self.moving()
        way = (opened - closed)[:, where]  # [3, n]
        seen = (frames - closed[:, None])[:, :, where]  # [3, T, n]
        share = (seen * way[:, None]).sum(dim=0) / way.square().sum(dim=0)
        return share.clamp(0, 1).mean(dim=1)


def cast(numbers: Cast, recipe: Recipe, photos: list[Photo], rng: Random, size: tuple[int, int]) -> Speaker:
    """A speaker for frames of this width and height."""
    canvas = _canvas(numbers, recipe, photos, rng, size)
    kind = rng.choices(list(numbers.kinds), list(numbers.kinds.values()))[0]
    if kind == "still":
        return Speaker(canvas, None)
    if kind == "shape":
        radius = rng.uniform(*numbers.shape_radius)
        room = radius + 2
        place, around = _place(rng, size, room, room), canvas.mean(dim=(1, 2))
        colours = rng.sample(sorted(COLOURS), 4)
        colour = max(colours, key=lambda name: float((_rgb(COLOURS[name]) - around).abs().sum()))  # it must be seen
        return Speaker(canvas, Sprite(rng.choice(SPRITES), colour, radius, *place))
    face = random_face(numbers, rng, size)
    return with_face(canvas, face)


def with_face(canvas: Tensor, face: Face) -> Speaker:
    """A face before a canvas [3, H, W] in [-1, 1]."""
    return Speaker(_draw_head(canvas[:, None], face)[:, 0], face)


def random_face(numbers: Cast, rng: Random, size: tuple[int, int]) -> Face:
    """A face somewhere in the frame, all of it inside."""
    radius, tall = rng.uniform(*numbers.face_radius), rng.uniform(1.0, 1.2)
    x, y = _place(rng, size, radius, radius * tall)
    skin = _natural(rng.random())
    if rng.random() >= numbers.natural:
        skin = COLOURS[rng.choice(sorted(COLOURS.keys() - {"black"}))]
    mouth = radius * rng.uniform(0.4, 0.55), radius * rng.uniform(0.28, 0.36)
    eyes = rng.uniform(0.32, 0.42), rng.uniform(0.15, 0.3)
    hair, iris = (COLOURS[rng.choice(sorted(COLOURS))] for _ in range(2))
    lips = (rng.uniform(150, 220), rng.uniform(20, 90), rng.uniform(30, 90))
    return Face(x, y, radius, tall, mouth, eyes, _dimmed(skin, rng), hair, lips, iris)


def _place(rng: Random, size: tuple[int, int], half_width: float, half_height: float) -> tuple[float, float]:
    """A centre at which so large a thing lies inside the frame."""
    halves = zip(size, (half_width, half_height), strict=True)
    x, y = (rng.uniform(min(half, side / 2), max(side - half, side / 2)) for side, half in halves)
    return x, y


def _canvas(numbers: Cast, recipe: Recipe, photos: list[Photo], rng: Random, size: tuple[int, int]) -> Tensor:
    """[3, H, W] in [-1, 1]: one colour, or what the camera of wan-tiny films."""
    if rng.random() < numbers.plain:
        return _rgb([rng.uniform(0, 255) for _ in range(3)])[:, None, None].expand(3, size[1], size[0])
    canvas = any_scene(recipe, photos, rng, size).canvas
    top, left = ((have - want) // 2 for have, want in zip(canvas.shape[1:], (size[1], size[0]), strict=True))
    return canvas[:, top : top + size[1], left : left + size[0]]


def _draw_head(frames: Tensor, face: Face) -> Tensor:
    """Everything of a face but its mouth."""
    r, height = face.radius, face.radius * face.tall
    frames = _ellipse(frames, face.hair, (face.x, face.y - 0.12 * r), (1.0 * r, 0.95 * height))
    frames = _ellipse(frames, face.skin, (face.x, face.y + 0.06 * r), (0.9 * r, 0.9 * height))
    for side in (-1, 1):
        middle = face.x + side * face.eyes[0] * r, face.y - face.eyes[1] * r
        for colour, size in ((WHITE, 0.19), (face.iris, 0.12), (INSIDE, 0.06)):
            frames = _ellipse(frames, colour, middle, (size * r, size * r))
    return frames


def _draw_mouth(frames: Tensor, face: Face, openings: Tensor) -> Tensor:
    """Frames [3, T, H, W] with the mouth open by `openings` [T]."""
    middle = face.x, face.y + 0.48 * face.radius
    width = face.mouth[0] * (1 - 0.15 * openings)
    height = face.mouth[1] * openings
    rim = 0.05 * face.radius
    frames = _ellipse(frames, face.lips, middle, (width + rim, height + rim))
    return _ellipse(frames, INSIDE, middle, (width, height))


def _draw_grown(frames: Tensor, sprite: Sprite, openings: Tensor) -> Tensor:
    """The shape at half its size when closed, at its full size when open."""
    place = torch.tensor([sprite.x]), torch.tensor([sprite.y])
    grown = [replace(sprite, radius=sprite.radius * (0.5 + 0.5 * float(opening))) for opening in openings]
    drawn = [draw_sprite(frames[:, t : t + 1], one, *place) for t, one in enumerate(grown)]
    return torch.cat(drawn, dim=1)


def _ellipse(
    frames: Tensor, colour: Colour, middle: tuple[float, float], radii: tuple[float | Tensor, float | Tensor]
) -> Tensor:
    """Frames [3, T, H, W] under a filled ellipse; radii in pixels, one for all frames or [T]."""
    across, down = (torch.as_tensor(radius).view(-1, 1, 1) for radius in radii)
    y = torch.arange(frames.shape[2]).view(1, -1, 1) + 0.5 - middle[1]
    x = torch.arange(frames.shape[3]).view(1, 1, -1) + 0.5 - middle[0]
    across, down = across.clamp(min=1e-3), down.clamp(min=1e-3)
    far = torch.sqrt((x / across) ** 2 + (y / down) ** 2)
    slope = torch.sqrt((x / across**2) ** 2 + (y / down**2) ** 2) / far.clamp(min=1e-6)
    inside = ((1 - far) / slope.clamp(min=1e-6) + 0.5).clamp(0, 1)  # distance to the edge, in pixels
    thin = (2 * torch.minimum(across, down)).clamp(max=1)  # what is thinner than a pixel covers a part of it
    return frames + inside * thin * (_rgb(colour)[:, None, None, None] - frames)


def _rgb(colour: Colour | list[float]) -> Tensor:
    """[3] in [-1, 1]."""
    return torch.tensor(colour) / 127.5 - 1


def _natural(light: float) -> Colour:
    """A skin between the darkest at 0 and the lightest at 1."""
    red, green, blue = (light * high + (1 - light) * low for high, low in zip(*SKIN, strict=True))
    return (red, green, blue)


def _dimmed(colour: Colour, rng: Random) -> Colour:
    light = rng.uniform(0.85, 1.0)
    return (colour[0] * light, colour[1] * light, colour[2] * light)
