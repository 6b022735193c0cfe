"""What the embedded checkpoint must be able to do, as numbers on pictures and phrases it was never trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tinywan.captions import Commands, Content, Language
from tinywan.flow import cosine, mean_flow
from tinywan.moves import MOVES, Motion, camera_motion, canvas_size, film
from tinywan.photos import Photo, stills
from tinywan.recipe import Recipe
from tinywan.scenes import Scene
from tinywan.studio import HEIGHT, WIDTH, Order, Shot, Studio

SPOKEN = {
    "pan_left": "the camera pans left",
    "pan_right": "the camera pans right",
    "pan_up": "the camera tilts up",
    "pan_down": "the camera tilts down",
    "zoom_in": "the camera zooms in",
    "zoom_out": "the camera zooms out",
    "static": "static camera",
}
#: frames of the clip that is continued: 3 s
CLIP_FRAMES = 48


@dataclass(frozen=True, slots=True)
class Bench:
    """Everything that a measure needs."""

    studio: Studio
    recipe: Recipe
    commands: Commands
    #: held out
    photos: list[Photo]


def psnr(one: Tensor, other: Tensor) -> float:
    """In dB, of values in [0, 1]."""
    return float(-10 * torch.log10((one - other).pow(2).mean()))


def first_frame_psnr(shot: Shot, order: Order) -> float:
    assert order.first is not None
    return psnr(shot.frames[0], order.first / 2 + 0.5)


def commanded(bench: Bench, count: int, language: Language, *, with_image: bool = True) -> Iterator[tuple[str, Order]]:
    """Orders for each of the seven moves in turn, with the move's name."""
    pictures = stills(bench.photos, WIDTH, HEIGHT)
    rng = bench.recipe.rng("commanded", language, with_image)
    for number in range(count):
        move = MOVES[number % len(MOVES)]
        content = Content(move)
        prompt = bench.commands.caption(content, rng, language=language, held_out=True)
        first = pictures[rng.randrange(len(pictures))] if with_image else None
        yield move, Order(prompt, seed=number, first=first)


def obeyed(bench: Bench, count: int, language: Language, *, with_image: bool = True) -> tuple[float, float | None]:
    """Share of clips whose mean flow is that of the commanded move, and the mean PSNR of frame 0 against its input."""
    hits, fidelity = [], []
    for move, order in commanded(bench, count, language, with_image=with_image):
        shot = bench.studio.shoot(order)
        hits.append(mean_flow(shot.frames).move == move)
        if order.first is not None:
            fidelity.append(first_frame_psnr(shot, order))
    return sum(hits) / len(hits), (sum(fidelity) / len(fidelity) if fidelity else None)


def both_ends(bench: Bench, count: int) -> tuple[float, float]:
    """Mean PSNR of the first and of the last sampled frame when both are given; the camera moved between them."""
    first, last = [], []
    for number in range(count):
        rng = bench.recipe.rng("both ends", number)
        move = rng.choice(MOVES)
        clip = _filmed(bench, number, _camera(bench, move), 33)
        order = Order(
            bench.commands.caption(Content(move), rng, held_out=True), seed=number, first=clip[0], last=clip[-1]
        )
        frames = bench.studio.shoot(order).frames
        first.append(psnr(frames[0], clip[0] / 2 + 0.5))
        last.append(psnr(frames[32], clip[-1] / 2 + 0.5))
    return sum(first) / count, sum(last) / count


def continued(bench: Bench, count: int) -> tuple[float, float]:
    """Clips that move on: mean cosine of the flow before and after the seam, and the median jump at the seam.

    The jump is the mean difference of the two frames at the seam, as the model shows them, against the mean
    difference of neighbours within the clip.
    """
    cosines, jumps = [], []
    for number, _, clip in _clips(bench, count):
        frames = bench.studio.shoot(Order("", seconds=5, seed=number, clip=clip)).frames
        prefix = bench.studio.renderer.profile.prefix_frames
        before, after = mean_flow(clip / 2 + 0.5), mean_flow(frames[prefix - 1 :][:33])
        cosines.append(cosine(before, after))
        jumps.append(_step(frames[prefix - 1 :][:2]) / _step(frames[:prefix]))
    return sum(cosines) / count, float(torch.tensor(jumps).median())


