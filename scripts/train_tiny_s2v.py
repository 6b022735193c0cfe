"""Trains the embedded checkpoint's audio-driven sister from nothing: drawings and sounds in, `configs/tiny-s2v` out.

Two stages, speech model and transformer; autoencoder and text encoder are those of `configs/tiny`. Every number stands
in the recipe. Run it again to go on where it stopped: each stage keeps its state in out/tiny-s2v.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from tinywan.checkpoint import write_sister
from tinywan.listener import train_listener
from tinywan.photos import load_photos
from tinywan.recipe import load_recipe
from tinywan.s2v_recipe import Talking, load_sister_recipe
from tinywan.talker import Set, train_talker
from wan_pipelines.load import Checkpoint, load_checkpoint
from wan_pipelines.profile import load_profile
from wan_pipelines.s2v.speech import SpeechEncoder
from wan_pipelines.text import encode_text

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
TRAINING = CONFIGS / "training"


def main(
    minutes: Annotated[float, typer.Option(help="stop after this time; the next run goes on")] = 40,
    recipe: Annotated[Path, typer.Option(help="the numbers")] = TRAINING / "wan-tiny-s2v.toml",
    sibling: Annotated[Path, typer.Option(help="wan-tiny, whose other parts are used")] = CONFIGS / "tiny",
    work: Annotated[Path, typer.Option(help="training state")] = ROOT / "out" / "tiny-s2v",
    packages: Annotated[Path, typer.Option(help="downloads")] = ROOT / "out" / "tiny" / "packages",
    out: Annotated[Path, typer.Option(help="the checkpoint")] = CONFIGS / "tiny-s2v",
) -> None:
    """Train both stages and write the checkpoint."""
    deadline = time.monotonic() + 60 * minutes
    numbers, scenes = load_sister_recipe(recipe), load_recipe(TRAINING / "wan-tiny.toml")
    work.mkdir(parents=True, exist_ok=True)
    photos, _ = load_photos(scenes.photos, packages)
    parts = load_checkpoint(load_profile("tiny", CONFIGS), sibling, torch.device("cpu"), None)
    ears, ears_done = train_listener(numbers, work / "listener.pt", deadline)
    if not ears_done:
        print("stopped at the deadline, run again to go on")
        return
    # what is heard in training is what the weights on disk hear
    ears = copy.deepcopy(ears).half().float()
    stage = Set(numbers, scenes, photos, parts.vae, SpeechEncoder.of(ears), phrases(parts, numbers.talking))
    transformer, done = train_talker(stage, work / "talker.pt", deadline)
    written = {"audio_encoder": ears, "transformer": transformer}
    size = write_sister(out, sibling, written, numbers.talking.sample_shift)
    print(f"{out}: {size / 1e6:.1f} MB; {'done' if done else 'stopped at the deadline, run again to go on'}")


@torch.inference_mode()
def phrases(parts: Checkpoint, shape: Talking) -> torch.Tensor:
    """States of the phrases and of no words [phrases + 1, text_len, D]."""
    length = load_profile("tiny", CONFIGS).text_len
    texts = (*shape.phrases, "")
    return torch.cat([encode_text(parts.tokenizer, parts.text_encoder, text, length).states for text in texts]).clone()


if __name__ == "__main__":
    typer.run(main)
