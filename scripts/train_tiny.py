"""Trains the embedded checkpoint from nothing: photographs and drawings in, `configs/tiny` out.

Three stages, autoencoder, text encoder, denoiser; every number stands in the recipe. Run it again to go on where
it stopped: each stage keeps its state in out/tiny. What is there so far is written as a checkpoint each time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from tinywan.autoencoder import reconstruction_psnr, train_vae, with_statistics
from tinywan.banks import Parts
from tinywan.captions import LANGUAGES, Commands, load_commands
from tinywan.checkpoint import write_checkpoint
from tinywan.denoiser import train_denoiser
from tinywan.language import train_text, train_tokenizer, understanding
from tinywan.photos import Photo, load_photos, stills
from tinywan.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[1]
TRAINING = ROOT / "configs" / "training"


@dataclass(frozen=True, slots=True)
class Run:
    """One call of this script."""

    recipe: Recipe
    commands: Commands
    train: list[Photo]
    held_out: list[Photo]
    work: Path
    #: of `time.monotonic()`
    deadline: float
    device: torch.device


def main(
    minutes: Annotated[float, typer.Option(help="stop after this time; the next run goes on")] = 170,
    recipe: Annotated[Path, typer.Option(help="the numbers")] = TRAINING / "wan-tiny.toml",
    work: Annotated[Path, typer.Option(help="downloads and training state")] = ROOT / "out" / "tiny",
    out: Annotated[Path, typer.Option(help="the checkpoint")] = ROOT / "configs" / "tiny",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
) -> None:
    """Train stage after stage and write the checkpoint."""
    deadline = time.monotonic() + 60 * minutes
    numbers = load_recipe(recipe)
    work.mkdir(parents=True, exist_ok=True)
    photos = load_photos(numbers.photos, work / "packages")
    run = Run(numbers, load_commands(TRAINING / "commands.toml"), *photos, work, deadline, torch.device(device))
    parts, autoencoder_done = frozen_parts(run)
    denoiser, done = train_denoiser(
        numbers, run.train, parts, work / "denoiser.pt", deadline if autoencoder_done else 0
    )
    size = write_checkpoint(
        out,
        {
            "tokenizer": parts.tokenizer,
            "text_encoder": parts.encoder,
            "vae": parts.vae,
            "transformer": denoiser,
        },
        numbers.denoiser.sample_shift,
    )
    print(f"{out}: {size / 1e6:.1f} MB; {'done' if done else 'stopped at the deadline, run again to go on'}")


def frozen_parts(run: Run) -> tuple[Parts, bool]:
    """Autoencoder and text encoder, trained as far as the time allows, and whether they are finished."""
    vae, vae_done = train_vae(run.recipe, run.train, run.work / "vae.pt", run.deadline, run.device)
    vae = with_statistics(vae, run.recipe, run.train)
    print(f"autoencoder, held out: {reconstruction_psnr(vae, stills(run.held_out)).mean():.2f} dB")
    tokenizer = train_tokenizer(run.commands, run.recipe)
    reader, text_done = train_text(run.recipe, run.commands, tokenizer, run.work / "text.pt", run.deadline, run.device)
    for language in LANGUAGES:
        share = understanding(reader, run.commands, tokenizer, run.recipe.rng("held out", language), language)
        print(f"commands in held-out phrases, {language}: {share:.1%}")
    return Parts(vae, tokenizer, reader.encoder.eval(), run.commands), vae_done and text_done


if __name__ == "__main__":
    typer.run(main)
