"""The visible mark in the bottom right corner: white letters with a dark rim, readable on any picture."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

TEXT = "AI generated"
LETTERS_PER_SIDE = 26  # letter height = short side of the picture / this
MARGIN = 0.6  # of the letter height, to both edges
RIM = 0.09  # of the letter height
OPACITY = 0.9
WHITE, BLACK, NEUTRAL = 235.0, 16.0, 128.0  # limited range


class Watermark:
    """The mark for pictures of one size, drawn once; `blend` lays it on frames.

    It is grey, so it has luma and opacity only, and where it covers, chroma goes to neutral.
    """

    def __init__(self, width: int, height: int, text: str = TEXT) -> None:
        opacity, brightness = draw_mark(min(width, height), text)
        mark_height, mark_width = opacity.shape
        inset = round(min(width, height) / LETTERS_PER_SIDE * MARGIN)
        self.left = max(0, (width - mark_width - inset) // 2 * 2)
        self.top = max(0, (height - mark_height - inset) // 2 * 2)
        opacity, brightness = (a[: height - self.top, : width - self.left] for a in (opacity, brightness))
        luma = BLACK + (WHITE - BLACK) * brightness
        chroma_opacity = opacity.reshape(opacity.shape[0] // 2, 2, -1, 2).mean(axis=(1, 3))
        self._layers = tuple(
            (1 - cover, cover * value + 0.5)  # picture's share, mark's share with the half that rounds
            for cover, value in ((opacity, luma), (chroma_opacity, NEUTRAL), (chroma_opacity, NEUTRAL))
        )

    def blend(self, frame: av.VideoFrame) -> None:
        """Lays the mark on a yuv420p frame of the mark's picture size, in place."""
        for index, (keep, add) in enumerate(self._layers):
            scale = 1 if index == 0 else 2
            plane: Any = frame.planes[index]
            rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
            top, left = self.top // scale, self.left // scale
            region = rows[top : top + keep.shape[0], left : left + keep.shape[1]]
            region[:] = region * keep + add


def draw_mark(side: int, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Opacity and brightness of the mark, float32 [h, w] in [0, 1] with even sides, for a short side in px."""
    size = max(8, side / LETTERS_PER_SIDE)
    rim = max(1, round(size * RIM))
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(text, stroke_width=rim)
    canvas = (int(right - left + 2) // 2 * 2, int(bottom - top + 2) // 2 * 2)
    origin = (-left, -top)
    cover, letters = Image.new("L", canvas), Image.new("L", canvas)
    ImageDraw.Draw(cover).text(origin, text, 255, font, stroke_width=rim)
    ImageDraw.Draw(letters).text(origin, text, 255, font)
    opacity = np.asarray(cover, np.float32) / 255 * OPACITY
    return opacity, np.asarray(letters, np.float32) / 255
