"""Pictures from files: as they are meant to be seen, and cut to a size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")


def load_image(path: Path) -> Image.Image:
    """The picture in a JPEG, PNG, BMP or WEBP file as RGB, 8 bits.

    Turned as its EXIF tag says; see-through parts laid on white; 16-bit grey scaled down, CMYK and palettes
    converted. Raises OSError when it cannot be decoded.
    """
    with Image.open(path, formats=FORMATS) as file:
        file.load()
        image = ImageOps.exif_transpose(file)
    if image.mode.startswith(("I", "F")):
        return _from_deep_grey(image)
    if "A" in image.getbands() or "transparency" in image.info:
        return _on_white(image.convert("RGBA"))
    return image.convert("RGB")


def cover_crop(image: Image.Image, width: int, height: int) -> torch.Tensor:
    """Scales a picture so that it covers width x height, keeping its shape, and cuts what stands out evenly.

    Returns float32 [3, height, width] in [0, 1]. Lanczos, which reads all pixels when it makes pictures smaller.
    """
    fitted = ImageOps.fit(image.convert("RGB"), (width, height), method=Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 255


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """16-bit grey (modes I and I;16) to RGB: Pillow's own conversion would cut at 255."""
    grey = np.asarray(image).astype(np.float64) / 257
    return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)).convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
