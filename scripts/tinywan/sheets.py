"""Contact sheets: one video per row, its prompt on the left, time to the right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tinywan.studio import HEIGHT, WIDTH, Shot, to_image

COLUMNS = 6
LABEL = 150
GAP = 2


@dataclass(frozen=True, slots=True)
class Row:
    """One video and what was asked for."""

    label: str
    shot: Shot


def draw_sheet(rows: list[Row], path: Path) -> None:
    """A PNG with COLUMNS frames of each video, the first and the last among them."""
    sheet = Image.new("RGB", (LABEL + COLUMNS * (WIDTH + GAP), len(rows) * (HEIGHT + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    for line, row in enumerate(rows):
        top = line * (HEIGHT + GAP)
        draw.multiline_text((4, top + 4), row.label, fill="black", font=font)
        last = len(row.shot.frames) - 1
        for column in range(COLUMNS):
            frame = row.shot.frames[round(column * last / (COLUMNS - 1))]
            sheet.paste(to_image(frame * 2 - 1), (LABEL + column * (WIDTH + GAP), top))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(192).save(path, optimize=True)
