"""The held-out table of the embedded checkpoint: pictures and phrases that its training never saw, as Markdown.

Takes about half an hour on two idle cores; --share 0.1 gives a first idea in a tenth of the time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from tinywan import measures
from tinywan.autoencoder import reconstruction_psnr
from tinywan.captions import LANGUAGES, load_commands
from tinywan.measures import Bench
from tinywan.photos import load_photos, stills
from tinywan.recipe import load_recipe
from tinywan.sheets import Row, draw_sheet
from tinywan.studio import Studio

ROOT = Path(__file__).resolve().parents[1]
TRAINING = ROOT / "configs" / "training"
Line = tuple[str, str, str, str]


def main(
    share: Annotated[float, typer.Option(help="of the clips that are rendered")] = 1.0,
    configs: Annotated[Path, typer.Option(help="holds models/tiny.toml and tiny/")] = ROOT / "configs",
    work: Annotated[Path, typer.Option(help="downloads")] = ROOT / "out" / "tiny",
    sheets: Annotated[Path | None, typer.Option(help="only draw contact sheets, into this folder")] = None,
) -> None:
    """Print the table row by row."""
    recipe = load_recipe(TRAINING / "wan-tiny.toml")
    _, held_out = load_photos(recipe.photos, work / "packages")
    bench = Bench(Studio.open(configs), recipe, load_commands(TRAINING / "commands.toml"), held_out)
    if sheets:
        shown = [Row(order.prompt, bench.studio.shoot(order)) for order in measures.moves_shown(bench)]
        draw_sheet(shown, sheets / "moves.png")
        draw_sheet([Row(*pair) for pair in measures.inputs_shown(bench)], sheets / "inputs.png")
        return
    print("| path | measure | target | found |\n|---|---|---|---|")
    began = time.monotonic()
    for row in rows(bench, share):
        print(f"| {' | '.join(row)} |", flush=True)
    print(f"\n{time.monotonic() - began:.0f} s")


def rows(bench: Bench, share: float) -> Iterator[Line]:
    """The table, measured while it is read."""

    def some(count: int) -> int:
        return max(7, round(count * share))

    pictures = stills(bench.photos)
    quality = reconstruction_psnr(bench.studio.renderer.checkpoint.vae, pictures)
    yield (
        "VAE",
        f"PSNR, {len(pictures)} photographs",
        ">= 26 dB",
        f"{quality.mean():.1f} dB ({quality.min():.1f} to {quality.max():.1f})",
    )
    for language in LANGUAGES:
        target = {"en": "90", "zh": "85"}[language]
        count = some(140)
        hits, fidelity = measures.obeyed(bench, count, language)
        yield f"prompt, {language}", f"flow agrees with the move, {count} clips", f">= {target} %", f"{hits:.1%}"
        yield "first_frame", f"PSNR of frame 0, the same {count} clips", ">= 24 dB", f"{fidelity:.1f} dB"
    count = some(70)
    hits, _ = measures.obeyed(bench, count, "en", with_image=False)
    yield "text only", f"flow agrees with the move, {count} clips", ">= 80 %", f"{hits:.1%}"
    count = some(26)
    first, last = measures.both_ends(bench, count)
    yield "last_frame", f"PSNR of the last frame, {count} clips", ">= 22 dB", f"{last:.1f} dB"
    yield "first_frame + last_frame", "PSNR of frame 0, the same clips", ">= 24 dB", f"{first:.1f} dB"
    count = some(24)
    agreement, jump = measures.continued(bench, count)
    yield "first_clip", f"cosine of flow before and after the seam, {count} clips", ">= 0.8", f"{agreement:.2f}"
    yield "first_clip", "jump at the seam / frame difference of the clip, median", "<= 1.5", f"{jump:.2f}"
    lowest = dict[str, float]()
    for move, agreement in measures.kept_going(bench, count := some(12)):
        lowest[move] = min(agreement, lowest.get(move, 1.0))
    found = ", ".join(f"{move} {agreement:.2f}" for move, agreement in lowest.items())
    yield "first_clip", f"the same over 10 s with the move in the prompt, worst 2 s of {count}", ">= 0.8", found
    count = some(26)
    plain, pushed = measures.pushed_away(bench, count)
    yield (
        "negative_prompt",
        f'flow to the right, px per frame, {count} clips: without, and with negative "the camera pans left"',
        "falls",
        f"{plain:+.2f}, {pushed:+.2f}",
    )
    same, difference = measures.same_seed(bench)
    yield (
        "seed",
        "same seed, same bytes of latents; other seed, mean difference",
        "yes; > 0",
        f"{same}; {difference:.3f}",
    )


if __name__ == "__main__":
    typer.run(main)
