"""The held-out table of the audio-driven sister: speakers and sounds that its training never had, as Markdown.

Takes about five minutes on two idle cores; --share 0.2 gives a first idea in a fifth of the time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image

from tinywan import lipsync
from tinywan.lipsync import Theatre, Troupe
from tinywan.photos import load_photos
from tinywan.recipe import load_recipe
from tinywan.s2v_recipe import load_sister_recipe

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
TRAINING = CONFIGS / "training"
Line = tuple[str, str, str]


def main(
    share: Annotated[float, typer.Option(help="of the clips that are rendered")] = 1.0,
    configs: Annotated[Path, typer.Option(help="holds models/tiny-s2v.toml and tiny-s2v/")] = CONFIGS,
    packages: Annotated[Path, typer.Option(help="downloads")] = ROOT / "out" / "tiny" / "packages",
    sheet: Annotated[Path | None, typer.Option(help="only draw a contact sheet, into this file")] = None,
) -> None:
    """Print the table row by row."""
    scenes = load_recipe(TRAINING / "wan-tiny.toml")
    _, held_out = load_photos(scenes.photos, packages)
    troupe = Troupe(load_sister_recipe(TRAINING / "wan-tiny-s2v.toml"), scenes, held_out)
    theatre = Theatre.open(configs)
    if sheet:
        draw_sheet(theatre, troupe, sheet)
        return
    print("| measure | target | found |\n|---|---|---|")
    began = time.monotonic()
    for row in rows(theatre, troupe, share):
        print(f"| {' | '.join(row)} |", flush=True)
    print(f"\n{time.monotonic() - began:.0f} s")


def rows(theatre: Theatre, troupe: Troupe, share: float) -> Iterator[Line]:
    """The table, measured while it is read."""

    def some(count: int) -> int:
        return max(4, round(count * share))

    played = [theatre.play(troupe.act(number)) for number in range(some(40))]
    title = f"r of opening and loudness, {len(played)} clips of 3 s: median (range)"
    yield title, ">= 0.70", middle([one.follows for one in played])
    for kind in sorted({one.act.speaker.kind for one in played}):
        found = [one.follows for one in played if one.act.speaker.kind == kind]
        yield f"of these, {kind}: {len(found)}", "", middle(found)
    quiet_s = troupe.sister.voice.pause[1]
    others = lipsync.strangers(played, quiet_s)
    title = f"the same with the sound of another clip, behind the first {quiet_s} s: mean (range)"
    yield title, "about 0", f"{fmean(others):.2f} ({min(others):.2f} to {max(others):.2f})"
    lags = lipsync.delayed(theatre, played[: some(16)])
    exact = sum(abs(found - 8) <= 1 for found in lags)
    shifts = f"{float(np.median(lags)):.0f} frames; {exact} of {len(lags)} within one"
    yield f"sound half a second later, {len(lags)} clips: how much later it moves", "8 frames", shifts
    kept = [one.held for one in played[: some(16)]]
    yield f"PSNR of what does not move, {len(kept)} clips", ">= 20 dB", f"{np.median(kept):.1f} dB"
    long = [theatre.play(troupe.act(100 + number, 15)) for number in range(some(4))]
    yield f"r over three chained clips, {len(long)} videos of 15 s", ">= 0.70", middle([one.follows for one in long])
    drift = max(one.drift() for one in long)
    yield "mean colour of what does not move in them: how far it leaves that of the first 5 s", "<= 3 %", f"{drift:.1%}"


def middle(values: list[float]) -> str:
    """Median, and the range."""
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def draw_sheet(theatre: Theatre, troupe: Troupe, path: Path) -> None:
    """Speakers from above, every third frame of a clip from left to right."""
    strips = []
    for number in range(0, 20, 2):
        frames = theatre.play(troupe.act(number, 2)).frames
        strips.append(torch.cat(list(frames[:, ::3].unbind(1)), dim=2))
    pixels = ((torch.cat(strips, dim=1) / 2 + 0.5) * 255).round().byte()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)


if __name__ == "__main__":
    typer.run(main)
