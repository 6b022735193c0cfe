"""What the embedded checkpoint makes of long videos, seen through HTTP: a clip that goes on, sizes, colours.

A video of more than five seconds is several samples. Their seams must not show.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from PIL import Image
from torch import Tensor

from demonstration import SAMPLES, decoded, rendered
from mp4_facts import examine
from server_process import Server
from tinywan.flow import cosine, mean_flow
from tinywan.measures import SPOKEN, psnr
from tinywan.moves import MOVES, camera_motion, canvas_size, film
from tinywan.photos import Photo
from tinywan.scenes import Scene
from tinywan.studio import write_clip

pytestmark = pytest.mark.slow

CLIP_FRAMES = 48


def moving_clip(picture: str, move: str, path: Path) -> Path:
    """Three seconds of a camera that moves over a sample picture by one pixel in 160 per frame."""
    motion, size = camera_motion(move, pan=4.0, zoom=0.009), (640, 384)
    canvas = canvas_size(motion, CLIP_FRAMES, size)
    with Image.open(SAMPLES / picture) as image:
        photo = Photo(picture, image.convert("RGB"))
    scene = Scene(photo.at_scale(max(canvas[0] / photo.width, canvas[1] / photo.height)), "photo")
    return write_clip(film(scene, motion, CLIP_FRAMES, size, Random(1)).transpose(0, 1).clamp(-1, 1), path)


def sharpness(frame: Tensor) -> float:
    """Mean absolute difference of pixels side by side."""
    return float((frame[..., 1:] - frame[..., :-1]).abs().mean())


def step(frames: Tensor) -> float:
    """Mean absolute difference of neighbours."""
    return float((frames[1:] - frames[:-1]).abs().mean())


def test_a_clip_goes_on_for_ten_seconds(server: Server, tmp_path: Path):
    given = moving_clip("astronaut.jpg", "pan_right", tmp_path / "clip.mp4")
    video = rendered(server, tmp_path, first_clip=given, prompt="the camera pans right", duration=13)
    frames, clip = decoded(video), decoded(given)
    assert len(frames) == 13 * 16
    assert min(psnr(*pair) for pair in zip(frames, clip, strict=False)) > 28
    ways = [mean_flow(frames[start:][:33]) for start in range(CLIP_FRAMES, len(frames) - 32, 32)]
    assert min(cosine(mean_flow(clip), way) for way in ways) >= 0.8
    assert step(frames[CLIP_FRAMES - 1 :][:2]) <= 1.5 * step(clip)


@pytest.mark.parametrize("move", [move for move in MOVES if move != "static"])
def test_a_seam_does_not_show(server: Server, tmp_path: Path, move: str):
    given = moving_clip("cat.jpg", move, tmp_path / "clip.mp4")
    frames = decoded(rendered(server, tmp_path, first_clip=given, prompt=SPOKEN[move], duration=5))
    before, first, second = frames[CLIP_FRAMES - 1 :][:3]
    assert cosine(mean_flow(frames[:CLIP_FRAMES]), mean_flow(frames[CLIP_FRAMES - 1 :])) >= 0.8
    assert step(frames[CLIP_FRAMES - 1 :][:3]) <= 1.5 * step(frames[:CLIP_FRAMES])
    assert (first.mean(dim=(1, 2)) - before.mean(dim=(1, 2))).abs().max() <= 0.01
    assert sharpness(first) == pytest.approx(sharpness(before), rel=0.1)
    assert sharpness(second) == pytest.approx(sharpness(first), rel=0.15)


def test_colours_hold_for_fifteen_seconds(server: Server, tmp_path: Path):
    given = {"first_frame": SAMPLES / "coffee.jpg", "prompt": "static camera"}
    video = rendered(server, tmp_path, duration=15, **given)
    found = examine(video)
    assert ((found.width, found.height), found.frames, found.seconds) == ((1280, 720), 15 * 16, 15)
    means = decoded(video).mean(dim=(2, 3)).unflatten(0, (15, 16)).mean(dim=1)  # of each second, [15, 3]
    assert (means - means[0]).abs().max() <= 0.03


@pytest.mark.parametrize(
    ("shape", "resolution", "seconds", "size"),
    [((640, 640), "1080P", 2, (1440, 1440)), ((360, 640), "1080P", 5, (1080, 1920))],
)
def test_large_sizes(server: Server, tmp_path: Path, shape, resolution, seconds, size):
    with Image.open(SAMPLES / "cat.jpg") as image:
        image.resize(shape).save(tmp_path / "first.png")
    given = {"first_frame": tmp_path / "first.png", "prompt": "zoom out"}
    found = examine(rendered(server, tmp_path, resolution=resolution, duration=seconds, **given))
    assert ((found.width, found.height), found.frames, found.seconds) == (size, 16 * seconds, seconds)