def kept_going(bench: Bench, count: int, seconds: int = 10) -> Iterator[tuple[str, float]]:
    """Each move, and the lowest cosine of the flow of the clip and of two seconds among those that go on from it.

    The prompt asks for the move that the clip has.
    """
    span = 2 * bench.studio.renderer.profile.fps
    behind = bench.studio.renderer.profile.prefix_frames - 1
    for number, move, clip in _clips(bench, count):
        order = Order(SPOKEN[move], seconds=seconds + 3, seed=number, clip=clip)
        frames = bench.studio.shoot(order).frames
        before = mean_flow(clip / 2 + 0.5)
        starts = range(behind, len(frames) - span, span)
        yield move, min(cosine(before, mean_flow(frames[start:][: span + 1])) for start in starts)


def _clips(bench: Bench, count: int) -> Iterator[tuple[int, str, Tensor]]:
    """Clips of 3 s whose camera moves in each way in turn, with their numbers and moves."""
    for number in range(count):
        move = [move for move in MOVES if move != "static"][number % 6]
        yield number, move, _filmed(bench, number, _camera(bench, move), CLIP_FRAMES)


def pushed_away(bench: Bench, count: int) -> tuple[float, float]:
    """How a negative prompt bends the video: mean flow along "pan left", in pixels per frame, without and with
    "the camera pans left" as negative prompt. The prompt itself commands nothing."""
    rng = bench.recipe.rng("negative")
    plain, pushed = [], []
    for number, picture in enumerate(_cycle(stills(bench.photos, WIDTH, HEIGHT), count)):
        prompt = bench.commands.caption(Content(None), rng, language="en")
        order = Order(prompt, seed=number, first=picture)
        plain.append(mean_flow(bench.studio.shoot(order).frames).dx)
        negative = replace(order, negative="the camera pans left")
        pushed.append(mean_flow(bench.studio.shoot(negative).frames).dx)
    return sum(plain) / count, sum(pushed) / count


def same_seed(bench: Bench) -> tuple[bool, float]:
    """Whether one seed gives the same bytes of latents twice, and the mean difference of frames with another seed."""
    order = Order("the camera pans left", seed=1, first=stills(bench.photos[:1], WIDTH, HEIGHT)[0])
    one, again, other = (bench.studio.shoot(o) for o in (order, order, replace(order, seed=2)))
    return torch.equal(one.latents, again.latents), float((one.frames - other.frames).abs().mean())


def moves_shown(bench: Bench) -> Iterator[Order]:
    """One order per move, for a contact sheet."""
    pictures = stills(bench.photos, WIDTH, HEIGHT)
    for number, move in enumerate(MOVES):
        yield Order(SPOKEN[move], seed=number, seconds=5, first=pictures[number])


def inputs_shown(bench: Bench) -> Iterator[tuple[str, Shot]]:
    """A label and a result for the other kinds of input."""
    clip = _filmed(bench, 2, _camera(bench, "pan_right"), 33)
    ends = Order("the camera pans right", first=clip[0], last=clip[-1])
    yield "first and last frame", bench.studio.shoot(ends)
    yield "goes on from a clip\n(its last 17 frames first)", bench.studio.shoot(Order("", seconds=5, clip=clip))
    for prompt in ("red and blue checks, the camera zooms in", "a yellow ball moves right"):
        yield f"no picture:\n{prompt}", bench.studio.shoot(Order(prompt, seed=1))


def _camera(bench: Bench, move: str) -> Motion:
    data = bench.recipe.data
    return camera_motion(move, data.pan["normal"], data.zoom["normal"])


def _filmed(bench: Bench, number: int, motion: Motion, frames: int) -> Tensor:
    """[T, 3, H, W] in [-1, 1]: a camera over a held-out photograph."""
    photo = bench.photos[number % len(bench.photos)]
    size = canvas_size(motion, frames, (WIDTH, HEIGHT))
    canvas = photo.at_scale(max(size[0] / photo.width, size[1] / photo.height))
    rng = bench.recipe.rng("filmed", number)
    return film(Scene(canvas, "photo"), motion, frames, (WIDTH, HEIGHT), rng).transpose(0, 1).clamp(-1, 1)


def _step(frames: Tensor) -> float:
    """Mean absolute difference of neighbours."""
    return float((frames[1:] - frames[:-1]).abs().mean())


def _cycle(pictures: Tensor, count: int) -> Iterator[Tensor]:
    return (pictures[number % len(pictures)] for number in range(count))
