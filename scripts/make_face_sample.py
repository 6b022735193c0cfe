"""Draws `configs/samples/face.png`: a face that nobody has, with its mouth closed, for a sound to open it."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from tinywan.speakers import Face, Speaker, with_face
from tinywan.studio import to_image

OUT = Path(__file__).resolve().parents[1] / "configs" / "samples" / "face.png"
HEIGHT = 360
#: in a frame of 114x64, which is what the embedded checkpoint shows of 16:9
SEEN = (114, 64)
FACE = Face(
    x=57,
    y=33,
    radius=24,
    tall=1.1,
    mouth=(11.5, 7.8),
    eyes=(0.38, 0.22),
    skin=(233, 190, 152),
    hair=(110, 60, 30),
    lips=(190, 60, 70),
    iris=(50, 90, 170),
)
#: colours of the wall behind, at the top and at the bottom
WALL = ((90, 140, 150), (40, 80, 105))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, nargs="?", default=OUT)
    path = parser.parse_args().path
    to_image(speaker(HEIGHT).draw(torch.zeros(1))[:, 0]).save(path)
    print(f"{path}: {path.stat().st_size} bytes")


def speaker(height: int) -> Speaker:
    """The face in a 16:9 frame of this height."""
    factor = height / SEEN[1]
    return with_face(_wall(round(height * 16 / 9), height), FACE.scaled(factor))


def _wall(width: int, height: int) -> Tensor:
    top, bottom = (torch.tensor(colour) / 127.5 - 1 for colour in WALL)
    down = torch.linspace(0, 1, height)[None, :, None]
    return (top[:, None, None] * (1 - down) + bottom[:, None, None] * down).expand(3, height, width)


if __name__ == "__main__":
    main()
