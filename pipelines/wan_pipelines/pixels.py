"""Pictures from files: as they are meant to be seen, and cut to a size."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")


def load_image(path: Path) -> Image.Image:
    """The picture in a JPEG, PNG, BMP or WEBP file as RGB in sRGB, 8 bits.

    Turned as its EXIF tag says; colours brought from its ICC profile to sRGB; see-through parts laid on white; 16-bit
    grey scaled down, CMYK and palettes converted. A profile that cannot be used, and the see-through colour of a
    16-bit PNG, count as not there. Raises OSError when the picture cannot be decoded.
    """
    with Image.open(path, formats=FORMATS) as file:
        file.load()
        image = ImageOps.exif_transpose(file)
    profile = image.info.get("icc_profile")
    if image.mode.startswith(("I", "F")):
        image = _from_deep_grey(image)
    if "A" in image.getbands() or "transparency" in image.info:
        return _on_white(_in_srgb(image.convert("RGBA"), profile))
    return _in_srgb(image, profile).convert("RGB")


def cover_crop(image: Image.Image, width: int, height: int) -> torch.Tensor:
    """Scales a picture so that it covers width x height, keeping its shape, and cuts what stands out evenly.

    Returns float32 [3, height, width] in [0, 1]. Lanczos, which reads all pixels when it makes pictures smaller.
    """
    fitted = ImageOps.fit(image.convert("RGB"), (width, height), method=Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 255


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """16-bit grey (modes I and I;16) to 8 bits: Pillow's own conversion would cut at 255."""
    grey = np.asarray(image).astype(np.float64) / 257
    return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Colours as the ICC profile means them; a grey, CMYK or RGB picture becomes RGB, RGBA keeps its alpha."""
    if profile is None:
        return image
    plain = image.convert("RGB") if image.mode in ("P", "1") else image
    mode = "RGBA" if plain.mode == "RGBA" else "RGB"
    try:
        meant = ImageCms.ImageCmsProfile(BytesIO(profile))
        return ImageCms.profileToProfile(plain, meant, ImageCms.createProfile("sRGB"), outputMode=mode) or image
    except (OSError, ImageCms.PyCMSError):  # broken, or made for other channels
        return image


def _on_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
