"""What a picture really is: the part of the probe's child process that decodes images.

All that the worker will do with a picture is tried here first, its colour profile included, so that what breaks a
decoder breaks it in a process that may fail.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from wan_server.sniff import Magic

if TYPE_CHECKING:
    from PIL.Image import Image

    from wan_server.probe import Probe

MAX_IMAGE_PIXELS = 8000 * 8000
ORIENTATION_TAG = 0x0112  # EXIF; 5 to 8 swap width and height


def inspect_image(path: Path, magic: Magic, known: Probe) -> Probe:
    """Facts about the picture, added to what is known. Bad ones give a Probe with `error`."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # `_describe` checks before decoding and can tell the size
    try:
        with Image.open(path, formats=[magic.reader]) as image:
            return _describe(image, known)
    except (OSError, SyntaxError, ValueError, IndexError, TypeError, struct.error) as error:
        return replace(known, kind="unknown", error=f"the image cannot be decoded ({type(error).__name__})")
    except MemoryError:
        return replace(known, kind="unknown", error="the image needs too much memory")


def _describe(image: Image, known: Probe) -> Probe:
    width, height = image.size
    sized = replace(known, width=width, height=height)
    if width * height > MAX_IMAGE_PIXELS:
        return replace(sized, error=f"more than {MAX_IMAGE_PIXELS} pixels")
    # a JPEG with a second picture (MPO, from phones) is not an animation
    if known.format != "jpeg" and getattr(image, "is_animated", False):
        return replace(sized, error="animated")
    image.load()
    _try_profile(image)
    if image.getexif().get(ORIENTATION_TAG) in (5, 6, 7, 8):
        sized = replace(sized, width=height, height=width)
    return replace(sized, has_alpha=_is_see_through(image))


def _try_profile(image: Image) -> None:
    """Converts one pixel by the picture's colour profile. One that cannot be used is ignored by the worker too."""
    from PIL import ImageCms

    if profile := image.info.get("icc_profile"):
        with suppress(OSError, ImageCms.PyCMSError):
            meant = ImageCms.ImageCmsProfile(BytesIO(profile))
            ImageCms.profileToProfile(image.crop((0, 0, 1, 1)), meant, ImageCms.createProfile("sRGB"), outputMode="RGB")


def _is_see_through(image: Image) -> bool:
    if "A" not in image.getbands() and "transparency" not in image.info:
        return False
    alpha = image if "A" in image.getbands() else image.convert("RGBA")
    lowest = alpha.getchannel("A").getextrema()[0]
    return isinstance(lowest, int | float) and lowest < 255
