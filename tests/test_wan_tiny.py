"""The embedded checkpoint at its own size on pictures and phrases it was never trained on: the held-out table in small.

`scripts/eval_tiny.py` measures the same on far more clips; the bounds here leave room for the smaller number.
"""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from server_process import ROOT
from tinywan import measures
from tinywan.autoencoder import reconstruction_psnr
from tinywan.captions import load_commands
from tinywan.measures import Bench
from tinywan.photos import Photo, stills
from tinywan.recipe import load_recipe
from tinywan.studio import Studio

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench() -> Bench:
    names = ("astronaut.jpg", "cat.jpg", "coffee.jpg", "rocket.jpg")
    photos = [Photo(name, Image.open(ROOT / "configs/samples" / name).convert("RGB")) for name in names]
    training = ROOT / "configs" / "training"
    recipe, commands = load_recipe(training / "wan-tiny.toml"), load_commands(training / "commands.toml")
    return Bench(Studio.open(ROOT / "configs"), recipe, commands, photos)


def test_the_autoencoder_keeps_photographs(bench: Bench):
    vae = bench.studio.renderer.checkpoint.vae
    assert reconstruction_psnr(vae, stills(bench.photos)).mean() > 26


def test_commands_in_english_and_the_first_frame(bench: Bench):
    hits, fidelity = measures.obeyed(bench, 7, "en")
    assert hits > 0.8
    assert fidelity is not None
    assert fidelity > 23.5


def test_commands_in_chinese(bench: Bench):
    hits, _ = measures.obeyed(bench, 7, "zh")
    assert hits > 0.8


def test_commands_without_a_picture(bench: Bench):
    hits, _ = measures.obeyed(bench, 7, "en", with_image=False)
    assert hits > 0.7


def test_first_and_last_frame(bench: Bench):
    first, last = measures.both_ends(bench, 3)
    assert first > 24
    assert last > 21


def test_clips_go_on(bench: Bench):
    agreement, jump = measures.continued(bench, 3)
    assert agreement > 0.75
    assert jump < 1.6


def test_a_negative_prompt_pushes_the_video_away_from_it(bench: Bench):
    plain, pushed = measures.pushed_away(bench, 2)
    assert pushed < plain - 0.05


def test_a_seed_means_the_same_bytes(bench: Bench):
    same, difference = measures.same_seed(bench)
    assert same
    assert difference > 0.002


def test_the_checkpoint_is_small(bench: Bench):
    files = [path for path in (ROOT / "configs/tiny").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 15e6
    parts = bench.studio.renderer.checkpoint
    assert all(torch.isfinite(weight).all() for weight in parts.experts.high.parameters())
